#include "model/gguf_tokenizer.h"

#include "base/error.h"
#include "text/tokenizer_gguf.h"

namespace qw {

namespace {

std::optional<int64_t> optional_id(const GgufMetadata& metadata, std::string_view key) {
  if (metadata.find(key) == nullptr) return std::nullopt;
  return metadata.integer(key);
}

std::optional<std::string> optional_text(const GgufMetadata& metadata, std::string_view key) {
  if (metadata.find(key) == nullptr) return std::nullopt;
  return metadata.string(key);
}

}  // namespace

std::optional<TokenizerSpec> gguf_tokenizer_spec(const GgufMetadata& metadata) {
  GgufVocabulary vocabulary;
  vocabulary.source = printable(metadata.file, 4096);
  vocabulary.model = metadata.string_or("tokenizer.ggml.model", "none");
  if (vocabulary.model == "none" || vocabulary.model == "no_vocab") return std::nullopt;
  vocabulary.pre = optional_text(metadata, "tokenizer.ggml.pre");
  if (const auto* tokens = metadata.strings("tokenizer.ggml.tokens")) vocabulary.tokens = *tokens;
  if (const auto* merges = metadata.strings("tokenizer.ggml.merges")) vocabulary.merges = *merges;
  if (const auto* types = metadata.integers("tokenizer.ggml.token_type")) {
    for (const int64_t type : *types) {
      // Anything outside int32 is no type at all; the reader of the spec treats it as unknown.
      const bool fits = type >= 0 && type <= 1024;
      vocabulary.token_types.push_back(fits ? static_cast<int32_t>(type) : 0);
    }
  }
  vocabulary.bos_id = optional_id(metadata, "tokenizer.ggml.bos_token_id");
  vocabulary.eos_id = optional_id(metadata, "tokenizer.ggml.eos_token_id");
  vocabulary.pad_id = optional_id(metadata, "tokenizer.ggml.padding_token_id");
  vocabulary.unk_id = optional_id(metadata, "tokenizer.ggml.unknown_token_id");
  vocabulary.add_bos = metadata.boolean_or("tokenizer.ggml.add_bos_token", false);
  vocabulary.chat_template = optional_text(metadata, "tokenizer.chat_template");
  return spec_from_gguf(vocabulary);
}

}  // namespace qw
