// Whether there is a place for what a command will write.
//
// Level 8 (app).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace qw::app {

/// "name/" is "name": other names are made of it.
std::string directory_name(const std::string& output);

/// Removes first what killed runs left on their way to `output`, or to files that it is split into
/// (OUTPUT.tmp-...). `goes_on`: what an interrupted one left in OUTPUT.work is part of n_bytes.
/// `component` and --output are named in errors. Errors: not_found (no directory that it would be
/// in), io (fewer than n_bytes free).
void check_room(std::string_view component, const std::string& output, int64_t n_bytes,
                bool goes_on = false);

/// What `flag` names can be a file: it neither is a directory nor ends as one. Errors:
/// invalid_argument.
void check_file_name(std::string_view component, std::string_view flag, const std::string& path);

}  // namespace qw::app
