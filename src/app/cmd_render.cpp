// qianwen render: a conversation by the chat template, as text and as ids.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/command.h"
#include "app/input.h"
#include "app/open.h"
#include "base/error.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "text/tools/tool_format.h"
#include "text/unicode.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::optional<std::string> messages, file, template_file;
  std::string tool_format = "template";
  bool no_generation_prompt = false, continue_final_message = false, parse_special = false;
};

bool boolean(const ordered_json& row, const char* key, bool otherwise) {
  if (!row.contains(key) || row[key].is_null()) return otherwise;
  if (!row[key].is_boolean()) {
    fail(ErrorKind::kInvalidArgument, "render", "{}: expected true or false, got {}", key,
         printable(row[key].dump()));
  }
  return row[key].get<bool>();
}

/// Whether a template marks the assistant's words by a `{% generation %}` block.
bool marks_generation(std::string_view source) {
  static constexpr std::string_view kSpace = " \t\r\n", kWord = "generation";
  for (size_t open = source.find("{%"); open != std::string_view::npos;
       open = source.find("{%", open + 2)) {
    const size_t sign = open + 2;
    const bool trims = sign < source.size() && (source[sign] == '-' || source[sign] == '+');
    const size_t word = source.find_first_not_of(kSpace, sign + (trims ? 1 : 0));
    if (word == std::string_view::npos) return false;
    if (source.substr(word).starts_with(kWord)) return true;
    open = word - 2;  // what was skipped holds no block
  }
  return false;
}

/// The normalised form of the first `end` bytes of `text`.
std::string normalised_prefix(std::string_view text, size_t end) {
  std::string normalised;
  return normalize_nfc(text.substr(0, end), normalised) ? normalised
                                                        : std::string(text.substr(0, end));
}

/// Whether normalisation joins the last character before `end` to the one before it: that
/// character has no token of its own.
bool ends_joined(std::string_view text, size_t end) {
  size_t last = end;
  while (last > 0 && (static_cast<unsigned char>(text[--last]) & 0xC0U) == 0x80U) {
  }
  return !normalised_prefix(text, end).starts_with(normalised_prefix(text, last));
}

/// 1 for every token that touches a span of the assistant's text.
std::vector<int> assistant_mask(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                const RenderResult& rendered) {
  std::vector<int> mask(ids.size(), 0);
  for (const TextRange& span : rendered.assistant_spans) {
    // transformers asks for the token of a span's last character and marks nothing without one.
    if (ends_joined(rendered.text, span.end)) continue;
    const size_t begin = normalised_prefix(rendered.text, span.begin).size(),
                 end = normalised_prefix(rendered.text, span.end).size();
    size_t offset = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t next = offset + tokenizer.token_bytes(ids[i]).size();
      if (next > begin && offset < end) mask[i] = 1;
      offset = next;
    }
  }
  return mask;
}

class Render {
 public:
  explicit Render(const Options& options)
      : options_(options), files_(open_for_reading(options, false)) {
    if (options.template_file) own_source_ = read_input(*options.template_file, kMaxTemplateBytes);
  }

  void run() {
    if (options_.file) {
      for_each_json_line(
          *options_.file,
          [&](const ordered_json& row, size_t) {
            interrupted().check("render");
            print(render_or_error(row), true);
          },
          [](const Error& error) { print(error_json(error), true); });
      return;
    }
    const std::string text = read_input(options_.messages.value_or("-"));
    ordered_json row = parse_user_json(text, options_.messages.value_or("standard input"));
    if (row.is_array()) row = {{"messages", row}};
    print(render(row), options_.json);
  }

 private:
  static constexpr size_t kMaxTemplateBytes = size_t{16} << 20;

  std::shared_ptr<const ChatTemplate> template_of(const ordered_json& row) {
    if (row.contains("template_text") && row["template_text"].is_string()) {
      return std::make_shared<ChatTemplate>(row["template_text"].get<std::string>());
    }
    if (own_source_) {
      // Parsed at the first line, so that a template that does not parse is the error of every line
      // of a batch. A template of another model must not see this model's special tokens:
      // `variables` gives them.
      if (!own_) own_ = std::make_shared<ChatTemplate>(*own_source_);
      return own_;
    }
    if (!files_.chat_template) {
      fail(ErrorKind::kNotFound, "render",
           "chat template: expected one in the checkpoint or --template, got none ({})",
           printable(model_path(options_), 4096));
    }
    return files_.chat_template;
  }

