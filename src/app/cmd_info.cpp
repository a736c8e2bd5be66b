// qianwen info: the machine (CPU, caches, measured limits) and the kernel chosen for every layer.
#include <fmt/ranges.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "app/command.h"
#include "app/host_limits.h"
#include "app/open.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "kernels/isa.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  bool quick = false;
};

/// "24 kB", "48K", "1 MB" in bytes, as /proc and /sys write them; null when there is none.
ordered_json bytes_of(const std::string& text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return nullptr;
  const size_t unit = text.find_first_not_of(' ', static_cast<size_t>(end - text.data()));
  if (unit == std::string::npos) return number;
  switch (text[unit]) {
    case 'k':
    case 'K':
      return number << 10;
    case 'M':
      return number << 20;
    case 'G':
      return number << 30;
    default:
      return nullptr;
  }
}

std::string first_line_with(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

/// What /proc/cpuinfo calls the CPU: a name on x86-64, numbers of implementer and part on AArch64.
std::string cpu_name() {
  const std::string file = "/proc/cpuinfo", name = first_line_with(file, "model name");
  const std::string part = first_line_with(file, "CPU part");
  if (!name.empty() || part.empty()) return name;
  return fmt::format("implementer {}, part {}", first_line_with(file, "CPU implementer"), part);
}

std::string read_line(const std::string& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return line;
}

ordered_json caches_json() {
  ordered_json caches = ordered_json::array();
  const std::string base = "/sys/devices/system/cpu/cpu0/cache/index";
  for (int i = 0; i < 8; ++i) {
    const std::string folder = base + std::to_string(i) + "/";
    const std::string level = read_line(folder + "level");
    if (level.empty()) break;
    caches.push_back({{"level", std::atoi(level.c_str())},
                      {"type", read_line(folder + "type")},
                      {"size_bytes", bytes_of(read_line(folder + "size"))},
                      {"shared_cpus", read_line(folder + "shared_cpu_list")}});
  }
  return caches;
}

ordered_json machine_json(const BackendOptions& options, bool quick) {
  const kernels::Isa isa = kernels::choose_isa(options.isa);
  const int threads = options.n_threads > 0 ? options.n_threads : physical_cores();
  ordered_json out = {
      {"cpu", cpu_name()},
      {"logical_cpus", std::thread::hardware_concurrency()},
      {"physical_cores", physical_cores()},
      {"threads", threads},
      {"memory_available_bytes", bytes_of(first_line_with("/proc/meminfo", "MemAvailable"))},
      {"isa", std::string(kernels::name_of(isa.level))},
      {"isa_paths_built", kernels::built_isa_paths()},
      {"caches", caches_json()}};
  if (quick) return out;
  const HostLimits limits = HostProbe(options).at_start();
  out["limits"] = {{"read_gb_per_second", limits.read_gb_per_second},
                   {"int8_gop_per_second", limits.int8_gop_per_second},
                   {"bf16_gflop_per_second", limits.bf16_gflop_per_second},
                   {"f32_gflop_per_second", limits.f32_gflop_per_second}};
  return out;
}

ordered_json model_json(const CommonOptions& options) {
  const auto loaded = open_for_running(options);
  ordered_json layers = ordered_json::array();
  for (const Model::LayerInfo& layer : loaded->model->layers()) {
    layers.push_back({{"name", layer.name},
                      {"n", layer.n},
                      {"k", layer.k},
                      {"format", layer.format},
                      {"kernel", layer.kernel},
                      {"resident_bytes", layer.resident_bytes}});
  }
  return {{"path", model_path(options)},
          {"weight_bytes", loaded->model->weight_bytes()},
          {"read_bytes_per_token", loaded->model->read_bytes_per_token()},
          {"backend", loaded->backend->describe()},
          {"layers", std::move(layers)}};
}

/// For people: "48 KiB", "22.8 GiB".
std::string size_text(const ordered_json& bytes) {
  if (!bytes.is_number()) return "unknown";
  const auto value = bytes.get<double>();
  if (value >= 0x1p30) return fmt::format("{:.1f} GiB", value / 0x1p30);
  if (value >= 0x1p20) return fmt::format("{:g} MiB", value / 0x1p20);
  return fmt::format("{:g} KiB", value / 0x1p10);
}

std::string machine_text(const ordered_json& machine) {
  std::string text = fmt::format(
      "CPU        {}\ncores      {} physical, {} threads used\nISA        {}  (built: {})\nmemory  "
      "   {} available\n",
      machine["cpu"].get<std::string>(), machine["physical_cores"].dump(),
      machine["threads"].dump(), machine["isa"].get<std::string>(),
      fmt::join(kernels::built_isa_paths(), ", "), size_text(machine["memory_available_bytes"]));
  for (const auto& cache : machine["caches"]) {
    text += fmt::format("cache      L{} {} {}\n", cache["level"].dump(),
                        cache["type"].get<std::string>(), size_text(cache["size_bytes"]));
  }
  if (machine.contains("limits")) {
    const auto& limits = machine["limits"];
    const auto line = [&](const char* format, const char* field) {
      const auto value = limits[field].get<double>();
      if (value > 0) text += fmt::format(fmt::runtime(format), value);  // 0: there is no such unit
    };
    line("read       {:.1f} GB/s\n", "read_gb_per_second");
    line("int8 dot   {:.0f} GOP/s\n", "int8_gop_per_second");
    line("bf16 dot   {:.0f} GFLOP/s\n", "bf16_gflop_per_second");
    line("f32 FMA    {:.0f} GFLOP/s\n", "f32_gflop_per_second");
  }
  return text;
}

std::string model_text(const ordered_json& model) {
  std::string text =
      fmt::format("\nmodel      {}\nweights    {:.1f} MiB resident, {:.1f} MiB read per token\n",
                  model["path"].get<std::string>(), model["weight_bytes"].get<double>() / (1 << 20),
                  model["read_bytes_per_token"].get<double>() / (1 << 20));
  for (const auto& line : model["backend"])
    text += "           " + line.get<std::string>() + "\n";
  for (const auto& layer : model["layers"]) {
    text += fmt::format("  {:<32} [{}, {}]  {:<28} {}\n", layer["name"].get<std::string>(),
                        layer["n"].dump(), layer["k"].dump(), layer["format"].get<std::string>(),
                        layer["kernel"].get<std::string>());
  }
  return text;
}

void run(const Options& options) {
  init_logging(options.log_level);
  const OpenOptions open = open_options(options);
  ordered_json out = {{"machine", machine_json(open.backend, options.quick)}};
  if (!options.model.empty()) out["model"] = model_json(options);
  if (options.json) return print_json(out);
  print_result(machine_text(out["machine"]));
  if (out.contains("model")) print_result(model_text(out["model"]));
}

}  // namespace

Command register_info(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "info", "CPU, ISA paths, measured limits; with MODEL the kernel chosen per layer");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  app->add_flag("--quick", options->quick, "Do not measure the limits");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
