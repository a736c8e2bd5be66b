// Memory that was freed, given back to the system.
//
// Level 0 (base). The allocator keeps what was freed for what comes; after something large, of a
// kind that seldom comes, that is memory which others could use.
#pragma once

namespace qw {

/// Milliseconds of work. Does nothing where the C library has no way to do it (glibc has).
void give_back_freed_memory() noexcept;

}  // namespace qw
