// Streaming: the pieces and the rest, row by row, as the goldens have them.
#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include "support/golden_rows.h"
#include "text/tokenizer_files.h"
#include "text/tokenizer_json.h"

namespace qw {
namespace {

using nlohmann::json;

void check_streaming(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& path) {
  for (const json& row : test::read_rows(path)) {
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    for (const bool skip : {false, true}) {
      const auto field = [&](const std::string& name) -> const json& {
        const bool differs = skip && row.contains(name + "_skip_special");
        return row[differs ? name + "_skip_special" : name];
      };
      Detokenizer detokenizer(tokenizer, skip);
      std::vector<std::string> pieces;
      std::string all;
      for (const int32_t id : ids) {
        pieces.push_back(detokenizer.push(id));
        all += pieces.back();
      }
      const std::string rest = detokenizer.flush();
      EXPECT_EQ(pieces, field("pieces").get<std::vector<std::string>>()) << row;
      EXPECT_EQ(rest, field("flush").get<std::string>()) << row;
      EXPECT_EQ(all + rest, tokenizer->decode(ids, skip)) << row;
      EXPECT_EQ(detokenizer.flush(), "");
    }
  }
}

TEST(Detokenizer, Tiny) {
  check_streaming(load_tokenizer_directory(test::project_golden("tokenizer/tiny")),
                  test::project_golden("tokenizer/tiny/streaming.jsonl"));
}

TEST(Detokenizer, RealVocabulary) {
  const std::string directory = test::shared_file("tokenizer/hf");
  if (directory.empty()) GTEST_SKIP() << "needs QIANWEN_SHARED/tokenizer";
  check_streaming(load_tokenizer_directory(directory),
                  test::shared_file("golden/tokenizer/streaming.jsonl"));
}

TEST(Detokenizer, DropsTheFirstSpaceOfSentencePiece) {
  const json golden = test::read_json_file(test::project_golden("tokenizer/sentencepiece.json"));
  const auto tokenizer =
      std::make_shared<const Tokenizer>(read_tokenizer_json(golden["tokenizer"].dump(), "golden"));
  for (const json& row : golden["rows"]) {
    Detokenizer detokenizer(tokenizer, true);
    std::string text;
    for (const int32_t id : row["ids"])
      text += detokenizer.push(id);
    EXPECT_EQ(text + detokenizer.flush(), row["decoded_skip_special"]) << row;
  }
}

}  // namespace
}  // namespace qw
