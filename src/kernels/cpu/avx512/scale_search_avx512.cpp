#include "kernels/cpu/avx512/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512 {

namespace {

/// Whole numbers of -128 to 127 as bytes.
struct StoreBytes {
  static void store(uint8_t* p, __m512 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x)));
  }
};

}  // namespace

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec, StoreBytes>::table();

}  // namespace qw::kernels::avx512
