// POST /completion (and /completions), as llama.cpp's server has it.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "server/generation/grammar_fields.h"
#include "server/generation/job.h"
#include "server/generation/logprobs.h"
#include "server/generation/sampling_fields.h"
#include "server/generation/stream.h"
#include "server/llama_server/common.h"
#include "server/service.h"
#include "server/shape.h"
#include "text/tokenizer.h"

namespace qw::server::llama_server {

namespace {

/// A prompt: texts and ids one after the other.
using MixedPrompt = std::vector<PromptInput>;

struct CompletionTask : GenerationTask {
  std::vector<MixedPrompt> mixed;
  bool is_list = false;  // of prompts: so is the answer
  int64_t slot = -1;
  bool stream = false, return_tokens = false, wants_tokens = true;
  int64_t n_probs = 0;
  std::optional<std::vector<SamplerKind>> samplers;
  Json logit_bias;
  std::vector<std::string> response_fields;
};

// ---- reading -----------------------------------------------------------------------------------

/// "text", [1, 2, "text", 3] or {"prompt_string": "text"}.
MixedPrompt read_prompt(const std::string& where, const Json& value) {
  if (value.is_object()) {
    if (!value.value("multimodal_data", Json()).empty()) {
      throw RequestError(ErrorKind::kUnsupported,
                         fmt::format("[request] {}.multimodal_data: expected none (these models "
                                     "read text only), got some",
                                     where),
                         where);
    }
    return {{to_string(where + ".prompt_string", value.value("prompt_string", Json())), {}, false}};
  }
  if (value.is_string()) return {{value.get<std::string>(), {}, false}};
  MixedPrompt parts;
  for (const Json& item : to_array(where, value)) {
    if (item.is_string()) {
      parts.push_back({item.get<std::string>(), {}, false});
      continue;
    }
    if (parts.empty() || !parts.back().is_ids) parts.push_back({"", {}, true});
    parts.back().ids.push_back(static_cast<int32_t>(to_integer(where, item, 0, INT32_MAX)));
  }
  return parts;
}

/// One prompt, or a list of them: a list is one prompt if it has a number among its items.
void read_prompts(const Json& value, CompletionTask& task) {
  task.is_list = value.is_array() &&
                 std::ranges::none_of(value, [](const Json& item) { return item.is_number(); });
  if (!task.is_list) {
    task.mixed = {read_prompt("prompt", value)};
    return;
  }
  task.mixed.clear();
  for (size_t i = 0; i < value.size(); ++i)
    task.mixed.push_back(read_prompt(fmt::format("prompt[{}]", i), value[i]));
}

Json prompt_schema() {
  const Json mixed = types::list(types::any_of({types::integer(0, INT32_MAX), types::string()}));
  const Json one = types::any_of({types::string(), types::object(), mixed});
  return types::any_of({one, types::list(one)});
}

void add_prompt_fields(FieldTable<CompletionTask>& table) {
  using Task = CompletionTask;
  table.push_back(string_field<Task>("model", &Task::model));
  table.push_back(honoured<Task>("prompt", read_prompts,
                                 "a text, ids and texts mixed, or a list of such prompts")
                      .as(prompt_schema())
                      .with(list_of({member("prompt_string"), member("multimodal_data")}))
                      .must());
  for (const char* name : {"n_predict", "max_tokens"}) {
    table.push_back(honoured<Task>(
                        name,
                        [name](const Json& value, Task& task) {
                          const int64_t n = to_integer(name, value);
                          task.wants_tokens = n != 0;
                          if (n >= 0) task.set(name, "max_new_tokens", std::max<int64_t>(n, 1));
                        },
                        "negative: as many as fit the context; 0: the prompt is computed only")
                        .as(types::integer()));
  }
  for (const char* name : {"n_cmpl", "n"}) {
    table.push_back(honoured<Task>(name, [name](const Json& value, Task& task) {
                      task.n = to_integer(name, value, 1, 128);
                      task.is_list = task.is_list || task.n > 1;
                    }).as(types::integer(1, 128)));
  }
  table.push_back(flag_field<Task>("stream", &Task::stream));
  table.push_back(integer_field<Task>("n_probs", &Task::n_probs, 0, "before any sampler"));
  table.push_back(flag_field<Task>("return_tokens", &Task::return_tokens));
  table.push_back(honoured<Task>("response_fields", [](const Json& value, Task& task) {
                    task.response_fields =
                        to_strings("response_fields", to_array("response_fields", value));
                  }).as(types::list(types::string())));
}

void add_sampling_fields(FieldTable<CompletionTask>& table) {
  using Task = CompletionTask;
  for (const char* name :
       {"temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
        "ignore_eos", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base",
        "dry_allowed_length", "dry_sequence_breakers"})
    table.push_back(parameter_field<Task>(name, name));
  table.push_back(honoured<Task>(
                      "top_k",
                      [](const Json& value, Task& task) {
                        task.set("top_k", "top_k",
                                 std::max<int64_t>(to_integer("top_k", value), 0));
                      },
                      "0 or less: off")
                      .as(types::integer()));
  table.push_back(honoured<Task>(
                      "top_n_sigma",
                      [](const Json& value, Task& task) {
                        task.set("top_n_sigma", "top_n_sigma",
                                 std::max(to_number("top_n_sigma", value), 0.0));
                      },
                      "0 or less: off")
                      .as(types::number()));
  table.push_back(parameter_field<Task>("dry_penalty_last_n", "dry_penalty_last_n",
                                        "0: off; -1: the whole text"));
  table.push_back(parameter_field<Task>("repeat_penalty", "repetition_penalty"));
  table.push_back(penalty_window_field<Task>("repeat_last_n"));
  table.push_back(honoured<Task>(
                      "seed",
                      [](const Json& value, Task& task) {
                        const int64_t seed = to_integer("seed", value);
                        constexpr int64_t kRandom = 0xFFFF'FFFF;  // llama.cpp's -1
                        if (seed >= 0 && seed != kRandom) task.seed = static_cast<uint64_t>(seed);
                      },
                      "negative, or 4294967295: a random one")
                      .as(types::integer()));
  table.push_back(stop_field<Task>("stop"));
  table.push_back(
      honoured<Task>(
          "samplers",
          [](const Json& value, Task& task) {
            task.samplers = read_samplers(value, task.warnings);
          },
          "they apply in this order, as often as they are named; those not named are off")
          .as(types::any_of({types::string(), types::list(types::string())})));
  table.push_back(
      honoured<Task>(
          "logit_bias", [](const Json& value, Task& task) { task.logit_bias = value; },
          "[[id or text, number or false], ...] or {\"id or text\": number}")
          .as(types::any_of({types::object(), types::list(types::list(types::anything()))})));
}

void add_other_fields(FieldTable<CompletionTask>& table) {
  using Task = CompletionTask;
  table.push_back(grammar_field<Task>("grammar", GrammarSource::Kind::kGbnf, "GBNF"));
  table.push_back(schema_field<Task>("json_schema"));
  table.push_back(refused<Task>("post_sampling_probs", "probabilities are given before sampling"));
  table.push_back(refused<Task>("dynatemp_range", "the temperature is fixed here"));
  table.push_back(refused<Task>("mirostat", "there is no mirostat here"));
  table.push_back(refused<Task>("min_keep", "samplers keep what their definitions say"));
  table.push_back(refused<Task>("n_indent", "there is no such rule here"));
  table.push_back(refused<Task>("t_max_predict_ms", "answers depend on no clock"));
  table.push_back(
      honoured<Task>(
          "lora", [](const Json& value, Task& task) { task.adapters = read_lora("lora", value); },
          "[{\"id\", \"scale\"}, ...]: these adapters and no others; scales from -1000 to 1000")
          .as(types::list(types::object({"id", "scale"})))
          .with(lora_shape()));
  for (const char* name : {"dynatemp_exponent", "mirostat_tau", "mirostat_eta"})
    table.push_back(ignored<Task>(name, "what it belongs to is off"));
  table.push_back(integer_field<Task>(
      "id_slot", &Task::slot, -1,
      "the number under which it can be saved; prefixes are kept for every request"));
  table.push_back(ignored<Task>("cache_prompt",
                                "prefixes are always kept: they change no bit of an answer", true));
  for (const char* name : {"n_keep", "n_discard"})
    table.push_back(ignored<Task>(name, "nothing is ever cut out of a context"));
  table.push_back(ignored<Task>("n_cache_reuse", "prefixes are found by themselves"));
  table.push_back(ignored<Task>("timings_per_token", "timings come with the last piece"));
  table.push_back(ignored<Task>("return_progress", "there is no report of progress"));
  table.push_back(ignored<Task>("sse_ping_interval", "there are no pings", -1));
}

const FieldTable<CompletionTask>& completion_fields() {
  static const FieldTable<CompletionTask> table = [] {
    FieldTable<CompletionTask> out;
    add_prompt_fields(out);
    add_sampling_fields(out);
    add_other_fields(out);
    add_server_fields(out);
    return out;
  }();
  return table;
}

// ---- what needs the model ----------------------------------------------------------------------

std::vector<int32_t> encode(const MixedPrompt& prompt, const ServedModel& model) {
  std::vector<int32_t> ids;
  for (const PromptInput& part : prompt) {
    std::vector<int32_t> more = part.ids;
    if (!part.is_ids) {
      EncodeOptions options;
      options.add_special_tokens = ids.empty();
      more = model.tokenizer().encode(part.text, options);
    }
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

/// Reads llama.cpp's forms, lists of pairs or an object, where a text stands for each of its tokens
/// and false for "never".
void set_bias(const Json& value, const ServedModel& model, GenerationTask& task) {
  std::map<int32_t, double> sums;
  std::set<int32_t> never;
  const auto add = [&](const Json& token, const Json& bias) {
    const double amount = bias == false ? 0 : to_number("logit_bias", bias);
    std::vector<int32_t> ids;
    if (token.is_string()) {
      ids = model.tokenizer().encode(token.get_ref<const std::string&>());
    } else {
      ids = {static_cast<int32_t>(to_integer("logit_bias", token, 0, INT32_MAX))};
    }
    for (const int32_t id : ids) {
      if (bias == false) never.insert(id);
      if (bias != false) sums[id] += amount;
    }
  };
  if (value.is_object()) {
    for (const auto& [key, bias] : value.items()) {
      const bool is_id = !key.empty() && key.size() < 10 &&
                         key.find_first_not_of("0123456789") == std::string::npos;
      add(is_id ? Json(std::stoi(key)) : Json(key), bias);
    }
  } else {
    for (const Json& pair : to_array("logit_bias", value)) {
      if (!pair.is_array() || pair.size() != 2)
        refuse_field("logit_bias", "expected pairs of token and bias, got {}", shown(pair));
      add(pair[0], pair[1]);
    }
  }
  Json biases = Json::object();
  for (const auto& [id, bias] : sums)
    biases[std::to_string(id)] = bias;
  if (!biases.empty()) task.set("logit_bias", "logit_bias", std::move(biases));
  if (never.empty()) return;
  const std::vector<int32_t>& of_model = model.files().generation.suppress_tokens;
  never.insert(of_model.begin(), of_model.end());
  task.set("logit_bias", "suppress_tokens", never);
}

/// Readies a task whose fields were read.
void finish(CompletionTask& task) {
  if (task.mixed.empty()) refuse_field("prompt", "expected one, got none");
  if (task.n_probs > 0) task.set("n_probs", "logprobs", task.n_probs);
  if (task.samplers) {
    for (auto& [name, value] : parameters_of(*task.samplers))
      task.set("samplers", name, value);
  }
  task.complete = [mixed = task.mixed, bias = task.logit_bias](GenerationTask& generation,
                                                               const ServedModel& model) {
    for (const MixedPrompt& prompt : mixed)
      generation.prompts.push_back({"", encode(prompt, model), true});
    if (!bias.is_null()) set_bias(bias, model, generation);
  };
}

// ---- the answer --------------------------------------------------------------------------------

std::string_view stop_type(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "word";
    case FinishReason::kLength:
      return "limit";
    default:
      return "none";
  }
}

Json timings_json(const Timings& timings) {
  const auto per = [](double a, int64_t b) { return b > 0 ? a / static_cast<double>(b) : 0; };
  const auto rate = [](int64_t n, double s) { return s > 0 ? static_cast<double>(n) / s : 0; };
  const int64_t n_prompt = timings.n_prompt - timings.n_cached;
  const double prompt_ms = timings.prefill_s * 1e3, predicted_ms = timings.decode_s * 1e3;
  return {{"cache_n", timings.n_cached},
          {"prompt_n", n_prompt},
          {"prompt_ms", prompt_ms},
          {"prompt_per_token_ms", per(prompt_ms, n_prompt)},
          {"prompt_per_second", rate(n_prompt, timings.prefill_s)},
          {"predicted_n", timings.n_generated},
          {"predicted_ms", predicted_ms},
          {"predicted_per_token_ms", per(predicted_ms, timings.n_decoded)},
          {"predicted_per_second", rate(timings.n_decoded, timings.decode_s)}};
}

/// The fields that are asked for; those within others come to the top, under their whole path.
Json only(const Json& answer, const std::vector<std::string>& fields) {
  if (fields.empty()) return answer;
  Json out = Json::object();
  for (const std::string& field : fields) {
    const Json* place = &answer;
    std::string_view rest = field;
    while (place != nullptr && !rest.empty()) {
      const std::string name(rest.substr(0, rest.find('/')));
      rest.remove_prefix(std::min(name.size() + 1, rest.size()));
      const auto found = place->is_object() ? place->find(name) : place->end();
      place = found == place->end() ? nullptr : &*found;
    }
    if (place != nullptr && place != &answer) out[field] = *place;
  }
  return out;
}

class CompletionAnswer : public GenerationListener {
 public:
  CompletionAnswer(std::shared_ptr<Call> call, CompletionTask task,
                   std::shared_ptr<ServedModel> model, const std::vector<Request>& requests)
      : call_(std::move(call)), task_(std::move(task)), model_(std::move(model)) {
    set_settings(requests[0].config);
    for (const Request& request : requests)
      prompts_.push_back(request.prompt);
    n_predicted_.assign(requests.size() * static_cast<size_t>(task_.n), 0);
    pending_.assign(n_predicted_.size(), Piece());
    scope_ = scope_of(requests[0]);
    check_response_fields();
    slot_ = model_->slots().take(task_.slot);
  }
  ~CompletionAnswer() override {
    if (slot_ >= 0) model_->slots().give_back(slot_, {});
  }
  CompletionAnswer(const CompletionAnswer&) = delete;
  CompletionAnswer& operator=(const CompletionAnswer&) = delete;

  void on_start() override {
    if (task_.stream) call_->begin_stream(std::string(kSseType));
  }

  void on_token(int choice, const Event& event) override {
    if (!task_.stream || !task_.wants_tokens) return;
    Piece& piece = pending_[static_cast<size_t>(choice)];
    if (event.token >= 0) {
      ++n_predicted_[static_cast<size_t>(choice)];
      piece.ids.push_back(event.token);
      if (task_.n_probs > 0 && event.logprobs)
        piece.probs.push_back(
            logprobs_json(*event.logprobs, model_->tokenizer(), {.with_ids = true}));
    }
    if (event.text.empty()) return;  // the rest of a character, or of a stop string, is to come
    Json json = {{"index", choice},
                 {"content", event.text},
                 {"tokens", piece.ids},
                 {"stop", false},
                 {"id_slot", slot_},
                 {"tokens_predicted", n_predicted_[static_cast<size_t>(choice)]},
                 {"tokens_evaluated", prompts_[prompt_of(choice)].size()}};
    if (!piece.probs.empty()) json["completion_probabilities"] = std::move(piece.probs);
    piece = Piece();
    call_->write(sse(json));
  }

  bool ends_anywhere() const override { return !task_.stream; }

  void on_end(const GenerationResult& result) override {
    Json answers = Json::array();
    for (size_t prompt = 0; prompt < result.prompts.size(); ++prompt) {
      for (const Completion& completion : result.prompts[prompt]->completions)
        answers.push_back(answer(prompt, *result.prompts[prompt], completion, answers.size(),
                                 task_.response_fields));
    }
    give_back_slot(*result.prompts.back());
    // Of all of them; after response_fields has chosen among the members.
    if (!result.receipt.is_null()) answers.back()["receipt"] = result.receipt;
    if (!task_.stream) {
      call_->respond(task_.is_list ? std::move(answers) : std::move(answers[0]));
      return;
    }
    if (!call_->warnings().empty()) answers.back()["warnings"] = call_->warnings();
    for (const Json& last : answers)
      call_->write(sse(last));
    call_->end_stream();
  }

  void on_error(const Error& error) override {
    if (const std::optional<RequestError> own = fault_of_lora(error)) return tell(*own);
    tell(error);
  }

 private:
  void tell(const Error& error) {
    if (!call_->streaming()) return call_->fail(error);
    call_->write(sse(error_body(error, http_status(error))));
    call_->end_stream();
  }
  /// Numbers that are not finite are a fault of the model, unless the client changed it.
  std::optional<RequestError> fault_of_lora(const Error& error) const {
    const bool is_changed = task_.adapters && !task_.adapters->empty();
    const bool is_numeric = error.kind() == ErrorKind::kCorrupt &&
                            error.message().find("expected finite") != std::string::npos;
    if (!is_changed || !is_numeric) return std::nullopt;
    return RequestError(ErrorKind::kInvalidArgument,
                        fmt::format("[request] lora: expected scales with which all numbers of the "
                                    "model stay finite, got others ({})",
                                    error.message()),
                        "lora");
  }

  /// What applied, which is not always what was asked for.
  void set_settings(const GenerationConfig& config) {
    settings_ = settings_json(config);
    if (!task_.wants_tokens) settings_["n_predict"] = settings_["max_tokens"] = 0;
    if (task_.no_penalties) settings_["repeat_last_n"] = 0;
    if (task_.samplers) settings_["samplers"] = samplers_json(*task_.samplers);
    if (task_.grammar && task_.grammar->kind == GrammarSource::Kind::kGbnf)
      settings_["grammar"] = task_.grammar->text;
    // Not made into a grammar in GBNF, as llama.cpp does.
    if (task_.grammar && task_.grammar->kind == GrammarSource::Kind::kJsonSchema)
      settings_["json_schema"] = Json::parse(task_.grammar->text);
    const auto known = call_->services().hub->adapters(model_->spec().name);
    for (const AdapterSpec& adapter : model_->adapters()) {
      const auto found = std::ranges::find(known, adapter.path, &ModelHub::Adapter::path);
      if (found != known.end())
        settings_["lora"].push_back({{"id", found->id}, {"scale", adapter.scale}});
    }
    settings_["n_ctx"] = model_->context();
    settings_["model"] = model_->name();
    settings_["stream"] = task_.stream;
  }

  /// Names that no answer has are told before one is computed.
  void check_response_fields() {
    if (task_.response_fields.empty()) return;
    Json any = answer(0, RequestResult(), Completion(), 0, {});
    any["completion_probabilities"] = Json::array();
    for (const std::string& field : task_.response_fields) {
      if (!only(any, {field}).empty()) continue;
      if (call_->services().options.strict)
        refuse_field("response_fields", "expected fields of the answer, got '{}'",
                     printable(field));
      call_->warn(
          fmt::format("response_fields: '{}' ignored (no answer has it)", printable(field)));
    }
  }

  struct Piece {
    std::vector<int32_t> ids;
    Json probs = Json::array();
  };

  /// What the slot holds from now on: the last prompt with the last answer to it.
  void give_back_slot(const RequestResult& result) {
    SlotBoard::Sequence last{prompts_.back(), scope_};
    const std::vector<int32_t>& ids = result.completions.back().ids;
    last.tokens.insert(last.tokens.end(), ids.begin(), ids.end());
    model_->slots().give_back(std::exchange(slot_, -1), std::move(last));
  }

  size_t prompt_of(int choice) const {
    return static_cast<size_t>(choice) / static_cast<size_t>(task_.n);
  }

  /// One answer whole; in a stream what is left of it.
  Json answer(size_t prompt, const RequestResult& result, const Completion& completion,
              size_t index, const std::vector<std::string>& fields) {
    const bool is_stop = completion.finish_reason == FinishReason::kStop;
    const Piece& rest = pending_[index];
    const std::vector<int32_t>& ids = task_.stream ? rest.ids : completion.ids;
    const bool shows_ids = task_.wants_tokens && (task_.return_tokens || task_.stream);
    const bool shows_text = task_.wants_tokens && !task_.stream;
    const std::string_view stop =
        task_.wants_tokens ? stop_type(completion.finish_reason) : "limit";
    Json json = {{"index", index},
                 {"content", shows_text ? completion.text : ""},
                 {"tokens", shows_ids ? Json(ids) : Json::array()},
                 {"id_slot", slot_},
                 {"stop", true},
                 {"model", model_->name()},
                 {"tokens_predicted", task_.wants_tokens ? std::ssize(completion.ids) : 0},
                 {"tokens_evaluated", result.timings.n_prompt},
                 {"generation_settings", settings_},
                 {"prompt", model_->tokenizer().decode(prompts_[prompt])},
                 {"has_new_line", completion.text.find('\n') != std::string::npos},
                 {"truncated", false},
                 {"stop_type", stop},
                 // The same as older versions say it, for clients of that time.
                 {"stopped_eos", stop == "eos"},
                 {"stopped_word", stop == "word"},
                 {"stopped_limit", stop == "limit"},
                 {"stopping_word", is_stop ? completion.stop_string : ""},
                 {"tokens_cached", result.timings.n_cached},
                 {"timings", timings_json(result.timings)}};
    if (task_.n_probs > 0 && task_.wants_tokens) {
      json["completion_probabilities"] =
          task_.stream
              ? rest.probs
              : logprobs_json(completion.logprobs, model_->tokenizer(), {.with_ids = true});
    }
    return only(json, fields);
  }

  std::shared_ptr<Call> call_;
  CompletionTask task_;
  std::shared_ptr<ServedModel> model_;
  Json settings_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<int64_t> n_predicted_;  // of each choice
  BlockScope scope_;
  int64_t slot_ = -1;           // -1: given back
  std::vector<Piece> pending_;  // of each choice: tokens whose text has not come yet
};

void complete(const std::shared_ptr<Call>& call) {
  CompletionTask task;
  call->read(completion_fields(), task);
  finish(task);
  generate(call, task,
           [call, task](const std::shared_ptr<ServedModel>& model,
                        const std::vector<Request>& requests) {
             model->tokenizer();  // texts are part of every answer
             if (task.slot >= model->slots().size()) {
               refuse_field("id_slot", "expected -1 (any) to {}, got {}", model->slots().size() - 1,
                            task.slot);
             }
             return std::make_shared<CompletionAnswer>(call, task, model, requests);
           });
}

}  // namespace

std::vector<Endpoint> completion_endpoints() {
  std::vector<Endpoint> out;
  for (const char* path : {"/completion", "/completions"}) {
    out.push_back({"POST",
                   path,
                   &kLlamaServer,
                   "What follows a prompt",
                   complete,
                   infos_of(completion_fields()),
                   true,
                   {.example = {{"prompt", "Hi"}, {"n_predict", 1}},
                    .answer = types::any_of({types::object(), types::list(types::object())}),
                    .stream_type = "text/event-stream",
                    .generates = true}});
  }
  return out;
}

}  // namespace qw::server::llama_server
