#include "engine/engine_impl.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "engine/current_error.h"
#include "engine/generation_config_checks.h"
#include "engine/logits_math.h"
#include "engine/model_drafter.h"
#include "engine/prompt_lookup.h"
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

Engine::Impl::Impl(Model& model, std::shared_ptr<const Tokenizer> tokenizer,
                   const EngineOptions& options, Model* draft)
    : model_(model),
      tokenizer_(std::move(tokenizer)),
      options_(options),
      vocab_(model.config().vocab),
      usable_vocab_(tokenizer_ ? std::min<int64_t>(vocab_, tokenizer_->size()) : vocab_),
      speculation_(usable_vocab_) {
  if (options_.ctx == 0) options_.ctx = trained_context(model.config());
  at_least_one("context", options_.ctx);
  at_least_one("slots", options_.n_slots);
  at_least_one("chunk", options_.chunk_tokens);
  at_least_one("logit rows", options_.logit_rows);
  options_.logit_rows = step_logit_rows(options_);
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
  const DType kv_type = kv_dtype(options_.kv_type);
  kv_ = model.make_kv(n_pages, kv_type);
  scheduler_options_ = {n_pages,
                        page_tokens,
                        options_.chunk_tokens,
                        options_.n_slots,
                        options_.logit_rows,
                        model.config().rope.scaling == RopeScaling::kDynamic,
                        options_.prefix_cache};
  scheduler_ = std::make_unique<Scheduler>(scheduler_options_);
  if (options_.prefix_store != nullptr && scheduler_->pool().keeps_blocks()) {
    tier_ = std::make_unique<PrefixTier>(options_.prefix_store, /*which=*/0, model_, *kv_,
                                         *scheduler_, options_.chunk_tokens);
  }
  speculation_.add(std::make_unique<LookupDrafter>());
  if (draft == nullptr) return;
  auto drafter =
      std::make_unique<ModelDrafter>(*draft, model, speculation_.step_times(), options_, kv_type);
  draft_kv_bytes_ = drafter->kv_bytes();
  speculation_.add(std::move(drafter));
}

// Decoders hold units of the scheduler: they go first.
Engine::Impl::~Impl() {
  active_.clear();
}

// ---- one step ----------------------------------------------------------------------------------

std::vector<Event> Engine::Impl::step() {
  run_step();
  return std::exchange(events_, {});
}

void Engine::Impl::run_step() {
  stalled_ = false;
  stop_cancelled();
  retire_finished();
  if (tier_) admit_read();
  guess_ahead();
  StepPlan step = scheduler_->schedule();
  const bool has_held = std::ranges::any_of(active_, [](const auto& a) { return a.second->held; });
  if (step.chunks.empty() && (has_held || active_.empty() || scheduler_->holds_pages())) {
    if (tier_ == nullptr || !tier_->is_busy()) {
      stalled_ = !active_.empty();
      return;
    }
    tier_->keep_published(/*others_wait=*/false);
    if (tier_->is_busy()) tier_->wait();
    return;
  }
  if (step.chunks.empty()) {
    // Admission promised that the first request can always run: never wait for what never comes.
    const Error error(ErrorKind::kInternal,
                      "[engine] step: expected a request that can run, got "
                      "none among those that wait");
    for (auto& [id, active] : active_)
      stop_request(*active, FinishReason::kError, &error);
    retire_finished();
    return;
  }
  note_starts(step);
  try {
    compute(step);
  } catch (const NumericError& error) {
    drop_broken(step, error);
  } catch (...) {
    fail_step(step, current_error());
  }
  retire_finished();
  speculation_.sweep(*scheduler_);
  if (tier_) tier_->keep_published(/*others_wait=*/!active_.empty());
  if (!options_.check_integrity) return;
  scheduler_->check_integrity();
  speculation_.check_integrity();
}

/// Lets those begin whose prompts have been read from disk as far as they are there.
void Engine::Impl::admit_read() {
  const bool others_wait = std::ranges::any_of(
      active_, [](const auto& a) { return !a.second->held && a.second->has_started; });
  for (const RequestId id : tier_->take_ready(others_wait))
    set_held(*active_.at(id), false);
}

void Engine::Impl::set_held(ActiveRequest& active, bool held) {
  active.held = held;
  for (const auto& decoder : active.decoders) {
    if (scheduler_->has_unit(decoder->unit())) scheduler_->set_held(decoder->unit(), held);
  }
}

