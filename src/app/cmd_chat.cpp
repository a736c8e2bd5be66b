// qianwen chat: a conversation on a terminal, one question from a flag, or lines from a pipe.
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/chat_session.h"
#include "app/command.h"
#include "app/generation_flags.h"
#include "app/grammar_flags.h"
#include "app/line_editor.h"
#include "app/open.h"
#include "app/results.h"
#include "base/error.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::optional<std::string> prompt;
  std::string system;
  std::shared_ptr<GenerationFlags> generation;
  std::shared_ptr<GrammarFlags> grammar;
};

constexpr std::string_view kHelp =
    "  :help            this list\n"
    "  :exit            end the program (also Ctrl-D)\n"
    "  :clear           forget the conversation, keep the system message\n"
    "  :history         show the conversation\n"
    "  :system TEXT     set the system message (without TEXT: none)\n"
    "  :seed N          set the seed\n"
    "  :set NAME=VALUE  set a generation parameter, for example :set temperature=0.3\n"
    "  :save FILE       write the conversation as JSON\n"
    "  :load FILE       read a conversation\n"
    "  :regen           answer the last question again\n"
    "  :undo            take back the last exchange\n"
    "  :stats           tokens, speed, context, parameters\n"
    "  \\ at the end of a line goes on with the next; \"\"\" opens and closes several lines\n"
    "  Ctrl-C stops an answer, not the program\n";

class Chat {
 public:
  explicit Chat(const Options& options)
      : options_(with_a_prompt(options)),
        terminal_(isatty(STDOUT_FILENO) == 1),
        compiled_(options.grammar->compile()),  // its errors before the weights are loaded
        loaded_(open_for_running(options)),
        session_(*loaded_, config(), options.system,
                 matcher_for(compiled_, *loaded_, model_path(options))) {}

  void run() {
    if (options_.prompt) {
      answer([&](const auto& on_piece) { return session_.say(*options_.prompt, on_piece); });
      interrupted().check("chat");
      return;
    }
    LineEditor editor;
    if (editor.interactive())
      note(fmt::format("{}; :help lists the commands", model_path(options_)));
    while (!done_) {
      try {
        const LineEditor::Result line = read_message(editor);
        if (line.status == LineEditor::Status::kEnd) break;
        if (line.status == LineEditor::Status::kLine) take(line.text, editor);
      } catch (const Error& error) {
        // An exchange or command that fails ends itself, not the conversation; a script sees it.
        if (!editor.interactive()) throw;
        note("error: " + error.message());
      }
      // Ctrl-C stopped what it was meant for; SIGTERM means the program.
      if (editor.interactive() && !termination_asked()) interrupted().reset();
      interrupted().check("chat");
    }
    if (editor.interactive()) std::fputs("\n", stderr);
  }

 private:
  /// Before the model is loaded.
  static const Options& with_a_prompt(const Options& options) {
    if (options.prompt && options.prompt->empty())
      fail(ErrorKind::kInvalidArgument, "chat", "prompt: expected a question, got an empty text");
    return options;
  }

  GenerationConfig config() const {
    GenerationConfig config = loaded_->chat_generation();
    if (options_.seed) config.seed = *options_.seed;
    config = options_.generation->over(config);
    if (config.num_return_sequences != 1) {
      fail(ErrorKind::kInvalidArgument, "chat",
           "num_return_sequences: expected 1 in a conversation, got {}",
           config.num_return_sequences);
    }
    return config;
  }

