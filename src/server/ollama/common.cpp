#include "server/ollama/common.h"

#include <fmt/chrono.h>

#include <charconv>

#include "server/generation/grammar_fields.h"
#include "server/generation/logprobs.h"
#include "server/generation/stream.h"
#include "server/ollama/ollama.h"
#include "server/service.h"

namespace qw::server::ollama {

const Dialect kOllama{"ollama", error_body};

std::vector<Endpoint> endpoints() {
  std::vector<Endpoint> all;
  for (auto make : {generate_endpoints, chat_endpoints, embedding_endpoints, model_endpoints}) {
    for (Endpoint& endpoint : make())
      all.push_back(std::move(endpoint));
  }
  return all;
}

Json error_body(const Error& error, int /*status*/) {
  return {{"error", error.message()}};
}

std::string time_text(std::chrono::system_clock::time_point time) {
  using namespace std::chrono;
  const auto whole = floor<seconds>(time);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:09}Z", fmt::gmtime(system_clock::to_time_t(whole)),
                     duration_cast<nanoseconds>(time - whole).count());
}

std::string now_text() {
  return time_text(std::chrono::system_clock::now());
}

std::string model_name(const Services& services, const std::string& name) {
  constexpr std::string_view kTag = ":latest";
  if (!name.ends_with(kTag)) return name;
  for (const ModelHub::Listing& model : services.hub->list()) {
    if (model.name == name) return name;
  }
  return name.substr(0, name.size() - kTag.size());
}

void read_format(const Json& value, GenerationTask& task) {
  if (value == "") return;
  GrammarSource source;
  source.kind = GrammarSource::Kind::kJsonObject;
  if (value != "json") {
    if (!value.is_object())
      refuse_field("format", "expected json or a JSON schema, got {}", shown(value));
    source = {GrammarSource::Kind::kJsonSchema, to_schema("format", value)};
  }
  set_grammar(task, "format", std::move(source));
  task.grammar_forbids_calls = true;  // as Ollama does: every answer is in the format
}

// ---- keep_alive --------------------------------------------------------------------------------

namespace {

/// Seconds of a Go duration: numbers with units, "1h30m", "90s", "1.5m"; nullopt: none.
std::optional<double> go_duration(std::string_view text) {
  if (text == "0") return 0;
  const bool is_negative = text.starts_with('-');
  if (is_negative) text.remove_prefix(1);
  if (text.empty()) return std::nullopt;
  double seconds = 0;
  while (!text.empty()) {
    double number = 0;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
    if (error != std::errc{} || number < 0) return std::nullopt;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    size_t length = 0;
    for (const auto& [unit, scale] : {std::pair<std::string_view, double>{"ms", 1e-3},
                                      {"us", 1e-6},
                                      {"ns", 1e-9},
                                      {"h", 3600.0},
                                      {"m", 60.0},
                                      {"s", 1.0}}) {
      if (!text.starts_with(unit)) continue;
      seconds += number * scale;
      length = unit.size();
      break;
    }
    if (length == 0) return std::nullopt;
    text.remove_prefix(length);
  }
  return is_negative ? -seconds : seconds;
}

}  // namespace

Json keep_alive_schema() {
  return types::any_of({types::number(), types::string()});
}

KeepAlive read_keep_alive(const Json& value) {
  std::optional<double> seconds;
  if (value.is_number()) seconds = value.get<double>();
  if (value.is_string()) seconds = go_duration(value.get_ref<const std::string&>());
  if (!seconds)
    refuse_field("keep_alive", "expected seconds or a duration as in 5m, got {}", shown(value));
  if (*seconds < 0 || *seconds > 1e9) return {std::nullopt};
  return {std::chrono::seconds(static_cast<int64_t>(*seconds))};
}

// ---- the answer --------------------------------------------------------------------------------

void finish(AnswerTask& task) {
  if (task.top_logprobs > 0 && !task.logprobs)
    refuse_field("top_logprobs", "expected logprobs: true with it, got none");
  if (task.logprobs) task.set("top_logprobs", "logprobs", task.top_logprobs);
  task.complete = [num_ctx = task.num_ctx, before = std::move(task.complete)](
                      GenerationTask& generation, const ServedModel& model) {
    if (num_ctx && *num_ctx < model.context()) {
      generation.context = num_ctx;
      generation.context_field = "options.num_ctx";
    } else if (num_ctx && *num_ctx > model.context()) {
      // As Ollama does, whose clients ask for some length whatever the model: nothing is cut, and
      // what does not fit is refused.
      generation.warnings.push_back(
          fmt::format("options.num_ctx: {} is served with a context of {}, not {}", model.name(),
                      model.context(), *num_ctx));
    }
    if (before) before(generation, model);
  };
}

void check_keep_alive(Call& call, std::optional<KeepAlive>& keep_alive) {
  if (!keep_alive || call.client().is_admin) return;
  keep_alive.reset();
  call.warn("keep_alive: ignored (it takes an administrator's key)");
}

AnswerListener::AnswerListener(std::shared_ptr<Call> call, const AnswerTask& task,
                               const Prepared& prepared)
    : call_(std::move(call)), task_(task), model_(prepared.model), tools_(prepared.tools) {
  if (task_.keep_alive)
    call_->services().hub->set_keep_alive(model_->name(), task_.keep_alive->duration);
}

Json AnswerListener::head() const {
  return {{"model", task_.model.empty() ? model_->name() : task_.model},
          {"created_at", now_text()}};
}

void AnswerListener::on_start() {
  if (task_.stream) call_->begin_stream(std::string(kNdjsonType));
}

