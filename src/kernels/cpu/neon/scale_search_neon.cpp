#include "kernels/cpu/neon/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

namespace {

/// Whole numbers of -128 to 127 as bytes.
struct StoreBytes {
  static void store(uint8_t* p, Vec::F x) {
    float values[Vec::kLanes];
    Vec::store(values, x);
    for (int i = 0; i < Vec::kLanes; ++i)
      p[i] = static_cast<uint8_t>(static_cast<int32_t>(values[i]));
  }
};

}  // namespace

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec, StoreBytes>::table();

}  // namespace qw::kernels::neon
