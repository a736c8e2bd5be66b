// qianwen score: teacher-forced logits, log-probabilities and hidden states of given ids.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "app/command.h"
#include "app/input.h"
#include "app/open.h"
#include "app/results.h"
#include "base/error.h"
#include "base/progress.h"
#include "checkpoint/safetensors.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::string ids_file;
  std::optional<std::string> logits;
  int64_t last = 0;  // 0: all
  bool logprobs = false;
  int64_t top = 0;
  bool hidden_states = false;
};

using Prompts = std::vector<std::vector<int32_t>>;

Prompts read_prompts(const std::string& path) {
  const auto json = parse_user_json(read_input(path), path);
  if (!json.is_object() || !json.contains("prompts") || !json["prompts"].is_array()) {
    fail(ErrorKind::kInvalidArgument, "score",
         "ids file: expected {{\"prompts\": [[ids], ...]}}, got {} ({})",
         printable(json.dump(), 60), printable(path, 4096));
  }
  Prompts prompts;
  for (const auto& ids : json["prompts"])
    prompts.push_back(parse_ids(ids.dump(), fmt::format("prompt {}", prompts.size())));
  return prompts;
}

/// Keeps "hidden.*" values of the wanted rows of one prompt, chunk after chunk.
class HiddenStates : public ForwardObserver {
 public:
  HiddenStates(int64_t first_row, std::vector<std::string> names)
      : first_row_(first_row),
        names_(std::move(names)),
        values_(names_.size()),
        seen_(names_.size()) {}
  bool wants(std::string_view name) override { return index_of(name) < names_.size(); }
  void on_value(std::string_view name, int64_t rows, int64_t cols, const float* values) override {
    const size_t index = index_of(name);
    for (int64_t row = 0; row < rows; ++row) {
      if (seen_[index]++ < first_row_) continue;
      values_[index].insert(values_[index].end(), values + row * cols, values + (row + 1) * cols);
    }
  }
  const std::vector<float>& values(size_t index) const { return values_[index]; }

 private:
  size_t index_of(std::string_view name) const {
    return static_cast<size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
  }
  int64_t first_row_;
  std::vector<std::string> names_;
  std::vector<std::vector<float>> values_;
  std::vector<int64_t> seen_;
};

std::vector<std::string> hidden_names(int n_layers) {
  std::vector<std::string> names = {"hidden.embed"};
  for (int layer = 0; layer < n_layers; ++layer)
    names.push_back("hidden.layer." + std::to_string(layer));
  names.push_back("hidden.norm");
  return names;
}

int64_t first_row(const Options& options, const std::vector<int32_t>& ids) {
  const auto n = static_cast<int64_t>(ids.size());
  return options.last > 0 ? std::max<int64_t>(0, n - options.last) : 0;
}

/// Returns how many tokens were read.
int64_t write_logits(const Options& options, const Prompts& prompts, LoadedModel& loaded,
                     Engine& engine) {
  const ModelConfig& config = loaded.config();
  const std::vector<std::string> names =
      options.hidden_states ? hidden_names(config.n_layers) : std::vector<std::string>{};
  std::vector<SafetensorsEntry> entries;
  int64_t total = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t rows = static_cast<int64_t>(prompts[i].size()) - first_row(options, prompts[i]);
    entries.push_back({fmt::format("logits.{}", i), DType::kF32, Shape{rows, config.vocab}});
    for (const std::string& name : names) {
      entries.push_back({fmt::format("{}.{}", name, i), DType::kF32, Shape{rows, config.hidden}});
    }
    total += static_cast<int64_t>(prompts[i].size());
  }
  SafetensorsWriter out(*options.logits, entries);
  Progress progress("scoring", total, Progress::Unit::kTokens);
  for (const auto& ids : prompts) {
    ScoreOptions score;
    score.adapter = loaded.adapter;
    score.first_row = first_row(options, ids);
    score.cancel = &interrupted();
    HiddenStates hidden(score.first_row, names);
    if (options.hidden_states) score.observer = &hidden;
    const auto on_rows = [&](int64_t, int64_t n, const float* logits) {
      out.write(std::as_bytes(std::span(logits, static_cast<size_t>(n * config.vocab))));
      progress.add(n);
    };
    engine.score(ids, on_rows, score);
    for (size_t i = 0; i < names.size(); ++i)
      out.write(std::as_bytes(std::span(hidden.values(i))));
  }
  out.finish();
  return total;
}

