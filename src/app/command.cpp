#include "app/command.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "kernels/isa.h"

namespace qw::app {

namespace fs = std::filesystem;

void add_model_argument(CLI::App& app, CommonOptions& options, bool required) {
  constexpr const char* kWhat = "Checkpoint directory, .gguf or .safetensors file";
  if (required) {
    app.add_option("MODEL", options.model, kWhat)->required();
  } else {
    app.add_option("MODEL", options.model, fmt::format("{} (default: the bundled model)", kWhat));
  }
  app.add_flag("--json", options.json, "Machine-readable results on stdout");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning, error or off")
      ->capture_default_str();
}

void add_compute_flags(CLI::App& app, CommonOptions& options, ComputeFlags flags) {
  constexpr uint64_t kMaxTokens = uint64_t{1} << 31;
  LoadSettings& load = options.load;
  const std::vector<CLI::Option*> added = {
      app.add_option("--threads", load.threads,
                     "Threads (0, the default: physical cores this process may use)")
          ->check(integer_in(0, 1024)),
      app.add_option("--isa", load.isa,
                     fmt::format("Cap on the instruction set: {}",
                                 fmt::join(kernels::built_isa_paths(), ", "))),
      app.add_option("--seed", options.seed, "Seed of everything random")
          ->check(integer_in(0, UINT64_MAX)),
      app.add_option(
          "--kv-type", load.kv_type,
          "KV cache: f16, bf16, f32, q8_0 or q4_0 (default: f16; f32 with --device reference "
          "or --activations f32)"),
      app.add_option("--ctx", load.context,
                     "Context in tokens (0, the default: the model's, or the largest that fits)")
          ->check(integer_in(0, kMaxTokens)),
      app.add_option("--chunk", load.chunk, "Prefill tokens per step (0: the default, 512)")
          ->check(integer_in(0, kMaxTokens)),
      app.add_option("--device", load.device, "cpu, or reference (scalar f32)")
          ->capture_default_str(),
      app.add_option("--activations", load.activations,
                     "What linear layers round their input to: auto, int8, bf16 or f32")
          ->capture_default_str(),
      app.add_option("--adapter", options.adapters, "LoRA adapter, PATH[:scale]; may be repeated")
          ->allow_extra_args(false),
      app.add_option("--packed-cache", load.packed_cache,
                     "Directory that keeps weights as they are packed: the next start maps them"),
      app.add_option("--prefix-cache-dir", load.prefix_cache_dir,
                     "Directory that keeps keys and values of prompts and answers: later processes "
                     "that begin with the same tokens read them (changes no result)"),
      app.add_option("--prefix-cache-bytes", load.prefix_cache_bytes,
                     "Most bytes in that directory (0, the default: 10 GiB, or half of what is "
                     "free there)")
          ->check(integer_in(0, uint64_t{1} << 50)),
      app.add_flag("--deterministic", load.deterministic,
                   "Refuse kernels whose bits could depend on the batch"),
      app.add_flag_callback(
          "--no-prefix-cache", [&load] { load.prefix_cache = false; },
          "Compute every prompt from its first token, also where an earlier request began "
          "with the same tokens (changes no result)"),
  };
  if (flags == ComputeFlags::kUsed) return;
  for (CLI::Option* option : added)
    option->group("Flags of every command; without effect in this one");
}

void refuse_adapters(const CommonOptions& options, std::string_view component) {
  if (options.adapters.empty()) return;
  fail(ErrorKind::kInvalidArgument, component,
       "--adapter: expected none, for weights are read as they are (qianwen merge puts adapters "
       "into them), got {}",
       printable(options.adapters.front(), 4096));
}

void add_draft_flag(CLI::App& app, CommonOptions& options) {
  app.add_option("--draft-model,--assistant-model", options.load.draft_model,
                 "A smaller checkpoint with the same vocabulary that guesses ahead; only faster");
}

CLI::Validator integer_in(int64_t least, uint64_t most) {
  return CLI::Validator(
      [least, most](const std::string& text) -> std::string {
        const char* end = text.data() + text.size();
        int64_t negative = 0;
        uint64_t value = 0;
        const bool below_0 = text.starts_with('-');
        const auto read = below_0 ? std::from_chars(text.data(), end, negative)
                                  : std::from_chars(text.data(), end, value);
        const bool fits =
            below_0 ? negative >= least
                    : value <= most && (least < 0 || value >= static_cast<uint64_t>(least));
        if (read.ec == std::errc{} && read.ptr == end && fits) return "";
        return fmt::format("expected an integer from {} to {}, got '{}'", least, most,
                           printable(text, 60));
      },
      "");
}

namespace {

/// "1,2," is "1", "2" and "".
std::vector<std::string> items_of(const std::string& list) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    items.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

}  // namespace

void add_integer_list(CLI::App& app, const std::string& names, const std::string& help,
                      std::vector<int64_t>& values, int64_t least, uint64_t most) {
  const auto take = [&values](const std::vector<std::string>& lists) {
    values.clear();
    for (const std::string& list : lists) {
      for (const std::string& item : items_of(list))
        std::from_chars(item.data(), item.data() + item.size(), values.emplace_back());
    }
  };
  // Not CLI11's own delimiter, which drops empty items.
  const auto check = [integer = integer_in(least, most)](const std::string& list) -> std::string {
    for (const std::string& item : items_of(list)) {
      if (const std::string error = integer(item); !error.empty()) return error;
    }
    return "";
  };
  app.add_option_function<std::vector<std::string>>(names, take, help)
      ->check(CLI::Validator(check, ""))
      ->allow_extra_args(false)
      ->type_name("INT,...")
      ->default_str(fmt::format("{}", fmt::join(values, ",")));
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
    const int error = errno;
    if (error == EPIPE) throw ClosedPipe();
    fail(ErrorKind::kIo, "output", "stdout: expected to write {} bytes, got: {}", text.size(),
         std::strerror(error));
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

volatile sig_atomic_t g_terminated = 0;  // written by the signal handler

void on_signal(int signal) {
  if (signal == SIGTERM || signal == SIGHUP) {
    g_terminated = 1;
    // A signal that comes just before a program waits for a line does not end the wait: SIGALRM,
    // a second later, does.
    alarm(1);
  }
  if (interrupted().cancelled() && signal == SIGINT) _exit(130);
  interrupted().cancel();
}

}  // namespace

bool termination_asked() noexcept {
  return g_terminated != 0;
}

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hangup {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup asks for that
  action.sa_handler = [](int) {};
  sigaction(SIGALRM, &action, nullptr);
  // A closed stdout, or a file beyond `ulimit -f`, is an error of the write, not the end of the
  // process.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
}

void occupy_standard_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) continue;
    // The lowest number that is free is this one. O_PATH: nothing can be read from it or written to
    // it, and who opens /dev/stdin finds a directory.
    if (open("/", O_PATH | O_DIRECTORY) != fd)
      fail(ErrorKind::kIo, "program", "/: expected to open it, got: {}", std::strerror(errno));
  }
}

}  // namespace qw::app
