#include "engine/engine_impl.h"

#include <algorithm>
#include <new>
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "engine/logits_math.h"
#include "engine/sampler.h"

namespace qw {
namespace {

double seconds(ActiveRequest::Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

void at_least_one(std::string_view name, int64_t value) {
  if (value >= 1) return;
  fail(ErrorKind::kInvalidArgument, "engine", "{}: expected a number from 1, got {}", name, value);
}

/// Which of the element types a cache can hold is the backend's to say.
DType kv_dtype(const std::string& name) {
  if (const std::optional<DType> type = dtype_from_name(name)) return *type;
  fail(ErrorKind::kInvalidArgument, "engine",
       "kv type: expected the name of an element type, got '{}'", printable(name));
}

}  // namespace

void check_token_ids(std::string_view what, std::span<const int32_t> ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) continue;
    fail(ErrorKind::kInvalidArgument, "engine",
         "{}: expected token ids from 0 to {}, got {} (at {})", what, vocab - 1, ids[i], i);
  }
}

Engine::Impl::Impl(Model& model, std::shared_ptr<const Tokenizer> tokenizer,
                   const EngineOptions& options)
    : model_(model),
      tokenizer_(std::move(tokenizer)),
      options_(options),
      vocab_(model.config().vocab),
      usable_vocab_(vocab_) {
  if (tokenizer_ != nullptr) usable_vocab_ = std::min<int64_t>(vocab_, tokenizer_->size());
  if (options_.ctx == 0) options_.ctx = trained_context(model.config());
  at_least_one("context", options_.ctx);
  at_least_one("slots", options_.n_slots);
  at_least_one("chunk", options_.chunk_tokens);
  at_least_one("logit rows", options_.logit_rows);
  const int page_tokens = model.backend().kv_page_tokens();
  if (options_.kv_tokens == 0) {
    options_.kv_tokens = checked_mul(round_up<int64_t>(options_.ctx, page_tokens), options_.n_slots,
                                     "size of the KV cache");
  }
  at_least_one("KV cache tokens", options_.kv_tokens);
#ifndef NDEBUG
  options_.check_integrity = true;
#endif
  const int64_t n_pages = ceil_div<int64_t>(options_.kv_tokens, page_tokens);
  kv_ = model.make_kv(n_pages, kv_dtype(options_.kv_type));
  scheduler_options_ = {n_pages,
                        page_tokens,
                        options_.chunk_tokens,
                        options_.n_slots,
                        options_.logit_rows,
                        model.config().rope.scaling == RopeScaling::kDynamic,
                        options_.prefix_cache};
  scheduler_ = std::make_unique<Scheduler>(scheduler_options_);
}

// Decoders hold units of the scheduler: they go first.
Engine::Impl::~Impl() {
  active_.clear();
}

// ---- one step ----------------------------------------------------------------------------------

std::vector<Event> Engine::Impl::step() {
  events_.assign(std::make_move_iterator(pending_.begin()),
                 std::make_move_iterator(pending_.end()));
  pending_.clear();
  stop_cancelled();
  retire_finished();
  StepPlan step = scheduler_->schedule();
  if (step.chunks.empty()) {
    QW_CHECK(active_.empty(), "{} requests wait and none can run", active_.size());
    return std::move(events_);
  }
  const auto now = ActiveRequest::Clock::now();
  for (const StepPlan::Chunk& chunk : step.chunks) {
    ActiveRequest* active = nullptr;
    const Sequence& sequence = scheduler_->sequence(chunk.seq);
    decoder_of(sequence.unit, &active);
    if (active->has_started) continue;
    active->has_started = true;
    active->started = now;
    if (sequence.lineage == prompt_lineage(active->context->request_id))
      active->result.timings.n_cached = chunk.begin;
  }
  try {
    compute(step);
  } catch (const Error& error) {
    fail_step(step, error);
  } catch (const std::bad_alloc&) {
    fail_step(step, Error(ErrorKind::kOutOfMemory, "[engine] step: out of memory"));
  }
  retire_finished();
  if (options_.check_integrity) scheduler_->check_integrity();
  return std::move(events_);
}

