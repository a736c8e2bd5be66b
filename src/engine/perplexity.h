// Perplexity of a text by a sliding window, with its standard error.
//
// Level 6 (engine).
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/cancel.h"
#include "engine/engine.h"

namespace qw {

struct PerplexityOptions {
  int64_t window = 0;  // tokens of a window. 0: the engine's context
  int64_t stride = 0;  // from one window's start to the next. 0: window (no overlap)
  int32_t adapter = -1;
  const CancelFlag* cancel = nullptr;
  std::function<void(int64_t done, int64_t total)> on_progress;  // tokens scored
};

struct Perplexity {
  double nll = 0;                // mean of -log p over the scored tokens
  double perplexity = 0;         // e^nll
  double stderr_nll = 0;         // standard deviation of -log p / sqrt(n_tokens)
  double stderr_perplexity = 0;  // perplexity * stderr_nll (first order)
  int64_t n_tokens = 0;          // scored
  int64_t window = 0, stride = 0;
};

/// Every token is scored once, with the context of the first window that holds it after its first
/// token; the first token of the text, and of windows that do not overlap, is context only (the
/// "strided sliding window" of Transformers' documentation). Sums are in double, in order.
/// Errors: invalid_argument (fewer than two tokens; window not 2 .. context; stride not 1 ..
/// window).
Perplexity compute_perplexity(Engine& engine, std::span<const int32_t> ids,
                              const PerplexityOptions& options = {});

}  // namespace qw
