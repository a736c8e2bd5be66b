// quantize --to gptq with --budget, --max-bytes or --max-kl: bits by what matrices are seen to
// cost.
//
// Level 8 (app). Of quantize_layers.cpp.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/quantize_budget.h"
#include "quantize/gptq_checkpoint.h"
#include "quantize/gptq_sensitivity.h"

namespace qw::app {

/// A network that was measured, and the bits that are chosen for it.
class GptqBudget {
 public:
  /// What is measured. All must outlive this.
  struct Input {
    const CommonOptions& options;
    const BudgetFlags& flags;
    quantize::LayerSource source;
    const TokenizerSpec* tokenizer = nullptr;
    const quantize::CalibrationSet& calibration;
    int64_t sequence_length = 512;
    Backend& backend;
    ThreadPool& pool;
    std::string measured;  // the directory of what is measured, kept; "": nowhere
  };
  /// Measures, with progress on stderr, and chooses; an interrupted run goes on with what is not
  /// measured. `request`: how to quantise, bits apart. Errors: those of measure_gptq and
  /// WorkDirectory; invalid_argument, where nothing is small enough.
  GptqBudget(const Input& input, const quantize::GptqRequest& request);
  ~GptqBudget();

  /// With the bits that are chosen.
  const quantize::GptqRequest& request() const;
  /// What was written was measured: whether other bits were chosen, with which it is to be written
  /// again. --max-kl only: until it is kept, and nearly reached. Errors: invalid_argument, when the
  /// best bits do not keep it.
  bool choose_again(double measured_kl);

  /// Of the bits that are chosen: a number for each group.
  std::vector<int> chosen_bits() const;
  double predicted_kl() const;
  /// measured_divergence() of the directory at `path`.
  double compare(const std::string& path) const;
  /// The output is whole: what was kept of what was measured is removed. Errors: io.
  void forget_measured();
  std::string bits() const;  // "3, 4 and 8"
  std::string table() const;
  /// {"predicted_kl", "predictions", "groups": [{"name", "bits", "bytes", "damage"}]}
  nlohmann::ordered_json json() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qw::app
