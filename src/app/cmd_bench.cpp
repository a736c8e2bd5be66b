// qianwen bench: tokens per second, and how far that is from what the machine allows.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

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

double percentile(const std::vector<double>& sorted, double fraction) {
  const double at = fraction * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
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
    limits_ = measure_host_limits(open.backend);
    kind_ = compute_kind(*loaded_->model);
    const auto kv_type = dtype_from_name(open.engine.kv_type);
    QW_CHECK(kv_type, "the name of an element type, got {}", open.engine.kv_type);
    BenchRunner runner(*loaded_->model, *kv_type, open.engine.chunk_tokens, interrupted());
    if (options_.profile) runner.set_profile(profile_);
    if (!options_.json) print_header();
    for (const BenchCase& test : cases)
      print(test, runner.run(test, options_.repetitions));
  }

 private:
  double compute_limit() const {
    if (kind_ == "int8") return limits_.int8_gop_per_second;
    return kind_ == "bf16" ? limits_.bf16_gflop_per_second : limits_.f32_gflop_per_second;
  }

  void print_header() const {
    print_result(fmt::format("{}; {} threads, {}; limits: read {:.1f} GB/s, {} {:.0f} GOP/s\n",
                             model_path(options_), loaded_->backend->n_threads(), limits_.isa,
                             limits_.read_gb_per_second, kind_, compute_limit()));
    print_result(fmt::format(
        "{:<10} {:>7} {:>6} {:>10} {:>10} {:>10} {:>8} {:>8} {:>9} {:>9}  {}\n", "test", "depth",
        "batch", "tok/s", "p10", "p90", "GB/s", "% read", "GOP/s", "% compute", "logits"));
  }

  void print(const BenchCase& test, const BenchResult& result) const {
    const bool prefill = test.kind == BenchCase::Kind::kPrefill;
    const double tokens = static_cast<double>(test.n_tokens * test.batch);
    const double median_s = percentile(result.seconds, 0.5);
    const double median = tokens / median_s;
    const double p10 = tokens / percentile(result.seconds, 0.9),
                 p90 = tokens / percentile(result.seconds, 0.1);
    const double gb = result.bytes / median_s * 1e-9, gop = result.operations / median_s * 1e-9;
    const std::string name = fmt::format("{}{}", prefill ? "pp" : "tg", test.n_tokens);
    const double read_fraction = gb / limits_.read_gb_per_second,
                 compute_fraction = gop / compute_limit();
    if (!options_.json) {
      print_result(
          fmt::format("{:<10} {:>7} {:>6} {:>10.2f} {:>10.2f} {:>10.2f} {:>8.2f} {:>8.1f} {:>9.1f} "
                      "{:>9.1f}  {}\n",
                      name, test.depth, test.batch, median, p10, p90, gb, 100 * read_fraction, gop,
                      100 * compute_fraction, result.logits_hash));
      if (options_.profile) print_result(profile_table(profile_, sum(result.seconds), limits_));
      return;
    }
    nlohmann::ordered_json line = {
        {"test", name},
        {"n_prompt", prefill ? test.n_tokens : 0},
        {"n_gen", prefill ? 0 : test.n_tokens},
        {"depth", test.depth},
        {"batch", test.batch},
        {"threads", loaded_->backend->n_threads()},
        {"isa", limits_.isa},
        {"tokens_per_second", {{"median", median}, {"p10", p10}, {"p90", p90}}},
        {"gb_per_second", gb},
        {"gop_per_second", gop},
        {"read_bandwidth_fraction", read_fraction},
        {"compute_fraction", compute_fraction},
        {"limits",
         {{"read_gb_per_second", limits_.read_gb_per_second},
          {"compute_gop_per_second", compute_limit()},
          {"compute_kind", kind_}}},
        {"logits_hash", result.logits_hash}};
    if (options_.profile) line["profile"] = profile_json(profile_);
    print_json(line);
  }

  const Options& options_;
  Profile profile_;  // the loaded model's backend writes to it
  std::unique_ptr<LoadedModel> loaded_;
  MeasuredLimits limits_;
  std::string kind_;
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
  const auto list = [&](const char* names, std::vector<int64_t>& values, const char* help,
                        const CLI::Validator& range) {
    app->add_option(names, values, help)
        ->delimiter(',')
        ->check(range)
        ->allow_extra_args(false)
        ->capture_default_str();
  };
  list("-p,--n-prompt", options->prompt,
       "Prompt tokens to prefill, a comma-separated list; 0: none", integer_in(0, kMaxTokens));
  list("-n,--n-gen", options->generate, "Tokens to decode, a comma-separated list; 0: none",
       integer_in(0, kMaxTokens));
  list("-d,--depth", options->depth, "Tokens in the cache before, a comma-separated list",
       integer_in(0, kMaxTokens));
  list("-b,--batch", options->batch, "Parallel sequences, a comma-separated list",
       integer_in(1, 4096));
  app->add_option("-r,--repetitions", options->repetitions, "Repetitions")
      ->check(integer_in(1, 1000))
      ->capture_default_str();
  app->add_flag("--profile", options->profile,
                "Where the time goes: a table of operations below each test");
  return {app, [options] { Bench(*options).run(); }};
}

}  // namespace qw::app
