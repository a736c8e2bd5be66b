// What every subcommand shares: flags, where results and messages go, interruption, exit codes.
//
// Level 8 (app). A command is a function that registers itself on the CLI11 app; its flags are
// parsed into a struct it owns, and it runs only after the whole line was understood.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.h"

namespace qw::app {

/// Flags of the "Common" section of the command line; each command takes those that concern it.
struct CommonOptions {
  std::string model;  // "": the bundled one
  bool json = false;
  int threads = 0;
  std::string isa;
  std::optional<uint64_t> seed;
  std::string kv_type;  // "": chosen by kv_type_of
  int64_t ctx = 0;      // 0: the model's, or the largest that fits
  int64_t chunk = 0;    // 0: the engine's default
  std::string device = "cpu";
  std::string activations = "auto";
  std::vector<std::string> adapters;  // PATH[:scale]
  std::string log_level = "info";
  bool deterministic = false;
};

/// One subcommand: registers flags and returns what runs it.
struct Command {
  CLI::App* app = nullptr;
  std::function<void()> run;
};

/// Adds MODEL (optional unless `required`), --json and --log-level.
void add_model_argument(CLI::App& app, CommonOptions& options, bool required = false);
/// Adds the flags that choose how a model is computed: threads, isa, device, KV type, ...
void add_compute_flags(CLI::App& app, CommonOptions& options);

/// The checkpoint to open: `options.model`, or the bundled model. Errors: not_found.
std::string model_path(const CommonOptions& options);
/// Folder of the bundled model; looks beside the program, in the install prefix, in QIANWEN_HOME.
std::string bundled_model_path();

/// Writes a result to stdout; Error{kIo} when stdout is closed (a broken pipe ends quietly).
void print_result(std::string_view text);
/// One JSON value and a newline, numbers with all their digits. Strings must be valid UTF-8.
void print_json(const nlohmann::ordered_json& value);

/// Set by SIGINT and SIGTERM once install_signal_handlers() was called; a second SIGINT kills.
CancelFlag& interrupted();
void install_signal_handlers();

/// JSON that a user gave: parsed under limits of depth and keys, so that printing it in a message
/// is safe. `where` names it. Errors: invalid_argument.
nlohmann::ordered_json parse_user_json(std::string_view text, std::string_view where);
/// "[1, 2, 3]" -> ids. Errors: invalid_argument.
std::vector<int32_t> parse_ids(std::string_view text, std::string_view flag);
/// Lines of a JSON-lines file ("-": stdin), with their numbers for messages; empty lines skipped.
void for_each_json_line(
    const std::string& path,
    const std::function<void(const nlohmann::ordered_json&, size_t line)>& body);
/// The whole of stdin.
std::string read_stdin();

// One per subcommand, each in cmd_<name>.cpp.
Command register_bench(CLI::App& root);
Command register_chat(CLI::App& root);
Command register_detokenize(CLI::App& root);
Command register_generate(CLI::App& root);
Command register_info(CLI::App& root);
Command register_inspect(CLI::App& root);
Command register_perplexity(CLI::App& root);
Command register_plan(CLI::App& root);
Command register_render(CLI::App& root);
Command register_score(CLI::App& root);
Command register_tokenize(CLI::App& root);

}  // namespace qw::app