/// Asks for guesses of what answers say next, where a token is all that they wait for.
void Engine::Impl::guess_ahead() {
  std::vector<Speculation::Answer> answers;
  for (auto& [id, active] : active_) {
    for (auto& decoder : active->decoders) {
      TokenChooser* chooser = decoder->finished() ? nullptr : decoder->chooser();
      if (chooser == nullptr) continue;
      const SeqId seq = decoder->sequences()[0];
      const Sequence& sequence = scheduler_->sequence(seq);
      if (sequence.n_pending() != 1 || sequence.n_computed == 0 || !sequence.draft.empty())
        continue;
      answers.push_back({seq, &active->request.config, chooser, active->context->max_len});
    }
  }
  speculation_.guess(answers, *scheduler_);
}

void Engine::Impl::note_starts(const StepPlan& step) {
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
  const auto start = ActiveRequest::Clock::now();
  model_.forward(step.batch, *kv_, step.rows.empty() ? nullptr : logits_.data(),
                 hidden ? &capture : nullptr);
  speculation_.note_step(step, seconds(ActiveRequest::Clock::now() - start));
  scheduler_->commit(step);
  if (hidden) give_hidden(step, capture);
  give_rows(step);
}

void Engine::Impl::give_hidden(const StepPlan& step, const HiddenCapture& capture) {
  QW_CHECK(capture.n_rows == step.batch.n_tokens(), "hidden states of {} rows, expected {}",
           capture.n_rows, step.batch.n_tokens());
  int64_t row = 0;
  for (const StepPlan::Chunk& chunk : step.chunks) {
    const int64_t n = chunk.end - chunk.begin;
    const float* hidden = capture.data.data() + std::exchange(row, row + n) * capture.hidden;
    if (!scheduler_->has_sequence(chunk.seq)) continue;  // its request failed just now
    ActiveRequest* active = nullptr;
    Decoder* decoder = decoder_of(scheduler_->sequence(chunk.seq).unit, &active);
    if (!decoder->wants_hidden()) continue;
    try {
      decoder->on_hidden(chunk.seq, chunk.begin, n, capture.hidden, hidden);
    } catch (...) {
      const Error error = current_error();
      stop_request(*active, FinishReason::kError, &error);
    }
  }
}

/// Hands every row to the sequence that it belongs to. A request that fails ends alone.
void Engine::Impl::give_rows(const StepPlan& step) {
  std::unordered_map<SeqId, float*> rows;
  std::vector<UnitId> units;  // touched, in the order of the batch
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const WantedRow& row = step.rows[i];
    if (!scheduler_->has_sequence(row.seq)) continue;  // its request failed just now
    float* logits = logits_.data() + i * static_cast<size_t>(vocab_);
    const Sequence& sequence = scheduler_->sequence(row.seq);
    if (row.position + 1 == sequence.size()) {
      rows[row.seq] = logits;  // a draft's rows follow the last token's
      if (std::find(units.begin(), units.end(), sequence.unit) == units.end())
        units.push_back(sequence.unit);
      continue;
    }
    ActiveRequest* active = nullptr;
    decoder_of(sequence.unit, &active);
    if (row.seq != active->prompt_seq || row.position + 1 >= sequence.prompt_len) continue;
    try {
      take_prompt_row(*active, row, logits);
    } catch (...) {
      const Error error = current_error();
      stop_request(*active, FinishReason::kError, &error);
    }
  }
  prepare_all(units, rows);
  for (const UnitId unit : units) {
    ActiveRequest* active = nullptr;
    Decoder* decoder = decoder_of(unit, &active);
    if (decoder == nullptr || decoder->finished()) continue;  // its request failed just now
    try {
      advance(*active, *decoder, rows);
    } catch (...) {
      const Error error = current_error();
      stop_request(*active, FinishReason::kError, &error);
    }
  }
}

/// Lets the decoders that have all their rows do the costly part of choosing, side by side. Those
/// of one request one after the other where it brought processors, which may not be made for
/// threads.
void Engine::Impl::prepare_all(std::span<const UnitId> units,
                               const std::unordered_map<SeqId, float*>& rows) {
  struct Job {
    const ActiveRequest* active = nullptr;
    std::vector<std::pair<Decoder*, std::vector<float*>>> decoders;
  };
  std::vector<Job> jobs;
  for (const UnitId unit : units) {
    ActiveRequest* active = nullptr;
    Decoder* decoder = decoder_of(unit, &active);
    if (decoder == nullptr || decoder->finished()) continue;
    std::vector<float*> pointers;
    for (const SeqId seq : decoder->sequences()) {
      const auto row = rows.find(seq);
      if (row != rows.end()) pointers.push_back(row->second);
    }
    if (pointers.size() != decoder->sequences().size()) continue;  // some are held, or to come
    auto job = jobs.end();
    if (!active->request.processors.empty()) job = std::ranges::find(jobs, active, &Job::active);
    if (job == jobs.end()) job = jobs.insert(job, {active, {}});
    job->decoders.emplace_back(decoder, std::move(pointers));
  }
  if (jobs.size() < 2) return;
  model_.backend().run_on_host(std::ssize(jobs), [&](int64_t i) {
    for (auto& [decoder, pointers] : jobs[static_cast<size_t>(i)].decoders)
      decoder->prepare(pointers);
  });
}

