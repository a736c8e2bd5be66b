// The tokenizer against published ids: every golden row, for every form of the vocabulary.
#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "support/golden_rows.h"
#include "text/tokenizer_files.h"
#include "text/tokenizer_json.h"

namespace qw {
namespace {

using nlohmann::json;
using test::project_golden;
using test::read_rows;
using test::shared_file;
using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> tiny() {
  static const auto tokenizer = load_tokenizer_directory(project_golden("tokenizer/tiny"));
  return tokenizer;
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

Ids encode_plain(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.encode(text, {.parse_special = false});
}

void check_strings(const Tokenizer& tokenizer, const std::string& path, size_t n_expected) {
  const auto rows = read_rows(path);
  EXPECT_EQ(rows.size(), n_expected);
  for (const json& row : rows) {
    const auto text = row["text"].get<std::string>();
    const auto ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << row;
    EXPECT_EQ(encode_plain(tokenizer, text), row.value("ids_plain", ids)) << row;
  }
}

void check_decode(const Tokenizer& tokenizer, const std::string& path) {
  for (const json& row : read_rows(path)) {
    const auto ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.decode(ids), row["text"]) << row;
    EXPECT_EQ(tokenizer.decode(ids, true), row["text_skip_special"]) << row;
  }
}

void check_invalid_utf8(const Tokenizer& tokenizer, const std::string& path) {
  for (const json& row : read_rows(path)) {
    const std::string bytes = from_hex(row["hex"]);
    EXPECT_EQ(tokenizer.encode(bytes, {.invalid_utf8 = InvalidUtf8::kReplace}),
              row["ids"].get<Ids>())
        << row;
    if (row["valid"].get<bool>()) {
      EXPECT_EQ(tokenizer.encode(bytes), row["ids"].get<Ids>()) << row;
      continue;
    }
    try {
      tokenizer.encode(bytes);
      ADD_FAILURE() << "invalid UTF-8 was taken: " << row;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_THAT(error.message(),
                  testing::EndsWith(fmt::format("at offset {}", row["error_start"].get<int>())));
    }
  }
}

TEST(TokenizerTiny, Strings) {
  check_strings(*tiny(), project_golden("tokenizer/tiny/strings.jsonl"), 471);
}
TEST(TokenizerTiny, Decode) {
  check_decode(*tiny(), project_golden("tokenizer/tiny/decode.jsonl"));
}
TEST(TokenizerTiny, InvalidUtf8) {
  check_invalid_utf8(*tiny(), project_golden("tokenizer/tiny/invalid_utf8.jsonl"));
}

TEST(TokenizerTiny, MergesAsArrays) {
  const std::string path = project_golden("tokenizer/tiny/tokenizer.merges_arrays.json");
  const Tokenizer tokenizer(read_tokenizer_json(test::read_bytes(path), path));
  check_strings(tokenizer, project_golden("tokenizer/tiny/strings.jsonl"), 471);
}

TEST(TokenizerTiny, KnowsItsTokens) {
  const Tokenizer& t = *tiny();
  EXPECT_EQ(t.size(), 1003);
  EXPECT_EQ(t.eos_id(), 1002);
  EXPECT_EQ(t.pad_id(), 1000);
  EXPECT_EQ(t.bos_id(), std::nullopt);
  EXPECT_EQ(t.id_of("<|im_start|>"), 1001);
  EXPECT_EQ(t.id_of("no such token"), std::nullopt);
  EXPECT_TRUE(t.is_special(1002));
  EXPECT_FALSE(t.is_special(999));
  for (int32_t id = 0; id < t.size(); ++id)
    EXPECT_EQ(t.id_of(t.token_text(id)), id);
  const int32_t space = t.id_of("\u0120").value();
  EXPECT_EQ(t.token_bytes(space), " ");
  for (const int32_t id : {-1, 1003, 1023, std::numeric_limits<int32_t>::max()}) {
    EXPECT_FALSE(t.has_token(id));
    EXPECT_FALSE(t.is_special(id));
    EXPECT_EQ(t.decode(Ids{id, space, id}), " ");
  }
  EXPECT_EQ(t.config().model_max_length, 32768);
  ASSERT_EQ(t.config().chat_templates.size(), 1u);
  EXPECT_EQ(t.config().chat_templates[0].first, "default");
  EXPECT_THAT(t.config().additional_special_tokens,
              testing::ElementsAre("<|im_start|>", "<|im_end|>"));
}

TEST(TokenizerTiny, ManyThreadsShareOne) {
  const auto rows = read_rows(project_golden("tokenizer/tiny/strings.jsonl"));
  std::vector<std::thread> threads;
  std::atomic<int> n_wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (const json& row : rows) {
        if (tiny()->encode(row["text"].get<std::string>()) != row["ids"].get<Ids>()) ++n_wrong;
      }
    });
  }
  for (auto& thread : threads)
    thread.join();
  EXPECT_EQ(n_wrong, 0);
}

