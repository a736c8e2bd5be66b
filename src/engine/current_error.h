// What was thrown, as an Error.
//
// Level 6 (engine). A request may bring code of its own (processors), which may throw anything.
#pragma once

#include "base/error.h"

namespace qw {

/// The exception in flight; call it in a catch block.
Error current_error();

}  // namespace qw
