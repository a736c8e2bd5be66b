// What a user hands in by a path: a regular file, a pipe, `<(...)`, /dev/stdin, a terminal.
//
// Level 0 (base). Files of a checkpoint are mapped (mapped_file.h) and must be regular; what a user
// names on the command line may also be a stream, which is read to its end under a cap.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/cancel.h"

namespace qw {

/// Of a stream, whose size nobody knows before its end. Far above any prompt or conversation, and
/// small enough that reading /dev/zero by mistake does no harm.
constexpr size_t kMaxStreamBytes = size_t{256} << 20;

/// All that `descriptor` gives until its end; `name` stands in messages. A signal ends the waiting
/// when `cancel` (may be null) is set by then.
/// Errors: io, invalid_argument (more than `max_bytes`), cancelled.
std::string read_stream(int descriptor, std::string_view name, const CancelFlag* cancel,
                        size_t max_bytes = kMaxStreamBytes);

/// The whole of `path`, of at most `max_bytes`: as read_text_file() for a regular file, otherwise
/// as read_stream(), which has its own cap too. A named pipe is waited for until somebody writes to
/// it, as `cat` does. Errors: not_found, io (a directory among them), invalid_argument (too
/// large), cancelled.
std::string read_input_file(const std::string& path, const CancelFlag* cancel,
                            size_t max_bytes = size_t{1} << 30);

}  // namespace qw
