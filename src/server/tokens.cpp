#include "server/tokens.h"

#include <optional>

#include "base/utf8.h"
#include "server/call.h"
#include "server/generation/client_words.h"
#include "server/generation/messages.h"
#include "server/generation/task.h"
#include "server/service.h"
#include "text/tokenizer.h"

namespace qw::server {

namespace {

/// As vLLM's, SGLang's and llama.cpp's servers write it, which is to say with all of their members.
Json error_body(const Error& error, int status) {
  const auto* request = dynamic_cast<const RequestError*>(&error);
  Json param = nullptr;
  if (request != nullptr && !request->field().empty()) param = request->field();
  const std::string_view type = status == 404  ? "not_found_error"
                                : status < 500 ? "invalid_request_error"
                                               : "server_error";
  return {{"error",
           {{"code", status}, {"message", error.message()}, {"type", type}, {"param", param}}}};
}

const Dialect kTokens{"tokens", error_body};

constexpr const char* kVariables = "chat_template_kwargs";

/// A conversation to render.
struct TemplateTask {
  std::string model;
  Json messages, template_variables;
  Json tools = Json::array();
  std::string tool_format;  // "": the model's
  bool add_generation_prompt = true, continue_final_message = false;

  /// As a chat of it would be. What the model's template does not read becomes a warning.
  EncodedChat render(const ServedModel& served, Call& call) const {
    ToolTask with;
    with.tools = tools;
    with.format = tool_format;
    with.continue_final_message = continue_final_message;
    with.add_generation_prompt = add_generation_prompt && !continue_final_message;
    GenerationTask task;
    task.set_chat(messages, with);
    if (!template_variables.is_null())
      task.chat->variables = std::make_shared<const Json>(template_variables);
    ChatInput chat = chat_of(task, served);
    chat.cancel = &call.cancel_flag();
    for (std::string& sentence : idle_variables(kVariables, chat, served))
      call.warn(std::move(sentence));
    return served.files().encode_chat(chat);
  }
};

template <typename Task>
void add_template_fields(FieldTable<Task>& table) {
  table.push_back(string_field<Task>("model", &Task::model));
  table.push_back(
      honoured<Task>("messages",
                     [](const Json& value, Task& task) { task.messages = plain_messages(value); })
          .as(types::messages())
          .with(messages_shape()));
  table.push_back(flag_field<Task>("add_generation_prompt", &Task::add_generation_prompt));
  table.push_back(flag_field<Task>("continue_final_message", &Task::continue_final_message));
  table.push_back(object_field<Task>(kVariables, &Task::template_variables));
  table.push_back(list_field<Task>("tools", &Task::tools, "with messages").with(tools_shape()));
  table.push_back(tool_format_field<Task>(&Task::tool_format));
}

// ---- /tokenize ---------------------------------------------------------------------------------

struct TokenizeTask : TemplateTask {
  std::optional<std::vector<std::string>> prompts;  // vLLM's and SGLang's
  bool is_list = false;                             // of prompts
  std::optional<std::string> content;               // llama.cpp's
  EncodeOptions options;
  bool return_token_strs = false, with_pieces = false;
};

const FieldTable<TokenizeTask>& tokenize_fields() {
  using Task = TokenizeTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(honoured<Task>(
                      "prompt",
                      [](const Json& value, Task& task) {
                        task.prompts = to_strings("prompt", value);
                        task.is_list = value.is_array();
                      },
                      "vLLM's, SGLang's: a text, or a list of texts")
                      .as(types::strings()));
    out.push_back(string_field<Task>("content", &Task::content, "llama.cpp's"));
    add_template_fields(out);
    for (const char* name : {"add_special_tokens", "add_special"}) {
      out.push_back(honoured<Task>(name, [name](const Json& value, Task& task) {
                      task.options.add_special_tokens = to_bool(name, value);
                    }).as(types::boolean()));
    }
    out.push_back(flag_field<Task>(
        "parse_special", [](Task & t) -> auto& { return t.options.parse_special; }));
    out.push_back(flag_field<Task>("return_token_strs", &Task::return_token_strs));
    out.push_back(flag_field<Task>("with_pieces", &Task::with_pieces, "with content"));
    return out;
  }();
  return table;
}

/// llama.cpp's: ids, or ids with what each is worth: a text, or bytes where it is none.
Json pieces_json(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  Json out = Json::array();
  for (const int32_t id : ids) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    Json piece = std::string(bytes);
    if (find_invalid_utf8(bytes) != std::string_view::npos) {
      piece = Json::array();
      for (const char byte : bytes)
        piece.push_back(static_cast<int>(static_cast<unsigned char>(byte)));
    }
    out.push_back({{"id", id}, {"piece", std::move(piece)}});
  }
  return out;
}

/// vLLM's: {"count", "max_model_len", "tokens"}; for a list of prompts, as SGLang, lists of them.
Json tokens_json(const TokenizeTask& task, const ServedModel& model, Call& call) {
  Json counts = Json::array(), tokens = Json::array(), texts = Json::array();
  const auto add = [&](const std::vector<int32_t>& ids) {
    counts.push_back(ids.size());
    tokens.push_back(ids);
    if (!task.return_token_strs) return;
    Json list = Json::array();
    for (const int32_t id : ids)
      list.push_back(model.tokenizer().token_text(id));
    texts.push_back(std::move(list));
  };
  if (task.prompts) {
    for (const std::string& prompt : *task.prompts)
      add(model.tokenizer().encode(prompt, task.options));
  } else {
    add(task.render(model, call).ids);
  }
  Json answer = {{"count", task.is_list ? counts : counts[0]},
                 {"max_model_len", model.context()},
                 {"tokens", std::move(task.is_list ? tokens : tokens[0])}};
  if (task.return_token_strs) answer["token_strs"] = std::move(task.is_list ? texts : texts[0]);
  return answer;
}

