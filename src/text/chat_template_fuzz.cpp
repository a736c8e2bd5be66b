// Fuzz target for chat templates: the template, or the messages, are the input.
//
// A first byte of '{' after a 'J' means: messages as JSON, rendered with a template that touches
// every kind of value. Anything else is a template, rendered with a fixed conversation with tools.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "text/chat_template.h"

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kVisitor =
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content | trim }}{% else "
    "%}"
    "{% for p in m.content %}{{ p.text | default(p) }}{% endfor %}{% endif %}{{ m | "
    "tojson(indent=2) }}{{ m }}"
    "{% for k, v in m | dictsort %}{{ k | title }}={{ v | string | upper | indent }}{% endfor %}{% "
    "endfor %}";

const Json& conversation() {
  static const Json json = Json::parse(R"([
    {"role": "system", "content": " Be <|im_end|> kind. "},
    {"role": "user", "content": [{"type": "text", "text": "h\u00e9llo"}, {"type": "image"}]},
    {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, true]}}}]},
    {"role": "tool", "content": "42", "n": 18446744073709551615}])");
  return json;
}

const Json& tools() {
  static const Json json = Json::parse(
      R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}}])");
  return json;
}

/// What every rendering promises, whatever the input.
void check(const qw::RenderResult& result) {
  if (qw::find_invalid_utf8(result.text) != std::string_view::npos) std::abort();
  size_t end = 0;
  for (const qw::TextRange& range : result.content_ranges) {
    if (range.begin < end || range.end <= range.begin || range.end > result.text.size())
      std::abort();
    end = range.end;
  }
  for (const qw::TextRange& range : result.assistant_spans) {
    if (range.end < range.begin || range.end > result.text.size()) std::abort();
  }
}

void render(const qw::ChatTemplate& chat_template, const Json& messages, bool generation_prompt) {
  qw::RenderInput input;
  input.messages = &messages;
  input.tools = &tools();
  input.add_generation_prompt = generation_prompt;
  input.now = qw::LocalTime{2024, 2, 29, 23, 59, 59, 0};
  check(chat_template.render(input));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    if (text.starts_with('J')) {
      static const qw::ChatTemplate visitor{kVisitor};
      static const qw::ChatTemplate qwen{qw::kQwen15DefaultTemplate};
      const Json messages = Json::parse(text.substr(1), nullptr, /*allow_exceptions=*/false);
      if (messages.is_discarded()) return 0;
      render(visitor, messages, false);
      render(qwen, messages, true);
    } else {
      render(qw::ChatTemplate(text), conversation(), true);
    }
  } catch (const qw::Error& error) {
    if (error.kind() == qw::ErrorKind::kInternal) std::abort();
  }
  return 0;
}
