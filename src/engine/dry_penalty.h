// The penalty "don't repeat yourself": the longer a repetition, the less likely its next token.
//
// Level 6 (engine). P. E. Weidmann's rule (text-generation-webui, 2024), with llama.cpp's
// parameters. What breaks a sequence is found in the text itself, however it is cut into tokens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/logits_process.h"
#include "text/tokenizer.h"

namespace qw {

struct DryOptions {
  double multiplier = 0, base = 1.75;
  int64_t allowed_length = 2;
  int64_t last_n = 64;                // tokens that are looked at; -1: all
  std::vector<std::string> breakers;  // texts that no repetition reaches over
};

/// x[t] -= multiplier * base^(n - allowed_length) for every token t that would make n + 1 tokens at
/// the end, n >= allowed_length, a repetition of tokens among the last last_n: n is the longest
/// such number. Only tokens after the last breaker count. A token whose own text holds a breaker is
/// left alone. The penalty is at most the largest float.
class DryPenalty : public LogitsProcessor {
 public:
  /// tokenizer: not null where there are breakers.
  DryPenalty(DryOptions options, std::shared_ptr<const Tokenizer> tokenizer);
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "dry"; }

 private:
  size_t tokens_since_breaker(std::span<const int32_t> window) const;
  bool breaks(int32_t id) const;

  DryOptions options_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace qw
