// Template and tokenizer together: the ids of rendered conversations, as Transformers gives them.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "support/golden.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"

namespace qw {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// Rendered texts by id.
std::map<std::string, std::string> rendered() {
  std::map<std::string, std::string> texts;
  std::ifstream in(*test::find_golden("chat_template/renders.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const json row = json::parse(line);
    if (row.contains("expected")) texts[row["id"]] = row["expected"];
  }
  return texts;
}

void compare(const Tokenizer& tokenizer, const char* field) {
  const auto texts = rendered();
  std::ifstream in(*test::find_golden("chat_template/ids.jsonl"));
  size_t rows = 0;
  for (std::string line; std::getline(in, line); ++rows) {
    const json row = json::parse(line);
    ASSERT_TRUE(texts.count(row["id"])) << row["id"];
    EXPECT_EQ(json(tokenizer.encode(texts.at(row["id"]))), row[field]) << row["id"];
  }
  EXPECT_GE(rows, 50u);
}

TEST(GoldenChatIds, TinyVocabulary) {
  compare(*load_tokenizer_directory(*test::find_golden("tokenizer/tiny")), "tiny_ids");
}

TEST(GoldenChatIds, RealVocabulary) {
  const auto marker = test::find_golden("../tokenizer/hf/tokenizer.json");
  if (!marker) GTEST_SKIP() << "needs the real vocabulary (QIANWEN_SHARED)";
  compare(*load_tokenizer_directory(marker->substr(0, marker->rfind('/'))), "ids");
}

}  // namespace
}  // namespace qw
