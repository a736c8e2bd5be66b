// What a tokenizer is made of, in plain data: the common form of tokenizer.json, vocab.json with
// merges.txt, qwen.tiktoken and GGUF metadata.
//
// Level 3 (text). Readers of formats fill a TokenizerSpec; only Tokenizer knows what to do with it.
// The fields are those of Hugging Face's tokenizer.json and tokenizer_config.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qw {

/// Ids are below this in every format: three times the largest published vocabulary, and small
/// enough that a forged id cannot make us allocate much.
inline constexpr int32_t kMaxTokens = 1 << 20;

/// How text is cut into the pieces that BPE works on (the regular expressions are in splitter.h).
enum class SplitPattern {
  kNone,    // the whole text is one piece (SentencePiece-like)
  kQwen2,   // Qwen, Qwen1.5, Qwen2, Qwen2.5: digits one by one
  kCl100k,  // the same with digits in groups of up to three (GPT-4, Llama 3)
  kGpt2,    // GPT-2's
};

/// How the text of a token stands for bytes.
enum class TokenAlphabet {
  kByteLevel,     // GPT-2's map of the 256 bytes to printable characters
  kByteFallback,  // plain text with U+2581 for a space, and tokens <0xNN> for single bytes
};

/// A token found in the text before everything else.
struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // left out by skip_special_tokens, ordinary text when not parsed
  bool normalized = false;   // looked for in the normalised text instead of the raw one
  bool lstrip = false;       // takes the white space on its left with it
  bool rstrip = false;       // and on its right
  bool single_word = false;  // only where no word character touches it
};

/// One step of the normaliser, applied to every piece between added tokens.
struct NormalizerStep {
  enum class Kind {
    kNfc,      // canonical composition, Unicode 9 (see unicode.h)
    kPrepend,  // `to` before a piece that is not empty
    kReplace,  // every `from` by `to`
  };
  Kind kind = Kind::kNfc;
  std::string from, to;
};

/// A merge by the texts of its two parts; its rank is its place in the list.
struct MergeText {
  std::string left, right;
};

/// The merge in a line "left right"; empty when the line is not two parts with one space between.
std::optional<MergeText> parse_merge_line(std::string_view line);

/// tokenizer_config.json as far as this project has a use for it. Absent fields stay empty.
struct TokenizerConfig {
  std::optional<std::string> bos_token, eos_token, pad_token, unk_token;
  std::vector<std::string> additional_special_tokens;
  /// (name, Jinja source) as published; a single template is called "default".
  std::vector<std::pair<std::string, std::string>> chat_templates;
  /// In tokens; empty when absent or the "no limit" of Transformers (1e30).
  std::optional<int64_t> model_max_length;
  std::optional<std::string> tokenizer_class;
};

struct TokenizerSpec {
  std::string source;  // where it came from, for messages

  TokenAlphabet alphabet = TokenAlphabet::kByteLevel;
  std::vector<NormalizerStep> normalizer;
  SplitPattern split = SplitPattern::kQwen2;

  std::vector<std::string> tokens;  // text by id; empty: no token has this id (padding)
  std::vector<MergeText> merges;    // best first
  bool ignore_merges = false;       // a piece that is a token stays whole

  std::vector<AddedToken> added_tokens;
  std::vector<int32_t> prefix_ids, suffix_ids;  // what add_special_tokens puts around a text
  bool strip_first_space = false;               // decoding drops one space at the start of the text

  std::optional<int32_t> bos_id, eos_id, pad_id, unk_id;
  TokenizerConfig config;
};

}  // namespace qw
