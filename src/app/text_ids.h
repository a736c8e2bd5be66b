// The ids that a text is, for commands that read one or the other.
//
// Level 8 (app).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/bundle.h"

namespace qw::app {

struct TextFile {
  std::string path;    // "-": standard input
  bool plain = false;  // special-token strings are ordinary text
};

/// Of a file with {"ids": [...]}, for which no tokenizer is needed, or with a text. `model` names
/// the checkpoint in errors, `component` the command. Errors: invalid_argument (a name in .json,
/// and no ids), not_found (a file, a tokenizer), those of read_input.
std::vector<int32_t> read_text_ids(const TextFile& file, const ModelFiles& files,
                                   const std::string& model, std::string_view component);

}  // namespace qw::app
