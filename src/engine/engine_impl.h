// The engine's state: requests under way, their decoders, the cache, and one step over all of them.
//
// Level 6 (engine). Behind engine.h; nothing else includes this.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/decoder.h"
#include "engine/engine.h"
#include "engine/scheduler.h"

namespace qw {

/// A request that was accepted and has not yet ended.
struct ActiveRequest {
  using Clock = std::chrono::steady_clock;

  explicit ActiveRequest(Request r) : request(std::move(r)) {}

  Request request;
  std::unique_ptr<DecodeContext> context;
  std::vector<std::unique_ptr<Decoder>> decoders;
  SeqId prompt_seq = -1;  // yields the prompt's log-probabilities
  RequestResult result;
  Clock::time_point submitted, started, first_token;
  bool has_started = false, has_token = false, cancelled = false;
};

/// Collects a step's final hidden states, for decoders that look at them.
class HiddenCapture : public ForwardObserver {
 public:
  bool wants(std::string_view name) override { return name == "hidden.norm"; }
  void on_value(std::string_view, int64_t rows, int64_t cols, const float* values) override {
    n_rows = rows;
    hidden = cols;
    data.assign(values, values + rows * cols);
  }
  int64_t n_rows = 0, hidden = 0;
  std::vector<float> data;
};

/// Error{kInvalidArgument} naming `what` and the first id outside the vocabulary.
void check_token_ids(std::string_view what, std::span<const int32_t> ids, int64_t vocab);

class Engine::Impl : private EventSink {
 public:
  Impl(Model& model, std::shared_ptr<const Tokenizer> tokenizer, const EngineOptions& options);
  ~Impl() override;

  RequestId submit(Request request);
  void cancel(RequestId id);
  std::vector<Event> step();
  bool idle() const { return active_.empty() && pending_.empty(); }
  RequestResult generate(Request request, const EventCallback& on_event, const CancelFlag* cancel);
  void score(std::span<const int32_t> ids, RowsCallback on_rows, const ScoreOptions& options);

  const EngineOptions& options() const { return options_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  int64_t kv_bytes() const { return kv_->resident_bytes; }
  int64_t vocab() const { return vocab_; }
  int64_t usable_vocab() const { return usable_vocab_; }

 private:
  void token(RequestId request, int index, int32_t id, std::string text,
             std::optional<TokenLogprobs> logprobs) override;
  void finished(RequestId request, int index) override;

  void check_request(const Request& request) const;
  int64_t max_length_of(const Request& request) const;
  void check_fits(const Request& request, int64_t max_len) const;
  void make_decoders(ActiveRequest& active);

  void compute(StepPlan& step);
  void give_hidden(const StepPlan& step, const HiddenCapture& capture);
  void give_rows(const StepPlan& step);
  void take_prompt_row(ActiveRequest& active, const WantedRow& row, const float* logits);
  void advance(Decoder& decoder, const std::unordered_map<SeqId, float*>& rows);
  void fail_request(ActiveRequest& active, const Error& error);
  void fail_step(const StepPlan& step, const Error& error);
  void stop_cancelled();
  void retire_finished();
  Decoder* decoder_of(UnitId unit, ActiveRequest** active);

  Model& model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  EngineOptions options_;
  SchedulerOptions scheduler_options_;
  int64_t vocab_, usable_vocab_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<RequestId, std::unique_ptr<ActiveRequest>> active_;
  RequestId next_id_ = 1;
  std::vector<Event> events_;  // of the step under way
  std::deque<Event> pending_;  // of other requests, met while generate() was waiting for its own
  std::vector<float> logits_;
  /// Rows of lock-step sequences whose mates have none yet.
  std::unordered_map<SeqId, std::vector<float>> held_rows_;
};

}  // namespace qw
