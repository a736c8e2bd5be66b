// quantize --budget, --max-bytes, --max-kl: types by what each matrix is seen to cost.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/calibration_input.h"
#include "app/command.h"
#include "app/gguf_feedback_output.h"
#include "app/gguf_output.h"
#include "base/progress.h"
#include "quantize/gguf_plan.h"
#include "quantize/network_probe.h"

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

/// Where what was measured for an output is kept until that is whole: "OUTPUT.measured".
std::string measured_path(const std::string& output);

/// Progress of what is measured, of which some was before an interruption.
class MeasuringProgress {
 public:
  /// `kept` tells where; `total`: in all.
  MeasuringProgress(int64_t total, std::string kept) : total_(total), kept_(std::move(kept)) {}
  /// The next of them; those that are known come first.
  void next(bool is_known);

 private:
  int64_t total_, n_known_ = 0, n_done_ = 0;
  std::string kept_;
  std::optional<Progress> progress_;
};

/// Runs the model as published, with progress on stderr. `options`: on_layer apart. Errors: those
/// of NetworkProbe.
std::unique_ptr<quantize::NetworkProbe> open_probe(const quantize::LayerSource& source,
                                                   const quantize::CalibrationSet& probed,
                                                   Backend& backend, ThreadPool& pool,
                                                   quantize::ProbeOptions options = {});

/// Mean KL divergence of the model in the file or directory at `path`, with progress on stderr.
/// Errors: those of opening a checkpoint and of NetworkProbe.
double measured_divergence(quantize::NetworkProbe& probe, const std::string& path);

/// A network that was measured, and files that are planned of it.
class BudgetPlanner {
 public:
  /// Measures, with progress on stderr; what is measured is noted beside `output`, unless it is a
  /// dry run, and an interrupted run goes on from there. `imatrix`: a file, "": collected from the
  /// calibration. Errors: those of reading calibration and importances, of running the network and
  /// of MeasurementJournal.
  BudgetPlanner(const CommonOptions& options, const BudgetFlags& flags,
                const CalibrationFlags& calibration, const std::string& imatrix,
                const GgufOutput& output);
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
  double compare(const std::string& path);
  /// Writes the last plan. Errors: those of write_gguf_output, or of write_with_feedback.
  FeedbackWritten write(const GgufOutput& output);
  /// The output is whole: what was noted of what was measured is removed. Errors: io.
  void forget_measured();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qw::app