void Engine::Impl::compute(StepPlan& step) {
  for (const StepPlan::Copy& copy : step.copies)
    kv_->copy_page(copy.from, copy.to, copy.n_tokens);
  bool hidden = false;
  for (const StepPlan::Chunk& chunk : step.chunks) {
    ActiveRequest* active = nullptr;
    hidden = decoder_of(scheduler_->sequence(chunk.seq).unit, &active)->wants_hidden() || hidden;
  }
  logits_.resize(std::max(logits_.size(), step.rows.size() * static_cast<size_t>(vocab_)));
  HiddenCapture capture;
  model_.forward(step.batch, *kv_, step.rows.empty() ? nullptr : logits_.data(),
                 hidden ? &capture : nullptr);
  scheduler_->commit(step);
  if (hidden) give_hidden(step, capture);
  give_rows(step);
}

void Engine::Impl::give_hidden(const StepPlan& step, const HiddenCapture& capture) {
  QW_CHECK(capture.n_rows == step.batch.n_tokens(), "hidden states of {} rows, expected {}",
           capture.n_rows, step.batch.n_tokens());
  int64_t row = 0;
  for (const StepPlan::Chunk& chunk : step.chunks) {
    ActiveRequest* active = nullptr;
    Decoder* decoder = decoder_of(scheduler_->sequence(chunk.seq).unit, &active);
    const int64_t n = chunk.end - chunk.begin;
    if (decoder->wants_hidden()) {
      decoder->on_hidden(chunk.seq, chunk.begin, n, capture.hidden,
                         capture.data.data() + row * capture.hidden);
    }
    row += n;
  }
}

void Engine::Impl::give_rows(const StepPlan& step) {
  std::unordered_map<SeqId, float*> rows;
  std::vector<UnitId> units;  // touched, in the order of the batch
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const WantedRow& row = step.rows[i];
    float* logits = logits_.data() + i * static_cast<size_t>(vocab_);
    const Sequence& sequence = scheduler_->sequence(row.seq);
    ActiveRequest* active = nullptr;
    decoder_of(sequence.unit, &active);
    if (row.seq == active->prompt_seq && row.position + 1 < sequence.prompt_len)
      take_prompt_row(*active, row, logits);
    if (row.position + 1 != sequence.size()) continue;  // a draft's rows follow the last token's
    rows[row.seq] = logits;
    if (std::find(units.begin(), units.end(), sequence.unit) == units.end())
      units.push_back(sequence.unit);
  }
  for (const UnitId unit : units) {
    ActiveRequest* active = nullptr;
    Decoder* decoder = decoder_of(unit, &active);
    if (decoder == nullptr || decoder->finished()) continue;  // its request failed just now
    try {
      advance(*decoder, rows);
    } catch (const Error& error) {
      fail_request(*active, error);
    }
  }
}

void Engine::Impl::take_prompt_row(ActiveRequest& active, const WantedRow& row,
                                   const float* logits) {
  const std::span<const float> values(logits, static_cast<size_t>(vocab_));
  const int32_t next = active.request.prompt[static_cast<size_t>(row.position) + 1];
  active.result.prompt_logprobs.push_back(
      token_logprobs(values, next, *active.request.config.prompt_logprobs));
  scheduler_->set_logits_from(row.seq, row.position + 1);
}

