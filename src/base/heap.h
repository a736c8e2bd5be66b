// Memory that was freed, given back to the system.
//
// Level 0 (base). The allocator keeps what was freed for what comes; after something large, of a
// kind that seldom comes, that is memory which others could use.
#pragma once

namespace qw {

/// Milliseconds of work. Does nothing where the C library has no way to do it (glibc has).
void give_back_freed_memory() noexcept;

/// From now on blocks of 1 MiB and more are given back when they are freed, and no thread keeps
/// more than 2 MiB behind what it uses. glibc begins with less, but goes up to 32 and 64 MiB for
/// each thread once blocks of such sizes have been freed. For programs that run for long and get
/// large things seldom. Does nothing where the C library has no such limits (glibc has).
void keep_little_freed_memory() noexcept;

}  // namespace qw
