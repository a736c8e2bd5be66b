#include "text/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/utf8.h"
#include "text/jinja/free_names.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/methods.h"
#include "text/jinja/parser.h"
#include "text/jinja/search.h"
#include "text/jinja/unicode.h"

namespace qw {

using Json = nlohmann::ordered_json;
using jinja::MarkedText;
using jinja::Value;

const std::string_view kQwen15DefaultTemplate =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

namespace {

constexpr std::string_view kComponent = "chat_template";

void check_utf8(std::string_view text, std::string_view what) {
  const size_t bad = find_invalid_utf8(text);
  if (bad == std::string_view::npos) return;
  fail(ErrorKind::kInvalidArgument, kComponent,
       "{}: expected UTF-8 without surrogates, got {} (byte {})", what,
       printable(text.substr(bad, 4)), bad);
}

// ---- JSON to values

/// A role that templates may safely put inside a marker such as `<|role|>`.
bool is_plain_word(const std::string& text) {
  constexpr size_t kMaxRoleBytes = 64;
  return !text.empty() && text.size() <= kMaxRoleBytes &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return (c < 0x80 && std::isalnum(c) != 0) || c == '_' || c == '-';
         });
}

class JsonReader {
 public:
  explicit JsonReader(bool is_content) : is_content_(is_content) {}

  Value value(const Json& json) {
    switch (json.type()) {
      case Json::value_t::null:
        return Value();
      case Json::value_t::boolean:
        return Value(json.get<bool>());
      case Json::value_t::number_integer:
        return Value(jinja::Int{json.get<int64_t>()});
      case Json::value_t::number_unsigned:
        return Value(jinja::Int{json.get<uint64_t>()});
      case Json::value_t::number_float:
        return Value(json.get<double>());
      case Json::value_t::string:
        return string(json.get_ref<const std::string&>());
      case Json::value_t::array:
        return array(json);
      case Json::value_t::object:
        return object(json, false);
      default:
        break;
    }
    fail(ErrorKind::kInvalidArgument, kComponent, "messages: expected JSON, got binary data");
  }

  Value messages(const Json& json) {
    const Level level(*this);
    std::vector<Value> items;
    for (size_t i = 0; i < json.size(); ++i) {
      if (!json[i].is_object()) {
        fail(ErrorKind::kInvalidArgument, kComponent, "messages[{}]: expected an object, got {}", i,
             json[i].type_name());
      }
      items.push_back(object(json[i], true));
    }
    return Value::list(std::move(items));
  }

  /// Bytes of text and structure seen: what the budget grows with.
  size_t bytes() const { return bytes_; }

 private:
  class Level {
   public:
    explicit Level(JsonReader& reader) : reader_(reader) {
      constexpr int kMaxJsonDepth = 200;
      if (++reader_.depth_ > kMaxJsonDepth) {
        fail(ErrorKind::kInvalidArgument, kComponent,
             "input: expected at most {} levels of JSON, got more", kMaxJsonDepth);
      }
    }
    ~Level() { --reader_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    JsonReader& reader_;
  };

  Value string(const std::string& text) {
    check_utf8(text, "input");
    bytes_ += text.size() + 8;
    return Value(MarkedText(text, is_content_));
  }

  Value array(const Json& json) {
    const Level level(*this);
    std::vector<Value> items;
    items.reserve(json.size());
    for (const Json& item : json)
      items.push_back(value(item));
    bytes_ += 8 * items.size();
    return Value::list(std::move(items));
  }

  Value object(const Json& json, bool is_message) {
    const Level level(*this);
    jinja::Dict dict;
    for (const auto& [key, item] : json.items()) {
      const bool role = is_message && key == "role" && item.is_string() &&
                        is_plain_word(item.get_ref<const std::string&>());
      dict.set(string(key), role ? Value::text(item.get_ref<const std::string&>()) : value(item));
    }
    return jinja::make_dict(std::move(dict));
  }

