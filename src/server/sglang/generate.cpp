// POST /generate.
#include <algorithm>

#include "server/generation/grammar_fields.h"
#include "server/generation/job.h"
#include "server/generation/sampling_fields.h"
#include "server/generation/stream.h"
#include "server/service.h"
#include "server/sglang/common.h"
#include "text/tokenizer.h"

namespace qw::server::sglang {

namespace {

/// SGLang's default, which its clients count on.
constexpr int64_t kDefaultMaxNewTokens = 128;

struct GenerateTask : GenerationTask {
  bool is_list = false;           // of prompts: so is the answer
  std::vector<std::string> rids;  // of the prompts; empty: the server's own
  bool stream = false, return_logprob = false, return_text_in_logprobs = false;
  int64_t logprob_start_len = -1, top_logprobs_num = 0;
  int64_t max_new_tokens = kDefaultMaxNewTokens;
  std::optional<std::string> lora_path;
};

/// One value, or the same for each prompt: {"top_logprobs_num": [2, 2]}.
const Json& same_for_all(std::string_view name, const Json& value) {
  if (!value.is_array()) return value;
  const bool is_same = !value.empty() && std::ranges::all_of(value, [&](const Json& item) {
    return item == value[0];
  });
  if (!is_same) refuse_field(name, "expected the same for every prompt, got {}", shown(value));
  return value[0];
}

Json same_for_all(const Json& one) {
  return types::any_of({one, types::list(one)});
}

void add_prompt_fields(FieldTable<GenerateTask>& table) {
  using Task = GenerateTask;
  table.push_back(string_field<Task>("model", &Task::model, "not SGLang's: one of several models"));
  table.push_back(honoured<Task>(
                      "text",
                      [](const Json& value, Task& task) {
                        for (const std::string& text : to_strings("text", value))
                          task.prompts.push_back({text, {}, false});
                        task.is_list = task.is_list || value.is_array();
                      },
                      "a text or a list of texts")
                      .as(types::strings()));
  table.push_back(honoured<Task>(
                      "input_ids",
                      [](const Json& value, Task& task) {
                        const bool is_list =
                            to_array("input_ids", value).empty() || value[0].is_array();
                        if (!is_list) {
                          task.prompts.push_back({"", to_ids("input_ids", value), true});
                        } else {
                          for (const Json& ids : value)
                            task.prompts.push_back({"", to_ids("input_ids", ids), true});
                        }
                        task.is_list = task.is_list || is_list;
                      },
                      "ids or a list of lists of ids")
                      .as(types::any_of({types::ids(), types::list(types::ids())})));
  table.push_back(strings_field<Task>("rid", &Task::rids, "given back as meta_info.id"));
  table.push_back(flag_field<Task>("stream", &Task::stream));
  table.push_back(honoured<Task>("return_logprob", [](const Json& value, Task& task) {
                    task.return_logprob =
                        to_bool("return_logprob", same_for_all("return_logprob", value));
                  }).as(same_for_all(types::boolean())));
  table.push_back(honoured<Task>(
                      "logprob_start_len",
                      [](const Json& value, Task& task) {
                        task.logprob_start_len = to_integer(
                            "logprob_start_len", same_for_all("logprob_start_len", value), -1);
                      },
                      "-1: of the answer only")
                      .as(same_for_all(types::integer(-1))));
  table.push_back(honoured<Task>("top_logprobs_num", [](const Json& value, Task& task) {
                    task.top_logprobs_num =
                        to_integer("top_logprobs_num", same_for_all("top_logprobs_num", value), 0);
                  }).as(same_for_all(types::integer(0))));
  table.push_back(flag_field<Task>("return_text_in_logprobs", &Task::return_text_in_logprobs));
}

void add_sampling_fields(FieldTable<GenerateTask>& table) {
  using Task = GenerateTask;
  const auto in = [](const char* name) { return std::string("sampling_params.") + name; };
  table.push_back(integer_field<Task>(in("max_new_tokens"), &Task::max_new_tokens, 0,
                                      "128 by default; 0: the prompt is read only"));
  for (const char* name : {"min_new_tokens", "temperature", "top_p", "min_p", "frequency_penalty",
                           "presence_penalty", "repetition_penalty", "ignore_eos", "logit_bias"})
    table.push_back(parameter_field<Task>(in(name), name));
  table.push_back(honoured<Task>(
                      in("top_k"),
                      [](const Json& value, Task& task) {
                        const int64_t top_k = to_integer("sampling_params.top_k", value, -1);
                        task.set("sampling_params.top_k", "top_k", std::max<int64_t>(top_k, 0));
                      },
                      "-1 or 0: off")
                      .as(types::integer(-1)));
  table.push_back(stop_field<Task>(in("stop")));
  table.push_back(honoured<Task>(in("stop_token_ids"), [](const Json& value, Task& task) {
                    task.stop_token_ids_field = "sampling_params.stop_token_ids";
                    task.ignore_eos_ignores_stop_tokens = true;
                    task.stop_token_ids = to_ids(task.stop_token_ids_field, value);
                  }).as(types::ids()));
  table.push_back(seed_field<Task>(in("sampling_seed")));
  table.push_back(honoured<Task>(in("n"), [](const Json& value, Task& task) {
                    task.n = to_integer("sampling_params.n", value, 1, 128);
                  }).as(types::integer(1, 128)));
  table.push_back(flag_field<Task>(in("skip_special_tokens"), &Task::skip_special_tokens));
  table.push_back(honoured<Task>(
                      in("no_stop_trim"),
                      [](const Json& value, Task& task) {
                        task.set("sampling_params.no_stop_trim", "include_stop_str_in_output",
                                 to_bool("sampling_params.no_stop_trim", value));
                      },
                      "stop strings stay in the text")
                      .as(types::boolean()));
  table.push_back(ignored<Task>(in("spaces_between_special_tokens"),
                                "Qwen's tokenizer never puts spaces between tokens", true));
  table.push_back(schema_field<Task>(in("json_schema")));
  table.push_back(grammar_field<Task>(in("regex"), GrammarSource::Kind::kRegex));
  table.push_back(grammar_field<Task>(in("ebnf"), GrammarSource::Kind::kGbnf, "GBNF"));
  table.push_back(refused<Task>(in("structural_tag"), "use ebnf"));
  table.push_back(refused<Task>(in("stop_regex"), "stop strings are texts here"));
  table.push_back(refused<Task>(in("custom_params"), "a request cannot bring code"));
}

const FieldTable<GenerateTask>& generate_fields() {
  using Task = GenerateTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    add_prompt_fields(out);
    add_sampling_fields(out);
    add_server_fields(out);
    for (const char* name : {"image_data", "audio_data", "video_data", "input_embeds"})
      out.push_back(refused<Task>(name, "these models read text only"));
    out.push_back(refused<Task>("token_ids_logprob", "top_logprobs_num gives the likeliest"));
    out.push_back(refused<Task>("custom_logit_processor", "a request cannot bring code"));
    out.push_back(refused<Task>("return_hidden_states", "they are not given out"));
    out.push_back(refused<Task>("session_params", "a request stands for itself"));
    out.push_back(honoured<Task>(
                      "lora_path",
                      [](const Json& value, Task& task) {
                        const Json& path = same_for_all("lora_path", value);
                        if (!path.is_null()) task.lora_path = to_string("lora_path", path);
                      },
                      "the name or path of an adapter that is loaded, the same for every prompt")
                      .as(same_for_all(types::string())));
    out.push_back(
        honoured<Task>(
            "priority",
            [](const Json& value, Task& task) {
              // Here, as in vLLM, the lower number goes first; in SGLang the higher one does.
              task.priority = -to_integer("priority", same_for_all("priority", value),
                                          -FairQueue::kMaxPriority, FairQueue::kMaxPriority);
            },
            "higher goes first among the client's own; before others' only of an administrator's "
            "key, or where no keys are in use; nobody waits for ever")
            .as(same_for_all(types::integer(-FairQueue::kMaxPriority, FairQueue::kMaxPriority))));
    for (const char* name : {"log_metrics", "modalities", "background", "bootstrap_host",
                             "bootstrap_port", "bootstrap_room"})
      out.push_back(ignored<Task>(name, "it changes nothing here"));
    return out;
  }();
  return table;
}

// ---- the answer --------------------------------------------------------------------------------

class GenerateAnswer : public GenerationListener {
 public:
  GenerateAnswer(std::shared_ptr<Call> call, GenerateTask task, std::shared_ptr<ServedModel> model,
                 const std::vector<Request>& requests)
      : call_(std::move(call)), task_(std::move(task)), model_(std::move(model)) {
    for (const Request& request : requests)
      prompts_.push_back(request.prompt);
    choices_.resize(requests.size() * static_cast<size_t>(task_.n));
  }

