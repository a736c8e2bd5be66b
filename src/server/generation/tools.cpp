#include "server/generation/tools.h"

#include "base/rng.h"
#include "engine/grammar/tool_grammar.h"

namespace qw::server {

namespace {

std::string key_of(const ToolCallStructure& s) {
  Json json = {"tools", s.must_call, s.text_first, s.may_repeat, s.lead, s.trigger,
               s.open,  s.separator, s.close,      s.next,       s.end};
  for (const ToolCallStructure::Function& function : s.functions) {
    json.push_back({function.name, static_cast<int>(function.arguments),
                    function.parameters ? *function.parameters : Json()});
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

bool needs_tool_format(const ToolTask& task) {
  if (task.tools.is_array() && !task.tools.empty()) return true;
  for (const Json& message : task.messages) {
    if (message.value("role", Json()) == "tool" || message.contains("tool_calls")) return true;
  }
  return false;
}

ToolChoice read_tool_choice(const std::string& field, const Json& value) {
  ToolChoice choice;
  if (value == "auto") return choice;
  if (value == "none") {
    choice.mode = ToolChoice::Mode::kNone;
  } else if (value == "required" || value == "any") {
    choice.mode = ToolChoice::Mode::kRequired;
  } else if (value.is_object() && value.contains("function") && value["function"].is_object() &&
             value["function"].contains("name")) {
    choice.mode = ToolChoice::Mode::kNamed;
    choice.name = to_string(field + ".function.name", value["function"]["name"]);
  } else {
    refuse_field(field, "expected auto, none, required or a function, got {}", shown(value));
  }
  return choice;
}

std::optional<ToolGrammar> grammar_of(const ToolCallStructure& structure,
                                      std::vector<std::string>& warnings) {
  if (structure.functions.empty()) return std::nullopt;
  const auto builder = std::make_shared<GrammarBuilder>();
  std::vector<std::string> sentences;
  try {
    const grammar::Node root = tool_grammar_node(structure, {}, &sentences, *builder);
    for (const std::string& sentence : sentences)
      warnings.push_back("tools: " + sentence);
    return ToolGrammar{key_of(structure), [builder, root] { return builder->build(root); }};
  } catch (const Error& error) {
    throw RequestError(error.kind(), error.message(), "tools");
  }
}

ToolStreams::ToolStreams(const ToolFormat& format, ToolPrompt prompt, uint64_t seed)
    : format_(format), prompt_(std::move(prompt)), seed_(seed) {}

std::vector<ToolEvent> ToolStreams::push(int choice, std::string_view text) {
  Stream& stream = streams_[choice];
  if (!stream.parser) stream.parser = format_.parser(prompt_);
  std::vector<ToolEvent> events = stream.parser->push(text);
  for (const ToolEvent& event : events)
    stream.called = stream.called || event.kind == ToolEvent::Kind::kCallBegin;
  return events;
}

std::vector<ToolEvent> ToolStreams::finish(int choice, bool truncated) {
  std::vector<ToolEvent> events = push(choice, "");
  Stream& stream = streams_[choice];
  for (ToolEvent& event : stream.parser->finish(truncated)) {
    stream.called = stream.called || event.kind == ToolEvent::Kind::kCallBegin;
    events.push_back(std::move(event));
  }
  return events;
}

bool ToolStreams::has_called(int choice) const {
  const auto it = streams_.find(choice);
  return it != streams_.end() && it->second.called;
}

std::string ToolStreams::call_id(int choice, size_t call) const {
  const uint64_t stream = static_cast<uint64_t>(choice) << 32 | call;
  return fmt::format("call_{:016x}{:08x}", random_bits(seed_, stream, 0),
                     random_bits(seed_, stream, 1) >> 32);
}

ToolAnswer ToolStreams::parse(std::string_view text, bool truncated) const {
  const std::unique_ptr<ToolCallParser> parser = format_.parser(prompt_);
  ToolAnswer answer;
  answer.add(parser->push(text));
  answer.add(parser->finish(truncated));
  return answer;
}

}  // namespace qw::server
