// Traces of requests: when each comes, what its prompt is made of, how long its answer is.
//
// Level 6 (engine). For trying schedulers without a model. A prompt is a list of pieces of named
// content: two prompts that begin with the same pieces begin with the same tokens. As a file a
// trace is JSON lines, either our own
//   {"at": 1.5, "client": "a", "prompt": [[7, 812], [9, 40]], "answer": [10, 150]}
// (seconds, [content, tokens]; "after" and "delay" instead of "at" for a turn that comes so many
// seconds after the answer of an earlier line, counted from 0; "priority"), or those that Mooncake
// published (timestamp in ms, input_length, output_length, hash_ids of 512 tokens each).
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

namespace qw::simulation {

/// The first n_tokens of a content.
struct Piece {
  int64_t content = 0;
  int64_t n_tokens = 0;
};

struct TracedRequest {
  double at_s = 0;               // after the start of the trace
  std::optional<int64_t> after;  // or: once this earlier request has ended ...
  double delay_s = 0;            // ... and so much time has passed
  std::string client;
  int64_t priority = 0;
  std::vector<Piece> prompt;
  Piece answer;  // as many tokens are generated

  int64_t n_prompt_tokens() const;
};

using Trace = std::vector<TracedRequest>;

/// Token `i` of a content, the same for ever.
int32_t token_of(int64_t content, int64_t i);
/// The tokens of a prompt.
std::vector<int32_t> prompt_tokens(const TracedRequest& request);

/// Reads JSON lines. `name` is for messages. Errors: corrupt (not JSON, a field missing or out of
/// range, an "after" that does not point back), each with the line's number.
Trace read_trace(std::istream& in, const std::string& name);
void write_trace(const Trace& trace, std::ostream& out);

}  // namespace qw::simulation
