// Counter-based random numbers: the n-th number of a stream is a pure function of (seed, stream,
// n).
//
// Level 0 (base). Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). Sampling draws by (request seed, token position), so a sampled answer cannot depend
// on batch mates or timing.
#pragma once

#include <array>
#include <cstdint>

namespace qw {

/// Ten rounds of Philox4x32 on a counter under a key; the test vectors are those of Random123.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                   std::array<uint32_t, 2> key) noexcept;

/// 64 random bits for number `index` of stream `stream` under `seed`.
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) noexcept;

/// Uniform in [0, 1), with 53 random bits.
double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) noexcept;

/// Standard normal by Box-Muller from one Philox block.
double random_normal(uint64_t seed, uint64_t stream, uint64_t index) noexcept;

}  // namespace qw
