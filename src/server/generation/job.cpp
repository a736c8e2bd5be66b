#include "server/generation/job.h"

#include <utility>

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

/// What the engine says of one prompt.
class GenerationJob::Sink : public RequestSink {
 public:
  Sink(std::shared_ptr<GenerationJob> job, size_t prompt) : job_(std::move(job)), prompt_(prompt) {}
  void on_accepted() override { job_->accepted(); }
  void on_event(const Event& event) override { job_->event(prompt_, event); }
  void on_error(const Error& error) override { job_->failed(error); }

 private:
  std::shared_ptr<GenerationJob> job_;
  size_t prompt_;
};

void GenerationJob::start(const std::shared_ptr<Call>& call, std::shared_ptr<ServedModel> model,
                          std::vector<Request> requests,
                          std::shared_ptr<GenerationListener> listener) {
  const std::shared_ptr<GenerationJob> job(
      new GenerationJob(call, std::move(model), std::move(listener)));
  job->check_queue();
  job->result_.prompts.resize(requests.size());
  for (const Request& request : requests)
    job->answers_.push_back(static_cast<int>(request.config.num_return_sequences));
  {
    const std::lock_guard lock(job->mutex_);
    for (size_t i = 0; i < requests.size(); ++i) {
      requests[i].client = call->client().name;
      job->tickets_.push_back(
          job->model_->host().submit(std::move(requests[i]), std::make_shared<Sink>(job, i)));
    }
  }
  // The job holds the call, so the call must not hold the job.
  call->post([call, weak = std::weak_ptr(job)] {
    if (const auto timeout = call->services().options.request_timeout)
      call->services().expire_later(weak, call->started() + *timeout);
    call->on_close([weak] {
      if (const auto held = weak.lock()) held->cancel();
    });
  });
}

GenerationJob::GenerationJob(std::shared_ptr<Call> call, std::shared_ptr<ServedModel> model,
                             std::shared_ptr<GenerationListener> listener)
    : call_(std::move(call)),
      model_(std::move(model)),
      metrics_(call_->services().metrics.of_model(model_->name())),
      listener_(std::move(listener)) {}

/// Refuses what would wait behind too many others.
void GenerationJob::check_queue() const {
  const ServiceOptions& options = call_->services().options;
  const int64_t room = model_->files().engine_options.n_slots + options.max_queue;
  const int64_t n_open = model_->host().n_open();
  if (n_open < room) return;
  throw RequestError(
      ErrorKind::kOutOfMemory,
      fmt::format("[server] queue: expected fewer than {} requests under way and waiting, got {}; "
                  "try again later",
                  room, n_open),
      "", 429);
}

void GenerationJob::expire() {
  failed(RequestError(ErrorKind::kCancelled,
                      fmt::format("[server] time: expected the answer within {} s, got none",
                                  call_->services().options.request_timeout->count()),
                      "", 504));
}

void GenerationJob::note_token(int choice) {
  const auto now = std::chrono::steady_clock::now();
  const auto index = static_cast<size_t>(choice);
  if (last_token_.size() <= index) last_token_.resize(index + 1);
  std::chrono::steady_clock::time_point& last = last_token_[index];
  const bool is_first = last == std::chrono::steady_clock::time_point();
  const std::chrono::duration<double> seconds = now - (is_first ? call_->started() : last);
  if (is_first) {
    metrics_.first_token(seconds.count());
  } else {
    metrics_.next_token(seconds.count());
  }
  last = now;
}

void GenerationJob::note_end(const RequestResult& result) {
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - call_->started();
  metrics_.request(result.timings, seconds.count());
  for (const Completion& completion : result.completions)
    metrics_.answer(completion.finish_reason);
  call_->note_tokens(result.timings.n_prompt, result.timings.n_generated);
}

void GenerationJob::cancel() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(cancelled_, true)) return;
  for (const Ticket ticket : tickets_)
    model_->host().cancel(ticket);
}

void GenerationJob::accepted() {
  if (++n_accepted_ == result_.prompts.size() && !over_) listener_->on_start();
}

void GenerationJob::event(size_t prompt, const Event& event) {
  if (over_) return;
  const int first = static_cast<int>(prompt) * answers_[prompt];
  switch (event.kind) {
    case Event::Kind::kToken:
      if (event.token >= 0) note_token(first + event.index);
      return listener_->on_token(first + event.index, event);
    case Event::Kind::kCompletion:
      if (event.finish_reason != FinishReason::kError)
        listener_->on_choice_end(first + event.index, event.finish_reason);
      return;
    case Event::Kind::kRequest:
      break;
  }
  note_end(*event.result);
  for (const Completion& completion : event.result->completions) {
    if (completion.finish_reason == FinishReason::kError)
      return failed(Error(completion.error_kind, completion.error));
  }
  result_.prompts[prompt] = event.result;
  if (++n_ended_ == result_.prompts.size()) {
    over_ = true;
    listener_->on_end(result_);
  }
}

void GenerationJob::failed(const Error& error) {
  if (std::exchange(over_, true)) return;
  cancel();
  metrics_.failed_request();
  listener_->on_error(error);
}

void generate(const std::shared_ptr<Call>& call, GenerationTask task,
              std::function<std::shared_ptr<GenerationListener>(const Prepared&)> make) {
  const ModelChoice choice{task.model, task.adapters};
  with_model(call, choice,
             [call, task = std::move(task),
              make = std::move(make)](const std::shared_ptr<ServedModel>& model) {
               GenerationTask full = task;
               if (full.complete) full.complete(full, *model);
               Prepared prepared = prepare(full, model, call->services().options.model_defaults);
               for (const auto* warnings : {&full.warnings, &prepared.warnings}) {
                 for (const std::string& warning : *warnings)
                   call->warn(warning);
               }
               auto listener = make(prepared);
               GenerationJob::start(call, model, std::move(prepared.requests), std::move(listener));
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
