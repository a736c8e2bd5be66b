// quantize --feedback: a GGUF file whose codes are chosen by what their errors do to outputs.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "app/calibration_input.h"
#include "app/gguf_output.h"

namespace qw::app {

struct FeedbackFlags {
  bool is_asked = false;
};

void add_feedback_flag(CLI::App& app, FeedbackFlags& flags);

/// Collects importances unless `imatrix` names a file of them, makes the layers one by one
/// (resumable: OUTPUT.work), writes and reports. Errors: those of write_gguf_output,
/// make_gguf_feedback and read_calibration.
void run_gguf_feedback(const CommonOptions& options, const GgufOutput& output, GgufChoices choices,
                       const CalibrationFlags& calibration, const std::string& imatrix,
                       double damp);

}  // namespace qw::app
