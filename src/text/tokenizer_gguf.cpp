#include "text/tokenizer_gguf.h"

#include <string_view>

#include "base/error.h"

namespace qw {
namespace {

constexpr std::string_view kComponent = "tokenizer";

enum GgufTokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
};

SplitPattern pattern_of(const GgufVocabulary& vocabulary) {
  const std::string pre = vocabulary.pre.value_or("default");
  if (pre == "qwen2" || pre == "default" || pre == "deepseek-r1-qwen") return SplitPattern::kQwen2;
  if (pre == "llama-bpe" || pre == "llama-v3" || pre == "llama3") return SplitPattern::kCl100k;
  if (pre == "gpt-2") return SplitPattern::kGpt2;
  fail(ErrorKind::kUnsupported, kComponent,
       "tokenizer.ggml.pre: expected qwen2, llama-bpe or gpt-2, got '{}' ({})", printable(pre),
       vocabulary.source);
}

std::optional<int32_t> checked_id(const char* key, std::optional<int64_t> id,
                                  const GgufVocabulary& vocabulary) {
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size())) {
    fail(ErrorKind::kCorrupt, kComponent, "tokenizer.ggml.{}: expected an id below {}, got {} ({})",
         key, vocabulary.tokens.size(), *id, vocabulary.source);
  }
  return static_cast<int32_t>(*id);
}

void add_tokens(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  const size_t n_tokens = vocabulary.tokens.size();
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != n_tokens) {
    fail(ErrorKind::kCorrupt, kComponent,
         "tokenizer.ggml.token_type: expected {} entries, got {} ({})", n_tokens,
         vocabulary.token_types.size(), vocabulary.source);
  }
  spec.tokens.resize(n_tokens);
  for (size_t i = 0; i < n_tokens; ++i) {
    const int32_t type = vocabulary.token_types.empty() ? kNormal : vocabulary.token_types[i];
    const std::string& text = vocabulary.tokens[i];
    const bool padding =
        type == kUnused || (type == kUserDefined && text == fmt::format("[PAD{}]", i));
    if (padding) continue;
    spec.tokens[i] = text;
    if (type == kUnknown || type == kControl || type == kUserDefined) {
      spec.added_tokens.push_back(
          {static_cast<int32_t>(i), text, /*special=*/type != kUserDefined});
    }
  }
}

void add_merges(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  spec.merges.reserve(vocabulary.merges.size());
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    auto merge = parse_merge_line(vocabulary.merges[i]);
    if (!merge) {
      fail(ErrorKind::kCorrupt, kComponent,
           "tokenizer.ggml.merges[{}]: expected two parts with a space between, got '{}' ({})", i,
           printable(vocabulary.merges[i]), vocabulary.source);
    }
    spec.merges.push_back(*std::move(merge));
  }
}

}  // namespace

TokenizerSpec spec_from_gguf(const GgufVocabulary& vocabulary) {
  if (vocabulary.model != "gpt2") {
    fail(ErrorKind::kUnsupported, kComponent, "tokenizer.ggml.model: expected gpt2, got '{}' ({})",
         printable(vocabulary.model), vocabulary.source);
  }
  if (vocabulary.tokens.size() > static_cast<size_t>(kMaxTokens)) {
    fail(ErrorKind::kCorrupt, kComponent, "tokenizer.ggml.tokens: expected at most {}, got {} ({})",
         kMaxTokens, vocabulary.tokens.size(), vocabulary.source);
  }
  TokenizerSpec spec;
  spec.source = vocabulary.source;
  spec.split = pattern_of(vocabulary);
  if (spec.split == SplitPattern::kQwen2) spec.normalizer = {NormalizerStep{}};  // NFC
  add_tokens(vocabulary, spec);
  add_merges(vocabulary, spec);
  spec.bos_id = checked_id("bos_token_id", vocabulary.bos_id, vocabulary);
  spec.eos_id = checked_id("eos_token_id", vocabulary.eos_id, vocabulary);
  spec.pad_id = checked_id("padding_token_id", vocabulary.pad_id, vocabulary);
  spec.unk_id = checked_id("unknown_token_id", vocabulary.unk_id, vocabulary);
  if (vocabulary.add_bos) {
    if (!spec.bos_id) {
      fail(ErrorKind::kCorrupt, kComponent,
           "tokenizer.ggml.add_bos_token: expected false without a bos_token_id, got true ({})",
           vocabulary.source);
    }
    spec.prefix_ids = {*spec.bos_id};
  }
  if (vocabulary.chat_template)
    spec.config.chat_templates = {{"default", *vocabulary.chat_template}};
  return spec;
}

}  // namespace qw
