// A server without a model: the real scheduler over a trace, on a machine that is a formula.
//
// Level 6 (engine). Shows what a policy does to waiting times, throughput and reuse, for 10^5
// requests in seconds. The scheduler, the pages and the line are the engine's own; only the time of
// a step is computed instead of spent.
#pragma once

#include <cstdint>
#include <string>

#include "engine/simulation/trace.h"

namespace qw::simulation {

/// Seconds of a step: step_s + token_s * tokens + row_s * rows of logits + attended_s * (positions
/// that its tokens attend to). The defaults are Qwen1.5-0.5B in Q4_K_M on 2 Zen 3 cores, as
/// measured by `qianwen bench`.
struct Machine {
  double step_s = 0.009;
  double token_s = 0.0023;
  double row_s = 0.0011;
  double attended_s = 1e-6;
  int64_t n_slots = 16;
  int64_t chunk_tokens = 512;
  int64_t kv_tokens = 32768;
  int page_tokens = 16;
};

/// Whose turn it is.
struct Policy {
  std::string name;
  bool is_fair = true;  // between clients, by tokens (engine/fair_queue.h)
  int64_t max_overtakes = 0;
  int64_t overtake_window = 1;
  bool weighs_length = true;
  bool await_prefixes = true;
  int64_t pass_tokens = 0;  // between clients
};
/// First come, first served; the longest kept prefix first, among the first 128 that wait (the idea
/// is SGLang's, Zheng et al., 2024); what the engine does.
Policy fcfs();
Policy longest_prefix();
Policy shipped();

/// Of some figure over all requests.
struct Distribution {
  double mean = 0, p50 = 0, p95 = 0, p99 = 0, max = 0;
};

struct Report {
  int64_t n_requests = 0, n_steps = 0, n_preemptions = 0;
  double makespan_s = 0;  // simulated, from the first arrival to the last token
  int64_t n_prompt_tokens = 0, n_cached_tokens = 0, n_generated_tokens = 0;
  Distribution queue_s;               // from arrival until something of it is computed
  Distribution first_token_s;         // from arrival
  Distribution latency_s;             // from arrival until the last token
  Distribution client_first_token_s;  // of the clients' means

  double hit_rate() const {
    return static_cast<double>(n_cached_tokens) / static_cast<double>(n_prompt_tokens);
  }
  /// Tokens of prompts and answers that were served, a second.
  double tokens_per_second() const {
    return static_cast<double>(n_prompt_tokens + n_generated_tokens) / makespan_s;
  }
};

/// Errors: invalid_argument when a request can never fit the machine's cache.
Report simulate(const Trace& trace, const Machine& machine, const Policy& policy);

}  // namespace qw::simulation