/// Advances a decoder when every one of its sequences has a row; keeps the rows otherwise.
void Engine::Impl::advance(Decoder& decoder, const std::unordered_map<SeqId, float*>& rows) {
  const std::vector<SeqId> seqs = decoder.sequences();
  std::vector<float*> pointers;
  bool complete = true;
  for (const SeqId seq : seqs) {
    const auto now = rows.find(seq);
    const auto held = held_rows_.find(seq);
    pointers.push_back(now != rows.end()
                           ? now->second
                           : (held != held_rows_.end() ? held->second.data() : nullptr));
    complete = complete && pointers.back() != nullptr;
  }
  if (!complete) {
    for (const SeqId seq : seqs) {
      if (const auto now = rows.find(seq); now != rows.end()) {
        held_rows_[seq].assign(now->second, now->second + vocab_);
      }
    }
    return;
  }
  decoder.advance(pointers, *this);
  for (const SeqId seq : seqs)
    held_rows_.erase(seq);
}

Decoder* Engine::Impl::decoder_of(UnitId unit, ActiveRequest** active) {
  for (auto& [id, request] : active_) {
    for (auto& decoder : request->decoders) {
      if (decoder->unit() != unit) continue;
      *active = request.get();
      return decoder.get();
    }
  }
  return nullptr;
}

// ---- ends --------------------------------------------------------------------------------------

void Engine::Impl::fail_request(ActiveRequest& active, const Error& error) {
  for (auto& decoder : active.decoders) {
    if (decoder->finished()) continue;
    for (const SeqId seq : decoder->sequences())
      held_rows_.erase(seq);
    decoder->stop(FinishReason::kError, &error, *this);
  }
}

/// A fault of the forward pass cannot be pinned on one request: all that took part end with it.
void Engine::Impl::fail_step(const StepPlan& step, const Error& error) {
  std::set<ActiveRequest*> touched;
  for (auto& [id, active] : active_) {
    for (const auto& decoder : active->decoders) {
      const bool took_part =
          !decoder->finished() &&
          std::any_of(step.chunks.begin(), step.chunks.end(), [&](const StepPlan::Chunk& c) {
            const std::vector<SeqId> seqs = decoder->sequences();
            return std::find(seqs.begin(), seqs.end(), c.seq) != seqs.end();
          });
      if (took_part) touched.insert(active.get());
    }
  }
  for (ActiveRequest* active : touched)
    fail_request(*active, error);
}

void Engine::Impl::stop_cancelled() {
  for (auto& [id, active] : active_) {
    if (!active->cancelled) continue;
    for (auto& decoder : active->decoders) {
      if (decoder->finished()) continue;
      for (const SeqId seq : decoder->sequences())
        held_rows_.erase(seq);
      decoder->stop(FinishReason::kCancelled, nullptr, *this);
    }
  }
}

/// Ends every request whose decoders all have.
void Engine::Impl::retire_finished() {
  for (auto it = active_.begin(); it != active_.end();) {
    ActiveRequest& active = *it->second;
    const bool done = std::all_of(active.decoders.begin(), active.decoders.end(),
                                  [](const auto& d) { return d->finished(); });
    if (!done) {
      ++it;
      continue;
    }
    Timings& timings = active.result.timings;
    const auto now = ActiveRequest::Clock::now();
    const auto started = active.has_started ? active.started : now;
    const auto first = active.has_token ? active.first_token : now;
    timings.queue_s = seconds(started - active.submitted);
    timings.prefill_s = seconds(first - started);
    timings.decode_s = seconds(now - first);
    for (auto& decoder : active.decoders) {
      const Decoder::Guesses guesses = decoder->guesses();
      timings.n_drafted += guesses.n_drafted;
      timings.n_accepted += guesses.n_accepted;
      for (Completion& completion : decoder->take_completions()) {
        timings.n_generated += static_cast<int64_t>(completion.ids.size());
        active.result.completions[static_cast<size_t>(completion.index)] = std::move(completion);
      }
    }
    Event event;
    event.kind = Event::Kind::kRequest;
    event.request = it->first;
    event.result = std::make_shared<const RequestResult>(std::move(active.result));
    events_.push_back(std::move(event));
    it = active_.erase(it);
  }
}

