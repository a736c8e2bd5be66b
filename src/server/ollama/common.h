// What Ollama's addresses share: errors, names, times, options, how an answer ends.
//
// Level 7 (server).
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/generation/job.h"
#include "server/generation/sampling_fields.h"
#include "server/generation/task.h"

namespace qw::server::ollama {

extern const Dialect kOllama;

/// {"error": "..."}.
Json error_body(const Error& error, int status);

/// "2026-01-31T12:00:00.000000000Z".
std::string time_text(std::chrono::system_clock::time_point time);
std::string now_text();

/// The name of a model as the server knows it: the tag ":latest" may be left out or written.
std::string model_name(const Services& services, const std::string& name);

/// format: "json" or a JSON schema; "" asks for nothing.
void read_format(const Json& value, GenerationTask& task);

/// How long a model stays after a request: "5m", "1h30m", seconds as a number; negative: for ever.
struct KeepAlive {
  std::optional<std::chrono::seconds> duration;  // nullopt: for ever
};
KeepAlive read_keep_alive(const Json& value);
/// What that may be.
Json keep_alive_schema();
/// How long a model stays is everybody's affair: of a key that is no administrator's it is ignored
/// with a warning.
void check_keep_alive(Call& call, std::optional<KeepAlive>& keep_alive);

/// What /api/generate and /api/chat have in common.
struct AnswerTask : GenerationTask {
  bool stream = true;
  bool logprobs = false;
  int64_t top_logprobs = 0;
  std::optional<int64_t> num_ctx;
  std::optional<KeepAlive> keep_alive;
};

/// model, stream, keep_alive, logprobs, options.*, and what is refused in both.
template <typename Task>
void add_answer_fields(FieldTable<Task>& table);

/// Readies a task whose fields were read: log-probabilities, num_ctx. To be called once.
void finish(AnswerTask& task);

/// Writes an answer, whole or line by line.
class AnswerListener : public GenerationListener {
 public:
  AnswerListener(std::shared_ptr<Call> call, const AnswerTask& task, const Prepared& prepared);

  void on_start() override;
  void on_token(int choice, const Event& event) override;
  void on_choice_end(int choice, const Event& end) override;
  void on_end(const GenerationResult& result) override;
  void on_error(const Error& error) override;

 protected:
  /// Where the text of the answer stands: {"response": text}, or a message, which may have calls.
  virtual void put_text(Json& json, const std::string& text, Json tool_calls) const = 0;
  /// More members of the last line.
  virtual void put_end(Json& /*json*/, const RequestResult& /*result*/) const {}

 private:
  Json head() const;
  void take(const std::vector<ToolEvent>& events);
  void send(const std::string& text, Json tool_calls);
  void leave_out(const ToolAnswer::Call& call) const;

  std::shared_ptr<Call> call_;
  AnswerTask task_;
  std::shared_ptr<ServedModel> model_;
  std::chrono::steady_clock::time_point loaded_ = std::chrono::steady_clock::now();
  std::shared_ptr<ToolStreams> tools_;     // null: answers are text only
  ToolAnswer::Call open_call_;             // of a stream: calls are given whole
  Json pending_logprobs_ = Json::array();  // of tokens whose text has not come yet
};

/// An answer without generation, to a request without a prompt: the model is loaded, or unloaded
/// where keep_alive is 0.
void load_or_unload(const std::shared_ptr<Call>& call, const AnswerTask& task,
                    std::function<void(Json& answer)> put_text);

std::vector<Endpoint> generate_endpoints();
std::vector<Endpoint> chat_endpoints();
std::vector<Endpoint> embedding_endpoints();
std::vector<Endpoint> model_endpoints();

// ---- implementation ----------------------------------------------------------------------------

template <typename Task>
void add_option_fields(FieldTable<Task>& table) {
  table.push_back(limit_field<Task>("options.num_predict"));
  for (const char* name : {"temperature", "top_k", "top_p", "min_p", "typical_p",
                           "presence_penalty", "frequency_penalty"})
    table.push_back(parameter_field<Task>(std::string("options.") + name, name));
  table.push_back(parameter_field<Task>("options.repeat_penalty", "repetition_penalty"));
  table.push_back(penalty_window_field<Task>("options.repeat_last_n"));
  table.push_back(seed_field<Task>("options.seed"));
  table.push_back(stop_field<Task>("options.stop"));
  table.push_back(integer_field<Task>(
      "options.num_ctx", &Task::num_ctx, 1,
      "the most tokens of prompt and answer; a prompt that does not fit is refused, and more than "
      "is served gives a warning"));
  table.push_back(parameter_field<Task>("options.draft_num_predict", "num_assistant_tokens"));
  table.push_back(refused<Task>("options.mirostat", "there is no mirostat here"));
  table.push_back(refused<Task>("options.tfs_z", "there is no tail-free sampling here", 1.0));
  for (const char* name : {"mirostat_tau", "mirostat_eta"})
    table.push_back(ignored<Task>(std::string("options.") + name, "there is no mirostat here"));
  table.push_back(ignored<Task>("options.num_keep", "nothing is ever cut out of a context"));
  table.push_back(
      ignored<Task>("options.penalize_newline", "newlines are penalised as all tokens", true));
  for (const char* name : {"numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv",
                           "vocab_only", "logits_all", "use_mmap", "use_mlock", "num_thread"})
    table.push_back(ignored<Task>(std::string("options.") + name,
                                  "how the server computes is set when it starts"));
}

template <typename Task>
void add_answer_fields(FieldTable<Task>& table) {
  table.push_back(string_field<Task>("model", &Task::model));
  table.push_back(flag_field<Task>("stream", &Task::stream, "true by default"));
  table.push_back(
      honoured<Task>(
          "keep_alive",
          [](const Json& value, Task& task) { task.keep_alive = read_keep_alive(value); },
          "until the model is unloaded; 0 unloads it after the answer")
          .as(keep_alive_schema()));
  table.push_back(flag_field<Task>("logprobs", &Task::logprobs));
  table.push_back(integer_field<Task>("top_logprobs", &Task::top_logprobs, 0, "with logprobs"));
  add_option_fields(table);
  add_server_fields(table);
  table.push_back(honoured<Task>(
                      "format", [](const Json& value, Task& task) { read_format(value, task); },
                      "json, or a JSON schema, whose parts are listed in the docs")
                      .as(types::any_of({types::choice({"", "json"}), types::object()})));
  table.push_back(ignored<Task>("think", "these models do not reason apart"));
  table.push_back(ignored<Task>("truncate", "a prompt that does not fit is refused, never cut"));
  table.push_back(ignored<Task>("shift", "an answer ends where the context does"));
}

}  // namespace qw::server::ollama