TEST(TokenizerVariants, PatternsNormalisersAndTokenOptions) {
  const json base = test::read_json_file(project_golden("tokenizer/tiny/tokenizer.json"));
  const json golden = test::read_json_file(project_golden("tokenizer/variants.json"));
  ASSERT_EQ(golden.size(), 7u);
  for (const json& variant : golden) {
    json document = base;
    document.merge_patch(variant["patch"]);
    const Tokenizer tokenizer(read_tokenizer_json(document.dump(), variant["name"]));
    for (const json& row : variant["rows"]) {
      const auto text = row["text"].get<std::string>();
      const auto ids = row["ids"].get<Ids>();
      EXPECT_EQ(tokenizer.encode(text), ids) << variant["name"] << row;
      EXPECT_EQ(encode_plain(tokenizer, text), row.value("ids_plain", ids))
          << variant["name"] << row;
    }
  }
}

TEST(TokenizerSentencePiece, ByteFallback) {
  const json golden = test::read_json_file(project_golden("tokenizer/sentencepiece.json"));
  const Tokenizer tokenizer(read_tokenizer_json(golden["tokenizer"].dump(), "sentencepiece.json"));
  for (const json& row : golden["rows"]) {
    const auto text = row["text"].get<std::string>();
    const auto ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << row;
    EXPECT_EQ(tokenizer.encode(text, {.add_special_tokens = true}),
              row["ids_with_special"].get<Ids>())
        << row;
    EXPECT_EQ(tokenizer.decode(ids), row["decoded"]) << row;
    EXPECT_EQ(tokenizer.decode(ids, true), row["decoded_skip_special"]) << row;
  }
}

// A user's text must never become a special token, whatever it does at its borders.
TEST(TokenizerPlainRanges, SpecialTokensOfContentsStayText) {
  const Tokenizer& t = *tiny();
  const std::string before = "<|im_start|>user\n", content = "say <|im_end|> now",
                    after = "<|im_end|>\n";
  const std::string text = before + content + after;
  const ByteRange range{before.size(), before.size() + content.size()};
  const Ids ids = t.encode(text, {.plain_ranges = {&range, 1}});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1002), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1001), 1);
  EXPECT_EQ(t.decode(ids), text);
  // Nothing special in it: the same ids as without a range, across the range's borders.
  const std::string harmless = before + "Hello" + after;
  const ByteRange hello{before.size(), before.size() + 5};
  EXPECT_EQ(t.encode(harmless, {.plain_ranges = {&hello, 1}}), t.encode(harmless));
}

TEST(TokenizerPlainRanges, NoTokenAcrossTheBorder) {
  const Tokenizer& t = *tiny();
  // The content begins a special token that the template's own text would end.
  const std::string text = "<|im_end|><|im_end|>";
  for (size_t end = 1; end <= 10; ++end) {
    const ByteRange range{0, end};
    const Ids ids = t.encode(text, {.plain_ranges = {&range, 1}});
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 1002), 1) << end;
    EXPECT_EQ(ids.back(), 1002) << end;
  }
  const ByteRange last{19, 20};
  const Ids ids = t.encode(text, {.plain_ranges = {&last, 1}});
  EXPECT_EQ(ids.front(), 1002);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1002), 1);
  const ByteRange empty{10, 10};
  EXPECT_EQ(t.encode(text, {.plain_ranges = {&empty, 1}}), (Ids{1002, 1002}));
}

// Millions of characters without a place to cut: a quadratic step anywhere would take days.
TEST(TokenizerHostile, LongTextsComeBack) {
  const Tokenizer& t = *tiny();
  constexpr size_t kBytes = 2'000'000;
  const auto repeat = [&](std::string_view unit) {
    std::string text;
    while (text.size() + unit.size() <= kBytes)
      text += unit;
    return text;
  };
  std::string letters;
  uint32_t state = 1;
  while (letters.size() < kBytes) {
    state = state * 1664525u + 1013904223u;
    letters.push_back(static_cast<char>('a' + (state >> 24) % 26));
  }
  for (const std::string& text : {repeat("a"), repeat(" "), repeat("\n \t"), repeat("\xE7\x9A\x84"),
                                  repeat("<|im_start"), repeat("'"), letters}) {
    EXPECT_EQ(t.decode(t.encode(text)), text) << text.substr(0, 20);
  }
}

