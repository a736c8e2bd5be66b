// Chat templates: messages in, the prompt's text out, with what in it is whose.
//
// Level 3 (text). The one template object for chat, serving and training. It renders a checkpoint's
// own Jinja template in exactly the environment of Transformers' apply_chat_template (4.46), and it
// keeps account of which bytes came from messages, so that special tokens written by users stay
// text.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/cancel.h"
#include "text/jinja/local_time.h"
#include "text/jinja/template_error.h"

namespace qw {

/// Half-open range of UTF-8 bytes (or, where said, of code points) of a rendered text.
struct TextRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const TextRange&) const = default;
};

/// What a template sees. The JSON is borrowed for the call; null pointers mean "not given".
struct RenderInput {
  const nlohmann::ordered_json* messages = nullptr;   // array of objects; must be given
  const nlohmann::ordered_json* tools = nullptr;      // array, or none
  const nlohmann::ordered_json* documents = nullptr;  // array, or none
  const nlohmann::ordered_json* variables = nullptr;  // object: further variables of the template
  bool add_generation_prompt = false;
  /// Ends the text right after the last message's content, so that the model goes on with it.
  bool continue_final_message = false;
  /// The time of strftime_now; the local time now if absent.
  std::optional<LocalTime> now;
  const CancelFlag* cancel = nullptr;  // ends the rendering once it is set; null: nothing does
};

struct RenderResult {
  std::string text;
  /// The text of `{% generation %}` blocks, in order of rendering.
  std::vector<TextRange> assistant_spans;
  /// The bytes that came from messages, tools and documents: sorted, disjoint, not empty. A special
  /// token that overlaps one of them was written by a user, not by the template, and must be
  /// encoded as ordinary text. Not content: the template's own text, `variables` and special
  /// tokens, numbers, and a message's role when it is a plain word of [A-Za-z0-9_-] (templates
  /// write `<|role|>`).
  std::vector<TextRange> content_ranges;
};

/// `spans` of bytes of `text` as spans of code points. Bounds must lie on character borders.
std::vector<TextRange> to_char_ranges(std::string_view text, const std::vector<TextRange>& ranges);

/// A parsed template. Immutable; any number of threads may render with one.
class ChatTemplate {
 public:
  /// bos_token, eos_token and so on, by the name templates use. A name not given is undefined.
  using SpecialTokens = std::vector<std::pair<std::string, std::string>>;

  /// Parses `source`. Errors: TemplateError syntax; invalid_argument if not UTF-8.
  explicit ChatTemplate(std::string_view source, SpecialTokens special_tokens = {});

  /// From `chat_template` of tokenizer_config.json: a string, or a list of {"name", "template"}. Of
  /// a list, "tool_use" is used when tools are given and there is one, else "default". Errors:
  /// corrupt if it is neither or a list has no "default"; TemplateError.
  static ChatTemplate from_json(const nlohmann::ordered_json& chat_template,
                                SpecialTokens special_tokens = {});

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// Renders. Errors: TemplateError (the template's own refusal, or what it got wrong);
  /// invalid_argument for messages that are no array of objects, text that is not UTF-8, a variable
  /// that shadows an argument, or continue_final_message with add_generation_prompt; cancelled.
  RenderResult render(const RenderInput& input) const;

  /// Whether the template that `render` uses with or without tools looks a variable up, by its
  /// syntax: in a branch that is never taken, too. What a loop, a macro or an unconditional `set`
  /// has bound before is no such variable.
  bool reads(std::string_view variable, bool with_tools = false) const;

  /// The source text of the template that `render` uses with or without tools.
  const std::string& source(bool with_tools = false) const;

 private:
  struct Parsed;
  ChatTemplate(std::unique_ptr<Parsed> plain, std::unique_ptr<Parsed> tool_use,
               SpecialTokens tokens);
  const Parsed& chosen(bool with_tools) const;

  std::unique_ptr<Parsed> default_;
  std::unique_ptr<Parsed> tool_use_;
  SpecialTokens special_tokens_;
};

/// The template of the Qwen1.5 chat models (their second and last), for checkpoints without one.
/// Source: tokenizer_config.json of Qwen/Qwen1.5-7B-Chat. Its default system prompt has no full
/// stop.
extern const std::string_view kQwen15DefaultTemplate;

}  // namespace qw
