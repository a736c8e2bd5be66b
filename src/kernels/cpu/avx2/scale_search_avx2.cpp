#include "kernels/cpu/avx2/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx2 {

namespace {

/// Whole numbers of -128 to 127 as bytes.
struct StoreBytes {
  static void store(uint8_t* p, __m256 x) {
    const __m256i whole = _mm256_cvttps_epi32(x);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
};

}  // namespace

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec, StoreBytes>::table();

}  // namespace qw::kernels::avx2