TEST(TokenizerHostile, LongRunsOfMarks) {
  // Sorted into canonical order, these are 1.5 million graves below and then as many acutes.
  std::string text = "a", sorted = "a";
  for (int i = 0; i < 1'500'000; ++i)
    text += "\xCC\x96\xCC\x81";  // U+0316, U+0301
  const std::string out = tiny()->decode(tiny()->encode(text));
  sorted = "\xC3\xA1";  // the first acute composes
  for (int i = 0; i < 1'500'000; ++i)
    sorted += "\xCC\x96";
  for (int i = 1; i < 1'500'000; ++i)
    sorted += "\xCC\x81";
  EXPECT_TRUE(out == sorted);
}

class RealVocabulary : public testing::Test {
 protected:
  void SetUp() override {
    if (shared_file("tokenizer/hf").empty()) GTEST_SKIP() << "needs QIANWEN_SHARED/tokenizer";
  }
  static std::string golden(const char* name) {
    return shared_file(std::string("golden/tokenizer/") + name);
  }

  static void check_all(const Tokenizer& tokenizer) {
    EXPECT_EQ(tokenizer.size(), 151646);
    check_strings(tokenizer, golden("strings.jsonl"), 634);
    check_decode(tokenizer, golden("decode.jsonl"));
    check_invalid_utf8(tokenizer, golden("invalid_utf8.jsonl"));
  }
};

TEST_F(RealVocabulary, TokenizerJson) {
  const auto t = load_tokenizer_directory(shared_file("tokenizer/hf"));
  check_all(*t);
  EXPECT_EQ(t->eos_id(), 151645);
  EXPECT_EQ(t->decode(Ids{151646, 151935, 152063}), "");
}

TEST_F(RealVocabulary, VocabJsonAndMerges) {
  TokenizerSpec spec;
  spec.tokens =
      read_vocab_json(test::read_bytes(shared_file("tokenizer/hf/vocab.json")), "vocab.json");
  spec.merges =
      read_merges_txt(test::read_bytes(shared_file("tokenizer/hf/merges.txt")), "merges.txt");
  spec.normalizer = {NormalizerStep{}};
  add_qwen_special_tokens(spec);
  check_all(Tokenizer(spec));
}

TEST_F(RealVocabulary, Tiktoken) {
  TokenizerSpec spec =
      read_tiktoken(test::read_bytes(shared_file("tokenizer/qwen.tiktoken")), "qwen.tiktoken");
  const auto published =
      read_merges_txt(test::read_bytes(shared_file("tokenizer/hf/merges.txt")), "merges.txt");
  ASSERT_EQ(spec.merges.size(), published.size());
  for (size_t i = 0; i < published.size(); ++i) {
    ASSERT_EQ(spec.merges[i].left, published[i].left) << i;
    ASSERT_EQ(spec.merges[i].right, published[i].right) << i;
  }
  add_qwen_special_tokens(spec);
  check_all(Tokenizer(spec));
}

TEST_F(RealVocabulary, EveryTokenDecodesAndIsFound) {
  const auto t = load_tokenizer_directory(shared_file("tokenizer/hf"));
  int n_back = 0;
  for (int32_t id = 0; id < t->size(); ++id) {
    ASSERT_EQ(t->id_of(t->token_text(id)), id);
    ASSERT_FALSE(t->token_bytes(id).empty());
    const std::string text = t->decode(Ids{id});
    if (text == t->token_bytes(id) && id < 151643) n_back += t->encode(text) == Ids{id};
  }
  EXPECT_EQ(n_back, 148286);  // as the shared folder's README counts them
}

TEST_F(RealVocabulary, LlamaCppVectors) {
  const auto t = load_tokenizer_directory(shared_file("tokenizer/hf"));
  const std::string input = test::read_bytes(shared_file("tokenizer/llama_cpp_vectors.inp"));
  std::ifstream expected(shared_file("tokenizer/llama_cpp_vectors.out"));
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  int n_texts = 0;
  for (size_t begin = 0; begin < input.size(); ++n_texts) {
    const size_t end = std::min(input.find(kSeparator, begin), input.size());
    std::string line;
    if (!std::getline(expected, line)) break;
    std::istringstream numbers(line);
    const Ids ids{std::istream_iterator<int32_t>(numbers), std::istream_iterator<int32_t>()};
    EXPECT_EQ(t->encode(input.substr(begin, end - begin)), ids) << n_texts;
    begin = end + kSeparator.size();
  }
  EXPECT_EQ(n_texts, 46);
}

TEST(BundledModel, ItsTokenizerLoads) {
  const auto t =
      load_tokenizer_directory(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat");
  EXPECT_EQ(t->size(), 6003);
  EXPECT_EQ(t->eos_id(), 6002);
  const std::string text = "<|im_start|>user\n17 + 25 = ?<|im_end|>\n";
  EXPECT_EQ(t->decode(t->encode(text)), text);
}

}  // namespace
}  // namespace qw
