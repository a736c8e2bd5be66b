// quantize --feedback: a GGUF file whose codes are chosen by what their errors do to outputs.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/calibration_input.h"
#include "app/gguf_output.h"
#include "backend/backend.h"
#include "quantize/layer_checkpoint.h"

namespace qw::app {

void add_feedback_flag(CLI::App& app, bool& is_asked);

struct FeedbackInput {
  const CommonOptions& options;
  quantize::LayerSource source;
  const quantize::CalibrationSet& calibration;
  Backend& backend;
  ThreadPool& pool;
  double damp = 0.01;
  /// As GgufFeedbackRequest::with_importance.
  std::function<GgufPlan(quantize::ImportanceMatrix)> with_importance = {};
};

struct FeedbackWritten {
  GgufWritten written;
  nlohmann::ordered_json more;  // "layers", "loss_beside_plain"
  std::string line;             // the same in words
};

/// Makes the layers of `plan` one by one (resumable: OUTPUT.work) and writes, with progress.
/// Errors: those of write_gguf_output and make_gguf_feedback.
FeedbackWritten write_with_feedback(const FeedbackInput& input, const GgufOutput& output,
                                    const GgufPlan& plan);

/// Collects importances unless `imatrix` names a file of them, writes and reports. Errors: those of
/// write_with_feedback and read_calibration.
void run_gguf_feedback(const CommonOptions& options, const GgufOutput& output, GgufChoices choices,
                       const CalibrationFlags& calibration, const std::string& imatrix,
                       double damp);

}  // namespace qw::app