  ordered_json render(const ordered_json& row) {
    if (!row.is_object() || !row.contains("messages")) {
      fail(ErrorKind::kInvalidArgument, "render",
           "input: expected an object with \"messages\", got {}", printable(row.dump(), 60));
    }
    const auto member = [&](const char* key) -> const ordered_json* {
      return row.contains(key) && !row[key].is_null() ? &row[key] : nullptr;
    };
    RenderInput input;
    input.messages = &row["messages"];
    input.tools = member("tools");
    input.documents = member("documents");
    input.variables = member("variables");
    input.continue_final_message =
        boolean(row, "continue_final_message", options_.continue_final_message);
    input.add_generation_prompt =
        boolean(row, "add_generation_prompt",
                !options_.no_generation_prompt && !input.continue_final_message);
    if (const ordered_json* now = member("now")) {
      if (!now->is_string())
        fail(ErrorKind::kInvalidArgument, "render", "now: expected an ISO time, got {}",
             printable(now->dump()));
      input.now = LocalTime::parse(now->get<std::string>());
    }
    const auto chat_template = template_of(row);
    const ToolPrompt tools =
        apply_tool_format(input, chat_template->source(input.tools != nullptr));
    const RenderResult rendered = chat_template->render(input);
    ordered_json out = {{"text", rendered.text}};
    if (files_.tokenizer)
      add_ids(out, rendered, marks_generation(chat_template->source(input.tools != nullptr)));
    return out;
  }

  /// Replaces messages and tools of `input` by what the chosen format makes of them; the result
  /// holds them.
  ToolPrompt apply_tool_format(RenderInput& input, const std::string& source) const {
    if (options_.tool_format == "template") return {};
    const ToolFormat& format = options_.tool_format == "auto" ? default_tool_format(source)
                                                              : tool_format(options_.tool_format);
    ToolChat chat;
    chat.messages = input.messages;
    chat.tools = input.tools;
    chat.add_generation_prompt = input.add_generation_prompt;
    chat.continue_final_message = input.continue_final_message;
    chat.template_renders_tools = template_renders_tools(source);
    ToolPrompt prompt = format.prompt(chat);
    input.messages = prompt.messages.get();
    input.tools = prompt.tools.get();
    input.add_generation_prompt = prompt.add_generation_prompt;
    input.continue_final_message = prompt.continue_final_message;
    return prompt;
  }

  void add_ids(ordered_json& out, const RenderResult& rendered, bool with_mask) const {
    std::vector<ByteRange> plain;
    for (const TextRange& range : rendered.content_ranges)
      plain.push_back({range.begin, range.end});
    EncodeOptions encode;
    if (!options_.parse_special) encode.plain_ranges = plain;
    const std::vector<int32_t> ids = files_.tokenizer->encode(rendered.text, encode);
    out["ids"] = ids;
    if (with_mask) out["assistant_mask"] = assistant_mask(*files_.tokenizer, ids, rendered);
  }

  /// A line of a batch that fails is a result like any other.
  ordered_json render_or_error(const ordered_json& row) {
    try {
      return render(row);
    } catch (const TemplateError& error) {
      return {
          {"error",
           {{"kind", std::string(name_of(error.template_kind()))}, {"message", error.detail()}}}};
    } catch (const Error& error) {
      return error_json(error);
    }
  }

  static ordered_json error_json(const Error& error) {
    return {
        {"error", {{"kind", std::string(name_of(error.kind()))}, {"message", error.message()}}}};
  }

  static void print(const ordered_json& result, bool json) {
    json ? print_json(result) : print_result(result["text"].get<std::string>());
  }

  const Options& options_;
  ModelFiles files_;
  std::optional<std::string> own_source_;  // of --template
  std::shared_ptr<const ChatTemplate> own_;
};

}  // namespace

Command register_render(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("render", "A conversation by the chat template, as text and ids");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options, ComputeFlags::kWithoutEffect);
  auto* messages = app->add_option("--messages", options->messages,
                                   "JSON with messages, and optionally tools, documents, "
                                   "variables, now (default: standard input)");
  app->add_option("--file", options->file,
                  "JSON lines, one conversation each; - for standard input")
      ->excludes(messages);
  app->add_option("--template", options->template_file,
                  "Use this Jinja file instead of the checkpoint's template");
  app->add_option(
         "--tool-format", options->tool_format,
         "Who writes tools and their calls: the template, or a format around it; auto: the "
         "format that fits the template")
      ->check(CLI::IsMember({"template", "auto", "qwen", "react", "hermes"}))
      ->capture_default_str();
  app->add_flag("--no-generation-prompt", options->no_generation_prompt,
                "Do not begin the assistant's turn");
  app->add_flag("--continue-final-message", options->continue_final_message,
                "End inside the last message");
  app->add_flag("--parse-special", options->parse_special,
                "Special-token strings in contents become special tokens");
  return {app, [options] { Render(*options).run(); }};
}

}  // namespace qw::app