  bool is_content_;
  int depth_ = 0;
  size_t bytes_ = 0;
};

// ---- the variables of a template

struct Variables {
  std::vector<std::pair<std::string, Value>> values;
  size_t bytes = 0;
};

Value list_or_none(const Json* json, std::string_view what, JsonReader& reader) {
  if (json == nullptr || json->is_null()) return Value();
  if (!json->is_array()) {
    fail(ErrorKind::kInvalidArgument, kComponent, "{}: expected an array, got {}", what,
         json->type_name());
  }
  return reader.value(*json);
}

Variables variables_of(const RenderInput& input,
                       const ChatTemplate::SpecialTokens& special_tokens) {
  if (input.messages == nullptr || !input.messages->is_array()) {
    fail(ErrorKind::kInvalidArgument, kComponent, "messages: expected an array of objects, got {}",
         input.messages == nullptr ? "nothing" : input.messages->type_name());
  }
  Variables out;
  JsonReader content(/*is_content=*/true);
  JsonReader trusted(/*is_content=*/false);
  auto& values = out.values;
  values.emplace_back("messages", content.messages(*input.messages));
  values.emplace_back("tools", list_or_none(input.tools, "tools", content));
  values.emplace_back("documents", list_or_none(input.documents, "documents", content));
  values.emplace_back("add_generation_prompt", Value(input.add_generation_prompt));
  const size_t n_arguments = values.size();
  if (input.variables != nullptr && !input.variables->is_null()) {
    if (!input.variables->is_object()) {
      fail(ErrorKind::kInvalidArgument, kComponent, "variables: expected an object, got {}",
           input.variables->type_name());
    }
    for (const auto& [name, value] : input.variables->items()) {
      for (size_t i = 0; i < n_arguments; ++i) {
        if (values[i].first == name) {
          fail(ErrorKind::kInvalidArgument, kComponent,
               "variables: expected names that are no arguments of their own, got '{}'", name);
        }
      }
      values.emplace_back(name, trusted.value(value));
    }
  }
  // After the variables, which are found first and so may replace them.
  for (const auto& [name, token] : special_tokens)
    values.emplace_back(name, Value::text(token));
  out.bytes = content.bytes() + trusted.bytes();
  return out;
}

// ---- continue_final_message

/// The stripped text of the last message, or of its last part.
std::string final_content(const Json& messages) {
  const auto bad = [] {
    fail(ErrorKind::kInvalidArgument, kComponent,
         "continue_final_message: expected a last message with text content, got none");
  };
  if (messages.empty() || !messages.back().contains("content")) bad();
  const Json* content = &messages.back()["content"];
  if (content->is_array() && !content->empty() && content->back().is_object() &&
      content->back().contains("text")) {
    content = &content->back()["text"];
  }
  if (!content->is_string()) bad();
  return jinja::strip(MarkedText(content->get<std::string>()), nullptr, jinja::Side::kBoth).str();
}

/// Cuts after the last occurrence of the final content, and white space before the cut.
size_t final_cut(const std::string& text, const Json& messages) {
  const std::string wanted = final_content(messages);
  const size_t at = jinja::find_last(text, wanted);
  if (at == std::string::npos) {
    throw TemplateError(
        TemplateErrorKind::kPython,
        "continue_final_message is set but the final message does not appear in the chat "
        "after applying the chat template",
        0);
  }
  const MarkedText kept(text.substr(0, at + wanted.size()));
  return jinja::strip(kept, nullptr, jinja::Side::kRight).size();
}

std::vector<TextRange> clipped(const std::vector<jinja::ByteRange>& ranges, size_t size) {
  std::vector<TextRange> out;
  for (const jinja::ByteRange& range : ranges) {
    if (range.begin < size) out.push_back({range.begin, std::min(range.end, size)});
  }
  return out;
}

}  // namespace

