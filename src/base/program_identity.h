// Which program this is, by its own bytes: caches that must not outlive a build are named by it.
//
// Level 0 (base).
#pragma once

#include <string>

namespace qw {

/// A hash (XXH3, 128 bits) of the code and the constants of the program or shared library that this
/// function is linked into, as they lie in memory, and the version of the C library, whose
/// functions numbers go through. The same for every process of one build, another after every
/// change.
std::string program_identity();

}  // namespace qw
