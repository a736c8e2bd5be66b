// Loading: every source of a vocabulary gives the same ids, and every broken one a clear sentence.
#include "text/tokenizer_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "support/golden_rows.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_gguf.h"
#include "text/tokenizer_json.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::project_golden;
using test::read_bytes;

std::string tiny(const std::string& file) {
  return read_bytes(project_golden("tokenizer/tiny/" + file));
}
json tiny_json() {
  return json::parse(tiny("tokenizer.json"));
}

/// A folder of its own for a test, removed at the end.
class Folder {
 public:
  Folder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ =
        fs::temp_directory_path() / fmt::format("qw_{}_{}_{}", info->name(), ::getpid(), n_made_++);
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  std::string path() const { return path_.string(); }

 private:
  static inline int n_made_ = 0;
  fs::path path_;
};

void expect_tiny_ids(const Tokenizer& tokenizer) {
  for (const json& row : test::read_rows(project_golden("tokenizer/tiny/strings.jsonl"))) {
    EXPECT_EQ(tokenizer.encode(row["text"].get<std::string>()),
              row["ids"].get<std::vector<int32_t>>())
        << row;
  }
}

template <typename Action>
void expect_error(ErrorKind kind, const std::string& part, Action&& action) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one with: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.message();
    EXPECT_THAT(error.message(), testing::HasSubstr(part));
    EXPECT_THAT(error.message(), testing::StartsWith("[tokenizer] "));
    EXPECT_EQ(error.message().find('\n'), std::string::npos) << "one sentence, one line";
  }
}

void expect_json_error(ErrorKind kind, const std::string& part, const json& document) {
  expect_error(kind, part, [&] { Tokenizer(read_tokenizer_json(document.dump(), "t.json")); });
}

TEST(TokenizerDirectory, VocabMergesAndConfig) {
  const Folder folder;
  for (const char* name : {"vocab.json", "merges.txt", "tokenizer_config.json"})
    folder.write(name, tiny(name));
  const auto t = load_tokenizer_directory(folder.path());
  expect_tiny_ids(*t);
  EXPECT_EQ(t->eos_id(), 1002);
}

TEST(TokenizerDirectory, VocabAndMergesAlone) {
  const Folder folder;
  folder.write("vocab.json", tiny("vocab.json"));
  const std::string merges = tiny("merges.txt");
  ASSERT_TRUE(merges.starts_with("#version"));
  folder.write("merges.txt", merges.substr(merges.find('\n') + 1));  // published without that line
  const auto t = load_tokenizer_directory(folder.path());
  expect_tiny_ids(*t);
  EXPECT_TRUE(t->is_special(1000));
}

TEST(TokenizerDirectory, OlderCompanions) {
  const Folder folder;
  for (const char* name : {"vocab.json", "merges.txt"})
    folder.write(name, tiny(name));
  folder.write("added_tokens.json",
               R"({"<|endoftext|>": 1000, "<|im_start|>": 1001, "<|im_end|>": 1002})");
  folder.write("special_tokens_map.json",
               R"({"eos_token": {"content": "<|im_end|>", "lstrip": false},
      "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]})");
  const auto t = load_tokenizer_directory(folder.path());
  expect_tiny_ids(*t);
  EXPECT_EQ(t->eos_id(), 1002);
  EXPECT_EQ(t->pad_id(), 1000);
  for (const int32_t id : {1000, 1001, 1002})
    EXPECT_TRUE(t->is_special(id));
}

