#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qw {

Perplexity compute_perplexity(Engine& engine, std::span<const int32_t> ids,
                              const PerplexityOptions& options) {
  Perplexity out;
  const int64_t ctx = engine.options().ctx;
  const auto total = static_cast<int64_t>(ids.size());
  out.window = options.window == 0 ? ctx : options.window;
  out.stride = options.stride == 0 ? out.window : options.stride;
  if (total < 2)
    fail(ErrorKind::kInvalidArgument, "perplexity", "text: expected at least 2 tokens, got {}",
         total);
  if (out.window < 2 || out.window > ctx) {
    fail(ErrorKind::kInvalidArgument, "perplexity",
         "window: expected 2 to {} (the context), got {}", ctx, out.window);
  }
  if (out.stride < 1 || out.stride > out.window) {
    fail(ErrorKind::kInvalidArgument, "perplexity",
         "stride: expected 1 to the window of {}, got {}", out.window, out.stride);
  }

  // Welford's method: the variance of millions of numbers without cancellation.
  double mean = 0, squares = 0;
  int64_t scored_end = 1;  // tokens before it are scored, or never will be
  for (int64_t begin = 0; scored_end < total; begin += out.stride) {
    const int64_t end = std::min(begin + out.window, total);
    const int64_t first = std::max(scored_end, begin + 1);
    if (first < end) {
      ScoreOptions score;
      score.adapter = options.adapter;
      score.cancel = options.cancel;
      score.first_row = first - 1 - begin;
      const std::span<const int32_t> window =
          ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
      for (const TokenLogprobs& token : engine.score_logprobs(window, 0, score)) {
        const double nll = -static_cast<double>(token.chosen.logprob);
        ++out.n_tokens;
        const double delta = nll - mean;
        mean += delta / static_cast<double>(out.n_tokens);
        squares += delta * (nll - mean);
      }
    }
    scored_end = end;
    if (options.on_progress) options.on_progress(end, total);
    if (end == total) break;
  }
  const auto n = static_cast<double>(out.n_tokens);
  out.nll = mean;
  out.perplexity = std::exp(mean);
  out.stderr_nll = out.n_tokens > 1 ? std::sqrt(squares / (n - 1) / n) : 0;
  out.stderr_perplexity = out.perplexity * out.stderr_nll;
  return out;
}

}  // namespace qw
