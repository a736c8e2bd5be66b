// The engine's state: requests under way, their decoders, the cache, and one step over all of them.
//
// Level 6 (engine). Behind engine.h; nothing else includes this.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/decoder.h"
#include "engine/engine.h"
#include "engine/kv_sequence_file.h"
#include "engine/prefix_tier.h"
#include "engine/scheduler.h"
#include "engine/speculation.h"

namespace qw {

/// A request that was accepted and has not yet ended.
struct ActiveRequest {
  using Clock = std::chrono::steady_clock;

  ActiveRequest(Request r, AdapterUse use) : adapter(std::move(use)), request(std::move(r)) {}

  AdapterUse adapter;  // first: it outlives the decoders
  Request request;
  std::unique_ptr<DecodeContext> context;
  std::vector<std::unique_ptr<Decoder>> decoders;
  SeqId prompt_seq = -1;  // yields the prompt's log-probabilities
  RequestResult result;
  Clock::time_point submitted, started, prefilled;  // prefilled: the first choice made
  bool has_started = false, is_prefilled = false, cancelled = false;
  /// Rows of lock-step sequences whose mates have none yet.
  std::unordered_map<SeqId, std::vector<float>> held_rows;
  bool held = false;          // until its prompt's beginning was read from disk
  int64_t working_bytes = 0;  // beyond what every request needs (EngineOptions::spare_bytes)
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

class Engine::Impl : private EventSink {
 public:
  Impl(Model& model, std::shared_ptr<const Tokenizer> tokenizer, const EngineOptions& options,
       Model* draft);
  ~Impl() override;

  RequestId submit(Request request);
  void cancel(RequestId id);
  std::vector<Event> step();
  bool idle() const {
    return active_.empty() && events_.empty() && (tier_ == nullptr || !tier_->is_busy());
  }
  Load load() const;
  bool has_started(RequestId id) const;
  RequestResult generate(Request request, const EventCallback& on_event, const CancelFlag* cancel);
  void score(std::span<const int32_t> ids, RowsCallback on_rows, const ScoreOptions& options);

  Model& model() { return model_; }
  const EngineOptions& options() const { return options_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  bool stalled() const { return stalled_; }
  // engine_copies.cpp
  Held hold(const BlockScope& scope, std::span<const int32_t> tokens, size_t which);
  void read_held(int64_t hold, int64_t first, std::span<std::byte> out) const;
  void let_go(int64_t hold) { scheduler_->let_go(hold); }
  int64_t import_pages(const BlockScope& scope, const KvSequence& sequence, size_t which,
                       int64_t first, std::span<const std::byte> pages);
  bool takes(const BlockScope& scope, const KvSequence& sequence, size_t which) const;
  int64_t forget(const BlockScope& scope, std::span<const int32_t> tokens);
  std::optional<PrefixTierStats> disk_stats() const {
    return tier_ ? std::optional(tier_->stats()) : std::nullopt;
  }
  void drop_kept_pages() { scheduler_->drop_kept_pages(); }
  int64_t kv_bytes() const { return kv_->resident_bytes + draft_kv_bytes_; }
  int64_t vocab() const { return vocab_; }
  int64_t usable_vocab() const { return usable_vocab_; }

 private:
  void token(RequestId request, int index, int32_t id, std::string text,
             std::optional<TokenLogprobs> logprobs) override;
  void finished(RequestId request, const Completion& answer) override;

  KvName root_of(const BlockScope& scope, size_t which) const;

  // engine_admission.cpp
  void check_request(const Request& request) const;
  void check_generates() const;
  int64_t max_length_of(const Request& request) const;
  int64_t pages_at_worst(const Request& request, int64_t max_len) const;
  int64_t longest_that_fits(const Request& request, int64_t max_len) const;
  Turn turn_of(const Request& request, int64_t max_len) const;
  int64_t working_bytes_of(const Request& request, int64_t max_len) const;
  void check_working_bytes(int64_t wanted) const;
  void make_decoders(ActiveRequest& active);

  void run_step();
  void admit_read();
  void set_held(ActiveRequest& active, bool held);
  void guess_ahead();
  void note_starts(const StepPlan& step);
  void compute(StepPlan& step);
  void give_hidden(const StepPlan& step, const HiddenCapture& capture);
  void give_rows(const StepPlan& step);
  void prepare_all(std::span<const UnitId> units, const std::unordered_map<SeqId, float*>& rows);
  void tell_prompt(const ActiveRequest& active);
  void take_prompt_row(ActiveRequest& active, const WantedRow& row, float* logits);
  void advance(ActiveRequest& active, Decoder& decoder,
               const std::unordered_map<SeqId, float*>& rows);
  void stop_request(ActiveRequest& active, FinishReason reason, const Error* error);
  void drop_broken(const StepPlan& step, const NumericError& error);
  void fail_step(const StepPlan& step, const Error& error);
  void stop_cancelled();
  void retire_finished();
  std::vector<Event> take_events_of(RequestId id);
  Decoder* decoder_of(UnitId unit, ActiveRequest** active);

  Model& model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  EngineOptions options_;
  SchedulerOptions scheduler_options_;
  int64_t vocab_, usable_vocab_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<PrefixTier> tier_;  // null: none
  Speculation speculation_;
  int64_t draft_kv_bytes_ = 0;
  std::map<RequestId, std::unique_ptr<ActiveRequest>> active_;
  RequestId next_id_ = 1;
  /// What step() has yet to report, in order. An exception leaves it as it is: nothing is lost.
  std::vector<Event> events_;
  std::vector<float> logits_;
  bool stalled_ = false;
};

}  // namespace qw