void print_logprobs(const Options& options, const Prompts& prompts, LoadedModel& loaded,
                    Engine& engine) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    ScoreOptions score;
    score.adapter = loaded.adapter;
    score.cancel = &interrupted();
    std::vector<TokenLogprobs> logprobs = engine.score_logprobs(prompts[i], options.top, score);
    if (options.last > 0 && static_cast<int64_t>(logprobs.size()) > options.last) {
      logprobs.erase(logprobs.begin(), logprobs.end() - options.last);
    }
    std::vector<float> values;
    double sum = 0;
    for (const TokenLogprobs& entry : logprobs) {
      values.push_back(entry.chosen.logprob);
      sum += static_cast<double>(entry.chosen.logprob);
    }
    nlohmann::ordered_json line = {{"prompt", i}, {"logprobs", values}, {"sum", sum}};
    if (options.top > 0) line["tokens"] = logprobs_json(logprobs, loaded.tokenizer.get());
    print_json(line);
  }
}

void run(const Options& options) {
  if (!options.logits && !options.logprobs) {
    fail(ErrorKind::kInvalidArgument, "command line",
         "score: expected --logits OUT.safetensors or --logprobs, got neither");
  }
  if (options.top > 0 && !options.logprobs) {
    fail(ErrorKind::kInvalidArgument, "command line",
         "--top: expected --logprobs, whose lines it extends, got none");
  }
  if (options.hidden_states && !options.logits) {
    fail(ErrorKind::kInvalidArgument, "command line",
         "--hidden-states: expected --logits OUT.safetensors to write to, got none");
  }
  const Prompts prompts = read_prompts(options.ids_file);
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].empty())
      fail(ErrorKind::kInvalidArgument, "score", "prompt {}: expected at least one id, got none",
           i);
  }
  OpenOptions open = open_options(options);
  if (options.load.context == 0) {
    // Scoring asks about the given ids, however many: the context is at least the longest prompt.
    const auto checkpoint = Checkpoint::open(model_path(options));
    const auto longest = std::ranges::max_element(prompts, {}, &std::vector<int32_t>::size);
    const auto n = longest == prompts.end() ? int64_t{0} : static_cast<int64_t>(longest->size());
    if (n > ModelConfig::from_checkpoint(*checkpoint).max_positions) open.engine.ctx = n;
  }
  const auto loaded = open_for_running(options, open);
  if (options.top > loaded->config().vocab) {
    fail(ErrorKind::kInvalidArgument, "score",
         "--top: expected at most the vocabulary's {}, got {}", loaded->config().vocab,
         options.top);
  }
  const auto engine = loaded->make_engine();
  if (options.logits) {
    const int64_t n_tokens = write_logits(options, prompts, *loaded, *engine);
    if (options.json && !options.logprobs) {  // whose lines are the results otherwise
      print_json({{"path", *options.logits}, {"prompts", prompts.size()}, {"tokens", n_tokens}});
    }
  }
  if (options.logprobs) print_logprobs(options, prompts, *loaded, *engine);
}

}  // namespace

Command register_score(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("score", "Teacher-forced logits or log-probabilities of token ids");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  app->add_option("--ids-file", options->ids_file, "JSON: {\"prompts\": [[ids], ...]}")->required();
  app->add_option("--logits", options->logits,
                  "Write logits.0, logits.1, ... [T, vocab] f32 to this safetensors file");
  app->add_option("--last", options->last, "Keep the last N positions only (0, the default: all)")
      ->check(integer_from(0));
  app->add_flag("--logprobs", options->logprobs,
                "Print per-token log-probabilities, a JSON line per prompt");
  app->add_option("--top", options->top, "With --logprobs: the N most likely tokens too")
      ->check(integer_from(0));
  app->add_flag("--hidden-states", options->hidden_states,
                "Add hidden.embed.I, hidden.layer.N.I and hidden.norm.I");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