void Engine::Impl::token(RequestId request, int index, int32_t id, std::string text,
                         std::optional<TokenLogprobs> logprobs) {
  ActiveRequest& active = *active_.at(request);
  if (!active.has_token) {
    active.has_token = true;
    active.first_token = ActiveRequest::Clock::now();
  }
  events_.push_back(
      {Event::Kind::kToken, request, index, id, std::move(text), std::move(logprobs), nullptr});
}

void Engine::Impl::finished(RequestId request, int index) {
  events_.push_back({Event::Kind::kCompletion, request, index, -1, {}, std::nullopt, nullptr});
}

// ---- loops over steps --------------------------------------------------------------------------

RequestResult Engine::Impl::generate(Request request, const EventCallback& on_event,
                                     const CancelFlag* cancel_flag) {
  const RequestId id = submit(std::move(request));
  std::shared_ptr<const RequestResult> result;
  std::deque<Event> others;
  try {
    while (result == nullptr) {
      if (cancel_flag != nullptr && cancel_flag->cancelled()) cancel(id);
      for (Event& event : step()) {
        if (event.request != id) {
          others.push_back(std::move(event));
          continue;
        }
        if (event.kind == Event::Kind::kRequest) result = event.result;
        if (on_event) on_event(event);
      }
    }
  } catch (...) {
    // The callback threw: the request ends, and nobody waits for its events.
    active_.erase(id);
    pending_ = std::move(others);
    throw;
  }
  pending_ = std::move(others);
  for (const Completion& completion : result->completions) {
    if (completion.finish_reason == FinishReason::kError)
      throw Error(completion.error_kind, completion.error);
  }
  return *result;
}

void Engine::Impl::score(std::span<const int32_t> ids, RowsCallback on_rows,
                         const ScoreOptions& options) {
  if (!active_.empty())
    fail(ErrorKind::kInvalidArgument, "engine",
         "score: expected an idle engine, got {} requests under way", active_.size());
  const auto n_tokens = static_cast<int64_t>(ids.size());
  if (n_tokens == 0)
    fail(ErrorKind::kInvalidArgument, "engine", "score: expected at least one token, got none");
  check_token_ids("score", ids, vocab_);
  const int64_t limit = std::min(options_.ctx, scheduler_->n_pages() * scheduler_->page_tokens());
  if (n_tokens > limit) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "score: expected at most {} tokens (the context), got {}", limit, n_tokens);
  }
  Sequence sequence;
  sequence.tokens.assign(ids.begin(), ids.end());
  sequence.prompt_len = n_tokens;
  sequence.adapter = options.adapter;
  sequence.logits_from = options.first_row;
  struct Pages {  // given back whatever happens
    Scheduler& scheduler;
    std::vector<int32_t> pages;
    ~Pages() { scheduler.release_pages(pages); }
  } pages{*scheduler_,
          scheduler_->take_pages(ceil_div<int64_t>(n_tokens, scheduler_->page_tokens()))};
  sequence.pages = pages.pages;

  for (int64_t begin = 0; begin < n_tokens;) {
    if (options.cancel != nullptr) options.cancel->check("score");
    const int64_t unasked = std::max<int64_t>(options.first_row - begin, 0);
    const int64_t end =
        std::min({n_tokens, begin + options_.chunk_tokens, begin + unasked + options_.logit_rows});
    StepPlan step;
    Scheduler::append_chunk(sequence, begin, end, scheduler_options_, step);
    step.batch.seq_begin.push_back(static_cast<int32_t>(step.batch.n_tokens()));
    step.batch.page_begin.push_back(static_cast<int32_t>(step.batch.pages.size()));
    logits_.resize(std::max(logits_.size(), step.rows.size() * static_cast<size_t>(vocab_)));
    model_.forward(step.batch, *kv_, step.rows.empty() ? nullptr : logits_.data(),
                   options.observer);
    if (!step.rows.empty() && step.rows.back().position >= options.first_row) {
      on_rows(step.rows.front().position, static_cast<int64_t>(step.rows.size()), logits_.data());
    }
    begin = end;
  }
}

}  // namespace qw
