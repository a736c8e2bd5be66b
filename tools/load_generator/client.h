// One streamed request to a server, in OpenAI's dialect or on llama.cpp's /completion, with the
// times of its tokens.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace qw::load {

using Clock = std::chrono::steady_clock;

struct Target {
  std::string host = "127.0.0.1", port = "8000", path = "/v1/completions", api_key;
};

/// Splits "http://HOST:PORT[/...]"; a path replaces /v1/completions. Errors: std::invalid_argument.
Target target_of(const std::string& url);

struct Outcome {
  bool ok = false;
  std::string error;                                    // of a request that failed
  Clock::time_point sent;                               // when the request was due and sent
  std::vector<Clock::time_point> tokens;                // when each piece of text came
  int64_t n_prompt = 0, n_generated = 0, n_cached = 0;  // as the server counts them
};

/// Sends `body` (which asks for a stream with usage) on a connection of its own and reads the
/// stream to its end, or until `give_up`.
Outcome run_request(const Target& target, const std::string& body, Clock::time_point give_up);

}  // namespace qw::load
