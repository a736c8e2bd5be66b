// Comparing two models on a text, and saying what came of it, for the commands that do.
//
// Level 8 (app).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/command.h"
#include "engine/bundle.h"
#include "eval/comparison.h"

namespace qw::app {

struct ComparisonRequest {
  std::string file;          // a text, or {"ids"}; "-": standard input
  std::vector<int32_t> ids;  // in its place, where there are some
  int64_t window = 0;        // tokens that are read together; 0: 512
  bool layers = false;
  bool plain = false;  // special-token strings are ordinary text
};

/// Of a text that models will be compared on, before that is worked for. Errors: those of
/// read_text_ids; invalid_argument (fewer than two tokens, ids that the model does not have).
std::vector<int32_t> read_compared_ids(const CommonOptions& options, const ModelFiles& files,
                                       const std::string& file);

/// Loads both models and reads the text with A's tokenizer, with progress on stderr. Errors: those
/// of open_model, read_text_ids and compare_models.
Comparison compare_on_text(const CommonOptions& a, const CommonOptions& b,
                           const ComparisonRequest& request);

nlohmann::ordered_json comparison_json(const Comparison& comparison);
std::string comparison_text(const Comparison& comparison);

}  // namespace qw::app
