#include "server/generation/job.h"

#include <span>
#include <utility>

#include "base/log.h"
#include "base/sha256.h"
#include "engine/current_error.h"
#include "server/generation/client_words.h"
#include "server/receipt.h"
#include "server/service.h"

namespace qw::server {

int64_t GenerationResult::n_prompt_tokens() const {
  int64_t n = 0;
  for (const auto& prompt : prompts)
    n += prompt->timings.n_prompt;
  return n;
}
int64_t GenerationResult::n_generated_tokens() const {
  int64_t n = 0;
  for (const auto& prompt : prompts)
    n += prompt->timings.n_generated;
  return n;
}
int64_t GenerationResult::n_cached_tokens() const {
  int64_t n = 0;
  for (const auto& prompt : prompts)
    n += prompt->timings.n_cached;
  return n;
}

namespace {

/// Above so many numbers what is said of them is written where it keeps no other client waiting.
constexpr size_t kMany = 4096;

size_t values_of(const std::vector<TokenLogprobs>& entries) {
  size_t n = entries.size();
  for (const TokenLogprobs& entry : entries)
    n += entry.top.size();
  return n;
}

}  // namespace

size_t GenerationResult::n_values() const {
  size_t n = 0;
  for (const auto& prompt : prompts) {
    n += prompt->embedding.size() + values_of(prompt->prompt_logprobs);
    for (const Completion& completion : prompt->completions)
      n += values_of(completion.logprobs);
  }
  return n;
}

/// What the engine says of one prompt.
class GenerationJob::Sink : public RequestSink {
 public:
  Sink(std::shared_ptr<GenerationJob> job, size_t prompt) : job_(std::move(job)), prompt_(prompt) {}
  void on_accepted() override {
    accepted_ = true;
    job_->metrics_->accepted_request();
    job_->accepted();
  }
  void on_event(const Event& event) override {
    if (event.kind == Event::Kind::kRequest) job_->metrics_->ended_request();
    job_->event(prompt_, event);
  }
  void on_error(const Error& error) override {
    if (accepted_) job_->metrics_->ended_request();
    job_->failed(error);
  }

 private:
  std::shared_ptr<GenerationJob> job_;
  size_t prompt_;
  bool accepted_ = false;
};

namespace {

/// In the fair queue: a key's name, else what the client says of itself, else its address.
std::string client_of(const Call& call, const std::string& user) {
  if (!call.client().name.empty()) return "key " + call.client().name;
  if (!user.empty()) return "user " + sha256_hex(std::as_bytes(std::span(user)));
  const std::string& peer = call.request().peer;
  return "peer " + peer.substr(0, peer.rfind(':'));
}

}  // namespace

void GenerationJob::start(const std::shared_ptr<Call>& call, Prepared prepared,
                          std::shared_ptr<const GenerationTask> task,
                          std::shared_ptr<GenerationListener> listener) {
  const std::shared_ptr<GenerationJob> job(
      new GenerationJob(call, prepared, std::move(task), std::move(listener)));
  job->take_place();
  // Before the engine can say anything. The job holds the call, so the call must not hold the job.
  call->post([call, weak = std::weak_ptr(job)] {
    call->on_close([weak] {
      if (const auto held = weak.lock()) held->cancel();
    });
    call->on_expire([weak](const Error& error) {
      if (const auto held = weak.lock()) held->failed(error);
    });
    // Its time may have come while the model was loaded.
    if (const auto held = weak.lock(); held && call->expired()) held->abandon();
  });
  job->submit(std::move(prepared.requests));
}

GenerationJob::GenerationJob(std::shared_ptr<Call> call, const Prepared& prepared,
                             std::shared_ptr<const GenerationTask> task,
                             std::shared_ptr<GenerationListener> listener)
    : call_(std::move(call)),
      model_(prepared.model),
      task_(std::move(task)),
      client_(client_of(*call_, task_->user)),
      metrics_(call_->services().metrics.of_model(model_->name())),
      listener_(std::move(listener)),
      n_copies_(static_cast<int>(prepared.n_copies)),
      receipt_(prepared.receipt) {
  result_.prompts.resize(prepared.requests.size());
  for (const Request& request : prepared.requests) {
    answers_.push_back(n_copies_ * static_cast<int>(request.config.num_return_sequences));
    held_.emplace_back();
    if (request.config.prompt_logprobs) held_.back().emplace();
  }
}

void GenerationJob::submit(std::vector<Request> requests) {
  const std::lock_guard lock(mutex_);
  if (cancelled_) return;  // the call has ended
  // Adapters that are models of their own are counted one by one.
  const std::string& name = model_->name();
  const std::string label = name == model_->spec().name ? "" : name;
  std::vector<Submission> submissions;
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].client = client_;
    requests[i].passes_others = call_->client().is_admin;
    submissions.push_back({std::move(requests[i]), std::make_shared<Sink>(shared_from_this(), i)});
  }
  tickets_ = model_->host().submit(std::move(submissions), label);
}

