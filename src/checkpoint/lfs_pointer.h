// Git LFS pointers: small text files that a clone made without git-lfs holds in place of large
// ones.
//
// Level 3 (checkpoint). Source: the pointer specification of git-lfs, version 1.
#pragma once

#include <string_view>

namespace qw {

/// Refuses `text`, the content of the file at `path`, when it is such a pointer. `what` says what
/// the file was to hold ("weights"). Errors: corrupt, with the size of the real file.
void refuse_lfs_pointer(std::string_view text, std::string_view what, std::string_view path);

}  // namespace qw