void Engine::Impl::take_prompt_row(ActiveRequest& active, const WantedRow& row, float* logits) {
  const auto prompt_len = static_cast<int64_t>(active.request.prompt.size());
  const std::span<float> values(logits, static_cast<size_t>(vocab_));
  admit_logits(values, active.request.config, row.position + 1);
  const int32_t next = active.request.prompt[static_cast<size_t>(row.position) + 1];
  active.result.prompt_logprobs.push_back(
      token_logprobs(values, next, *active.request.config.prompt_logprobs));
  const bool is_last = row.position + 2 == prompt_len;
  scheduler_->set_logits_from(row.seq, is_last ? Sequence::kNever : row.position + 1);
  if (is_last) tell_prompt(active);
}

void Engine::Impl::tell_prompt(const ActiveRequest& active) {
  Event event;
  event.kind = Event::Kind::kPrompt;
  event.request = active.context->request_id;
  event.prompt_logprobs =
      std::make_shared<const std::vector<TokenLogprobs>>(active.result.prompt_logprobs);
  events_.push_back(std::move(event));
}

/// Advances a decoder when every one of its sequences has a row; keeps the rows otherwise.
void Engine::Impl::advance(ActiveRequest& active, Decoder& decoder,
                           const std::unordered_map<SeqId, float*>& rows) {
  const std::vector<SeqId> seqs = decoder.sequences();
  std::vector<float*> pointers;
  bool complete = true;
  for (const SeqId seq : seqs) {
    const auto now = rows.find(seq);
    const auto held = active.held_rows.find(seq);
    pointers.push_back(now != rows.end()
                           ? now->second
                           : (held != active.held_rows.end() ? held->second.data() : nullptr));
    complete = complete && pointers.back() != nullptr;
  }
  if (!complete) {
    for (const SeqId seq : seqs) {
      if (const auto now = rows.find(seq); now != rows.end()) {
        active.held_rows[seq].assign(now->second, now->second + vocab_);
      }
    }
    return;
  }
  const Decoder::Guesses before = decoder.guesses();
  decoder.advance(pointers, *this);
  if (!active.is_prefilled) {  // not with the first token event: beams give none before their end
    active.is_prefilled = true;
    active.prefilled = ActiveRequest::Clock::now();
  }
  const Decoder::Guesses after = decoder.guesses();
  speculation_.note_outcome(seqs[0], after.n_drafted - before.n_drafted,
                            after.n_accepted - before.n_accepted);
  for (const SeqId seq : seqs)
    active.held_rows.erase(seq);
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

/// Ends what of a request has not ended.
void Engine::Impl::stop_request(ActiveRequest& active, FinishReason reason, const Error* error) {
  active.held_rows.clear();
  for (auto& decoder : active.decoders)
    decoder->stop(reason, error, *this);
}

/// Takes the sequence with a broken row out of the work. The step came to nothing, and the next one
/// computes again what the others wanted: by the numeric contract the same bits.
void Engine::Impl::drop_broken(const StepPlan& step, const NumericError& error) {
  int64_t first = 0;
  for (const StepPlan::Chunk& chunk : step.chunks) {
    const int64_t n = chunk.end - chunk.begin;
    if (error.row() >= first + n) {
      first += n;
      continue;
    }
    ActiveRequest* active = nullptr;
    const Sequence& sequence = scheduler_->sequence(chunk.seq);
    decoder_of(sequence.unit, &active);
    if (chunk.begin + error.row() - first >= sequence.size()) {
      // Only guessed: without it the answer may never get there.
      speculation_.note_broken(chunk.seq, sequence.n_draft());
      scheduler_->drop_draft(chunk.seq);
    } else {
      stop_request(*active, FinishReason::kError, &error);
    }
    return scheduler_->abandon(step);
  }
  fail_step(step, error);
}

/// A fault that cannot be pinned on one request: all that took part end with it.
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
    stop_request(*active, FinishReason::kError, &error);
}

