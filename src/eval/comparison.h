// How far one model's predictions are from another's on a text: what a quantised file has lost.
//
// Level 7 (eval). Sources: Kullback and Leibler 1951; the figures are those that llama-perplexity
// prints with --kl-divergence, so that they can be set side by side.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/cancel.h"
#include "engine/engine.h"

namespace qw {

/// A model, its adapter, and the length of its rows of logits.
struct ComparedModel {
  Engine& engine;
  int64_t vocab = 0;
  int32_t adapter = -1;
};

struct ComparisonOptions {
  int64_t window = 0;   // tokens that are read together. 0: 512, or the shorter context
  bool layers = false;  // also how far apart the layers' outputs are
  const CancelFlag* cancel = nullptr;
  std::function<void(int64_t done, int64_t total)> on_progress = {};  // tokens
};

/// A mean and its standard error.
struct Estimate {
  double mean = 0, error = 0;
};

struct Comparison {
  int64_t n_tokens = 0;  // predictions compared
  int64_t window = 0;
  /// sum_i p_a(i) log(p_a(i) / p_b(i)) of a prediction, in nats.
  Estimate kl;
  double kl_median = 0, kl_p90 = 0, kl_p99 = 0, kl_max = 0;
  std::vector<float> kls;  // of each prediction, in the text's order
  /// Share of predictions whose likeliest token is the same; mean share of the same tokens among
  /// the five and ten likeliest.
  Estimate same_top1, same_top5, same_top10;
  Estimate nll_a, nll_b;  // of the text's own tokens: perplexity is e^nll
  /// nll_b - nll_a, from the differences token by token: its error is much smaller than theirs.
  Estimate nll_difference;
  /// Of p_b - p_a of the text's own tokens: mean, and root of the mean square.
  Estimate p_difference;
  double rms_p_difference = 0;
  /// ||x_b - x_a|| / ||x_a|| of what each layer puts out, over all tokens; empty unless asked for.
  std::vector<double> layer_errors;
};

/// Reads `ids` window by window with both models; the first token of a window is context only.
/// Needs memory for the logits of one window. Errors: invalid_argument (fewer than two tokens, a
/// window that is not 2 .. the shorter context, vocabularies of different sizes), those of
/// Engine::score().
Comparison compare_models(const ComparedModel& a, const ComparedModel& b,
                          std::span<const int32_t> ids, const ComparisonOptions& options = {});

}  // namespace qw
