#include "engine/answer.h"

#include "base/error.h"

namespace qw {

Answer::Answer(int index, const Request& request, int64_t max_len,
               std::shared_ptr<const Tokenizer> tokenizer)
    : config_(request.config),
      stop_after_(request.stop_after),
      n_turn_ends_(request.n_turn_ends),
      max_new_(max_len - static_cast<int64_t>(request.prompt.size())) {
  completion_.index = index;
  if (tokenizer != nullptr) detokenizer_.emplace(std::move(tokenizer), request.skip_special_tokens);
  if (request.stop) stop_ = *request.stop;
}

Answer::Piece Answer::push(int32_t id, std::optional<TokenLogprobs> logprobs) {
  QW_CHECK(!finished_);
  completion_.ids.push_back(id);
  if (logprobs) completion_.logprobs.push_back(std::move(*logprobs));

  Piece piece;
  if (config_.ends_at(id)) {
    piece.finished = FinishReason::kEos;
    if (!config_.is_eos(id)) {
      completion_.stop_token = id;
      if (detokenizer_ && config_.include_stop_str_in_output)
        piece.text = pass_through_stop(detokenizer_->push(id));
    }
  } else {
    if (detokenizer_) piece.text = pass_through_stop(detokenizer_->push(id));
    if (stopped_) {
      piece.finished = FinishReason::kStop;
    } else if (static_cast<int64_t>(completion_.ids.size()) >= max_new_) {
      piece.finished = FinishReason::kLength;
    }
  }
  completion_.text += piece.text;
  if (piece.finished) {
    piece.text += finish(*piece.finished);
    // The text held back can still complete a stop string (a replacement character at the end).
    if (stopped_) piece.finished = FinishReason::kStop;
  }
  return piece;
}

std::string Answer::pass_through_stop(const std::string& text) {
  if (!stop_) return text;
  const bool all_count = std::ssize(completion_.ids) > stop_after_;
  StopStrings::Result result = stop_->push(text, all_count ? SIZE_MAX : n_turn_ends_);
  if (result.stop) {
    stopped_ = true;
    completion_.stop_string = config_.stop_strings[*result.stop];
    if (config_.include_stop_str_in_output) result.text += completion_.stop_string;
  }
  return result.text;
}

/// Everything that detokenizer and stop strings hold back.
std::string Answer::release() {
  if (stopped_ || !detokenizer_) return {};
  std::string text = pass_through_stop(detokenizer_->flush());
  if (stop_ && !stopped_) text += stop_->flush();
  return text;
}

std::string Answer::finish(FinishReason reason) {
  if (finished_) return {};
  finished_ = true;
  std::string text = release();
  completion_.text += text;
  completion_.finish_reason = stopped_ ? FinishReason::kStop : reason;
  return text;
}

void Answer::set_error(const Error& error) {
  completion_.finish_reason = FinishReason::kError;
  completion_.error = error.message();
  completion_.error_kind = error.kind();
}

}  // namespace qw
