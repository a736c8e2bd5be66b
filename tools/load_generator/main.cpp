// Puts load on a server and says how it bore it: time to first token, time between tokens,
// throughput, goodput. Speaks OpenAI's /v1/completions, so that servers can be compared.
//
// A run is bounded in requests and in time. Requests go out by the trace, each on a connection of
// its own; no more than --concurrency at once.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "load_generator/client.h"
#include "load_generator/traces.h"

namespace qw::load {
namespace {

struct Options {
  std::string url = "http://127.0.0.1:8000", api_key;
  TraceOptions trace;
  int64_t concurrency = 16;
  double duration_s = 120;  // nothing is sent later, and what is under way then has as long again
  double ttft_goal_s = 2, itl_goal_s = 0.2;
  bool json = false;
};

/// Runs a trace with a fixed number of threads.
class Runner {
 public:
  Runner(const Options& options, std::vector<PlannedRequest> trace)
      : options_(options),
        target_(target_of(options.url)),
        trace_(std::move(trace)),
        outcomes_(trace_.size()),
        ended_(trace_.size(), false) {
    target_.api_key = options.api_key;
  }

  std::vector<Outcome> run() {
    start_ = Clock::now();
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < options_.concurrency; ++i)
      threads.emplace_back([this] { work(); });
    for (std::thread& thread : threads)
      thread.join();
    return std::move(outcomes_);
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  Clock::time_point after(double seconds) const {
    return start_ +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (next_ < trace_.size()) {
      const size_t index = next_++;
      const PlannedRequest& request = trace_[index];
      changed_.wait(
          lock, [&] { return request.after < 0 || ended_[static_cast<size_t>(request.after)]; });
      lock.unlock();
      std::this_thread::sleep_until(after(request.at_s));
      Outcome outcome;
      if (Clock::now() < after(options_.duration_s)) {
        outcome = run_request(target_, request.body, after(2 * options_.duration_s));
      } else {
        outcome.error = "not sent: the time was up";
      }
      lock.lock();
      outcomes_[index] = std::move(outcome);
      ended_[index] = true;
      changed_.notify_all();
    }
  }

