// Whether the text of a sequence holds a stop string, for sequences that are forked and dropped.
//
// Level 6 (engine). An Answer cuts its one text before the stop string and holds back what might
// become one; beams only need to know that they have ended, but there are many of them. A copy of a
// StopWatch therefore costs no more than the end of the text that can matter.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "text/detokenizer.h"

namespace qw {

class StopWatch {
 public:
  /// The request's stop strings (not empty, as validate() sees to) count as it says; it must
  /// outlive the watch and all its copies.
  StopWatch(std::shared_ptr<const Tokenizer> tokenizer, const Request& request);

  /// Takes the next token. True: the text holds a stop string now, which ends with this token's
  /// text. Characters count once they are whole.
  bool push(int32_t id);

 private:
  Detokenizer detokenizer_;
  const Request* request_;
  int64_t n_tokens_ = 0;
  size_t n_kept_ = 0;  // bytes: one less than the longest stop string
  std::string end_;    // of the text so far
};

}  // namespace qw
