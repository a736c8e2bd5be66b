// The operations of quant/scale_search_ops.h, written once over a vector type: a group of values in
// each lane. Each ISA folder instantiates them.
//
// Level 3 (kernels). `V` lives in an anonymous namespace, so every instance has internal linkage.
// Every lane does what quant/scale_search.cpp does for one group: the same operations in the same
// order, never fused, so that the bits are the same. What happens there under a condition is
// computed here for all lanes and kept where the condition holds; comparisons with NaN are false
// in both.
#pragma once

#include "kernels/cpu/nearest_body.h"
#include "quant/scale_search_ops.h"

namespace qw::kernels {

template <class V, class StoreBytes>
struct ScaleSearchBody {
  using F = typename V::F;
  static_assert(kSearchGroups % V::kLanes == 0);

  static F absolute(F x) {
    const F zero = V::set1(0.0F);
    return V::where_less(x, zero, V::sub(zero, x), x);
  }
  /// To nearest, ties to even; 0 for NaN and beyond +-2^22.
  static F round_even(F x) {
    const F limit = V::set1(4194304.0F), zero = V::set1(0.0F);
    return V::where_less(x, limit, V::where_less(V::set1(-4194304.0F), x, V::round(x), zero), zero);
  }
  static F clamp(F x, F lowest, F highest) { return V::min(V::max(x, lowest), highest); }

  /// One register of groups.
  struct Lanes {
    const SearchGroups& groups;
    int first;

    F x(int i) const { return V::load(groups.x + i * kSearchGroups + first); }
    F weight(int i) const { return V::load(groups.weights + i * kSearchGroups + first); }
    F code(int i) const { return V::load(groups.codes + i * kSearchGroups + first); }
    void put_code(int i, F code) const { V::store(groups.codes + i * kSearchGroups + first, code); }
    /// The first value of largest magnitude, with its sign.
    F extreme() const {
      F found = V::set1(0.0F);
      for (int i = 0; i < groups.n_values; ++i) {
        const F value = x(i);
        found = V::where_less(absolute(found), absolute(value), value, found);
      }
      return found;
    }
  };

  static void affine(const SearchGroups& groups, const AffineSearch& search) {
    for (int first = 0; first < kSearchGroups; first += V::kLanes)
      affine(Lanes{groups, first}, search);
  }

