#include "app/comparison_output.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/open.h"
#include "app/text_ids.h"
#include "base/error.h"
#include "base/progress.h"
#include "model/config.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

ordered_json estimate_json(const Estimate& estimate) {
  return {{"mean", estimate.mean}, {"stderr", estimate.error}};
}

ordered_json perplexity_json(const Estimate& nll) {
  const double perplexity = std::exp(nll.mean);
  return {{"perplexity", perplexity}, {"stderr", perplexity * nll.error}, {"nll", nll.mean}};
}

}  // namespace

nlohmann::ordered_json comparison_json(const Comparison& c) {
  ordered_json json = {{"n_tokens", c.n_tokens},
                       {"window", c.window},
                       {"kl", estimate_json(c.kl)},
                       {"kl_median", c.kl_median},
                       {"kl_p90", c.kl_p90},
                       {"kl_p99", c.kl_p99},
                       {"kl_max", c.kl_max},
                       {"same_top1", estimate_json(c.same_top1)},
                       {"same_top5", estimate_json(c.same_top5)},
                       {"same_top10", estimate_json(c.same_top10)},
                       {"a", perplexity_json(c.nll_a)},
                       {"b", perplexity_json(c.nll_b)},
                       {"nll_difference", estimate_json(c.nll_difference)},
                       {"p_difference", estimate_json(c.p_difference)},
                       {"rms_p_difference", c.rms_p_difference}};
  if (!c.layer_errors.empty()) json["layer_errors"] = c.layer_errors;
  return json;
}

std::string comparison_text(const Comparison& c) {
  const auto percent = [](const Estimate& e) {
    return fmt::format("{:8.3f} +- {:.3f} %", 100 * e.mean, 100 * e.error);
  };
  const auto perplexity = [](const Estimate& nll) {
    return fmt::format("{:10.4f} +- {:.4f}", std::exp(nll.mean), std::exp(nll.mean) * nll.error);
  };
  std::string text = fmt::format(
      "predictions compared    {:10} (window {})\n"
      "KL divergence, mean     {:10.6f} +- {:.6f}\n"
      "  median                {:10.6f}\n"
      "  90 %                  {:10.6f}\n"
      "  99 %                  {:10.6f}\n"
      "  largest               {:10.6f}\n"
      "same likeliest token    {}\n"
      "same among 5 likeliest  {}\n"
      "same among 10           {}\n"
      "perplexity of A         {}\n"
      "perplexity of B         {}\n"
      "ln(B / A)               {:10.6f} +- {:.6f}\n"
      "p(token), B - A         {}\n"
      "  root mean square      {:8.3f} %\n",
      c.n_tokens, c.window, c.kl.mean, c.kl.error, c.kl_median, c.kl_p90, c.kl_p99, c.kl_max,
      percent(c.same_top1), percent(c.same_top5), percent(c.same_top10), perplexity(c.nll_a),
      perplexity(c.nll_b), c.nll_difference.mean, c.nll_difference.error, percent(c.p_difference),
      100 * c.rms_p_difference);
  for (size_t layer = 0; layer < c.layer_errors.size(); ++layer)
    text += fmt::format("layer {:<3} output, ||B - A|| / ||A|| {:9.6f}\n", layer,
                        c.layer_errors[layer]);
  return text;
}

std::vector<int32_t> read_compared_ids(const CommonOptions& options, const ModelFiles& files,
                                       const std::string& file) {
  std::vector<int32_t> ids = read_text_ids({file}, files, model_path(options), "compare");
  if (ids.size() < 2) {
    fail(ErrorKind::kInvalidArgument, "compare", "--file: expected at least 2 tokens, got {} ({})",
         ids.size(), printable(file, 4096));
  }
  const int64_t vocab = ModelConfig::from_checkpoint(*files.checkpoint).vocab;
  const auto beyond = std::ranges::find_if(ids, [&](int32_t id) { return id < 0 || id >= vocab; });
  if (beyond != ids.end()) {
    fail(ErrorKind::kInvalidArgument, "compare",
         "--file: expected ids of 0 to {} (the vocabulary), got {} as number {} ({})", vocab - 1,
         *beyond, beyond - ids.begin(), printable(file, 4096));
  }
  return ids;
}

Comparison compare_on_text(const CommonOptions& options_a, const CommonOptions& options_b,
                           const ComparisonRequest& request) {
  const auto a = open_for_running(options_a), b = open_for_running(options_b);
  const auto engine_a = a->make_engine(), engine_b = b->make_engine();
  std::vector<int32_t> ids = request.ids;
  if (ids.empty())
    ids = read_text_ids({request.file, request.plain}, *a, model_path(options_a), "compare");
  ComparisonOptions comparison;
  comparison.window = request.window;
  comparison.layers = request.layers;
  comparison.cancel = &interrupted();
  Progress progress("comparing", std::ssize(ids), Progress::Unit::kTokens);
  int64_t shown = 0;
  comparison.on_progress = [&](int64_t done, int64_t) {
    progress.add(done - shown);
    shown = done;
  };
  Comparison result = compare_models({*engine_a, a->config().vocab, a->adapter},
                                     {*engine_b, b->config().vocab, b->adapter}, ids, comparison);
  progress.finish();
  return result;
}

}  // namespace qw::app