/// Refuses what would wait behind too many others.
void GenerationJob::take_place() {
  const ServiceOptions& options = call_->services().options;
  const int64_t room = model_->files().engine_options.n_slots + options.max_queue;
  CallQueue& queue = model_->queue();
  place_ = queue.enter(client_, room);
  if (place_) return;
  const int64_t n_calls = queue.n_calls();
  throw RequestError(
      ErrorKind::kOutOfMemory,
      fmt::format("[server] queue: expected fewer than {} requests under way and waiting, got {}; "
                  "try again later",
                  room, n_calls),
      "", 429,
      seconds_until_room(n_calls - room + 1, model_->files().engine_options.n_slots,
                         model_->typical_seconds()));
}

/// The call has failed already.
void GenerationJob::abandon() {
  over_ = true;
  cancel();
}

void GenerationJob::note_token(int choice) {
  const auto now = std::chrono::steady_clock::now();
  const auto index = static_cast<size_t>(choice);
  if (last_token_.size() <= index) last_token_.resize(index + 1);
  std::chrono::steady_clock::time_point& last = last_token_[index];
  const bool is_first = last == std::chrono::steady_clock::time_point();
  const std::chrono::duration<double> seconds = now - (is_first ? call_->started() : last);
  if (is_first) {
    metrics_->first_token(seconds.count());
  } else {
    metrics_->next_token(seconds.count());
  }
  last = now;
}

void GenerationJob::note_end(const RequestResult& result) {
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - call_->started();
  metrics_->request(result.timings, seconds.count());
  model_->note_seconds(result.timings.prefill_s + result.timings.decode_s);
  for (const Completion& completion : result.completions)
    metrics_->answer(completion.finish_reason);
  call_->note_tokens(result.timings.n_prompt, result.timings.n_generated);
}

void GenerationJob::cancel() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(cancelled_, true)) return;
  for (const Ticket ticket : tickets_)
    model_->host().cancel(ticket);
}

void GenerationJob::accepted() {
  if (++n_accepted_ == result_.prompts.size() && !over_) guarded([this] { listener_->on_start(); });
}

void GenerationJob::event(size_t prompt, const Event& event) {
  // What was computed counts, whether or not somebody still wants it.
  if (event.kind == Event::Kind::kRequest) note_end(*event.result);
  if (!over_) guarded([&] { tell(prompt, event); });
}

/// Some answers may begin before the prompt's log-probabilities are there: what was kept of them
/// need not be computed again.
void GenerationJob::hold(size_t prompt, const Event& event) {
  Held& held = *held_[prompt];
  if (event.kind == Event::Kind::kPrompt) return begin_prompt(prompt, event.prompt_logprobs);
  held.events.push_back(event);
  // Ended before they were all there.
  if (event.kind == Event::Kind::kRequest && !held.is_written)
    begin_prompt(prompt, {event.result, &event.result->prompt_logprobs});
}

