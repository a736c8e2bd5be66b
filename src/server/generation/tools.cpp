#include "server/generation/tools.h"

#include <algorithm>
#include <iterator>
#include <random>

#include "base/rng.h"
#include "engine/grammar/tool_grammar.h"

namespace qw::server {

namespace {

std::string key_of(const ToolCallStructure& structure) {
  return "tools " + structure_json(structure).dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// The members that are texts, lists of texts and flags, with their names.
template <typename Structure, typename Visit>
void visit_members(Structure& s, const Visit& visit) {
  visit("must_call", s.must_call);
  visit("text_first", s.text_first);
  visit("may_repeat", s.may_repeat);
  visit("starts_line", s.starts_line);
  visit("lead", s.lead);
  visit("trigger", s.trigger);
  visit("final_mark", s.final_mark);
  visit("open", s.open);
  visit("separator", s.separator);
  visit("close", s.close);
  visit("next", s.next);
  visit("end", s.end);
  visit("stops", s.stops);
}

}  // namespace

Json structure_json(const ToolCallStructure& structure) {
  Json out = Json::object();
  visit_members(structure, [&](const char* name, const auto& value) { out[name] = value; });
  Json& functions = out["functions"] = Json::array();
  for (const ToolCallStructure::Function& function : structure.functions) {
    functions.push_back({{"name", function.name},
                         {"parameters", function.parameters ? *function.parameters : Json()},
                         {"code", function.arguments == ToolCallStructure::Arguments::kCodeBlock}});
  }
  return out;
}

ToolCallStructure structure_of_json(const Json& json) {
  ToolCallStructure out;
  visit_members(out, [&](const char* name, auto& value) {
    if (!json.contains(name)) return;  // receipts of earlier versions have fewer
    const Json& given = json[name];
    if constexpr (std::is_same_v<decltype(value), bool&>) {
      value = to_bool(name, given);
    } else if constexpr (std::is_same_v<decltype(value), std::string&>) {
      value = to_string(name, given);
    } else {
      value = to_strings(name, to_array(name, given));
    }
  });
  const Json functions = json.value("functions", Json());
  for (const Json& item : to_array("functions", functions)) {
    ToolCallStructure::Function function;
    function.name = to_string("functions.name", item.value("name", Json()));
    const Json parameters = item.value("parameters", Json());
    if (!parameters.is_null()) function.parameters = std::make_shared<const Json>(parameters);
    if (to_bool("functions.code", item.value("code", Json(false))))
      function.arguments = ToolCallStructure::Arguments::kCodeBlock;
    out.functions.push_back(std::move(function));
  }
  return out;
}

bool has_tools(const ToolTask& task) {
  return task.tools.is_array() && !task.tools.empty();
}

bool needs_tool_format(const ToolTask& task) {
  if (has_tools(task)) return true;
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

std::string read_tool_format(const std::string& field, const Json& value) {
  std::string name = to_string(field, value);
  const std::vector<std::string_view> names = tool_format_names();
  if (!name.empty() && std::ranges::find(names, name) == names.end())
    refuse_field(field, "expected qwen, react or hermes, got {}", shown(value));
  return name;
}

Json tool_format_schema() {
  std::vector<std::string> names = {""};
  for (const std::string_view name : tool_format_names())
    names.emplace_back(name);
  return types::choice(names);
}

void check_tool_choice(const ToolTask& task) {
  using Mode = ToolChoice::Mode;
  const bool wants_call = task.choice.mode == Mode::kRequired || task.choice.mode == Mode::kNamed;
  if (wants_call && !has_tools(task))
    refuse_field("tool_choice", "expected tools, which it is only allowed with, got none");
}

std::string parallel_without_tools(const std::string& field) {
  return field + ": ignored (there are no tools)";
}

Json tool_choice_schema() {
  return types::any_of({types::choice({"auto", "none", "required", "any"}), types::object()});
}

namespace {

std::shared_ptr<const Grammar> build_grammar(const ToolCallStructure& structure,
                                             const std::optional<AnswerForm>& form) {
  GrammarBuilder builder;
  std::vector<std::string> notes;
  std::string field = "tools";
  try {
    grammar::Node answer;
    if (form) {
      field = form->field;
      GrammarSource source = form->source;
      source.json.escaped.add(escaped_in_calls(structure));
      answer = source.node(builder);
      field = "tools";
    }
    const grammar::Node root = tool_grammar_node(structure, {}, &notes, builder, answer);
    return builder.build(root, std::move(notes));
  } catch (const Error& error) {
    throw RequestError(error.kind(), error.message(), field);
  }
}

}  // namespace

std::optional<ToolGrammar> grammar_of(const ToolCallStructure& structure,
                                      const std::optional<AnswerForm>& form) {
  if (structure.functions.empty() && (form || structure.trigger.empty())) return std::nullopt;
  std::string key = key_of(structure);
  if (form) key += form->source.key();
  return ToolGrammar{std::move(key), [structure, form] { return build_grammar(structure, form); }};
}

std::string whole_members(const std::string& cut_object) {
  size_t comma = 0;  // the last one between members
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < cut_object.size(); ++i) {
    const char c = cut_object[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (c == ',' && depth == 1) {
      comma = i;
    }
  }
  // A string, a list and an object tell their own end; of 12 nobody knows whether it was to be 123.
  std::string last = cut_object;
  const bool may_be_whole = last.ends_with('"') || last.ends_with('}') || last.ends_with(']');
  if (may_be_whole && Json::accept(last += '}')) return last;
  const std::string before = cut_object.substr(0, comma) + '}';
  return Json::accept(before) ? before : "{}";
}

ToolStreams::ToolStreams(const ToolFormat& format, ToolPrompt prompt, bool thoughts_are_text)
    : format_(format), prompt_(std::move(prompt)), thoughts_are_text_(thoughts_are_text) {
  std::random_device device;
  request_ = uint64_t{device()} << 32 | device();
}

std::vector<ToolEvent> ToolStreams::push(int choice, std::string_view text) {
  Stream& stream = streams_[choice];
  if (!stream.parser) stream.parser = format_.parser(prompt_);
  return take(stream, stream.parser->push(text));
}

std::vector<ToolEvent> ToolStreams::finish(int choice, bool truncated) {
  std::vector<ToolEvent> events = push(choice, "");
  Stream& stream = streams_[choice];
  std::vector<ToolEvent> last = take(stream, stream.parser->finish(truncated));
  std::ranges::move(last, std::back_inserter(events));
  return events;
}

/// Notes what the events say of the answer, and makes text of thoughts.
std::vector<ToolEvent> ToolStreams::take(Stream& stream, std::vector<ToolEvent> events) const {
  using Kind = ToolEvent::Kind;
  for (ToolEvent& event : events) {
    stream.has_called = stream.has_called || event.kind == Kind::kCallBegin;
    stream.has_broken = stream.has_broken || (event.kind == Kind::kCallEnd && !event.valid);
    if (!thoughts_are_text_) continue;
    if (event.kind == Kind::kThought) {
      event.kind = Kind::kText;
      stream.has_thought = true;
    } else if (event.kind == Kind::kText && std::exchange(stream.has_thought, false)) {
      event.text.insert(0, "\n\n");
    }
  }
  return events;
}

bool ToolStreams::has_whole_calls(int choice) const {
  const auto it = streams_.find(choice);
  return it != streams_.end() && it->second.has_called && !it->second.has_broken;
}

bool ToolStreams::is_cut(FinishReason reason, std::string_view stop_string) const {
  if (reason != FinishReason::kStop) return reason == FinishReason::kLength;
  return std::ranges::count(format_.stop_strings(), stop_string) == 0;
}

std::string ToolStreams::call_id(int choice, size_t call) const {
  const uint64_t stream = static_cast<uint64_t>(choice) << 32 | call;
  return fmt::format("call_{:016x}{:08x}", random_bits(request_, stream, 0),
                     random_bits(request_, stream, 1) >> 32);
}

ToolAnswer ToolStreams::parse(std::string_view text, bool truncated) const {
  Stream stream;
  stream.parser = format_.parser(prompt_);
  ToolAnswer answer;
  answer.add(take(stream, stream.parser->push(text)));
  answer.add(take(stream, stream.parser->finish(truncated)));
  return answer;
}

}  // namespace qw::server
