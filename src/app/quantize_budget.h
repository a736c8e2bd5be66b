// quantize --budget, --max-bytes, --max-kl: types by what each matrix is seen to cost.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/calibration_input.h"
#include "app/command.h"
#include "app/gguf_feedback_output.h"
#include "app/gguf_output.h"
#include "quantize/gguf_plan.h"
#include "quantize/sensitivity.h"

namespace qw::app {

struct BudgetFlags {
  std::string bits;       // "4.25" or "4.25bpw"; "": none
  int64_t max_bytes = 0;  // of the file; 0: none
  double max_kl = 0;      // 0: none
  int64_t sensitivity_tokens = 4096;
  bool feedback = false;  // gguf_feedback_output.h
  double damp = 0.01;     // of that
  std::vector<const CLI::Option*> all;

  bool is_asked() const;
};

void add_budget_flags(CLI::App& app, BudgetFlags& flags);

/// "4.25" or "4.25bpw". Errors: invalid_argument, for what is no number of bits.
double parse_budget_bits(std::string text);

/// Errors: invalid_argument, saying what would do: in all; or by how many bytes the matrices with
/// `n_weights` are too large.
[[noreturn]] void refuse_max_bytes(int64_t given, int64_t least);
[[noreturn]] void refuse_budget(const std::string& given, int64_t n_missing_bytes,
                                int64_t n_weights);

/// Mean KL divergence of the model at `path` from that of `options`, on the tokens of `probed`, by
/// what `compare` does. Errors: those of opening and running.
double measured_divergence(const CommonOptions& options, const quantize::CalibrationSet& probed,
                           const std::string& path);

/// A network that was measured, and files that are planned of it.
class BudgetPlanner {
 public:
  /// Measures, with progress on stderr. `imatrix`: a file, "": collected from the calibration.
  /// Errors: those of reading calibration and importances, and of running the network.
  BudgetPlanner(const CommonOptions& options, const BudgetFlags& flags,
                const CalibrationFlags& calibration, const std::string& imatrix,
                const std::string& name);
  ~BudgetPlanner();

  /// The plan for the flags' budget. Errors: invalid_argument, where nothing is small enough, or
  /// good enough for --max-kl.
  const GgufPlan& plan();
  /// For --max-kl, when what was written was measured to be further away: a stricter plan.
  const GgufPlan& stricter_plan(double measured_kl);

  double predicted_kl() const;
  std::string table() const;
  /// {"predicted_kl", "tensors": [{"name", "type", "bytes", "damage"}]}
  nlohmann::ordered_json json() const;
  /// measured_divergence() of the file at `path`, on the tokens that the model was measured with.
  double compare(const std::string& path) const;
  /// Writes the last plan. Errors: those of write_gguf_output, or of write_with_feedback.
  FeedbackWritten write(const GgufOutput& output);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qw::app
