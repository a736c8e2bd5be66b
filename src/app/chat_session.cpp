#include "app/chat_session.h"

#include <span>

#include "app/command.h"
#include "app/grammar_flags.h"
#include "app/input.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/input_file.h"
#include "base/log.h"

namespace qw::app {

using nlohmann::ordered_json;

ChatSession::ChatSession(LoadedModel& loaded, GenerationConfig config, const std::string& system,
                         std::shared_ptr<GrammarMatcher> grammar)
    : loaded_(loaded),
      engine_(loaded.make_engine()),
      config_(std::move(config)),
      grammar_(std::move(grammar)),
      seed_(config_.seed) {
  if (!system.empty()) set_system(system);
}

RequestResult ChatSession::answer(const std::function<void(std::string_view)>& on_piece) {
  ChatInput input;
  input.messages = std::make_shared<const ordered_json>(messages_);
  EncodedChat chat = loaded_.encode_chat(input);
  Request request;
  last_context_ = static_cast<int64_t>(chat.ids.size());
  if (total_.n_prompt == 0) {  // only now is the length known that some parameters are about
    for (const std::string& note :
         config_.without_effect(last_context_, loaded_.draft_model != nullptr))
      logger().warn("{}", note);
  }
  request.prompt = std::move(chat.ids);
  request.config = config_;
  request.config.seed = seed_ + n_answers_;
  request.adapter = loaded_.adapter;
  constrain(request, grammar_);
  RequestResult result = engine_->generate(
      std::move(request),
      [&](const Event& event) {
        if (event.kind == Event::Kind::kToken && event.index == 0 && on_piece) on_piece(event.text);
      },
      &interrupted());
  ++n_answers_;
  messages_.push_back({{"role", "assistant"}, {"content", result.completions.at(0).text}});
  last_context_ += result.timings.n_generated;
  total_.n_prompt += result.timings.n_prompt;
  total_.n_cached += result.timings.n_cached;
  total_.n_generated += result.timings.n_generated;
  total_.n_decoded += result.timings.n_decoded;
  total_.n_drafted += result.timings.n_drafted;
  total_.n_accepted += result.timings.n_accepted;
  total_.prefill_s += result.timings.prefill_s;
  total_.decode_s += result.timings.decode_s;
  return result;
}

RequestResult ChatSession::say(const std::string& text,
                               const std::function<void(std::string_view)>& on_piece) {
  messages_.push_back({{"role", "user"}, {"content", text}});
  try {
    return answer(on_piece);
  } catch (...) {
    messages_.erase(messages_.size() - 1);
    throw;
  }
}

RequestResult ChatSession::regenerate(const std::function<void(std::string_view)>& on_piece) {
  if (messages_.empty() || messages_.back()["role"] != "assistant") {
    fail(ErrorKind::kInvalidArgument, "chat",
         "regenerate: expected an answer to replace, got none");
  }
  const ordered_json old = messages_.back();
  messages_.erase(messages_.size() - 1);
  try {
    return answer(on_piece);
  } catch (...) {
    messages_.push_back(old);
    throw;
  }
}

void ChatSession::undo() {
  if (messages_.empty() || messages_.back()["role"] == "system") {
    fail(ErrorKind::kInvalidArgument, "chat", "undo: expected an exchange to take back, got none");
  }
  // Back to the question, but not past a system message: a loaded conversation may begin with an
  // answer.
  std::string taken;
  while (!messages_.empty() && messages_.back()["role"] != "system" && taken != "user") {
    taken = messages_.back()["role"].get<std::string>();
    messages_.erase(messages_.size() - 1);
  }
}

void ChatSession::clear() {
  const bool has_system = !messages_.empty() && messages_.front()["role"] == "system";
  begin_with(has_system ? ordered_json::array({messages_.front()}) : ordered_json::array());
}

void ChatSession::set_system(const std::string& text) {
  const bool has_system = !messages_.empty() && messages_.front()["role"] == "system";
  if (has_system) messages_.erase(0);
  if (!text.empty())
    messages_.insert(messages_.begin(), ordered_json{{"role", "system"}, {"content", text}});
}

void ChatSession::set(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos) {
    fail(ErrorKind::kInvalidArgument, "chat", "set: expected NAME=VALUE, got '{}'",
         printable(assignment));
  }
  GenerationConfig changed = config_;
  changed.set_text(assignment.substr(0, equals), assignment.substr(equals + 1),
                   ParameterSource::kUser);
  changed.validate(0);
  config_ = std::move(changed);
}

void ChatSession::set_seed(uint64_t seed) {
  seed_ = seed;
  n_answers_ = 0;
  config_.seed = seed;
}

void ChatSession::save(const std::string& path) const {
  const std::string text = ordered_json{{"messages", messages_}}.dump(2) + "\n";
  write_file_atomically(path, std::as_bytes(std::span(text)));
}

void ChatSession::load(const std::string& path) {
  const auto json = parse_user_json(read_input_file(path, &interrupted()), path);
  const ordered_json* messages = nullptr;
  if (json.is_array()) messages = &json;
  if (json.is_object() && json.contains("messages") && json["messages"].is_array())
    messages = &json["messages"];
  if (messages == nullptr) {
    fail(ErrorKind::kInvalidArgument, "chat",
         "load: expected JSON with an array \"messages\", got something else ({})",
         printable(path, 4096));
  }
  for (const auto& message : *messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content")) {
      fail(ErrorKind::kInvalidArgument, "chat",
           "load: expected messages with role and content, got {} ({})", printable(message.dump()),
           printable(path, 4096));
    }
  }
  begin_with(*messages);
}

void ChatSession::begin_with(ordered_json messages) {
  messages_ = std::move(messages);
  last_context_ = 0;
  n_answers_ = 0;
}

}  // namespace qw::app