  void on_start() override {
    if (task_.stream) call_->begin_stream(std::string(kSseType));
  }

  /// As SGLang streams: every piece has the whole text so far.
  void on_token(int choice, const Event& event) override {
    if (!task_.stream || task_.max_new_tokens == 0) return;
    Choice& so_far = choices_[static_cast<size_t>(choice)];
    so_far.text += event.text;
    if (event.token >= 0) so_far.ids.push_back(event.token);
    if (event.logprobs) so_far.logprobs.push_back(*event.logprobs);
    if (event.text.empty()) return;
    const size_t prompt = static_cast<size_t>(choice) / static_cast<size_t>(task_.n);
    send(choice, answer(prompt, so_far.text, so_far.ids, so_far.logprobs, nullptr, nullptr));
  }

  bool ends_anywhere() const override { return !task_.stream; }

  void on_end(const GenerationResult& result) override {
    Json answers = Json::array();
    for (size_t prompt = 0; prompt < result.prompts.size(); ++prompt) {
      for (const Completion& completion : result.prompts[prompt]->completions) {
        if (task_.max_new_tokens == 0) {
          answers.push_back(answer(prompt, "", {}, {}, {{"type", "length"}, {"length", 0}},
                                   result.prompts[prompt].get()));
          continue;
        }
        answers.push_back(answer(prompt, completion.text, completion.ids, completion.logprobs,
                                 finish_reason(completion), result.prompts[prompt].get()));
      }
    }
    if (!result.receipt.is_null()) answers.back()["receipt"] = result.receipt;
    const bool is_list = task_.is_list || answers.size() > 1;
    if (!task_.stream) {
      call_->respond(is_list ? std::move(answers) : std::move(answers[0]));
      return;
    }
    if (!call_->warnings().empty()) answers.back()["warnings"] = call_->warnings();
    for (size_t i = 0; i < answers.size(); ++i)
      send(static_cast<int>(i), std::move(answers[i]));
    end();
  }