void GenerationJob::begin_prompt(size_t prompt,
                                 std::shared_ptr<const std::vector<TokenLogprobs>> logprobs) {
  if (values_of(*logprobs) <= kMany)
    return release(prompt, listener_->on_prompt(prompt, *logprobs));
  held_[prompt]->is_written = true;
  call_->services().workers->post([job = shared_from_this(), prompt, logprobs] {
    std::function<void()> say;
    std::optional<Error> error;
    try {
      say = job->listener_->on_prompt(prompt, *logprobs);
    } catch (...) {
      error = current_error();
    }
    job->call_->post([job, prompt, say = std::move(say), error] {
      if (job->over_) return;
      job->guarded([&] {
        if (error) throw Error(*error);
        job->release(prompt, say);
      });
    });
  });
}

void GenerationJob::release(size_t prompt, const std::function<void()>& say) {
  const std::vector<Event> events = std::move(held_[prompt]->events);
  held_[prompt].reset();
  if (say) say();
  for (const Event& event : events)
    tell(prompt, event);
}

void GenerationJob::tell(size_t prompt, const Event& event) {
  if (over_) return;
  if (held_[prompt]) return hold(prompt, event);
  // Copies follow each other: answers are numbered as if the engine had given them all.
  const int first = static_cast<int>(prompt) * answers_[prompt] + event.index * n_copies_;
  switch (event.kind) {
    case Event::Kind::kToken:
      if (event.token >= 0) note_token(first);
      for (int copy = 0; copy < n_copies_; ++copy)
        listener_->on_token(first + copy, event);
      return;
    case Event::Kind::kCompletion:
      for (int copy = 0; copy < n_copies_ && event.finish_reason != FinishReason::kError; ++copy)
        listener_->on_choice_end(first + copy, event);
      return;
    case Event::Kind::kPrompt:
      return;
    case Event::Kind::kRequest:
      break;
  }
  for (const Completion& completion : event.result->completions) {
    if (completion.finish_reason == FinishReason::kError)
      return failed(Error(completion.error_kind, completion.error));
  }
  result_.prompts[prompt] = with_copies(event.result);
  if (++n_ended_ == result_.prompts.size()) ended();
}

/// Copies are answers as others are, and count as such.
std::shared_ptr<const RequestResult> GenerationJob::with_copies(
    std::shared_ptr<const RequestResult> result) const {
  if (n_copies_ == 1) return result;
  auto more = std::make_shared<RequestResult>(*result);
  more->completions.clear();
  for (const Completion& completion : result->completions) {
    for (int copy = 0; copy < n_copies_; ++copy) {
      more->completions.push_back(completion);
      more->completions.back().index = static_cast<int>(more->completions.size()) - 1;
    }
  }
  more->timings.n_generated *= n_copies_;
  more->timings.n_decoded *= n_copies_;
  return more;
}

/// Every answer is there; a receipt waits for the hashes of the model's files, too.
void GenerationJob::ended() {
  if (receipt_.is_null()) return finish();
  model_->with_hashes(
      [job = shared_from_this()](const std::vector<FileHash>& hashes, const Error* error) {
        Json receipt;
        std::string failure;
        try {
          if (error != nullptr) throw *error;
          receipt = job->make_receipt(hashes);
        } catch (...) {
          failure = current_error().message();
        }
        job->call_->post([job, failure, receipt = std::move(receipt)]() mutable {
          if (!failure.empty()) job->call_->warn("receipt: there is none: " + failure);
          job->result_.receipt = std::move(receipt);
          job->finish();
        });
      });
}

Json GenerationJob::make_receipt(const std::vector<FileHash>& hashes) const {
  const ServiceOptions& options = call_->services().options;
  OpenOptions open = model_->spec().open;
  open.adapters = model_->adapters();
  const Json environment = receipt_environment(model_->files(), open, hashes, model_->name(),
                                               options.version, options.build);
  return finished_receipt(receipt_, environment, result_.prompts);
}

void GenerationJob::guarded(const std::function<void()>& action) {
  std::optional<Error> error;
  try {
    return action();
  } catch (...) {
    error = current_error();
  }
  logger().error("{} (request {})", error->message(), call_->id());
  over_ = true;
  cancel();
  metrics_->failed_request();
  try {
    listener_->on_error(*error);
  } catch (...) {
    // Not even that can be written: at least the answer ends.
    call_->streaming() ? call_->end_stream() : call_->fail(*error);
  }
}

