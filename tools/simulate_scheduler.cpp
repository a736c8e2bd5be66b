// Replays traces of requests through the scheduler and compares policies; see docs/performance.md.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "base/error.h"
#include "engine/simulation/simulator.h"
#include "engine/simulation/workloads.h"

namespace qw::simulation {
namespace {

struct Options {
  std::vector<std::string> names;
  std::string file, write;
  int64_t n_requests = 100'000;
  uint64_t seed = 1;
  Machine machine;
  std::vector<int64_t> overtakes;  // more policies: the shipped one with other limits
  int64_t window = 0;
  std::vector<int64_t> passes;  // and with other limits between clients
};

void print_line(const std::string& trace, const Policy& policy, const Report& report,
                double seconds) {
  std::printf(
      "| %s | %s | %.1f | %.1f | %.1f | %.1f | %.0f | %.1f | %.1f | %.0f | %.1f %% | %lld | %.1f "
      "|\n",
      trace.c_str(), policy.name.c_str(), report.queue_s.mean, report.first_token_s.mean,
      report.first_token_s.p50, report.first_token_s.p95, report.first_token_s.max,
      report.latency_s.mean, report.client_first_token_s.p50, report.tokens_per_second(),
      100 * report.hit_rate(), static_cast<long long>(report.n_preemptions), seconds);
  std::fflush(stdout);
}

void compare(const std::string& name, const Trace& trace, const Options& options) {
  std::vector<Policy> policies = {fcfs(), longest_prefix(), shipped()};
  for (const int64_t limit : options.overtakes) {
    policies.push_back(shipped());
    policies.back().max_overtakes = limit;
    if (options.window > 0) policies.back().overtake_window = options.window;
    policies.back().name += " " + std::to_string(limit);
  }
  for (const int64_t limit : options.passes) {
    policies.push_back(shipped());
    policies.back().pass_tokens = limit;
    policies.back().name += " passing " + std::to_string(limit);
  }
  for (const Policy& policy : policies) {
    const auto begin = std::chrono::steady_clock::now();
    const Report report = simulate(trace, options.machine, policy);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    print_line(name, policy, report, took.count());
  }
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Replays traces of requests through the scheduler and compares policies.");
  app.add_option("WORKLOAD", options.names, "chat, assistants, few-shot, documents, crowd");
  app.add_option("--trace", options.file, "a file of requests (own or Mooncake's JSON lines)");
  app.add_option("--write", options.write, "write the workload's requests to this file");
  app.add_option("-n,--requests", options.n_requests, "requests of a workload")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of a workload")->capture_default_str();
  app.add_option("--slots", options.machine.n_slots, "requests at a time")->capture_default_str();
  app.add_option("--kv-tokens", options.machine.kv_tokens, "size of the KV cache")
      ->capture_default_str();
  app.add_option("--chunk", options.machine.chunk_tokens, "tokens of a step")
      ->capture_default_str();
  app.add_option("--step-s", options.machine.step_s, "seconds of a step")->capture_default_str();
  app.add_option("--token-s", options.machine.token_s, "and of a token")->capture_default_str();
  app.add_option("--row-s", options.machine.row_s, "and of a row of logits")->capture_default_str();
  app.add_option("--attended-s", options.machine.attended_s, "and of a position attended to")
      ->capture_default_str();
  app.add_option("--overtakes", options.overtakes, "compare also with these limits");
  app.add_option("--window", options.window, "and this window");
  app.add_option("--passes", options.passes, "and with these tokens by which clients may pass");
  CLI11_PARSE(app, argc, argv);

  std::printf(
      "| trace | policy | queue s | first token s, mean | p50 | p95 | max | answer s, mean | "
      "median "
      "client s | tok/s | cached | preempted | took s |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
      "--:|--:|--:|\n");
  if (!options.file.empty()) {
    std::ifstream in(options.file);
    if (!in) fail(ErrorKind::kNotFound, "trace", "{}: expected a readable file", options.file);
    compare(options.file, read_trace(in, options.file), options);
    return 0;
  }
  if (options.names.empty()) {
    for (const Workload& workload : workloads())
      options.names.emplace_back(workload.name);
  }
  for (const std::string& name : options.names) {
    const Trace trace = workload_named(name).make(options.n_requests, options.seed);
    if (!options.write.empty()) {
      std::ofstream out(options.write);
      write_trace(trace, out);
      if (!out.flush()) fail(ErrorKind::kIo, "trace", "{}: expected to write it", options.write);
      return 0;
    }
    compare(name, trace, options);
  }
  return 0;
}

}  // namespace
}  // namespace qw::simulation

int main(int argc, char** argv) {
  try {
    return qw::simulation::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
