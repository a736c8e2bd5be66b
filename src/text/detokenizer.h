// Ids to text while they arrive: never half a character, never a character late.
//
// Level 3 (text). The same text, in all, as Tokenizer::decode of all ids; the pieces are those of
// Python's incremental UTF-8 decoder with errors="replace".
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace qw {

class Detokenizer {
 public:
  explicit Detokenizer(std::shared_ptr<const Tokenizer> tokenizer,
                       bool skip_special_tokens = false);

  /// The text that becomes final with this id: an unfinished character is held back, a byte that
  /// can no longer become one is U+FFFD at once.
  std::string push(int32_t id);

  /// What is left at the end, an unfinished character as U+FFFD. Ready for another text then.
  std::string flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_tokens_;
  bool at_start_ = true;
  std::string held_;  // at most three bytes: what may yet become a character
};

}  // namespace qw
