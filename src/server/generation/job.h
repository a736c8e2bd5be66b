// A generation under way: the engine's requests of one client's call, seen as one.
//
// Level 7 (server). Prompts times answers are numbered as choices. The listener's functions are
// called on the server's thread, but for a large on_end of a listener that may end elsewhere and a
// large on_prompt; on_end or on_error is the last, and exactly one of them comes.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/call.h"
#include "server/call_queue.h"
#include "server/file_hashes.h"
#include "server/generation/task.h"
#include "server/metrics.h"

namespace qw::server {

/// What a generation came to.
struct GenerationResult {
  std::vector<std::shared_ptr<const RequestResult>> prompts;
  Json receipt;  // null: none was wanted
  int64_t n_prompt_tokens() const;
  int64_t n_generated_tokens() const;
  int64_t n_cached_tokens() const;
  /// Numbers that an answer with all of it lists: log-probabilities and members of embeddings.
  size_t n_values() const;
};

class GenerationListener {
 public:
  virtual ~GenerationListener() = default;
  /// The engine has taken all of the requests.
  virtual void on_start() {}
  /// A prompt whose log-probabilities were asked for was computed: they are those of its tokens but
  /// the first. Makes what is to be said of it, on a worker's thread when they are many (so it
  /// changes nothing), and gives what says it, which is called on the server's thread before
  /// anything of the prompt's answers, or never if all has ended by then; it lives no longer than
  /// this.
  virtual std::function<void()> on_prompt(size_t /*prompt*/,
                                          std::span<const TokenLogprobs> /*logprobs*/) {
    return {};
  }
  /// A token, or text that was held back (event.token -1).
  virtual void on_token(int /*choice*/, const Event& /*event*/) {}
  /// end: a kCompletion, with the reason.
  virtual void on_choice_end(int /*choice*/, const Event& /*end*/) {}
  virtual void on_end(const GenerationResult& result) = 0;
  virtual void on_error(const Error& error) = 0;
  /// Whether on_end may be called on a worker's thread: it only responds, with the whole answer.
  virtual bool ends_anywhere() const { return false; }
};

class GenerationJob : public std::enable_shared_from_this<GenerationJob> {
 public:
  /// Submits. The job lives until its end, and is cancelled when the call's client goes or its time
  /// is over. `task`: what `prepared` was made of.
  static void start(const std::shared_ptr<Call>& call, Prepared prepared,
                    std::shared_ptr<const GenerationTask> task,
                    std::shared_ptr<GenerationListener> listener);

  /// Any thread.
  void cancel();

 private:
  class Sink;

  GenerationJob(std::shared_ptr<Call> call, const Prepared& prepared,
                std::shared_ptr<const GenerationTask> task,
                std::shared_ptr<GenerationListener> listener);
  void submit(std::vector<Request> requests);
  void take_place();
  void accepted();
  void event(size_t prompt, const Event& event);
  void tell(size_t prompt, const Event& event);
  void hold(size_t prompt, const Event& event);
  void begin_prompt(size_t prompt, std::shared_ptr<const std::vector<TokenLogprobs>> logprobs);
  void release(size_t prompt, const std::function<void()>& say);
  void failed(const Error& error);
  void abandon();
  void ended();
  /// Does what may throw. An answer that cannot be written ends as a failure, not in silence.
  void guarded(const std::function<void()>& action);
  void finish();
  void finish_on_worker();
  Json make_receipt(const std::vector<FileHash>& hashes) const;
  std::shared_ptr<const RequestResult> with_copies(
      std::shared_ptr<const RequestResult> result) const;

  void note_token(int choice);
  void note_end(const RequestResult& result);

  std::shared_ptr<Call> call_;
  std::shared_ptr<ServedModel> model_;
  std::shared_ptr<const GenerationTask> task_;
  std::string client_;                     // in the fair queue
  std::optional<CallQueue::Place> place_;  // until the engine has ended all of it
  std::shared_ptr<ModelMetrics> metrics_;
  std::shared_ptr<GenerationListener> listener_;
  std::vector<std::chrono::steady_clock::time_point> last_token_;  // of each choice
  std::vector<int> answers_;                                       // of each prompt
  /// What comes after a prompt's log-probabilities.
  struct Held {
    std::vector<Event> events;
    bool is_written = false;  // they have come, and a worker makes their text
  };
  std::vector<std::optional<Held>> held_;  // of each prompt; nullopt: none are wanted, or were said
  int n_copies_;                           // of each answer that the engine gives
  Json receipt_;                           // as prepared
  GenerationResult result_;
  size_t n_accepted_ = 0, n_ended_ = 0;
  bool over_ = false;

  std::mutex mutex_;  // over what follows
  std::vector<Ticket> tickets_;
  bool cancelled_ = false;
};

/// The call's time from now on: what the server, the header and the request's own field say.
void limit_time(const std::shared_ptr<Call>& call, const std::optional<double>& timeout_s);

/// Loads the model if need be, prepares on a worker's thread, and starts a job whose listener
/// `make` gives. What goes wrong before is the call's failure.
void generate(const std::shared_ptr<Call>& call, GenerationTask task,
              std::function<std::shared_ptr<GenerationListener>(const Prepared&)> make);
/// The same, for answers that are text.
void generate(const std::shared_ptr<Call>& call, GenerationTask task,
              std::function<std::shared_ptr<GenerationListener>(
                  const std::shared_ptr<ServedModel>& model, const std::vector<Request>& requests)>
                  make);

}  // namespace qw::server
