// From flags to a checkpoint ready to use, with warnings and interruption wired up.
//
// Level 8 (app).
#pragma once

#include <memory>
#include <string>

#include "api/open_options.h"
#include "app/command.h"
#include "engine/bundle.h"

namespace qw::app {

/// The engine's options for these flags. Errors: invalid_argument, naming the flag.
OpenOptions open_options(const CommonOptions& options);

/// Loads weights and all. Warnings go to stderr.
std::unique_ptr<LoadedModel> open_for_running(const CommonOptions& options);
std::unique_ptr<LoadedModel> open_for_running(const CommonOptions& options,
                                              const OpenOptions& open);

/// Tokenizer, template and configuration only.
ModelFiles open_for_reading(const CommonOptions& options, bool weights_required);
/// The tokenizer, or Error{kNotFound} naming the checkpoint.
const Tokenizer& tokenizer_of(const ModelFiles& files, const std::string& path);

}  // namespace qw::app