/// Fields of one system's clients that another's form has no place for.
void warn_of_idle_fields(const TokenizeTask& task, Call& call) {
  const auto note = [&](bool given, std::string_view field, std::string_view why) {
    if (given) call.warn(idle_sentence(field, why));
  };
  if (task.messages.is_null()) {
    constexpr std::string_view kWhy = "there are no messages";
    note(!task.template_variables.empty(), kVariables, kWhy);
    note(!task.tools.empty(), "tools", kWhy);
    note(task.continue_final_message, "continue_final_message", kWhy);
    note(!task.add_generation_prompt, "add_generation_prompt", kWhy);
  } else {
    note(!task.options.parse_special, "parse_special", "messages are rendered, not text");
  }
  note(task.return_token_strs && task.content, "return_token_strs", "content has with_pieces");
  note(task.with_pieces && !task.content, "with_pieces", "there is no content");
}

void tokenize(const std::shared_ptr<Call>& call) {
  TokenizeTask task;
  // What each system adds around a text where nothing is said is nothing for these models.
  task.options.add_special_tokens = true;
  task.options.cancel = &call->cancel_flag();
  call->read(tokenize_fields(), task);
  const int n_inputs = (task.prompts ? 1 : 0) + (task.content ? 1 : 0) + !task.messages.is_null();
  if (n_inputs != 1 || (task.is_list && task.prompts->empty())) {
    refuse_field("prompt", "expected one of prompt, messages and content, got {}",
                 n_inputs == 0   ? "none"
                 : n_inputs == 1 ? "an empty list"
                                 : "more");
  }
  warn_of_idle_fields(task, *call);
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& model) {
    if (!task.content) return call->respond(tokens_json(task, *model, *call));
    const std::vector<int32_t> ids = model->tokenizer().encode(*task.content, task.options);
    call->respond(
        {{"tokens", task.with_pieces ? pieces_json(ids, model->tokenizer()) : Json(ids)}});
  });
}

// ---- /detokenize -------------------------------------------------------------------------------

struct DetokenizeTask {
  std::string model;
  std::optional<std::vector<int32_t>> tokens;
  bool skip_special_tokens = false;
};

const FieldTable<DetokenizeTask>& detokenize_fields() {
  using Task = DetokenizeTask;
  static const FieldTable<Task> table = {
      string_field<Task>("model", &Task::model),
      ids_field<Task>("tokens", &Task::tokens).must(),
      flag_field<Task>("skip_special_tokens", &Task::skip_special_tokens),
  };
  return table;
}

void detokenize(const std::shared_ptr<Call>& call) {
  DetokenizeTask task;
  call->read(detokenize_fields(), task);
  if (!task.tokens) refuse_field("tokens", "expected a list of ids, got none");
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& model) {
    const Tokenizer& tokenizer = model->tokenizer();
    for (const int32_t id : *task.tokens) {
      if (id >= tokenizer.size())
        refuse_field("tokens", "expected ids from 0 to {}, got {}", tokenizer.size() - 1, id);
    }
    const std::string text = tokenizer.decode(*task.tokens, task.skip_special_tokens);
    // vLLM's name, llama.cpp's and SGLang's.
    call->respond({{"prompt", text}, {"content", text}, {"text", text}});
  });
}

// ---- /apply-template ---------------------------------------------------------------------------

const FieldTable<TemplateTask>& template_fields() {
  static const FieldTable<TemplateTask> table = [] {
    FieldTable<TemplateTask> out;
    add_template_fields(out);
    return out;
  }();
  return table;
}

void apply_template(const std::shared_ptr<Call>& call) {
  TemplateTask task;
  call->read(template_fields(), task);
  if (task.messages.is_null()) refuse_field("messages", "expected a list of messages, got none");
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& model) {
    call->respond({{"prompt", task.render(*model, *call).text}});
  });
}

}  // namespace

std::vector<Endpoint> token_endpoints() {
  return {
      {"POST",
       "/tokenize",
       &kTokens,
       "A text's or a conversation's ids",
       tokenize,
       infos_of(tokenize_fields()),
       true,
       {.example = {{"prompt", "Hi"}}, .answer = types::object({"tokens"})}},
      {"POST",
       "/detokenize",
       &kTokens,
       "The text of ids",
       detokenize,
       infos_of(detokenize_fields()),
       true,
       {.example = {{"tokens", {0, 1}}}, .answer = types::object({"prompt", "content", "text"})}},
      {"POST",
       "/apply-template",
       &kTokens,
       "A conversation as the prompt's text",
       apply_template,
       infos_of(template_fields()),
       true,
       {.example = Json::parse(R"({"messages": [{"role": "user", "content": "Hi"}]})"),
        .answer = types::object({"prompt"})}}};
}

}  // namespace qw::server
