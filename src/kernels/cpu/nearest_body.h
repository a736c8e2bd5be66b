// The roundings to nearest of quant/scale_search_ops.h, written once over a vector type: values of
// a block side by side in lanes. Each ISA folder instantiates them.
//
// Level 3 (kernels). `V` and `StoreBytes` live in an anonymous namespace, so every instance has
// internal linkage. StoreBytes::store(p, x): whole numbers of -128 to 127 as V::kLanes bytes.
// Operations and roundings of a value are those of quant/scale_search.cpp, and so are the bits;
// only extremes are found in another order, which has no rounding.
#pragma once

#include <stdint.h>

#include "quant/scale_search_ops.h"

namespace qw::kernels {

template <class V, class StoreBytes>
struct NearestBody {
  using F = typename V::F;
  static constexpr int kVectors = kNearestBlock / V::kLanes;
  static_assert(kNearestBlock % V::kLanes == 0);

  static F absolute(F x) { return V::max(x, V::sub(V::set1(0.0F), x)); }
  /// 0 for NaN and beyond 2^22.
  static F in_range(F x) {
    return V::where_less(absolute(x), V::set1(4194304.0F), x, V::set1(0.0F));
  }
  /// Of x >= 0, below 2^22.
  static F floor(F x) {
    const F nearest = V::round(x);
    return V::where_less(x, nearest, V::sub(nearest, V::set1(1.0F)), nearest);
  }
  static float inverse_of(float d) { return d != 0.0F ? 1.0F / d : 0.0F; }

  /// One block.
  struct Block {
    F x[kVectors];
    float min, max;

    explicit Block(const float* from) {
      for (int i = 0; i < kVectors; ++i)
        x[i] = V::load(from + i * V::kLanes);
      F most = x[0], least = x[0];
      for (int i = 1; i < kVectors; ++i) {
        most = V::max(most, x[i]);
        least = V::min(least, x[i]);
      }
      max = V::reduce_max(most);
      min = -V::reduce_max(V::sub(V::set1(0.0F), least));
    }
    /// code(x) of every value.
    template <class Code>
    void put(uint8_t* codes, const Code& code) const {
      for (int i = 0; i < kVectors; ++i)
        StoreBytes::store(codes + i * V::kLanes, code(x[i]));
    }
  };

  /// The first value of largest magnitude, where both signs have it or all are zeros.
  static float first_extreme(const float* x) {
    float found = 0.0F;
    for (int i = 0; i < kNearestBlock; ++i) {
      const float size = x[i] < 0 ? -x[i] : x[i], best = found < 0 ? -found : found;
      if (size > best) found = x[i];
    }
    return found;
  }

  static void symmetric(const NearestBlocks& blocks, int half) {
    const F shift = V::set1(static_cast<float>(half) + 0.5F);
    const F highest = V::set1(static_cast<float>(2 * half - 1));
    for (int64_t b = 0; b < blocks.n_blocks; ++b) {
      const float* x = blocks.x + b * kNearestBlock;
      const Block block(x);
      const float extreme = block.max > -block.min   ? block.max
                            : block.max < -block.min ? block.min
                                                     : first_extreme(x);
      const float d = extreme / static_cast<float>(-half);
      const F inverse = V::set1(inverse_of(d));
      blocks.scale[b] = d;
      block.put(blocks.codes + b * kNearestBlock, [&](F value) {
        return V::min(floor(in_range(V::add(V::mul(value, inverse), shift))), highest);
      });
    }
  }

  static void affine(const NearestBlocks& blocks, int max_code) {
    const F half = V::set1(0.5F), highest = V::set1(static_cast<float>(max_code));
    for (int64_t b = 0; b < blocks.n_blocks; ++b) {
      const float* x = blocks.x + b * kNearestBlock;
      const Block block(x);
      float least = block.min, most = block.max;
      // Of 0 and -0 the first least and the last largest one count.
      if (least == 0 || most == 0) {
        least = most = x[0];
        for (int i = 1; i < kNearestBlock; ++i) {
          least = x[i] < least ? x[i] : least;
          most = x[i] < most ? most : x[i];
        }
      }
      const float d = (most - least) / static_cast<float>(max_code);
      const F inverse = V::set1(inverse_of(d)), min = V::set1(least);
      blocks.scale[b] = d;
      blocks.min[b] = least;
      block.put(blocks.codes + b * kNearestBlock, [&](F value) {
        const F level = V::add(V::mul(V::sub(value, min), inverse), half);
        return V::min(floor(in_range(level)), highest);
      });
    }
  }

  static void magnitude(const NearestBlocks& blocks) {
    const F zero = V::set1(0.0F), half = V::set1(0.5F), one = V::set1(1.0F);
    for (int64_t b = 0; b < blocks.n_blocks; ++b) {
      const Block block(blocks.x + b * kNearestBlock);
      const float most = block.max > -block.min ? block.max : -block.min;
      const float d = (most == 0 ? 0.0F : most) / 127.0F;  // never -0
      const F inverse = V::set1(inverse_of(d));
      blocks.scale[b] = d;
      block.put(blocks.codes + b * kNearestBlock, [&](F value) {
        // To even first; what was half a step below that is rounded up. Differences are exact.
        const F level = in_range(V::mul(value, inverse)), size = absolute(level);
        F code = V::round(size);
        code = V::where_less(V::sub(size, code), half, code, V::add(code, one));
        return V::where_less(level, zero, V::sub(zero, code), code);
      });
    }
  }
};

}  // namespace qw::kernels