  const Options& options_;
  Target target_;
  std::vector<PlannedRequest> trace_;
  Clock::time_point start_;
  std::mutex mutex_;  // over what follows
  std::condition_variable changed_;
  size_t next_ = 0;
  std::vector<Outcome> outcomes_;
  std::vector<bool> ended_;
};

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

nlohmann::ordered_json spread(const std::vector<double>& seconds) {
  return {{"p50", percentile(seconds, 0.5)},
          {"p90", percentile(seconds, 0.9)},
          {"p95", percentile(seconds, 0.95)},
          {"p99", percentile(seconds, 0.99)}};
}

nlohmann::ordered_json report(const Options& options, const std::vector<Outcome>& outcomes,
                              double seconds) {
  std::vector<double> first, between;
  int64_t n_ok = 0, n_good = 0, n_prompt = 0, n_generated = 0, n_cached = 0;
  Clock::time_point decode_begin = Clock::time_point::max(), decode_end;
  std::map<std::string, int64_t> errors;
  for (const Outcome& outcome : outcomes) {
    if (!outcome.ok || outcome.tokens.empty()) {
      ++errors[outcome.ok ? "no token" : outcome.error];
      continue;
    }
    ++n_ok;
    n_prompt += outcome.n_prompt;
    n_generated += outcome.n_generated;
    n_cached += outcome.n_cached;
    const auto gap = [](Clock::time_point a, Clock::time_point b) {
      return std::chrono::duration<double>(b - a).count();
    };
    first.push_back(gap(outcome.sent, outcome.tokens.front()));
    decode_begin = std::min(decode_begin, outcome.tokens.front());
    decode_end = std::max(decode_end, outcome.tokens.back());
    for (size_t i = 1; i < outcome.tokens.size(); ++i)
      between.push_back(gap(outcome.tokens[i - 1], outcome.tokens[i]));
    const double mean = outcome.tokens.size() < 2
                            ? 0
                            : gap(outcome.tokens.front(), outcome.tokens.back()) /
                                  static_cast<double>(outcome.tokens.size() - 1);
    if (first.back() <= options.ttft_goal_s && mean <= options.itl_goal_s) ++n_good;
  }
  const double decode_s =
      n_ok > 0 ? std::chrono::duration<double>(decode_end - decode_begin).count() : 0;
  nlohmann::ordered_json failed = nlohmann::ordered_json::object();
  for (const auto& [error, n] : errors)
    failed[error] = n;
  return {{"requests", outcomes.size()},
          {"answered", n_ok},
          {"failed", std::move(failed)},
          {"seconds", seconds},
          {"prompt_tokens", n_prompt},
          {"cached_tokens", n_cached},
          {"generated_tokens", n_generated},
          {"generated_per_second", static_cast<double>(n_generated) / seconds},
          {"generated_per_second_of_decoding",
           decode_s > 0 ? static_cast<double>(n_generated) / decode_s : 0},
          {"requests_per_second", static_cast<double>(n_ok) / seconds},
          {"goodput_per_second", static_cast<double>(n_good) / seconds},
          {"time_to_first_token_s", spread(first)},
          {"first_request_to_first_token_s", first.empty() ? 0 : first.front()},
          {"inter_token_s", spread(between)}};
}

void print(const nlohmann::ordered_json& r) {
  const auto line = [](const char* name, const nlohmann::ordered_json& s) {
    fmt::print("{:<22} p50 {:.3f}  p90 {:.3f}  p95 {:.3f}  p99 {:.3f} s\n", name,
               s["p50"].get<double>(), s["p90"].get<double>(), s["p95"].get<double>(),
               s["p99"].get<double>());
  };
  fmt::print("{} of {} requests answered in {:.1f} s\n", r["answered"].get<int64_t>(),
             r["requests"].get<int64_t>(), r["seconds"].get<double>());
  for (const auto& [error, n] : r["failed"].items())
    fmt::print("  failed: {} x {}\n", n.get<int64_t>(), error);
  fmt::print("{:<22} {} ({} of them cached), generated {}\n", "prompt tokens",
             r["prompt_tokens"].get<int64_t>(), r["cached_tokens"].get<int64_t>(),
             r["generated_tokens"].get<int64_t>());
  fmt::print("{:<22} {:.1f} tok/s ({:.1f} from the first token to the last)\n", "throughput",
             r["generated_per_second"].get<double>(),
             r["generated_per_second_of_decoding"].get<double>());
  fmt::print("{:<22} {:.2f} requests/s, of them within the goals {:.2f}\n", "goodput",
             r["requests_per_second"].get<double>(), r["goodput_per_second"].get<double>());
  line("time to first token", r["time_to_first_token_s"]);
  line("between two tokens", r["inter_token_s"]);
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Puts load on a server that speaks OpenAI's dialect, and measures it");
  app.add_option("--url", options.url, "http://HOST:PORT[/PATH]; llama.cpp's form for /completion")
      ->capture_default_str();
  app.add_option("--api-key", options.api_key, "Key to show");
  app.add_option("--model", options.trace.model, "Model to name");
  app.add_option("--trace", options.trace.kind, "uniform, shared-prefix, chat or mixed")
      ->capture_default_str();
  app.add_option("-n,--requests", options.trace.n_requests, "How many")->capture_default_str();
  app.add_option("--rate", options.trace.rate, "Requests a second, Poisson (0: all at once)");
  app.add_option("-c,--concurrency", options.concurrency, "At most so many at once")
      ->capture_default_str();
  app.add_option("--prompt-tokens", options.trace.prompt_tokens, "")->capture_default_str();
  app.add_option("--prefix-tokens", options.trace.prefix_tokens, "")->capture_default_str();
  app.add_option("--long-tokens", options.trace.long_tokens, "")->capture_default_str();
  app.add_option("--max-tokens", options.trace.max_tokens, "")->capture_default_str();
  app.add_option("--temperature", options.trace.temperature, "0: greedy")->capture_default_str();
  app.add_flag("--ids", options.trace.ids, "Prompts as token ids");
  app.add_option("--vocab", options.trace.vocab, "Ids are below it")->capture_default_str();
  app.add_option("--seed", options.trace.seed, "");
  app.add_option("--duration", options.duration_s, "Seconds after which nothing is sent")
      ->capture_default_str();
  app.add_option("--ttft-goal", options.ttft_goal_s, "Goodput: first token within so many seconds")
      ->capture_default_str();
  app.add_option("--itl-goal", options.itl_goal_s, "Goodput: mean time between tokens")
      ->capture_default_str();
  app.add_flag("--json", options.json, "One JSON object");
  CLI11_PARSE(app, argc, argv);
  options.trace.native = target_of(options.url).path == "/completion";
  Runner runner(options, make_trace(options.trace));
  const std::vector<Outcome> outcomes = runner.run();
  const nlohmann::ordered_json result = report(options, outcomes, runner.seconds());
  if (options.json) {
    fmt::print("{}\n", result.dump());
  } else {
    print(result);
  }
  return result["answered"] == result["requests"] ? 0 : 1;
}

}  // namespace
}  // namespace qw::load

int main(int argc, char** argv) {
  try {
    return qw::load::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "load_generator: error: %s\n", error.what());
    return 2;
  }
}
