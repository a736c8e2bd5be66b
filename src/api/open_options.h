// From the public settings to the engine's options: one place for the library and the command line.
//
// Level 7 (api).
#pragma once

#include <string>

#include "engine/bundle.h"
#include "qianwen/qianwen.h"

namespace qw {

/// Type of the KV cache: the one asked for, else f32 where the rest is computed in f32 (the
/// reference device, f32 activations: a cache of halves would cost a digit), else f16.
std::string kv_type_of(const LoadSettings& settings);

/// The engine's options for these settings. Errors: invalid_argument, naming the setting.
OpenOptions open_options(const LoadSettings& settings);

}  // namespace qw
