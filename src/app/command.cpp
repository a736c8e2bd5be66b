#include "app/command.h"

#include <signal.h>
#include <unistd.h>

#include <CLI/Validators.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_limits.h"

namespace qw::app {

namespace fs = std::filesystem;

void add_model_argument(CLI::App& app, CommonOptions& options, bool required) {
  auto* argument = app.add_option(
      "MODEL", options.model,
      "Checkpoint directory, .gguf or .safetensors file (default: the bundled model)");
  if (required) argument->required();
  app.add_flag("--json", options.json, "Machine-readable results on stdout");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning, error or off")
      ->capture_default_str();
}

void add_compute_flags(CLI::App& app, CommonOptions& options) {
  app.add_option("--threads", options.threads,
                 "Threads (default: physical cores this process may use)");
  app.add_option(
      "--isa", options.isa,
      "Cap on the instruction set: generic, avx2, avxvnni, avx512, avx512vnni, avx512bf16");
  app.add_option("--seed", options.seed, "Seed of everything random")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
      "--kv-type", options.kv_type,
      "KV cache: f16, bf16, f32, q8_0 or q4_0 (default: f16; f32 with --device reference "
      "or --activations f32)");
  app.add_option("--ctx", options.ctx,
                 "Context in tokens (default: the model's, or the largest that fits)");
  app.add_option("--chunk", options.chunk, "Prefill tokens per step");
  app.add_option("--device", options.device, "cpu, or reference (scalar f32)")
      ->capture_default_str();
  app.add_option("--activations", options.activations,
                 "What linear layers round their input to: auto, int8, bf16 or f32")
      ->capture_default_str();
  app.add_option("--adapter", options.adapters, "LoRA adapter, PATH[:scale]; may be repeated")
      ->allow_extra_args(false);
  app.add_flag("--deterministic", options.deterministic,
               "Refuse kernels whose bits could depend on the batch");
}

std::string bundled_model_path() {
  static constexpr std::string_view kName = "qianwen-mini-chat";
  std::vector<fs::path> candidates;
  if (const char* home = std::getenv("QIANWEN_HOME"); home != nullptr && *home != '\0') {
    candidates.push_back(fs::path(home) / "models" / kName);
  }
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    // An installed program has it in share/; one in a build folder finds the source tree above.
    candidates.push_back(program.parent_path().parent_path() / "share" / "qianwen" / "models" /
                         kName);
    for (fs::path folder = program.parent_path(); folder != folder.root_path();
         folder = folder.parent_path()) {
      candidates.push_back(folder / "models" / kName);
    }
  }
  for (const fs::path& candidate : candidates) {
    if (fs::exists(candidate / "config.json", error)) return candidate.string();
  }
  fail(ErrorKind::kNotFound, "model",
       "bundled model {}: expected it beside the program or in QIANWEN_HOME/models, got nothing",
       kName);
}

std::string model_path(const CommonOptions& options) {
  return options.model.empty() ? bundled_model_path() : options.model;
}

void print_result(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    fail(ErrorKind::kIo, "output", "stdout: expected to write {} bytes, got: {}", text.size(),
         std::strerror(errno));
  }
}

void print_json(const nlohmann::ordered_json& value) {
  print_result(value.dump() + "\n");
}

CancelFlag& interrupted() {
  static CancelFlag flag;  // a process has one set of signal handlers
  return flag;
}

namespace {

void on_signal(int signal) {
  if (interrupted().cancelled() && signal == SIGINT) _exit(130);
  interrupted().cancel();
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);  // a closed stdout is an error of the write, not the end of the process
}

nlohmann::ordered_json parse_user_json(std::string_view text, std::string_view where) {
  // Conversations and batches may be large; ids are arrays without keys, which have no limit.
  static constexpr JsonLimits kLimits{.max_keys = 5'000'000};
  try {
    return nlohmann::ordered_json::parse(
        text.begin(), text.end(), JsonLimitGuard(kLimits, ErrorKind::kInvalidArgument, where));
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kInvalidArgument, "json", "input: expected JSON, got: {} ({})",
         printable(error.what(), 160), printable(where, 4096));
  }
}

std::vector<int32_t> parse_ids(std::string_view text, std::string_view flag) {
  nlohmann::ordered_json json;
  try {
    json = parse_user_json(text, flag);
  } catch (const Error& error) {
    fail(ErrorKind::kInvalidArgument, "ids",
         "{}: expected a JSON array of token ids, got '{}' ({})", flag, printable(text, 60),
         error.message());
  }
  if (!json.is_array()) {
    fail(ErrorKind::kInvalidArgument, "ids", "{}: expected a JSON array of token ids, got '{}'",
         flag, printable(text));
  }
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const auto& item : json) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX) {
      fail(ErrorKind::kInvalidArgument, "ids", "{}: expected token ids from 0, got {}", flag,
           printable(item.dump()));
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

std::string read_stdin() {
  std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  if (std::cin.bad())
    fail(ErrorKind::kIo, "input", "stdin: expected to read to its end, got an error");
  return text;
}

void for_each_json_line(const std::string& path,
                        const std::function<void(const nlohmann::ordered_json&, size_t)>& body) {
  std::ifstream file;
  if (path != "-") {
    std::error_code ignored;
    if (!fs::exists(path, ignored))
      fail(ErrorKind::kNotFound, "input", "file: expected JSON lines, got no such file ({})",
           printable(path));
    file.open(path, std::ios::binary);
    if (!file || fs::is_directory(path, ignored))
      fail(ErrorKind::kIo, "input", "file: expected to read it, got: {} ({})", std::strerror(errno),
           printable(path));
  }
  std::istream& in = path == "-" ? std::cin : file;
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    body(parse_user_json(line, fmt::format("{}, line {}", path, number)), number);
  }
  if (in.bad())
    fail(ErrorKind::kIo, "input", "file: expected to read to its end, got an error ({})",
         printable(path));
}

}  // namespace qw::app
