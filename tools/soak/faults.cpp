// What is wrong with an answer: of every accepted request exactly one end, in its dialect's words.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "soak/requests.h"

namespace qw::soak {

namespace {

/// The "data: " lines of a stream; [DONE] is the last if it is there, and then left out.
struct Events {
  std::vector<Json> list;
  size_t n_done = 0;
  std::string fault;
};

Events events_of(const std::string& body) {
  Events out;
  size_t at = 0;
  while (at < body.size()) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) {
      out.fault = "an event without its end";
      return out;
    }
    const std::string block = body.substr(at, end - at);
    at = end + 2;
    const size_t data = block.starts_with("data: ") ? 0 : block.find("\ndata: ");
    if (data == std::string::npos) continue;
    const std::string text = block.substr(block.find("data: ", data) + 6);
    if (out.n_done > 0) out.fault = "an event after [DONE]";
    if (text == "[DONE]") {
      ++out.n_done;
      continue;
    }
    out.list.push_back(Json::parse(text, nullptr, false));
    if (out.list.back().is_discarded()) out.fault = "an event that is no JSON";
    if (out.list.back().contains("error") && !out.list.back()["error"].is_null())
      out.fault = "an error in the stream";
  }
  return out;
}

/// Ends of choices, counted by their index.
class Ends {
 public:
  void add(const Json& event) {
    ++n_[event.contains("index") && event["index"].is_number_integer()
             ? event["index"].get<int64_t>()
             : 0];
  }
  std::string fault(size_t expected) const {
    if (n_.size() != expected) return fmt::format("{} answers ended, not {}", n_.size(), expected);
    for (const auto& [index, n] : n_) {
      if (n != 1) return fmt::format("answer {} ended {} times", index, n);
    }
    return "";
  }

 private:
  std::map<int64_t, int> n_;
};

std::string fault_of_choices(const Planned& request, const Json& body) {
  Ends ends;
  for (const Json& choice : body.value("choices", Json::array())) {
    if (!choice.value("finish_reason", Json()).is_null()) ends.add(choice);
  }
  return ends.fault(request.answers);
}

std::string fault_of_openai(const Planned& request, const Events& events) {
  Ends ends;
  for (const Json& event : events.list) {
    for (const Json& choice : event.value("choices", Json::array())) {
      if (!choice.value("finish_reason", Json()).is_null()) ends.add(choice);
    }
  }
  if (events.n_done != 1) return fmt::format("[DONE] {} times", events.n_done);
  return ends.fault(request.answers);
}

std::string fault_of_sglang(const Planned& request, const Events& events) {
  Ends ends;
  for (const Json& event : events.list) {
    if (!event.at("meta_info").at("finish_reason").is_null()) ends.add(event);
  }
  if (events.n_done != 1) return fmt::format("[DONE] {} times", events.n_done);
  return ends.fault(request.answers);
}

std::string fault_of_llama_server(const Planned& request, const Events& events) {
  Ends ends;
  for (const Json& event : events.list) {
    if (event.value("stop", false)) ends.add(event);
  }
  return ends.fault(request.answers);
}

/// Streams that end with an event of one of `types`, once.
std::string fault_of_typed(const Events& events, const std::vector<std::string>& types) {
  const auto is_end = [&](const Json& event) {
    return std::ranges::find(types, event.value("type", "")) != types.end();
  };
  const auto n = std::ranges::count_if(events.list, is_end);
  if (n != 1) return fmt::format("{} {} times", types.front(), n);
  return is_end(events.list.back()) ? "" : "events after the last";
}

std::string fault_of_lines(const std::string& body) {
  size_t at = 0, n_done = 0;
  while (at < body.size()) {
    const size_t end = std::min(body.find('\n', at), body.size());
    const Json line = Json::parse(body.substr(at, end - at), nullptr, false);
    at = end + 1;
    if (line.is_discarded()) return "a line that is no JSON";
    if (line.contains("error")) return "an error in the stream";
    if (n_done > 0) return "a line after the last";
    n_done += line.value("done", false) ? 1 : 0;
  }
  return n_done == 1 ? "" : fmt::format("done {} times", n_done);
}

std::string fault_of_body(const Planned& request, const std::string& body) {
  if (request.form == Form::kAny) return "";
  if (request.form == Form::kOllamaStream) return fault_of_lines(body);
  if (request.form == Form::kJson || request.form == Form::kChoices) {
    const Json json = Json::parse(body, nullptr, false);
    if (json.is_discarded()) return "a body that is no JSON";
    return request.form == Form::kJson ? "" : fault_of_choices(request, json);
  }
  const Events events = events_of(body);
  if (!events.fault.empty()) return events.fault;
  if (events.list.empty()) return "a stream without events";
  switch (request.form) {
    case Form::kOpenAiStream:
      return fault_of_openai(request, events);
    case Form::kSglangStream:
      return fault_of_sglang(request, events);
    case Form::kLlamaServerStream:
      return fault_of_llama_server(request, events);
    case Form::kAnthropicStream:
      return fault_of_typed(events, {"message_stop"});
    default:
      return fault_of_typed(events, {"response.completed", "response.incomplete"});
  }
}

}  // namespace

std::string fault_of(const Planned& request, const HttpAnswer& answer) {
  if (answer.timed_out) return "no answer in time";
  if (answer.status == 0) return "the connection was closed without an answer: " + answer.error;
  if (!answer.complete)
    return fmt::format("an answer of status {} that was cut: {}", answer.status, answer.error);
  if (answer.status == 429 || answer.status == 503) return "";
  if (std::ranges::find(request.statuses, answer.status) == request.statuses.end())
    return fmt::format("status {}", answer.status);
  return answer.status == 200 ? fault_of_body(request, answer.body) : "";
}

}  // namespace qw::soak
