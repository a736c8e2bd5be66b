// Keeps a server busy with clients that behave well, badly and not at all, for as long as it is
// told, and watches what becomes of it: every accepted request has exactly one end, no fault is the
// server's own, the same requests get the same bits, and nothing grows.
//
// Starts the server itself. The exit code is 1 after any violation; the seed and the last requests
// are printed, so that it can be looked into.
#include <fmt/format.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>

#include "base/error.h"
#include "soak/actor.h"
#include "soak/adapters.h"
#include "soak/child.h"
#include "soak/fuzzer.h"
#include "soak/watch.h"

namespace qw::soak {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string program, model;
  double duration_s = 60;
  int64_t actors = 16;
  uint64_t seed = 1;
  double kill_every_s = 0;  // 0: never
  double max_growth_mib = 24;
  double patience_s = 120;
  bool fuzz = false;
  int64_t requests = 0;  // 0: until the time is up
  std::vector<std::string> server_flags;
};

class Soak {
 public:
  explicit Soak(const Options& options)
      : options_(options),
        child_(options.program, flags(), folder_.path() + "/server.log"),
        random_(options.seed) {
    place_.patience = std::chrono::milliseconds(static_cast<int64_t>(options.patience_s * 1000));
  }

  /// Whether all went well.
  bool run() {
    child_.start(0);
    place_.port = child_.port();
    fixed_.learn(place_);
    watch_.begin(child_.footprint());
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < options_.actors; ++i)
      threads.emplace_back([this, i] { act(i); });
    watch();
    stop_ = true;
    for (std::thread& thread : threads)
      thread.join();
    if (child_.alive()) finish();
    summary();
    return record_.n_violations() == 0;
  }

 private:
  std::vector<std::string> flags() const {
    const auto folder = [this](const char* name) {
      std::filesystem::create_directory(folder_.path() + "/" + name);
      return folder_.path() + "/" + name;
    };
    // A context and a cache too small for what is asked at once.
    std::vector<std::string> out = {"--ctx",
                                    options_.fuzz ? "256" : "512",
                                    "--slots",
                                    "8",
                                    "--kv-tokens",
                                    options_.fuzz ? "1024" : "576",
                                    "--max-queue",
                                    "24",
                                    "--lora-dir",
                                    folder_.path(),
                                    "--slot-save-path",
                                    folder("slots"),
                                    "--prefix-cache-dir",
                                    folder("prefixes"),
                                    "--no-access-log",
                                    "--check-integrity",
                                    "--log-level",
                                    "error"};
    out.insert(out.end(), options_.server_flags.begin(), options_.server_flags.end());
    if (!options_.model.empty()) out.push_back(options_.model);
    return out;
  }

  bool is_over() const {
    return stop_ || (options_.requests > 0 && record_.n_requests() >= options_.requests);
  }

  void act(int64_t index) {
    const uint64_t seed = options_.seed * 1000 + static_cast<uint64_t>(index);
    if (options_.fuzz) {
      Fuzzer fuzzer(seed, read_addresses(place_), place_, record_);
      while (!is_over())
        fuzzer.act();
      return;
    }
    const MakerOptions maker;
    Actor actor(seed, maker, place_, fixed_, record_);
    while (!is_over())
      actor.act();
  }

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  /// Samples and says how it goes until the time is up or the server is gone.
  void watch() {
    double next_line = 10, next_kill = kill_time();
    while (seconds() < options_.duration_s && !is_over()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      if (!child_.alive()) {
        record_.violation(
            fmt::format("the server has ended, code {}:\n{}", child_.end(0), child_.log_tail()),
            {});
        return;
      }
      watch_.sample(seconds(), child_.footprint());
      if (next_kill > 0 && seconds() > next_kill) {
        restart();
        next_kill = kill_time();
      }
      if (seconds() < next_line) continue;
      const Footprint now = child_.footprint();
      fmt::print(
          "{:6.0f} s  {:8} requests  {:6.1f}/s  {:6.1f} MiB  {} threads  {} files  {} violations\n",
          seconds(), record_.n_requests(), static_cast<double>(record_.n_requests()) / seconds(),
          mib(now.anonymous_bytes), now.n_threads, now.n_files, record_.n_violations());
      std::fflush(stdout);
      next_line += std::max(10.0, options_.duration_s / 60);
    }
  }

  double kill_time() {
    if (options_.kill_every_s <= 0) return -1;
    return seconds() +
           std::uniform_real_distribution<double>(0.5, 1.5)(random_) * options_.kill_every_s;
  }

  /// Kills the server amid everything and starts it anew: it must serve, and say the same.
  void restart() {
    ++place_.life;
    child_.kill_hard();
    const Clock::time_point killed = Clock::now();
    child_.start(place_.port);
    record_.count("killed");
    for (size_t i = 0; i < fixed_.size(); ++i) {
      const std::string fault = fixed_.check(place_, i);
      if (!fault.empty()) record_.violation("after a restart: " + fault, {});
    }
    ++place_.life;
    fmt::print("{:6.0f} s  killed; served again after {:.2f} s\n", seconds(),
               std::chrono::duration<double>(Clock::now() - killed).count());
  }

  void finish() {
    unload_adapters(place_);  // each has a file open
    for (const std::string& fault :
         watch_.faults_at_rest(place_, child_, options_.kill_every_s > 0))
      record_.violation(fault, {});
    if (options_.kill_every_s <= 0) {
      if (const std::string fault = watch_.growth_fault(options_.max_growth_mib); !fault.empty())
        record_.violation(fault, {});
    }
    // Clients may have set how much of each adapter is in the model's answers.
    testing::HttpClient(place_.port, place_.patience).post("/lora-adapters", "[]");
    for (size_t i = 0; i < fixed_.size(); ++i) {
      const std::string fault = fixed_.check(place_, i);
      if (!fault.empty()) record_.violation("at the end: " + fault, {});
    }
    if (const int code = child_.end(60); code != 0)
      record_.violation(fmt::format("ending: exit code {}:\n{}", code, child_.log_tail()), {});
  }

  void summary() const {
    fmt::print("seed {}: {} requests in {:.0f} s by {} actors, {} violations\n", options_.seed,
               record_.n_requests(), seconds(), options_.actors, record_.n_violations());
    for (const auto& [what, n] : record_.counts())
      fmt::print("  {:<40} {}\n", what, n);
    fmt::print("{}", watch_.summary());
  }

  const Options& options_;
  AdapterFolder folder_;
  Child child_;
  std::mt19937_64 random_;
  Place place_;
  FixedRequests fixed_;
  Record record_;
  Watch watch_;
  std::atomic<bool> stop_{false};
  Clock::time_point start_ = Clock::now();
};

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Keeps a server busy with clients of every kind and watches what becomes of it");
  app.add_option("--program", options.program, "qianwen, or a build of it with sanitizers")
      ->required();
  app.add_option("--model", options.model, "What to serve (default: the bundled model)");
  app.add_option("--duration", options.duration_s, "Seconds")->capture_default_str();
  app.add_option("--actors", options.actors, "Clients at the same time")->capture_default_str();
  app.add_option("--seed", options.seed, "Of everything that is drawn")->capture_default_str();
  app.add_flag("--fuzz", options.fuzz, "Send requests that are nearly right instead");
  app.add_option("--requests", options.requests, "End after so many (0: when the time is up)");
  app.add_option("--kill-every", options.kill_every_s,
                 "Kill the server about every so many seconds and start it again (0: never)");
  app.add_option("--max-growth", options.max_growth_mib,
                 "MiB that its memory may grow after the beginning (0: any)")
      ->capture_default_str();
  app.add_option("--patience", options.patience_s, "Seconds without an answer that are a fault")
      ->capture_default_str();
  app.add_option("--flag", options.server_flags,
                 "One more argument for the server; may be repeated")
      ->allow_extra_args(false);
  CLI11_PARSE(app, argc, argv);
  signal(SIGPIPE, SIG_IGN);
  Soak soak(options);
  return soak.run() ? 0 : 1;
}

}  // namespace
}  // namespace qw::soak

int main(int argc, char** argv) {
  try {
    return qw::soak::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "soak: error: %s\n", error.what());
    return 2;
  }
}
