// Whether the text of a sequence holds a stop string, for sequences that are forked and dropped.
//
// Level 6 (engine). An Answer cuts its one text before the stop string and holds back what might
// become one; beams only need to know that they have ended, but there are many of them. A copy of a
// StopWatch therefore costs no more than the end of the text that can matter.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/detokenizer.h"

namespace qw {

class StopWatch {
 public:
  /// stop_strings (not empty, as validate() sees to) must outlive the watch and all its copies.
  StopWatch(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens,
            const std::vector<std::string>& stop_strings);

  /// Takes the next token. True: the text holds a stop string now, which ends with this token's
  /// text. Characters count once they are whole.
  bool push(int32_t id);

 private:
  Detokenizer detokenizer_;
  const std::vector<std::string>* stop_strings_;
  size_t n_kept_ = 0;  // bytes: one less than the longest stop string
  std::string end_;    // of the text so far
};

}  // namespace qw