  void on_error(const Error& error) override {
    if (!call_->streaming()) return call_->fail(error);
    call_->write(sse(error_body(error, http_status(error))));
    end();
  }

 private:
  struct Choice {
    std::string text;
    std::vector<int32_t> ids;
    std::vector<TokenLogprobs> logprobs;
  };

  static Json finish_reason(const Completion& completion) {
    switch (completion.finish_reason) {
      case FinishReason::kEos:
        return {{"type", "stop"}, {"matched", completion.ids.back()}};
      case FinishReason::kStop:
        return {{"type", "stop"}, {"matched", completion.stop_string}};
      case FinishReason::kLength:
        return {{"type", "length"}, {"length", completion.ids.size()}};
      default:
        return {{"type", "abort"}, {"message", completion.error}};
    }
  }

  /// [logprob, id, text or null].
  Json entry(const Json& logprob, int32_t id) const {
    Json text = nullptr;
    if (task_.return_text_in_logprobs)
      text = model_->tokenizer().decode(std::span<const int32_t>(&id, 1));
    return Json::array({logprob, id, std::move(text)});
  }
  Json chosen(const TokenLogprobs& logprobs) const {
    return entry(logprobs.chosen.logprob, logprobs.chosen.id);
  }
  Json top(const TokenLogprobs& logprobs) const {
    Json out = Json::array();
    for (const Logprob& candidate : logprobs.top)
      out.push_back(entry(candidate.logprob, candidate.id));
    return out;
  }

  void add_output_logprobs(Json& meta, const std::vector<TokenLogprobs>& logprobs) const {
    Json tokens = Json::array(), tops = Json::array();
    for (const TokenLogprobs& token : logprobs) {
      tokens.push_back(chosen(token));
      tops.push_back(top(token));
    }
    meta["output_token_logprobs"] = std::move(tokens);
    if (task_.top_logprobs_num > 0) meta["output_top_logprobs"] = std::move(tops);
  }

  /// Of the prompt from logprob_start_len on; there is none for the first token of all.
  void add_input_logprobs(Json& meta, size_t prompt, const RequestResult& result) const {
    Json tokens = Json::array(), tops = Json::array();
    const auto begin = static_cast<size_t>(task_.logprob_start_len);
    for (size_t i = begin; i <= result.prompt_logprobs.size(); ++i) {
      tokens.push_back(i == 0 ? entry(nullptr, prompts_[prompt][0])
                              : chosen(result.prompt_logprobs[i - 1]));
      tops.push_back(i == 0 ? Json() : top(result.prompt_logprobs[i - 1]));
    }
    meta["input_token_logprobs"] = std::move(tokens);
    if (task_.top_logprobs_num > 0) meta["input_top_logprobs"] = std::move(tops);
  }

