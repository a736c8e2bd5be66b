// POST /tokenize and /detokenize, as vLLM has them.
#include "server/openai/common.h"
#include "server/openai/messages.h"
#include "server/service.h"
#include "text/tokenizer.h"

namespace qw::server::openai {

namespace {

struct TokenizeTask {
  std::string model;
  std::optional<std::string> prompt;
  Json messages;
  bool add_special_tokens = true, add_generation_prompt = true, continue_final_message = false;
  bool return_token_strs = false;
};

template <typename Task>
Field<Task> model_field() {
  return honoured<Task>(
      "model", [](const Json& value, Task& task) { task.model = to_string("model", value); });
}

template <typename Task>
Field<Task> flag_field(const std::string& name, bool Task::*member) {
  return honoured<Task>(
      name, [name, member](const Json& value, Task& task) { task.*member = to_bool(name, value); });
}

const FieldTable<TokenizeTask>& tokenize_fields() {
  using Task = TokenizeTask;
  static const FieldTable<Task> table = {
      model_field<Task>(),
      honoured<Task>("prompt", [](const Json& value,
                                  Task& task) { task.prompt = to_string("prompt", value); }),
      honoured<Task>("messages",
                     [](const Json& value, Task& task) { task.messages = plain_messages(value); }),
      flag_field("add_special_tokens", &Task::add_special_tokens),
      flag_field("add_generation_prompt", &Task::add_generation_prompt),
      flag_field("continue_final_message", &Task::continue_final_message),
      flag_field("return_token_strs", &Task::return_token_strs),
  };
  return table;
}

std::vector<int32_t> ids_of(const TokenizeTask& task, const ServedModel& model) {
  if (task.prompt) {
    EncodeOptions options;
    options.add_special_tokens = task.add_special_tokens;
    return model.tokenizer().encode(*task.prompt, options);
  }
  ChatInput input;
  input.messages = std::make_shared<const Json>(task.messages);
  input.continue_final_message = task.continue_final_message;
  input.add_generation_prompt = task.add_generation_prompt && !task.continue_final_message;
  return model.files().encode_chat(input).ids;
}

void tokenize(const std::shared_ptr<Call>& call) {
  TokenizeTask task;
  call->read(tokenize_fields(), task);
  if (task.prompt.has_value() == !task.messages.is_null())
    refuse_field("prompt", "expected either a prompt or messages, got {}",
                 task.prompt ? "both" : "none");
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& served) {
    const ServedModel& model = *served;
    const std::vector<int32_t> ids = ids_of(task, model);
    Json answer = {{"count", ids.size()}, {"max_model_len", model.context()}, {"tokens", ids}};
    if (task.return_token_strs) {
      Json texts = Json::array();
      for (const int32_t id : ids)
        texts.push_back(model.tokenizer().token_text(id));
      answer["token_strs"] = std::move(texts);
    }
    call->respond(std::move(answer));
  });
}

struct DetokenizeTask {
  std::string model;
  std::optional<std::vector<int32_t>> tokens;
};

const FieldTable<DetokenizeTask>& detokenize_fields() {
  using Task = DetokenizeTask;
  static const FieldTable<Task> table = {
      model_field<Task>(),
      honoured<Task>("tokens",
                     [](const Json& value, Task& task) { task.tokens = to_ids("tokens", value); }),
  };
  return table;
}

void detokenize(const std::shared_ptr<Call>& call) {
  DetokenizeTask task;
  call->read(detokenize_fields(), task);
  if (!task.tokens) refuse_field("tokens", "expected a list of ids, got none");
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& served) {
    const ServedModel& model = *served;
    call->respond({{"prompt", model.tokenizer().decode(*task.tokens)}});
  });
}

}  // namespace

std::vector<Endpoint> token_endpoints() {
  return {{"POST", "/tokenize", &kOpenAi, "A text's or a conversation's ids", tokenize,
           infos_of(tokenize_fields())},
          {"POST", "/detokenize", &kOpenAi, "The text of ids", detokenize,
           infos_of(detokenize_fields())}};
}

}  // namespace qw::server::openai
