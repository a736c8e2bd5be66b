#include "text/tokenizer_files.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "text/bpe.h"
#include "text/byte_level.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_json.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kComponent = "tokenizer";
constexpr size_t kMaxFileBytes = size_t{256} << 20;  // the largest published tokenizer.json: 20 MB

/// Calls visit(line, number from 1) for every line, without its end (\n or \r\n).
template <typename Visit>
void for_each_line(std::string_view text, Visit&& visit) {
  for (size_t begin = 0, number = 1; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    visit(line, number);
    begin = end + 1;
  }
}

/// Strict base64 with padding; false when `text` is not that.
bool decode_base64(std::string_view text, std::string& out) {
  const auto value_of = [](char c) -> int {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
  };
  out.clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  for (size_t i = 0; i < text.size(); i += 4) {
    const size_t n_letters = i + 4 == text.size() ? 4 - padding : 4;
    uint32_t bits = 0;
    for (size_t j = 0; j < 4; ++j) {
      const int value = j < n_letters ? value_of(text[i + j]) : 0;
      if (value < 0) return false;
      bits = bits << 6 | static_cast<uint32_t>(value);
    }
    for (size_t j = 0; j + 1 < n_letters; ++j) {
      out.push_back(static_cast<char>(bits >> (16 - 8 * j) & 0xFF));
    }
  }
  return true;
}

/// The tokens of a tiktoken file as bytes, by rank.
std::vector<std::string> read_tiktoken_lines(std::string_view text, const std::string& source) {
  std::vector<std::string> tokens;
  for_each_line(text, [&](std::string_view line, size_t number) {
    if (line.empty()) return;
    const size_t space = std::min(line.find(' '), line.size());
    const std::string_view digits = line.substr(std::min(space + 1, line.size()));
    std::string bytes;
    uint32_t rank = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (error != std::errc() || end != digits.data() + digits.size() ||
        !decode_base64(line.substr(0, space), bytes)) {
      fail(ErrorKind::kCorrupt, kComponent, "line {}: expected 'base64 rank', got '{}' ({})",
           number, printable(line), source);
    }
    if (rank != tokens.size() || rank >= static_cast<uint32_t>(kMaxTokens)) {
      fail(ErrorKind::kCorrupt, kComponent, "line {}: expected rank {}, got {} ({})", number,
           tokens.size(), rank, source);
    }
    tokens.push_back(std::move(bytes));
  });
  return tokens;
}

/// The text of a file of the directory, empty where there is none.
std::string read_if_present(const std::string& path) {
  if (!path_exists(path)) return {};
  std::string text = read_text_file(path, kMaxFileBytes);
  if (text.starts_with("version https://git-lfs")) {
    fail(ErrorKind::kCorrupt, kComponent,
         "content: expected the file itself, got its Git LFS pointer; fetch it with `git lfs pull` "
         "({})",
         printable(path, 4096));
  }
  if (text.empty())
    fail(ErrorKind::kCorrupt, kComponent, "size: expected at least 1 byte, got an empty file ({})",
         printable(path, 4096));
  return text;
}

constexpr std::string_view kReadable =
    "tokenizer.json, vocab.json with merges.txt, or qwen.tiktoken";

TokenizerSpec read_vocabulary(const fs::path& directory) {
  const auto path = [&](const char* name) { return (directory / name).string(); };
  const auto shown = [&](const char* name) { return printable(path(name), 4096); };
  if (const std::string json = read_if_present(path("tokenizer.json")); !json.empty()) {
    return read_tokenizer_json(json, shown("tokenizer.json"));
  }
  const std::string vocab = read_if_present(path("vocab.json"));
  const std::string merges = read_if_present(path("merges.txt"));
  if (!vocab.empty() && !merges.empty()) {
    TokenizerSpec spec;
    spec.source = shown("vocab.json");
    spec.tokens = read_vocab_json(vocab, shown("vocab.json"));
    spec.merges = read_merges_txt(merges, shown("merges.txt"));
    spec.normalizer = {NormalizerStep{}};  // Qwen's own, which these two files cannot name
    return spec;
  }
  if (const std::string ranks = read_if_present(path("qwen.tiktoken")); !ranks.empty()) {
    return read_tiktoken(ranks, shown("qwen.tiktoken"));
  }
  if (path_exists(path("tokenizer.model"))) {
    fail(ErrorKind::kUnsupported, kComponent,
         "vocabulary: expected {}, got a SentencePiece model, which is not read ({})", kReadable,
         shown("tokenizer.model"));
  }
  if (vocab.empty() != merges.empty()) {
    fail(ErrorKind::kNotFound, kComponent, "{}: expected it beside {}, got none ({})",
         vocab.empty() ? "vocab.json" : "merges.txt", vocab.empty() ? "merges.txt" : "vocab.json",
         printable(directory.string(), 4096));
  }
  fail(ErrorKind::kNotFound, kComponent, "vocabulary: expected {}, got none ({})", kReadable,
       printable(directory.string(), 4096));
}

}  // namespace

