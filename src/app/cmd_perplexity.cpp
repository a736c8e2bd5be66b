// qianwen perplexity: how well a model predicts a text.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/open.h"
#include "app/text_ids.h"
#include "base/progress.h"
#include "engine/perplexity.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::string file;
  std::optional<int64_t> window, stride;
  bool plain = false;
};

void run(const Options& options) {
  const auto loaded = open_for_running(options);
  const auto engine = loaded->make_engine();
  const std::vector<int32_t> ids =
      read_text_ids({options.file, options.plain}, *loaded, model_path(options), "perplexity");
  PerplexityOptions perplexity;
  perplexity.window = options.window.value_or(0);
  perplexity.stride = options.stride.value_or(0);
  perplexity.adapter = loaded->adapter;
  perplexity.cancel = &interrupted();
  Progress progress("perplexity", static_cast<int64_t>(ids.size()), Progress::Unit::kTokens);
  int64_t shown = 0;
  perplexity.on_progress = [&](int64_t done, int64_t) {
    progress.add(done - shown);
    shown = done;
  };
  const Perplexity result = compute_perplexity(*engine, ids, perplexity);
  progress.finish();
  if (options.json) {
    print_json({{"perplexity", result.perplexity},
                {"stderr", result.stderr_perplexity},
                {"n_tokens", result.n_tokens},
                {"nll", result.nll},
                {"nll_stderr", result.stderr_nll},
                {"window", result.window},
                {"stride", result.stride}});
    return;
  }
  print_result(fmt::format("perplexity {:.4f} +- {:.4f} over {} tokens (window {}, stride {})\n",
                           result.perplexity, result.stderr_perplexity, result.n_tokens,
                           result.window, result.stride));
}

}  // namespace

Command register_perplexity(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("perplexity",
                                      "How well a model predicts a text, with the standard error");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  app->add_option("--file", options->file, "A text, or {\"ids\": [...]}; - for standard input")
      ->required();
  app->add_option("--window", options->window, "Tokens of a window (default: the context)")
      ->check(integer_from(1));
  app->add_option("--stride", options->stride,
                  "Tokens between windows (default: the window, no overlap)")
      ->check(integer_from(1));
  app->add_flag("--plain", options->plain, "Special-token strings are ordinary text");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
