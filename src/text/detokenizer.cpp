#include "text/detokenizer.h"

#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace qw {
namespace {

/// Python's decoder waits for a third byte behind the first two of an encoded surrogate, although
/// they can no longer become a character (it may be asked to let surrogates pass).
bool begins_surrogate(std::string_view bytes) noexcept {
  return bytes.size() == 2 && bytes[0] == '\xED' && (bytes[1] & '\xE0') == '\xA0';
}

}  // namespace

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {
  QW_CHECK(tokenizer_ != nullptr);
}

std::string Detokenizer::push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return {};
  std::string_view fresh = tokenizer_->token_bytes(id);
  if (at_start_ && !fresh.empty()) {
    at_start_ = false;
    if (tokenizer_->strips_first_space() && fresh.starts_with(' ')) fresh.remove_prefix(1);
  }
  const std::string bytes = std::exchange(held_, {}).append(fresh);
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    const std::string_view rest = std::string_view(bytes).substr(i);
    const Utf8Step step = decode_utf8(rest);
    if (step.valid) {
      out.append(bytes, i, step.length);
    } else if (step.truncated || begins_surrogate(rest)) {
      held_ = rest;
      break;
    } else {
      append_utf8(out, step.code_point);
    }
    i += step.length;
  }
  return out;
}

std::string Detokenizer::flush() {
  at_start_ = true;
  return replace_invalid_utf8(std::exchange(held_, {}));
}

}  // namespace qw
