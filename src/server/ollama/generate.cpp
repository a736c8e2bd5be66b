// POST /api/generate.
#include <algorithm>

#include "server/ollama/common.h"
#include "text/tokenizer.h"

namespace qw::server::ollama {

namespace {

struct GenerateTask : AnswerTask {
  std::string prompt;
  std::optional<std::string> system;
  std::vector<int32_t> context;
  bool raw = false;
};

const FieldTable<GenerateTask>& generate_fields() {
  using Task = GenerateTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(
        string_field<Task>("prompt", &Task::prompt, "none: the model is loaded, or unloaded"));
    out.push_back(string_field<Task>("system", &Task::system));
    out.push_back(flag_field<Task>("raw", &Task::raw, "the prompt as it is, without a template"));
    out.push_back(ids_field<Task>("context", &Task::context,
                                  "what an earlier answer gave, to go on from there"));
    add_answer_fields(out);
    out.push_back(refused<Task>(
        "template", "a request cannot bring a template; raw takes a prompt that is complete"));
    out.push_back(refused<Task>("suffix", "these models were not trained to fill in the middle"));
    out.push_back(refused<Task>("images", "these models read text only"));
    return out;
  }();
  return table;
}

// ---- the prompt --------------------------------------------------------------------------------

Json message(std::string_view role, const std::string& text) {
  return {{"role", role}, {"content", text}};
}

std::vector<int32_t> encode(const ServedModel& model, Json messages, bool wants_answer,
                            bool continues = false) {
  ChatInput input;
  input.messages = std::make_shared<const Json>(std::move(messages));
  input.add_generation_prompt = wants_answer;
  input.continue_final_message = continues;
  return model.files().encode_chat(input).ids;
}

/// What `longer` has after `shorter`, of which it is a continuation.
std::vector<int32_t> rest_of(const std::vector<int32_t>& longer,
                             const std::vector<int32_t>& shorter, const ServedModel& model) {
  const auto [end, other] = std::ranges::mismatch(shorter, longer);
  if (end != shorter.end()) {
    throw RequestError(ErrorKind::kUnsupported,
                       fmt::format("[request] context: expected a model whose template writes one "
                                   "message after the other, got {} (use /api/chat)",
                                   printable(model.name())),
                       "context");
  }
  return {other, longer.end()};
}

/// An earlier conversation, its answer ended as the template ends it, and the new turn.
std::vector<int32_t> go_on(const GenerateTask& task, const ServedModel& model) {
  const Json system = message("system", "s"), user = message("user", task.prompt);
  const Json answer = message("assistant", "a");
  const std::vector<int32_t> tail =
      rest_of(encode(model, Json::array({system, user, answer}), false),
              encode(model, Json::array({system, user, answer}), false, true), model);
  std::vector<int32_t> ids = task.context;
  const bool has_end = !tail.empty() && !ids.empty() && ids.back() == tail.front();
  ids.insert(ids.end(), tail.begin() + (has_end ? 1 : 0), tail.end());
  // Without a system prompt of the request's own, none is said again.
  const std::vector<int32_t> turn =
      task.system ? encode(model, Json::array({message("system", *task.system), user}), true)
                  : rest_of(encode(model, Json::array({system, user}), true),
                            encode(model, Json::array({system}), false), model);
  ids.insert(ids.end(), turn.begin(), turn.end());
  return ids;
}

void set_prompt(GenerateTask& task) {
  if (task.raw) {
    if (task.system) refuse_field("system", "expected none with raw, got one");
    if (!task.context.empty()) refuse_field("context", "expected none with raw, got one");
    task.prompts.push_back({task.prompt, {}, false});
    return;
  }
  if (!task.context.empty()) {
    task.complete = [own = task](GenerationTask& generation, const ServedModel& model) {
      generation.prompts.push_back({"", go_on(own, model), true});
      generation.prompt_field = "context";
    };
    return;
  }
  Json messages = Json::array();
  if (task.system) messages.push_back(message("system", *task.system));
  messages.push_back(message("user", task.prompt));
  ChatInput input;
  input.messages = std::make_shared<const Json>(std::move(messages));
  task.chat = std::move(input);
}

// ---- the answer --------------------------------------------------------------------------------

class GenerateAnswer : public AnswerListener {
 public:
  using AnswerListener::AnswerListener;
  std::vector<int32_t> prompt;  // its ids; empty: no context is given back

 protected:
  void put_text(Json& json, const std::string& text, Json) const override {
    json["response"] = text;
  }
  void put_end(Json& json, const RequestResult& result) const override {
    if (prompt.empty()) return;
    std::vector<int32_t> context = prompt;
    const std::vector<int32_t>& ids = result.completions[0].ids;
    context.insert(context.end(), ids.begin(), ids.end());
    json["context"] = std::move(context);
  }
};

void generate_text(const std::shared_ptr<Call>& call) {
  GenerateTask task;
  call->read(generate_fields(), task);
  check_keep_alive(*call, task.keep_alive);
  if (task.prompt.empty())
    return load_or_unload(call, task, [](Json& answer) { answer["response"] = ""; });
  set_prompt(task);
  finish(task);
  GenerationTask generation = task;
  generation.model = model_name(call->services(), task.model);
  generate(call, std::move(generation),
           [call, task](const Prepared& prepared) -> std::shared_ptr<GenerationListener> {
             auto listener = std::make_shared<GenerateAnswer>(call, task, prepared);
             if (!task.raw) listener->prompt = prepared.requests[0].prompt;
             return listener;
           });
}

}  // namespace

std::vector<Endpoint> generate_endpoints() {
  return {{"POST",
           "/api/generate",
           &kOllama,
           "What follows a prompt",
           generate_text,
           infos_of(generate_fields()),
           true,
           {.example =
                Json::parse(R"({"prompt": "Hi", "stream": false, "options": {"num_predict": 1}})"),
            .answer = types::object({"model", "created_at", "response", "done"}),
            .stream_type = "application/x-ndjson",
            .generates = true}}};
}

}  // namespace qw::server::ollama