std::vector<TextRange> to_char_ranges(std::string_view text, const std::vector<TextRange>& ranges) {
  std::vector<TextRange> out;
  for (const TextRange& range : ranges) {
    const size_t begin = jinja::count_chars(text.substr(0, range.begin));
    out.push_back(
        {begin, begin + jinja::count_chars(text.substr(range.begin, range.end - range.begin))});
  }
  return out;
}

// ---- ChatTemplate

struct ChatTemplate::Parsed {
  explicit Parsed(std::string_view text) : source(text) {
    check_utf8(text, "template");
    body = jinja::parse(text);
    variables = jinja::free_names(body);
  }
  std::string source;
  jinja::Body body;
  std::set<std::string, std::less<>> variables;  // that it looks up
};

ChatTemplate::ChatTemplate(std::string_view source, SpecialTokens special_tokens)
    : ChatTemplate(std::make_unique<Parsed>(source), nullptr, std::move(special_tokens)) {}

ChatTemplate::ChatTemplate(std::unique_ptr<Parsed> plain, std::unique_ptr<Parsed> tool_use,
                           SpecialTokens tokens)
    : default_(std::move(plain)),
      tool_use_(std::move(tool_use)),
      special_tokens_(std::move(tokens)) {}

ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

ChatTemplate ChatTemplate::from_json(const Json& chat_template, SpecialTokens special_tokens) {
  if (chat_template.is_string()) {
    return ChatTemplate(chat_template.get_ref<const std::string&>(), std::move(special_tokens));
  }
  std::unique_ptr<Parsed> plain;
  std::unique_ptr<Parsed> tool_use;
  if (!chat_template.is_array()) {
    fail(ErrorKind::kCorrupt, kComponent, "chat_template: expected a string or a list, got {}",
         chat_template.type_name());
  }
  for (const Json& entry : chat_template) {
    const auto text_of = [&](const char* key) -> const std::string& {
      if (!entry.is_object() || !entry.contains(key) || !entry[key].is_string()) {
        fail(ErrorKind::kCorrupt, kComponent,
             "chat_template: expected entries with a string '{}', got {}", key,
             printable(entry.dump()));
      }
      return entry[key].get_ref<const std::string&>();
    };
    const std::string& name = text_of("name");
    if (name == "default") plain = std::make_unique<Parsed>(text_of("template"));
    if (name == "tool_use") tool_use = std::make_unique<Parsed>(text_of("template"));
  }
  if (plain == nullptr) {
    fail(ErrorKind::kCorrupt, kComponent,
         "chat_template: expected a template named 'default' in the list, got none");
  }
  return ChatTemplate(std::move(plain), std::move(tool_use), std::move(special_tokens));
}

const ChatTemplate::Parsed& ChatTemplate::chosen(bool with_tools) const {
  return with_tools && tool_use_ != nullptr ? *tool_use_ : *default_;
}

const std::string& ChatTemplate::source(bool with_tools) const {
  return chosen(with_tools).source;
}

bool ChatTemplate::reads(std::string_view variable, bool with_tools) const {
  return chosen(with_tools).variables.contains(variable);
}

RenderResult ChatTemplate::render(const RenderInput& input) const {
  if (input.continue_final_message && input.add_generation_prompt) {
    fail(ErrorKind::kInvalidArgument, kComponent,
         "continue_final_message: expected add_generation_prompt to be off, got both");
  }
  Variables variables = variables_of(input, special_tokens_);
  const bool with_tools = input.tools != nullptr && !input.tools->is_null();
  jinja::Rendered rendered;
  {
    jinja::Interpreter interpreter(std::move(variables.values), variables.bytes,
                                   input.now ? *input.now : LocalTime::now(), input.cancel);
    rendered = interpreter.render(chosen(with_tools).body);
  }
  RenderResult result;
  result.text = rendered.text.str();
  if (input.continue_final_message) result.text.resize(final_cut(result.text, *input.messages));
  result.assistant_spans = clipped(rendered.generated, result.text.size());
  result.content_ranges = clipped(rendered.text.content(), result.text.size());
  return result;
}

}  // namespace qw
