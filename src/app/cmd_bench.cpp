// qianwen bench: tokens per second, and how far that is from what the machine allows.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "app/bench_profile.h"
#include "app/bench_runner.h"
#include "app/command.h"
#include "app/host_limits.h"
#include "app/open.h"
#include "base/error.h"
#include "base/log.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::vector<int64_t> prompt, generate, depth = {0}, batch = {1};
  int repetitions = 5;
  bool profile = false;
};

std::vector<BenchCase> cases_of(const Options& options) {
  std::vector<BenchCase> cases;
  for (const int64_t depth : options.depth) {
    for (const int64_t batch : options.batch) {
      for (const int64_t n : options.prompt) {
        if (n > 0) cases.push_back({BenchCase::Kind::kPrefill, n, depth, batch});
      }
      for (const int64_t n : options.generate) {
        if (n > 0) cases.push_back({BenchCase::Kind::kDecode, n, depth, batch});
      }
    }
  }
  return cases;
}

double total_seconds(const BenchResult& result) {
  double sum = 0;
  for (const BenchResult::Repetition& one : result.repetitions)
    sum += one.seconds;
  return sum;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}

  void run() {
    const std::vector<BenchCase> cases = cases_of(options_);
    if (cases.empty()) {
      fail(ErrorKind::kInvalidArgument, "command line",
           "-p and -n: expected at least one number above 0, got none");
    }
    OpenOptions open = open_options(options_);
    open.engine.ctx = 1;  // the runner makes its own cache
    open.engine.n_slots = 1;
    open.on_warning = [](const std::string& text) { logger().debug("{}", text); };
    if (options_.profile) open.backend.profile = &profile_;
    loaded_ = open_for_running(options_, open);
    const auto kv_type = dtype_from_name(open.engine.kv_type);
    QW_CHECK(kv_type, "the name of an element type, got {}", open.engine.kv_type);
    unit_ = compute_unit(*loaded_->model);
    std::span<const ComputeUnit> units(&unit_, 1);
    if (options_.profile) units = kComputeUnits;  // operations beside the layers multiply f32
    BenchRunner runner(*loaded_->model, *kv_type, open.engine.chunk_tokens, interrupted(),
                       [&] { return host_->now(units); });
    for (const BenchCase& test : cases)
      runner.check(test);
    host_.emplace(open.backend);
    if (options_.profile) runner.set_profile(profile_);
    if (!options_.json) print_header();
    for (const BenchCase& test : cases)
      print(test, runner.run(test, options_.repetitions));
  }

 private:
  void print_header() const {
    const MeasuredLimits& limits = host_->at_start();
    print_result(fmt::format("{}; {} threads, {}; limits: read {:.1f} GB/s, {} {:.0f} GOP/s\n",
                             model_path(options_), loaded_->backend->n_threads(), limits.isa,
                             limits.read_gb_per_second, name_of(unit_), limits.peak(unit_)));
    print_result(fmt::format(
        "{:<10} {:>7} {:>6} {:>10} {:>10} {:>10} {:>8} {:>8} {:>9} {:>9}  {}\n", "test", "depth",
        "batch", "tok/s", "p10", "p90", "GB/s", "% read", "GOP/s", "% compute", "logits"));
  }

  void print(const BenchCase& test, const BenchResult& result) const {
    const bool prefill = test.kind == BenchCase::Kind::kPrefill;
    const double tokens = static_cast<double>(test.n_tokens * test.batch);
    const BenchSummary summary = summarise(result, unit_);
    const double median = tokens / summary.seconds;
    const double p10 = tokens / summary.seconds_p90, p90 = tokens / summary.seconds_p10;
    const double gb = result.bytes / summary.seconds * 1e-9,
                 gop = result.operations / summary.seconds * 1e-9;
    const std::string name = fmt::format("{}{}", prefill ? "pp" : "tg", test.n_tokens);
    if (!options_.json) {
      print_result(
          fmt::format("{:<10} {:>7} {:>6} {:>10.2f} {:>10.2f} {:>10.2f} {:>8.2f} {:>8.1f} {:>9.1f} "
                      "{:>9.1f}  {}\n",
                      name, test.depth, test.batch, median, p10, p90, gb, 100 * summary.read_share,
                      gop, 100 * summary.compute_share, result.logits_hash));
      if (options_.profile)
        print_result(profile_table(profile_, total_seconds(result), summary.limits));
      return;
    }
    nlohmann::ordered_json line = {
        {"test", name},
        {"n_prompt", prefill ? test.n_tokens : 0},
        {"n_gen", prefill ? 0 : test.n_tokens},
        {"depth", test.depth},
        {"batch", test.batch},
        {"threads", loaded_->backend->n_threads()},
        {"isa", host_->at_start().isa},
        {"tokens_per_second", {{"median", median}, {"p10", p10}, {"p90", p90}}},
        {"gb_per_second", gb},
        {"gop_per_second", gop},
        {"read_bandwidth_fraction", summary.read_share},
        {"compute_fraction", summary.compute_share},
        {"limits",
         {{"read_gb_per_second", summary.limits.read_gb_per_second},
          {"compute_gop_per_second", summary.limits.peak(unit_)},
          {"compute_kind", std::string(name_of(unit_))}}},
        {"logits_hash", result.logits_hash}};
    if (options_.profile) line["profile"] = profile_json(profile_);
    print_json(line);
  }

  const Options& options_;
  Profile profile_;  // the loaded model's backend writes to it
  std::unique_ptr<LoadedModel> loaded_;
  std::optional<HostProbe> host_;
  ComputeUnit unit_ = ComputeUnit::kF32;  // that bounds the model
};

}  // namespace

Command register_bench(CLI::App& root) {
  auto options = std::make_shared<Options>();
  options->prompt = {512};
  options->generate = {128};
  CLI::App* app =
      root.add_subcommand("bench", "Measure prefill and decoding against the machine's limits");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  constexpr uint64_t kMaxTokens = 1 << 20;
  add_integer_list(*app, "-p,--n-prompt",
                   "Prompt tokens to prefill, a comma-separated list; 0: none", options->prompt, 0,
                   kMaxTokens);
  add_integer_list(*app, "-n,--n-gen", "Tokens to decode, a comma-separated list; 0: none",
                   options->generate, 0, kMaxTokens);
  add_integer_list(*app, "-d,--depth", "Tokens in the cache before, a comma-separated list",
                   options->depth, 0, kMaxTokens);
  add_integer_list(*app, "-b,--batch", "Parallel sequences, a comma-separated list", options->batch,
                   1, 4096);
  app->add_option("-r,--repetitions", options->repetitions, "Repetitions")
      ->check(integer_in(1, 1000))
      ->capture_default_str();
  app->add_flag("--profile", options->profile,
                "Where the time goes: a table of operations below each test");
  return {app, [options] { Bench(*options).run(); }};
}

}  // namespace qw::app
