// From --calibration to sequences of ids.
//
// Level 8 (app).
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "app/command.h"
#include "engine/bundle.h"
#include "quantize/calibration.h"
#include "quantize/importance.h"

namespace qw::app {

struct CalibrationFlags {
  std::string file;  // "": the built-in set
  quantize::CalibrationOptions cut;
};

/// Adds --calibration, --calibration-length and --calibration-tokens.
void add_calibration_flags(CLI::App& app, CalibrationFlags& flags);

/// The sequences of a file, "-" for standard input: a text, or (a name in .jsonl or .json, or text
/// that begins with "{") an object a line: {"text"}, {"messages"} and what else the chat template
/// takes, {"ids"}. `model` names the checkpoint in errors. Errors: not_found (a file, a tokenizer),
/// invalid_argument (a line that is none of these; too little), those of the template.
quantize::CalibrationSet read_calibration(const CalibrationFlags& flags, const ModelFiles& files,
                                          const std::string& model);

/// What a file made with importances of that calibration says of them.
void name_importance(const CalibrationFlags& flags, quantize::ImportanceMatrix& importance);

/// What calibration runs on: as the flags say, but with inputs in f32 unless they say otherwise, so
/// that they are seen as they are and not as a fast kernel rounds them.
std::unique_ptr<Backend> calibration_backend(const CommonOptions& options);

}  // namespace qw::app