  static void affine(const Lanes& lanes, const AffineSearch& search) {
    const int n = lanes.groups.n_values;
    const F zero = V::set1(0.0F), highest = V::set1(static_cast<float>(search.max_code));
    F min = lanes.x(0), max = min, sum_w = lanes.weight(0), sum_x = V::mul(sum_w, min);
    for (int i = 1; i < n; ++i) {
      const F x = lanes.x(i), weight = lanes.weight(i);
      min = V::where_less(x, min, x, min);
      max = V::where_less(max, x, x, max);
      sum_w = V::add(sum_w, weight);
      sum_x = V::add(sum_x, V::mul(weight, x));
    }
    min = V::where_less(zero, min, zero, min);
    const F least = min;  // equal to max where there is nothing to search

    F trial[kSearchValues];
    F sum_code, sum_code2, sum_code_x;
    const auto round_codes = [&](F inverse_scale) {
      sum_code = sum_code2 = sum_code_x = zero;
      for (int i = 0; i < n; ++i) {
        const F x = lanes.x(i), weight = lanes.weight(i);
        const F level = clamp(round_even(V::mul(inverse_scale, V::sub(x, min))), zero, highest);
        const F weighted = V::mul(weight, level);
        trial[i] = level;
        sum_code = V::add(sum_code, weighted);
        sum_code2 = V::add(sum_code2, V::mul(weighted, level));
        sum_code_x = V::add(sum_code_x, V::mul(weighted, x));
      }
    };
    const auto error_of = [&](F scale, F offset) {
      F error = zero;
      for (int i = 0; i < n; ++i) {
        const F diff = V::sub(V::add(V::mul(scale, trial[i]), offset), lanes.x(i));
        const F size = search.absolute_error ? absolute(diff) : V::mul(diff, diff);
        error = V::add(error, V::mul(lanes.weight(i), size));
      }
      return error;
    };
    // What the best codes were rounded with: they are rounded again at the end.
    F best_inverse = V::div(highest, V::sub(max, min)), best_min = min;
    F scale = V::div(V::set1(1.0F), best_inverse);
    round_codes(best_inverse);
    F least_error = error_of(scale, min);
    for (int step = 0; step <= search.n_steps; ++step) {
      const float steps = search.first + search.step * static_cast<float>(step) +
                          static_cast<float>(search.max_code);
      const F inverse = V::div(V::set1(steps), V::sub(max, min));
      round_codes(inverse);
      const F determinant = V::sub(V::mul(sum_w, sum_code2), V::mul(sum_code, sum_code));
      F trial_scale =
          V::div(V::sub(V::mul(sum_w, sum_code_x), V::mul(sum_x, sum_code)), determinant);
      F offset =
          V::div(V::sub(V::mul(sum_code2, sum_x), V::mul(sum_code, sum_code_x)), determinant);
      trial_scale = V::where_less(zero, offset, V::div(sum_code_x, sum_code2), trial_scale);
      offset = V::where_less(zero, offset, zero, offset);
      // No improvement where the determinant is not positive.
      const F error = V::where_less(zero, determinant, error_of(trial_scale, offset), least_error);
      best_inverse = V::where_less(error, least_error, inverse, best_inverse);
      best_min = V::where_less(error, least_error, min, best_min);
      scale = V::where_less(error, least_error, trial_scale, scale);
      min = V::where_less(error, least_error, offset, min);
      least_error = V::where_less(error, least_error, error, least_error);
    }
    min = V::where_less(least, max, min, least);
    V::store(lanes.groups.scale + lanes.first, V::where_less(least, max, scale, zero));
    V::store(lanes.groups.min + lanes.first, V::mul(min, V::set1(-1.0F)));
    for (int i = 0; i < n; ++i) {
      const F value = V::mul(best_inverse, V::sub(lanes.x(i), best_min));
      const F code = clamp(round_even(value), zero, highest);
      lanes.put_code(i, V::where_less(least, max, code, zero));
    }
  }

  static void symmetric(const SearchGroups& groups, int max_code) {
    for (int first = 0; first < kSearchGroups; first += V::kLanes)
      symmetric(Lanes{groups, first}, static_cast<float>(max_code));
  }

  static void symmetric(const Lanes& lanes, float max_code) {
    const int n = lanes.groups.n_values;
    const F zero = V::set1(0.0F), lowest = V::set1(-max_code), highest = V::set1(max_code - 1.0F);
    const F max = lanes.extreme();
    F sum_lx, sum_l2;
    const auto sum = [&](F inverse_scale) {
      sum_lx = sum_l2 = zero;
      for (int i = 0; i < n; ++i) {
        const F x = lanes.x(i), weight = lanes.weight(i);
        const F level = clamp(round_even(V::mul(inverse_scale, x)), lowest, highest);
        sum_lx = V::add(sum_lx, V::mul(V::mul(weight, x), level));
        sum_l2 = V::add(sum_l2, V::mul(V::mul(weight, level), level));
      }
    };
    F best_inverse = V::div(lowest, max);
    sum(best_inverse);
    const F quotient = V::div(sum_lx, sum_l2);
    F scale = V::where_less(absolute(sum_l2), V::set1(0x1p-149F), zero, quotient);
    F best = V::mul(scale, sum_lx);
    for (int step = -9; step <= 9; ++step) {
      if (step == 0) continue;
      const F inverse = V::div(V::set1(-(max_code + 0.1F * static_cast<float>(step))), max);
      sum(inverse);
      // Better by a share of the weighted squares; not where all codes are 0.
      const F gain = V::where_less(zero, sum_l2, V::mul(sum_lx, sum_lx), V::mul(best, sum_l2));
      const F needed = V::mul(best, sum_l2);
      const F trial_scale = V::div(sum_lx, sum_l2);
      best_inverse = V::where_less(needed, gain, inverse, best_inverse);
      scale = V::where_less(needed, gain, trial_scale, scale);
      best = V::where_less(needed, gain, V::mul(trial_scale, sum_lx), best);
    }
    // Where all is about zero, so is the scale.
    const F size = absolute(max), tiny = V::set1(1e-15F);
    V::store(lanes.groups.scale + lanes.first, V::where_less(size, tiny, zero, scale));
    for (int i = 0; i < n; ++i) {
      const F code = clamp(round_even(V::mul(best_inverse, lanes.x(i))), lowest, highest);
      lanes.put_code(i, V::where_less(size, tiny, lowest, code));
    }
  }