TEST(TokenizerDirectory, Tiktoken) {
  // The tiny vocabulary is in merge order, so it has a tiktoken form.
  const Tokenizer reference(read_tokenizer_json(tiny("tokenizer.json"), "tiny"));
  const auto base64 = [](std::string_view bytes) {
    constexpr std::string_view kLetters =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (size_t i = 0; i < bytes.size(); i += 3) {
      uint32_t bits = 0;
      for (size_t j = 0; j < 3; ++j)
        bits = bits << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
      for (size_t j = 0; j < 4; ++j)
        out += i + j > bytes.size() ? '=' : kLetters[bits >> (18 - 6 * j) & 63];
    }
    return out;
  };
  std::string lines;
  for (int32_t id = 0; id < 1000; ++id)
    lines += fmt::format("{} {}\n", base64(reference.token_bytes(id)), id);
  const Folder folder;
  folder.write("qwen.tiktoken", lines);
  expect_tiny_ids(*load_tokenizer_directory(folder.path()));
}

TEST(TokenizerConfig, RefusesDepthAndKeysThatCouldHurt) {
  const auto message_of = [](const std::string& text) -> std::string {
    TokenizerSpec spec;
    try {
      apply_tokenizer_config(text, "config", spec);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
      return error.message();
    }
    return "accepted";
  };
  // Deep values: printing one for a message would recurse once per level.
  const std::string deep = std::string(300'000, '[') + std::string(300'000, ']');
  EXPECT_NE(message_of(deep).find("nesting"), std::string::npos);
  EXPECT_NE(message_of("{\"bos_token\": " + deep + "}").find("nesting"), std::string::npos);
  // Many keys: each is looked for among those before it.
  std::string keys = "{";
  for (int i = 0; i < 40'000; ++i)
    keys += fmt::format("\"{}\": 0,", i);
  EXPECT_NE(message_of(keys + "\"last\": 0}").find("keys of one object"), std::string::npos);
  EXPECT_THROW(read_tokenizer_json("{\"model\": " + keys + "\"last\": 0}}", "config"), Error);
}

TEST(TokenizerDirectory, ConfigIsRead) {
  const Folder folder;
  folder.write("tokenizer.json", tiny("tokenizer.json"));
  folder.write("tokenizer_config.json", R"({"eos_token": "<|endoftext|>", "model_max_length": 1e30,
      "chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}],
      "added_tokens_decoder": {"1003": {"content": "<tool_call>", "special": false}}})");
  const auto t = load_tokenizer_directory(folder.path());
  EXPECT_EQ(t->eos_id(), 1000);
  EXPECT_EQ(t->size(), 1004);
  EXPECT_EQ(t->encode("<tool_call>"), std::vector<int32_t>{1003});
  EXPECT_FALSE(t->is_special(1003));
  EXPECT_EQ(t->config().model_max_length, std::nullopt);
  ASSERT_EQ(t->config().chat_templates.size(), 2u);
  EXPECT_EQ(t->config().chat_templates[1].second, "B");
  folder.write("chat_template.jinja", "C");
  EXPECT_EQ(load_tokenizer_directory(folder.path())->config().chat_templates[0].second, "C");
}

TEST(TokenizerDirectory, SaysWhatIsMissing) {
  const auto load = [](const Folder& folder) {
    return [&folder] { load_tokenizer_directory(folder.path()); };
  };
  const Folder folder;
  expect_error(ErrorKind::kNotFound, "expected a directory",
               [] { load_tokenizer_directory("/no/such/place"); });
  expect_error(ErrorKind::kNotFound, "expected tokenizer.json, vocab.json with merges.txt",
               load(folder));
  folder.write("vocab.json", tiny("vocab.json"));
  expect_error(ErrorKind::kNotFound, "merges.txt: expected it beside vocab.json", load(folder));
  folder.write("merges.txt", "");
  expect_error(ErrorKind::kCorrupt, "expected at least 1 byte, got an empty file", load(folder));
  folder.write("tokenizer.json",
               "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7028015\n");
  expect_error(ErrorKind::kCorrupt, "Git LFS pointer", load(folder));
  const std::string strange = folder.path() + "/a\nb";
  fs::create_directory(strange);
  std::ofstream(strange + "/tokenizer.json") << "{";
  expect_error(ErrorKind::kCorrupt, "a\\x0ab/tokenizer.json",
               [&] { load_tokenizer_directory(strange); });
  const Folder sentencepiece;
  sentencepiece.write("tokenizer.model", "x");
  expect_error(ErrorKind::kUnsupported, "SentencePiece", load(sentencepiece));
}

TEST(TokenizerDirectory, RefusesContradictions) {
  const auto with_config = [](const std::string& config) {
    TokenizerSpec spec = read_tokenizer_json(tiny("tokenizer.json"), "t.json");
    apply_tokenizer_config(config, "config", spec);
    mark_named_tokens_special(spec);
    const Tokenizer tokenizer(spec);
  };
  const auto refuse = [&](const std::string& part, const std::string& config) {
    expect_error(ErrorKind::kCorrupt, part, [&] { with_config(config); });
  };
  with_config("{}");
  refuse("expected valid JSON", "{");
  refuse("expected an object", "[]");
  refuse("eos_token: expected a token of the vocabulary, got '<eos>'", R"({"eos_token": "<eos>"})");
  refuse("eos_token: expected the text of a token, got 7", R"({"eos_token": 7})");
  refuse("expected '<|im_end|>' with id 1002",
         R"({"added_tokens_decoder": {"5": {"content": "<|im_end|>"}}})");
  refuse("expected '<|im_end|>' with id 1002",
         R"({"added_tokens_decoder": {"1002": {"content": "x"}}})");
  refuse("id 3: expected one token, got both",
         R"({"added_tokens_decoder": {"3": {"content": "<new>"}}})");
  refuse("expected ids below", R"({"added_tokens_decoder": {"-1": {"content": "x"}}})");
  refuse("expected ids below", R"({"added_tokens_decoder": {"99999999999": {"content": "x"}}})");
  refuse("expected the text of a token", R"({"added_tokens_decoder": {"1003": {}}})");
  refuse("special: expected true or false",
         R"({"added_tokens_decoder": {"1003": {"content": "x", "special": 1}}})");
  refuse("model_max_length", R"({"model_max_length": "long"})");
  refuse("chat_template", R"({"chat_template": [{"name": "x"}]})");
}

TEST(TokenizerJson, RefusesBrokenFiles) {
  const std::string good = tiny("tokenizer.json");
  for (const size_t size : {size_t{0}, size_t{1}, good.size() / 2, good.size() - 2}) {
    expect_error(ErrorKind::kCorrupt, "expected valid JSON",
                 [&] { read_tokenizer_json(std::string_view(good).substr(0, size), "t.json"); });
  }
  expect_error(ErrorKind::kCorrupt, "nesting",
               [] { read_tokenizer_json(std::string(100000, '['), "t.json"); });
  expect_json_error(ErrorKind::kCorrupt, "document: expected an object", json::array());
  expect_json_error(ErrorKind::kCorrupt, "model: expected an object", json::object());

  const auto change = [&](const char* pointer, const json& value) {
    json document = tiny_json();
    document[json::json_pointer(pointer)] = value;
    return document;
  };
  const auto corrupt = [&](const std::string& part, const char* pointer, const json& value) {
    expect_json_error(ErrorKind::kCorrupt, part, change(pointer, value));
  };
  corrupt("expected an id of its own", "/model/vocab/zzzz", 5);
  corrupt("an id below 1048576", "/model/vocab/zzzz", 1048576);
  corrupt("expected an id, got -1", "/model/vocab/zzzz", -1);
  corrupt("token 'zzzz': expected an id", "/model/vocab/zzzz", "a");
  corrupt("token 'zzzz': expected an id", "/model/vocab/zzzz", 1.5);
  corrupt("token 'zzzz': expected an id", "/model/vocab/zzzz", json::array());
  corrupt("merge 744 ('no' + 'pe'): ", "/model/merges/744", "no pe");
  corrupt("two parts with a space between", "/model/merges/3", "nospace");
  corrupt("two parts with a space between", "/model/merges/3", "a b c");
  corrupt("merge 3: expected two texts", "/model/merges/3", json{"a"});
  corrupt("merge 3: expected two texts", "/model/merges/3", json{"a", "b", "c"});
  corrupt("expected texts", "/model/merges/3", 7);
  corrupt("added_tokens[0].id", "/added_tokens/0/id", -4);
  corrupt("added_tokens[1].content", "/added_tokens/1/content", nullptr);
  corrupt("expected one id", "/added_tokens/1/content", "<|endoftext|>");
  corrupt("id 1000: expected one token, got both", "/added_tokens/1/id", 1000);

  json no_byte = tiny_json();
  no_byte["model"]["merges"] = json::array();
  no_byte["model"]["vocab"].erase("a");
  expect_json_error(ErrorKind::kCorrupt, "expected a token 'a' for byte 0x61", no_byte);
}

TEST(TokenizerJson, RefusesWhatItCannotDoByName) {
  const auto refuse = [](const std::string& part, const char* pointer, const json& value) {
    json document = tiny_json();
    document[json::json_pointer(pointer)] = value;
    expect_json_error(ErrorKind::kUnsupported, part, document);
  };
  refuse("model.type: expected BPE, got \"Unigram\"", "/model/type", "Unigram");
  refuse("model.dropout", "/model/dropout", 0.1);
  refuse("model.continuing_subword_prefix", "/model/continuing_subword_prefix", "##");
  refuse("model.end_of_word_suffix", "/model/end_of_word_suffix", "</w>");
  refuse("normalizer.type", "/normalizer", {{"type", "Lowercase"}});
  refuse("pre_tokenizer.type", "/pre_tokenizer", {{"type", "Whitespace"}});
  refuse("pre_tokenizer: expected ByteLevel, or none", "/pre_tokenizer", nullptr);
  refuse("pre_tokenizer.pretokenizers[0].pattern", "/pre_tokenizer/pretokenizers/0/pattern/Regex",
         "\\w+");
  refuse("pre_tokenizer.pretokenizers[0].behavior", "/pre_tokenizer/pretokenizers/0/behavior",
         "Removed");
  refuse("add_prefix_space", "/pre_tokenizer/pretokenizers/1/add_prefix_space", true);
  refuse("pre_tokenizer.pretokenizers: expected Split, then ByteLevel",
         "/pre_tokenizer/pretokenizers/1", {{"type", "Digits"}});
  refuse("post_processor.type", "/post_processor", {{"type", "BertProcessing"}});
  refuse("decoder", "/decoder", {{"type", "WordPiece"}});
}

TEST(MergesTxt, LinesAndFaults) {
  const auto merges = read_merges_txt("#version: 0.2\r\na b\r\n\r\n# #\nab c", "m");
  ASSERT_EQ(merges.size(), 3u);
  EXPECT_EQ(merges[1].left, "#");
  EXPECT_EQ(merges[2].right, "c");
  for (const char* bad :
       {"ab", " a b", "a b ", "a  b", "a b c", "#version: 0.2\n#version: 0.2 x"}) {
    expect_error(ErrorKind::kCorrupt, "line ", [&] { read_merges_txt(bad, "m"); });
  }
}

TEST(Tiktoken, Faults) {
  const auto refuse = [](const std::string& part, const std::string& text) {
    expect_error(ErrorKind::kCorrupt, part, [&] { Tokenizer(read_tiktoken(text, "t")); });
  };
  refuse("line 1: expected 'base64 rank'", "IQ==");
  refuse("line 1: expected 'base64 rank'", "IQ= 0");
  refuse("line 1: expected 'base64 rank'", "I=Q= 0");
  refuse("line 1: expected 'base64 rank'", "IQ== x");
  refuse("line 2: expected rank 1, got 2", "IQ== 0\nIg== 2");
  refuse("expected two tokens of lower rank", "IQ== 0\nISEh 1");
  refuse("for byte 0x00, got none", "IQ== 0");
  refuse("expected tokens, got none", "");
}

GgufVocabulary gguf_of_tiny() {
  GgufVocabulary gguf;
  gguf.source = "tiny.gguf";
  gguf.model = "gpt2";
  const json document = tiny_json();
  gguf.tokens.resize(1024);
  gguf.token_types.assign(1024, 5);
  for (const auto& [text, id] : document["model"]["vocab"].items()) {
    gguf.tokens[id] = text;
    gguf.token_types[id] = 1;
  }
  for (const auto& token : document["added_tokens"]) {
    gguf.tokens[token["id"]] = token["content"];
    gguf.token_types[token["id"].get<size_t>()] = 3;
  }
  for (size_t i = 1003; i < 1024; ++i)
    gguf.tokens[i] = fmt::format("[PAD{}]", i);
  gguf.merges = document["model"]["merges"].get<std::vector<std::string>>();
  gguf.eos_id = 1002;
  return gguf;
}

TEST(Gguf, SameIdsAndPaddingIsNoToken) {
  GgufVocabulary gguf = gguf_of_tiny();
  for (const std::optional<std::string>& pre :
       {std::optional<std::string>(), std::optional<std::string>("qwen2")}) {
    gguf.pre = pre;
    for (const int32_t padding_type : {5, 4}) {  // 4: converters of early 2024
      std::fill(gguf.token_types.begin() + 1003, gguf.token_types.end(), padding_type);
      const Tokenizer t(spec_from_gguf(gguf));
      expect_tiny_ids(t);
      EXPECT_EQ(t.size(), 1003);
      EXPECT_EQ(t.eos_id(), 1002);
      EXPECT_EQ(t.decode(std::vector<int32_t>{1003, 1023}), "");
      EXPECT_EQ(t.encode("[PAD1003]").size(),
                t.encode("[PAD1003]", {.parse_special = false}).size());
      EXPECT_GT(t.encode("[PAD1003]").size(), 1u);
    }
  }
}

TEST(Gguf, UserDefinedTokensAreAddedButNotSpecial) {
  GgufVocabulary gguf = gguf_of_tiny();
  gguf.tokens[1003] = "<tool_call>";
  gguf.token_types[1003] = 4;
  const Tokenizer t(spec_from_gguf(gguf));
  EXPECT_EQ(t.encode("<tool_call>"), std::vector<int32_t>{1003});
  EXPECT_FALSE(t.is_special(1003));
}

TEST(Gguf, Faults) {
  const auto refuse = [](ErrorKind kind, const std::string& part, auto change) {
    GgufVocabulary gguf = gguf_of_tiny();
    change(gguf);
    expect_error(kind, part, [&] { Tokenizer(spec_from_gguf(gguf)); });
  };
  refuse(ErrorKind::kUnsupported, "tokenizer.ggml.model: expected gpt2, got 'llama'",
         [](auto& g) { g.model = "llama"; });
  refuse(ErrorKind::kUnsupported, "tokenizer.ggml.pre", [](auto& g) { g.pre = "falcon"; });
  refuse(ErrorKind::kCorrupt, "token_type: expected 1024 entries, got 3",
         [](auto& g) { g.token_types.resize(3); });
  refuse(ErrorKind::kCorrupt, "merges[0]", [](auto& g) { g.merges[0] = "x"; });
  refuse(ErrorKind::kCorrupt, "eos_token_id", [](auto& g) { g.eos_id = 99999; });
  refuse(ErrorKind::kCorrupt, "eos_token_id", [](auto& g) { g.eos_id = -1; });
  refuse(ErrorKind::kCorrupt, "add_bos_token", [](auto& g) { g.add_bos = true; });
  refuse(ErrorKind::kCorrupt, "expected one id", [](auto& g) { g.tokens[700] = g.tokens[701]; });
}

}  // namespace
}  // namespace qw