void GenerationJob::finish() {
  if (std::exchange(over_, true)) return;
  if (listener_->ends_anywhere() && result_.n_values() > kMany) return finish_on_worker();
  guarded([this] { listener_->on_end(result_); });
}

void GenerationJob::finish_on_worker() {
  call_->services().workers->post([job = shared_from_this()] {
    std::optional<Error> error;
    try {
      return job->listener_->on_end(job->result_);
    } catch (...) {
      error = current_error();
    }
    job->call_->post([job, error] { job->guarded([&error] { throw Error(*error); }); });
  });
}

void GenerationJob::failed(const Error& error) {
  if (std::exchange(over_, true)) return;
  cancel();
  metrics_->failed_request();
  // What the engine says of parameters, it says in its own words.
  const bool is_of_request = error.kind() == ErrorKind::kInvalidArgument &&
                             dynamic_cast<const RequestError*>(&error) == nullptr;
  guarded([&] {
    is_of_request ? listener_->on_error(in_clients_words(*task_, error))
                  : listener_->on_error(error);
  });
}

/// Of one call, before anything is made of it: many more would be memory that no queue counts.
void check_size(const GenerationTask& task) {
  constexpr int64_t kMaxAnswers = 2048;  // prompts times answers, as OpenAI's limit for embeddings
  const int64_t n_prompts = std::max<int64_t>(std::ssize(task.prompts), 1);
  if (n_prompts <= kMaxAnswers && task.n <= kMaxAnswers / n_prompts) return;
  throw RequestError(ErrorKind::kInvalidArgument,
                     fmt::format("[request] prompts: expected at most {} answers of one request, "
                                 "got {} prompts with {} answers each",
                                 kMaxAnswers, n_prompts, task.n));
}

void limit_time(const std::shared_ptr<Call>& call, const std::optional<double>& timeout_s) {
  call->limit_time_by_header();
  if (timeout_s) call->limit_time(*timeout_s);
}

void generate(const std::shared_ptr<Call>& call, GenerationTask task,
              std::function<std::shared_ptr<GenerationListener>(const Prepared&)> make) {
  const ModelChoice choice{task.model, task.adapters};
  limit_time(call, task.timeout_s);
  with_model(call, choice,
             [call, task = std::move(task),
              make = std::move(make)](const std::shared_ptr<ServedModel>& model) {
               const auto full = std::make_shared<GenerationTask>(task);
               if (full->complete) full->complete(*full, *model);
               check_size(*full);
               const auto start = [call, full, make](Prepared prepared) {
                 for (const auto* warnings : {&full->warnings, &prepared.warnings}) {
                   for (const std::string& warning : *warnings)
                     call->warn(warning);
                 }
                 // Read while the answer is computed, so that it need not wait for them.
                 if (full->receipt) prepared.model->with_hashes([](const auto&, const Error*) {});
                 auto listener = make(prepared);
                 GenerationJob::start(call, std::move(prepared), full, std::move(listener));
               };
               PrepareOptions options;
               options.model_defaults = call->services().options.model_defaults;
               options.cancel = &call->cancel_flag();
               options.grammars = PrepareOptions::Grammars::kKnown;
               if (auto prepared = prepare(*full, model, options))
                 return start(std::move(*prepared));
               options.grammars = PrepareOptions::Grammars::kCompile;
               call->services().compilers->post([call, full, model, start, options] {
                 if (call->cancel_flag().cancelled()) return;
                 guarded(call, [&] { start(*prepare(*full, model, options)); });
                 call->services().heap_is_stretched = true;
               });
             });
}

void generate(const std::shared_ptr<Call>& call, GenerationTask task,
              std::function<std::shared_ptr<GenerationListener>(
                  const std::shared_ptr<ServedModel>& model, const std::vector<Request>& requests)>
                  make) {
  generate(call, std::move(task), [make = std::move(make)](const Prepared& prepared) {
    return make(prepared.model, prepared.requests);
  });
}

}  // namespace qw::server