  static void descent(const SearchGroups& groups) {
    for (int first = 0; first < kSearchGroups; first += V::kLanes)
      descent(Lanes{groups, first});
  }

  static void descent(const Lanes& lanes) {
    const int n = lanes.groups.n_values;
    const F zero = V::set1(0.0F), one = V::set1(1.0F), half = V::set1(0.5F);
    const F lowest = V::set1(-4.0F), highest = V::set1(3.0F);
    const F max = lanes.extreme(), inverse_scale = V::div(lowest, max);
    F codes[kSearchValues];
    F sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; ++i) {
      const F x = lanes.x(i), weight = V::mul(x, x);
      codes[i] = clamp(round_even(V::mul(inverse_scale, x)), lowest, highest);
      sum_lx = V::add(sum_lx, V::mul(V::mul(weight, x), codes[i]));
      sum_l2 = V::add(sum_l2, V::mul(V::mul(weight, codes[i]), codes[i]));
    }
    for (int round = 0; round < 5; ++round) {
      for (int i = 0; i < n; ++i) {
        const F x = lanes.x(i), weight = V::mul(x, x), level = codes[i];
        F without_lx = V::sub(sum_lx, V::mul(V::mul(weight, x), level));
        F without_l2 = V::sub(sum_l2, V::mul(V::mul(weight, level), level));
        const F value = V::div(V::mul(x, without_l2), without_lx);
        const F better = clamp(round_even(value), lowest, highest);
        F take = V::where_less(zero, without_lx, one, zero);
        take = V::where_less(half, absolute(V::sub(better, level)), take, zero);
        without_lx = V::add(without_lx, V::mul(V::mul(weight, x), better));
        without_l2 = V::add(without_l2, V::mul(V::mul(weight, better), better));
        take = V::where_less(zero, without_l2, take, zero);
        take = V::where_less(V::mul(V::mul(sum_lx, sum_lx), without_l2),
                             V::mul(V::mul(without_lx, without_lx), sum_l2), take, zero);
        codes[i] = V::where_less(half, take, better, level);
        sum_lx = V::where_less(half, take, without_lx, sum_lx);
        sum_l2 = V::where_less(half, take, without_l2, sum_l2);
      }
    }
    const F size = absolute(max), tiny = V::set1(1e-15F);
    const F scale = V::where_less(zero, sum_l2, V::div(sum_lx, sum_l2), zero);
    V::store(lanes.groups.scale + lanes.first, V::where_less(size, tiny, zero, scale));
    for (int i = 0; i < n; ++i)
      lanes.put_code(i, V::where_less(size, tiny, lowest, codes[i]));
  }

  static void round(const SearchGroups& groups, const GroupGrid& grid) {
    const F lowest = V::set1(static_cast<float>(grid.lowest));
    const F highest = V::set1(static_cast<float>(grid.highest));
    for (int first = 0; first < kSearchGroups; first += V::kLanes) {
      const Lanes lanes{groups, first};
      const F scale = V::load(grid.scale + first), offset = V::load(grid.offset + first);
      const F size = absolute(scale), least = V::set1(0x1p-149F);
      for (int i = 0; i < groups.n_values; ++i) {
        const F value = round_even(V::div(V::add(lanes.x(i), offset), scale));
        lanes.put_code(i, V::where_less(size, least, lanes.code(i), clamp(value, lowest, highest)));
      }
    }
  }

  static constexpr ScaleSearchOps table() {
    using Nearest = NearestBody<V, StoreBytes>;
    return {V::kName,           affine,          symmetric,         descent, round,
            Nearest::symmetric, Nearest::affine, Nearest::magnitude};
  }
};

}  // namespace qw::kernels
