// One answer under way: its tokens, the text that is certain so far, and when to stop.
//
// Level 6 (engine). Text passes through the detokenizer (never half a character) and the stop
// strings (never the beginning of one), and what they hold back comes out at the end.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace qw {

class Answer {
 public:
  /// tokenizer may be null: no text then. max_len: whole sequence, prompt included.
  Answer(int index, const Request& request, int64_t max_len,
         std::shared_ptr<const Tokenizer> tokenizer);

  /// What one token brought.
  struct Piece {
    std::string text;
    std::optional<FinishReason> finished;
  };
  /// Takes the next token; after a finish nothing more may be pushed. The text of the last piece
  /// includes everything that was held back.
  Piece push(int32_t id, std::optional<TokenLogprobs> logprobs);
  /// Ends an answer from outside (cancelled, error); returns the text held back.
  std::string finish(FinishReason reason);
  void set_error(const Error& error);
  void set_score(double score) { completion_.score = score; }

  bool finished() const noexcept { return finished_; }
  int index() const noexcept { return completion_.index; }
  const Completion& completion() const noexcept { return completion_; }
  Completion take() { return std::move(completion_); }

 private:
  std::string pass_through_stop(const std::string& text);
  std::string release();

  const GenerationConfig& config_;
  int64_t stop_after_;
  size_t n_turn_ends_;
  int64_t max_new_;
  std::optional<Detokenizer> detokenizer_;
  std::optional<StopStrings> stop_;
  bool stopped_ = false;  // a stop string was found
  bool finished_ = false;
  Completion completion_;
};

}  // namespace qw
