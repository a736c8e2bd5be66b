// What a load consists of: when requests are sent, and what they ask.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qw::load {

struct TraceOptions {
  std::string kind = "uniform";  // uniform, shared-prefix, chat, mixed
  int64_t n_requests = 64;
  double rate = 0;  // requests a second, Poisson; 0: all at once
  int64_t prompt_tokens = 128;
  int64_t prefix_tokens = 2000;  // shared-prefix and chat: of the common beginning
  int64_t long_tokens = 4000;    // mixed: of every eighth prompt
  int64_t max_tokens = 64;
  int64_t vocab = 150000;  // ids are drawn below it
  bool ids = false;        // prompts as token ids, for checkpoints without a tokenizer
  double temperature = 0.8;
  uint64_t seed = 0;
  std::string model;    // "": left out
  bool native = false;  // for llama.cpp's /completion
};

struct PlannedRequest {
  double at_s = 0;     // after the beginning
  int64_t after = -1;  // index of the request that must have ended before (chat turns)
  std::string body;
};

/// The same options give the same trace. Errors: std::invalid_argument (unknown kind).
std::vector<PlannedRequest> make_trace(const TraceOptions& options);

}  // namespace qw::load