void Engine::Impl::stop_cancelled() {
  for (auto& [id, active] : active_) {
    if (active->cancelled) stop_request(*active, FinishReason::kCancelled, nullptr);
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
    const auto prefilled = active.is_prefilled ? active.prefilled : now;
    timings.queue_s = seconds(started - active.submitted);
    timings.prefill_s = seconds(prefilled - started);
    timings.decode_s = seconds(now - prefilled);
    for (auto& decoder : active.decoders) {
      const Decoder::Guesses guesses = decoder->guesses();
      timings.n_drafted += guesses.n_drafted;
      timings.n_accepted += guesses.n_accepted;
      if (active.request.pooling != Pooling::kNone)
        active.result.embedding = decoder->take_embedding();
      for (Completion& completion : decoder->take_completions()) {
        const auto n_ids = static_cast<int64_t>(completion.ids.size());
        timings.n_generated += n_ids;
        timings.n_decoded += std::max<int64_t>(n_ids - 1, 0);
        active.result.completions[static_cast<size_t>(completion.index)] = std::move(completion);
      }
    }
    if (tier_) tier_->leave(it->first);
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
  Event event;
  event.request = request;
  event.index = index;
  event.token = id;
  event.text = std::move(text);
  event.logprobs = std::move(logprobs);
  event.n_cached = active_.at(request)->result.timings.n_cached;
  events_.push_back(std::move(event));
}

void Engine::Impl::finished(RequestId request, const Completion& answer) {
  Event event;
  event.kind = Event::Kind::kCompletion;
  event.request = request;
  event.index = answer.index;
  event.finish_reason = answer.finish_reason;
  event.stop_string = answer.stop_string;
  event.stop_token = answer.stop_token;
  event.n_cached = active_.at(request)->result.timings.n_cached;
  events_.push_back(std::move(event));
}

Engine::Load Engine::Impl::load() const {
  Load out;
  for (const auto& [id, active] : active_)
    ++(active->has_started ? out.n_running : out.n_waiting);
  return out;
}

bool Engine::Impl::has_started(RequestId id) const {
  const auto it = active_.find(id);
  return it != active_.end() && it->second->has_started;
}

/// Moves the events of one request out of those that wait; the others stay, in order.
std::vector<Event> Engine::Impl::take_events_of(RequestId id) {
  const auto others_end = std::stable_partition(
      events_.begin(), events_.end(), [id](const Event& event) { return event.request != id; });
  std::vector<Event> out(std::make_move_iterator(others_end),
                         std::make_move_iterator(events_.end()));
  events_.erase(others_end, events_.end());
  return out;
}

// ---- loops over steps --------------------------------------------------------------------------

RequestResult Engine::Impl::generate(Request request, const EventCallback& on_event,
                                     const CancelFlag* cancel_flag) {
  const RequestId id = submit(std::move(request));
  std::shared_ptr<const RequestResult> result;
  try {
    while (result == nullptr) {
      if (cancel_flag != nullptr && cancel_flag->cancelled()) cancel(id);
      run_step();
      if (stalled_) {
        fail(ErrorKind::kOutOfMemory, "engine",
             "generate: expected pages for the request, got too few beside those that are held");
      }
      for (const Event& event : take_events_of(id)) {
        if (event.kind == Event::Kind::kRequest) result = event.result;
        if (on_event) on_event(event);
      }
    }
  } catch (...) {
    // The callback threw: the request ends, and nobody waits for its events.
    if (tier_) tier_->leave(id);
    active_.erase(id);
    take_events_of(id);
    throw;
  }
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
  if (scheduler_->holds_pages()) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "score: expected all pages of the cache, got some that are held");
  }
  const auto n_tokens = static_cast<int64_t>(ids.size());
  if (n_tokens == 0)
    fail(ErrorKind::kInvalidArgument, "engine", "score: expected at least one token, got none");
  check_token_ids("engine", "score", ids, vocab_);
  check_generates();
  const AdapterUse adapter = model_.use_adapter(options.adapter);
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
    for (size_t i = 0; i < step.rows.size(); ++i) {
      check_finite({logits_.data() + i * static_cast<size_t>(vocab_), static_cast<size_t>(vocab_)},
                   step.rows[i].position);
    }
    if (!step.rows.empty() && step.rows.back().position >= options.first_row) {
      on_rows(step.rows.front().position, static_cast<int64_t>(step.rows.size()), logits_.data());
    }
    begin = end;
  }
}

}  // namespace qw