  /// result: null while it is not there.
  Json answer(size_t prompt, const std::string& text, const std::vector<int32_t>& ids,
              const std::vector<TokenLogprobs>& logprobs, Json reason,
              const RequestResult* result) const {
    Json meta = {{"id", task_.rids.empty() ? call_->id() : task_.rids[prompt]},
                 {"finish_reason", std::move(reason)},
                 {"prompt_tokens", prompts_[prompt].size()},
                 {"completion_tokens", ids.size()},
                 {"cached_tokens", result == nullptr ? 0 : result->timings.n_cached}};
    if (task_.return_logprob) {
      add_output_logprobs(meta, logprobs);
      if (result != nullptr && task_.logprob_start_len >= 0)
        add_input_logprobs(meta, prompt, *result);
    }
    if (result != nullptr) {
      const std::chrono::duration<double> elapsed =
          std::chrono::steady_clock::now() - call_->started();
      meta["e2e_latency"] = elapsed.count();
    }
    return {{"text", text}, {"output_ids", ids}, {"meta_info", std::move(meta)}};
  }

  void send(int choice, Json answer) {
    if (choices_.size() > 1) answer["index"] = choice;
    call_->write(sse(answer));
  }
  void end() {
    call_->write(std::string(kSseDone));
    call_->end_stream();
  }

  std::shared_ptr<Call> call_;
  GenerateTask task_;
  std::shared_ptr<ServedModel> model_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<Choice> choices_;  // what has been streamed of each
};

/// Readies a task whose fields were read.
void finish(GenerateTask& task) {
  if (task.prompts.empty()) refuse_field("text", "expected a text or input_ids, got none");
  if (std::ranges::any_of(task.prompts, &PromptInput::is_ids) &&
      !std::ranges::all_of(task.prompts, &PromptInput::is_ids))
    refuse_field("input_ids", "expected one of text and input_ids, got both");
  if (!task.rids.empty() && task.rids.size() != task.prompts.size())
    refuse_field("rid", "expected one for each prompt ({}), got {}", task.prompts.size(),
                 task.rids.size());
  task.min_tokens_before_stops = false;
  task.prompt_field = task.prompts[0].is_ids ? "input_ids" : "text";
  // The engine computes a prompt to choose a token, which is not told where none was asked for.
  task.set("sampling_params.max_new_tokens", "max_new_tokens",
           std::max<int64_t>(task.max_new_tokens, 1));
  if (!task.return_logprob) return;
  task.set("top_logprobs_num", "logprobs", task.top_logprobs_num);
  if (task.logprob_start_len >= 0)
    task.set("top_logprobs_num", "prompt_logprobs", task.top_logprobs_num);
}

/// The model's name of an adapter that is given by its name or path.
std::string adapter_name(const ModelHub& hub, const std::string& model, const std::string& given) {
  for (const ModelHub::Adapter& adapter : hub.adapters(model)) {
    if (!adapter.name.empty() && (adapter.name == given || adapter.path == given))
      return adapter.name;
  }
  throw RequestError(ErrorKind::kNotFound,
                     fmt::format("[request] lora_path: expected an adapter that /v1/models lists, "
                                 "got '{}'",
                                 printable(given)),
                     "lora_path");
}

void generate_texts(const std::shared_ptr<Call>& call) {
  GenerateTask task;
  call->read(generate_fields(), task);
  finish(task);
  if (task.lora_path) task.model = adapter_name(*call->services().hub, task.model, *task.lora_path);
  generate(call, task,
           [call, task](const std::shared_ptr<ServedModel>& model,
                        const std::vector<Request>& requests) {
             return std::make_shared<GenerateAnswer>(call, task, model, requests);
           });
}

}  // namespace

std::vector<Endpoint> generate_endpoints() {
  return {{"POST",
           "/generate",
           &kSglang,
           "What follows prompts",
           generate_texts,
           infos_of(generate_fields()),
           true,
           {.example = {{"text", "Hi"}, {"sampling_params", {{"max_new_tokens", 1}}}},
            .answer = types::any_of({types::object(), types::list(types::object())}),
            .stream_type = "text/event-stream",
            .generates = true}}};
}

}  // namespace qw::server::sglang
