// What every subcommand shares: flags, where results and messages go, interruption, exit codes.
//
// Level 8 (app). A command is a function that registers itself on the CLI11 app; its flags are
// parsed into a struct it owns, and it runs only after the whole line was understood.
#pragma once

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <cstdint>
#include <exception>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.h"
#include "qianwen/qianwen.h"

namespace qw::app {

/// Flags of the "Common" section of the command line; each command takes those that concern it.
struct CommonOptions {
  std::string model;  // "": the bundled one
  bool json = false;
  LoadSettings load;
  std::vector<std::string> adapters;  // PATH[:scale]; open_options() adds them to `load`
  std::optional<uint64_t> seed;
  std::string log_level = "info";
};

/// One subcommand: registers flags and returns what runs it.
struct Command {
  CLI::App* app = nullptr;
  std::function<void()> run;
};

/// Adds MODEL (optional unless `required`), --json and --log-level.
void add_model_argument(CLI::App& app, CommonOptions& options, bool required = false);
/// Whether a command computes with a model.
enum class ComputeFlags { kUsed, kWithoutEffect };
/// Adds the flags that choose how a model is computed: threads, isa, device, KV type, ... A command
/// that does not compute takes them too, so that scripts can give every command the same ones; its
/// help says that they have no effect.
void add_compute_flags(CLI::App& app, CommonOptions& options,
                       ComputeFlags flags = ComputeFlags::kUsed);

/// For commands that read weights without adapters. Errors: invalid_argument, where some are given.
void refuse_adapters(const CommonOptions& options, std::string_view component);

/// Adds --draft-model, for commands that generate or plan for it.
void add_draft_flag(CLI::App& app, CommonOptions& options);

/// A flag's integer, as text, before it is converted: CLI11 takes one that is too large for the
/// largest there is.
CLI::Validator integer_in(int64_t least, uint64_t most);
inline CLI::Validator integer_from(int64_t least) {
  return integer_in(least, uint64_t{INT64_MAX});
}

/// Adds an option that takes a comma-separated list of integers from `least` to `most`, and may be
/// repeated; what `values` holds is the default. An empty item is an error, as a wrong one is.
void add_integer_list(CLI::App& app, const std::string& names, const std::string& help,
                      std::vector<int64_t>& values, int64_t least, uint64_t most);

/// The checkpoint to open: `options.model`, or the bundled model. Errors: not_found.
std::string model_path(const CommonOptions& options);
/// Folder of the bundled model; looks beside the program, in the install prefix, in QIANWEN_HOME.
std::string bundled_model_path();

/// Nobody reads stdout any more, as in `qianwen ... | head -1`. The program ends with the code of
/// an I/O error and without a message: the reader chose to stop. Not an Error, which some commands
/// catch and print.
class ClosedPipe : public std::exception {
 public:
  const char* what() const noexcept override { return "nobody reads stdout"; }
};

/// Writes a result to stdout. Errors: io (a full disk); ClosedPipe.
void print_result(std::string_view text);
/// One JSON value and a newline, numbers with all their digits. Strings must be valid UTF-8.
void print_json(const nlohmann::ordered_json& value);

/// Set by SIGINT, SIGTERM and SIGHUP (unless it is ignored, as by nohup) once
/// install_signal_handlers() was called; a second SIGINT kills. An interactive program resets it
/// after Ctrl-C stopped an answer.
CancelFlag& interrupted();
/// Whether SIGTERM or SIGHUP came: the program is to end, interactive or not. Never reset.
bool termination_asked() noexcept;
void install_signal_handlers();
/// Standard streams that were closed before the program began stay unusable: without this the next
/// file opened would take a stream's number, and be read as input or overwritten by results.
void occupy_standard_streams();

// One per subcommand, each in cmd_<name>.cpp.
Command register_bench(CLI::App& root);
Command register_chat(CLI::App& root);
Command register_compare(CLI::App& root);
Command register_convert(CLI::App& root);
Command register_detokenize(CLI::App& root);
Command register_extract(CLI::App& root);
Command register_generate(CLI::App& root);
Command register_imatrix(CLI::App& root);
Command register_info(CLI::App& root);
Command register_inspect(CLI::App& root);
Command register_merge(CLI::App& root);
Command register_perplexity(CLI::App& root);
Command register_plan(CLI::App& root);
Command register_quantize(CLI::App& root);
Command register_render(CLI::App& root);
Command register_replay(CLI::App& root);
Command register_score(CLI::App& root);
Command register_serve(CLI::App& root);
Command register_tokenize(CLI::App& root);

}  // namespace qw::app