std::vector<MergeText> read_merges_txt(std::string_view text, const std::string& source) {
  std::vector<MergeText> merges;
  for_each_line(text, [&](std::string_view line, size_t number) {
    if (line.empty() || (number == 1 && line.starts_with("#version"))) return;
    auto merge = parse_merge_line(line);
    if (!merge) {
      fail(ErrorKind::kCorrupt, kComponent,
           "line {}: expected two parts with a space between, got '{}' ({})", number,
           printable(line), source);
    }
    merges.push_back(*std::move(merge));
  });
  return merges;
}

TokenizerSpec read_tiktoken(std::string_view text, const std::string& source) {
  const std::vector<std::string> tokens = read_tiktoken_lines(text, source);
  TokenizerSpec spec;
  spec.source = source;
  spec.normalizer = {NormalizerStep{}};
  std::array<uint32_t, 256> byte_ids{};
  for (const std::string& token : tokens) {
    if (token.size() == 1) {
      byte_ids[static_cast<unsigned char>(token[0])] = static_cast<uint32_t>(spec.tokens.size());
    }
    spec.tokens.push_back(bytes_to_byte_level(token));
  }
  MergeTable merges(tokens.size());
  BpeScratch scratch;
  std::vector<uint32_t> parts;
  for (uint32_t rank = 0; rank < tokens.size(); ++rank) {
    if (tokens[rank].size() == 1) continue;
    parts.clear();
    for (const char c : tokens[rank])
      parts.push_back(byte_ids[static_cast<unsigned char>(c)]);
    bpe_merge(merges, parts, scratch);
    if (parts.size() != 2) {
      fail(ErrorKind::kCorrupt, kComponent,
           "token {} ('{}'): expected two tokens of lower rank that make it, got {} ({})", rank,
           printable(tokens[rank]), parts.size(), source);
    }
    merges.insert(parts[0], parts[1], {rank, rank});
    spec.merges.push_back({spec.tokens[parts[0]], spec.tokens[parts[1]]});
  }
  return spec;
}

void add_qwen_special_tokens(TokenizerSpec& spec) {
  auto id = static_cast<int32_t>(spec.tokens.size());
  for (const char* content : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    const auto known = std::find(spec.tokens.begin(), spec.tokens.end(), content);
    const bool fresh = known == spec.tokens.end();
    spec.added_tokens.push_back({fresh ? id++ : static_cast<int32_t>(known - spec.tokens.begin()),
                                 content, /*special=*/true});
  }
}

TokenizerSpec read_tokenizer_directory(const std::string& directory) {
  if (std::error_code ignored; !path_exists(directory) || !fs::is_directory(directory, ignored)) {
    fail(ErrorKind::kNotFound, kComponent, "path: expected a directory, got none ({})",
         printable(directory, 4096));
  }
  const fs::path root(directory);
  TokenizerSpec spec = read_vocabulary(root);
  const auto with_file = [&](const char* name, auto apply) {
    const std::string path = (root / name).string();
    if (const std::string text = read_if_present(path); !text.empty())
      apply(text, printable(path, 4096), spec);
  };
  with_file("added_tokens.json", apply_added_tokens_json);
  // Both files may name the special tokens; tokenizer_config.json is read last and wins.
  with_file("special_tokens_map.json", apply_special_tokens_map);
  with_file("tokenizer_config.json", apply_tokenizer_config);
  with_file("chat_template.jinja", [](const std::string& text, const std::string&, auto& s) {
    s.config.chat_templates = {{"default", text}};
  });
  if (spec.added_tokens.empty() && spec.alphabet == TokenAlphabet::kByteLevel) {
    logger().info("{}: names no special tokens; those of Qwen1.5 follow the vocabulary",
                  printable(directory, 4096));
    add_qwen_special_tokens(spec);
  }
  mark_named_tokens_special(spec);
  return spec;
}

std::shared_ptr<const Tokenizer> load_tokenizer_directory(const std::string& directory) {
  return std::make_shared<const Tokenizer>(read_tokenizer_directory(directory));
}

}  // namespace qw