void AnswerListener::on_token(int choice, const Event& event) {
  if (!task_.stream) return;
  if (task_.logprobs && event.logprobs)
    pending_logprobs_.push_back(logprobs_json(*event.logprobs, model_->tokenizer()));
  if (tools_) return take(tools_->push(choice, event.text));
  if (!event.text.empty()) send(event.text, nullptr);
}

void AnswerListener::on_choice_end(int choice, const Event& end) {
  if (task_.stream && tools_)
    take(tools_->finish(choice, tools_->is_cut(end.finish_reason, end.stop_string)));
}

namespace {

/// {"function": {"name", "arguments"}}.
Json call_json(const ToolAnswer::Call& call, const std::string& id) {
  return {{"id", id},
          {"function", {{"name", call.name}, {"arguments", Json::parse(call.arguments)}}}};
}

}  // namespace

/// Clients make every call that they are given, whatever the answer's done_reason.
void AnswerListener::leave_out(const ToolAnswer::Call& call) const {
  call_->warn(
      fmt::format("tool_calls: a call of {} was cut off and is left out (its arguments as "
                  "far as they came: {})",
                  call.name, shown(Json(call.arguments))));
}

void AnswerListener::take(const std::vector<ToolEvent>& events) {
  for (const ToolEvent& event : events) {
    switch (event.kind) {
      case ToolEvent::Kind::kText:
        send(event.text, nullptr);
        break;
      case ToolEvent::Kind::kThought:  // none: it is text
        break;
      case ToolEvent::Kind::kCallBegin:
        open_call_ = {event.text, "", false};
        break;
      case ToolEvent::Kind::kArguments:
        open_call_.arguments += event.text;
        break;
      case ToolEvent::Kind::kCallEnd:
        if (event.valid) {
          send("", Json::array({call_json(open_call_, tools_->call_id(0, event.call))}));
        } else {
          leave_out(open_call_);
        }
        break;
    }
  }
}

void AnswerListener::send(const std::string& text, Json tool_calls) {
  Json line = head();
  put_text(line, text, std::move(tool_calls));
  line["done"] = false;
  if (!pending_logprobs_.empty())
    line["logprobs"] = std::exchange(pending_logprobs_, Json::array());
  call_->write(json_line(line));
}

void AnswerListener::on_end(const GenerationResult& result) {
  using namespace std::chrono;
  const RequestResult& prompt = *result.prompts[0];
  const Completion& completion = prompt.completions[0];
  Json line = head();
  if (task_.stream) {
    put_text(line, "", nullptr);
  } else if (!tools_) {
    put_text(line, completion.text, nullptr);
  } else {
    const ToolAnswer answer = tools_->parse(
        completion.text, tools_->is_cut(completion.finish_reason, completion.stop_string));
    Json calls = nullptr;
    for (size_t i = 0; i < answer.calls.size(); ++i) {
      if (answer.calls[i].valid) {
        calls.push_back(call_json(answer.calls[i], tools_->call_id(0, i)));
      } else {
        leave_out(answer.calls[i]);
      }
    }
    put_text(line, answer.text, std::move(calls));
  }
  line["done"] = true;
  line["done_reason"] = client_name_of(completion.finish_reason);
  put_end(line, prompt);
  if (!result.receipt.is_null()) line["receipt"] = result.receipt;
  const auto ns_between = [](auto from, auto to) {
    return duration_cast<nanoseconds>(to - from).count();
  };
  const auto ns = [](double seconds) { return static_cast<int64_t>(seconds * 1e9); };
  const Timings& timings = prompt.timings;
  line["total_duration"] = ns_between(call_->started(), steady_clock::now());
  line["load_duration"] = ns_between(call_->started(), loaded_);
  line["prompt_eval_count"] = timings.n_prompt;
  line["prompt_eval_duration"] = ns(timings.prefill_s);
  line["eval_count"] = timings.n_generated;
  line["eval_duration"] = ns(timings.decode_s);
  if (task_.logprobs) {
    Json logprobs = task_.stream ? std::move(pending_logprobs_)
                                 : logprobs_json(completion.logprobs, model_->tokenizer());
    if (!logprobs.empty()) line["logprobs"] = std::move(logprobs);
  }
  if (!task_.stream) return call_->respond(std::move(line));
  if (!call_->warnings().empty()) line["warnings"] = call_->warnings();
  call_->write(json_line(line));
  call_->end_stream();
}

void AnswerListener::on_error(const Error& error) {
  if (!call_->streaming()) return call_->fail(error);
  call_->write(json_line(error_body(error, http_status(error))));
  call_->end_stream();
}

void load_or_unload(const std::shared_ptr<Call>& call, const AnswerTask& task,
                    std::function<void(Json& answer)> put_text) {
  const auto respond = [call, task, put_text = std::move(put_text)](std::string_view reason) {
    Json answer = {{"model", task.model}, {"created_at", now_text()}};
    put_text(answer);
    answer["done"] = true;
    answer["done_reason"] = reason;
    call->respond(std::move(answer));
  };
  const std::string name = model_name(call->services(), task.model);
  ModelHub& hub = *call->services().hub;
  if (task.keep_alive && task.keep_alive->duration == std::chrono::seconds(0)) {
    hub.set_keep_alive(name, std::chrono::seconds(0));
    hub.unload_idle();
    return respond("unload");
  }
  with_model(call, name, [&hub, task, respond](const std::shared_ptr<ServedModel>& model) {
    if (task.keep_alive) hub.set_keep_alive(model->name(), task.keep_alive->duration);
    respond("load");
  });
}

}  // namespace qw::server::ollama