  static void note(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

  /// One message: a line, lines joined by a trailing backslash (the last one by the end of input),
  /// or lines between """. Errors: invalid_argument, when the input ends before the closing """.
  static LineEditor::Result read_message(LineEditor& editor) {
    LineEditor::Result line = editor.read("> ");
    if (line.status != LineEditor::Status::kLine) return line;
    std::string text = std::move(line.text);
    if (text.starts_with("\"\"\"")) {
      text.erase(0, 3);
      while (text.find("\"\"\"") == std::string::npos) {
        line = editor.read(". ");
        if (line.status == LineEditor::Status::kInterrupted) return line;
        if (line.status == LineEditor::Status::kEnd) {
          fail(ErrorKind::kInvalidArgument, "chat",
               "message: expected \"\"\" to close it, got the end of the input");
        }
        text += (text.empty() ? "" : "\n") + line.text;
      }
      text.erase(text.find("\"\"\""));
    } else {
      while (text.ends_with('\\')) {
        line = editor.read(". ");
        if (line.status == LineEditor::Status::kInterrupted) return line;
        text.pop_back();
        if (line.status == LineEditor::Status::kEnd) break;
        text += "\n" + line.text;
      }
    }
    return {LineEditor::Status::kLine, std::move(text)};
  }

  void take(const std::string& text, LineEditor& editor) {
    if (text.find_first_not_of(" \t") == std::string::npos) return;
    editor.remember(text);
    if (text.starts_with(':')) return command(text);
    answer([&](const auto& on_piece) { return session_.say(text, on_piece); });
  }

  void command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(1, space == std::string::npos ? space : space - 1);
    const size_t start = space == std::string::npos ? space : line.find_first_not_of(' ', space);
    const std::string rest = start == std::string::npos ? "" : line.substr(start);
    if (name == "help") return note(std::string(kHelp));
    if (name == "exit" || name == "quit") {
      done_ = true;
      return;
    }
    if (name == "clear") return session_.clear();
    if (name == "history") return history();
    if (name == "system") return session_.set_system(rest);
    if (name == "seed") return seed(rest);
    if (name == "set") return session_.set(rest);
    if (name == "save") return session_.save(file_name(name, rest));
    if (name == "load") return session_.load(file_name(name, rest));
    if (name == "undo") return session_.undo();
    if (name == "stats") return stats();
    if (name == "regen") {
      return answer([&](const auto& on_piece) { return session_.regenerate(on_piece); });
    }
    fail(ErrorKind::kInvalidArgument, "chat", "command: expected one that :help lists, got ':{}'",
         printable(name));
  }

  static const std::string& file_name(const std::string& command, const std::string& text) {
    if (text.empty())
      fail(ErrorKind::kInvalidArgument, "chat", ":{}: expected a file name, got none", command);
    return text;
  }

  void seed(const std::string& text) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) {
      fail(ErrorKind::kInvalidArgument, "chat", "seed: expected an integer from 0 to {}, got '{}'",
           UINT64_MAX, printable(text));
    }
    session_.set_seed(value);
  }

  void history() const {
    for (const auto& message : session_.messages()) {
      const auto& content = message["content"];
      print_result(fmt::format("[{}] {}\n", message["role"].get<std::string>(),
                               content.is_string() ? content.get<std::string>() : content.dump()));
    }
  }

  void stats() const {
    note(timings_text(session_.total()));
    note(
        fmt::format("context: {} of {} tokens", session_.last_context(), session_.context_limit()));
    note("parameters: " + session_.config().applied().dump());
  }

  template <typename Ask>
  void answer(Ask ask) {
    bool ends_line = true;
    const std::function<void(std::string_view)> on_piece = [&](std::string_view piece) {
      if (options_.json || piece.empty()) return;
      print_result(piece);
      ends_line = piece.back() == '\n';
    };
    const RequestResult result = ask(on_piece);
    const Completion& completion = result.completions.at(0);
    if (options_.json) {
      nlohmann::ordered_json json = completion_json(completion, loaded_->tokenizer.get());
      json["timings"] = timings_json(result.timings);
      json["generation"] = session_.config().applied();
      print_json(json);
      return;
    }
    if (!ends_line || completion.text.empty()) print_result("\n");
    if (terminal_) note(fmt::format("[{}{}]", timings_text(result.timings), reason(completion)));
  }

  static std::string reason(const Completion& completion) {
    if (completion.finish_reason == FinishReason::kLength) return ", stopped by the token limit";
    if (completion.finish_reason == FinishReason::kCancelled) return ", interrupted";
    return "";
  }

  const Options& options_;
  bool terminal_ = false, done_ = false;
  std::shared_ptr<const Grammar> compiled_;  // null: free
  std::unique_ptr<LoadedModel> loaded_;
  ChatSession session_;
};

}  // namespace

Command register_chat(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("chat", "Chat with a model (default: the bundled one)");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  add_draft_flag(*app, *options);
  app->add_option("-p,--prompt", options->prompt, "Ask this one question and end");
  app->add_option("--system", options->system, "System message (default: the template's own)");
  options->generation = add_generation_flags(*app);
  options->grammar = add_grammar_flags(*app);
  return {app, [options] { Chat(*options).run(); }};
}

}  // namespace qw::app
