// Every table of scale searches that this CPU can run gives the bits of the one without lanes.
#include "kernels/scale_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kernels/isa_kernels.h"
#include "quant/ggml_blocks.h"

namespace qw::kernels {
namespace {

std::vector<const ScaleSearchOps*> tables() {
  std::vector<const ScaleSearchOps*> out;
  for (const IsaKernels* row : isa_kernels(detect_isa())) {
    if (row->scale_search != nullptr) out.push_back(row->scale_search);
  }
  return out;
}

/// Values as weights have them, and as they should not: the kind depends on the group.
float value_of(uint64_t seed, int group, int i) {
  const float normal = static_cast<float>(
      random_normal(seed, static_cast<uint64_t>(group), static_cast<uint64_t>(i)));
  switch ((static_cast<uint64_t>(group) + seed) % 12) {
    case 0:
      return 0;
    case 1:
      return 0.25F;  // all equal
    case 2:
      return std::round(normal * 2);  // ties
    case 3:
      return normal * 1e-20F;
    case 4:
      return normal * 1e18F;  // squares overflow
    case 5:
      return normal * 1e-42F;
    case 6:
      return i == 3 ? -7.5F : 0;
    case 7:
      return std::fabs(normal);
    case 8:
      return -std::fabs(normal);
    default:
      return normal * 0.02F;
  }
}

struct Found {
  std::vector<float> codes, scale, min;

  bool operator==(const Found& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    // A code of -0 is one of 0.
    return codes == other.codes && same(scale, other.scale) && same(min, other.min);
  }
};

class ScaleSearch : public testing::TestWithParam<const ScaleSearchOps*> {
 protected:
  /// Calls check(x, weights, n_values) for made groups.
  template <class Check>
  void for_each_case(Check check) {
    for (uint64_t seed = 0; seed < 300; ++seed) {
      for (const int n : {16, 32}) {
        std::vector<float> x, weights;
        for (int i = 0; i < n; ++i) {
          for (int g = 0; g < kSearchGroups; ++g) {
            x.push_back(value_of(seed, g, i));
            const double weight = random_uniform(seed, 100, weights.size());
            weights.push_back(seed % 7 == 0 ? 0.0F : static_cast<float>(weight * weight));
          }
        }
        check(x, weights, n);
      }
    }
  }
  template <class Search>
  Found run(const std::vector<float>& x, const std::vector<float>& weights, int n, Search search) {
    Found out;
    out.codes.assign(x.size(), 2.0F);
    out.scale.assign(kSearchGroups, 0.0F);
    out.min.assign(kSearchGroups, 0.0F);
    search(SearchGroups{n, x.data(), weights.data(), out.codes.data(), out.scale.data(),
                        out.min.data()});
    return out;
  }
};

TEST_P(ScaleSearch, AffineIsTheReferences) {
  for_each_case([&](const auto& x, const auto& weights, int n) {
    for (const AffineSearch& search :
         {AffineSearch{15, -1.0F, 0.1F, 20, false}, AffineSearch{3, -0.5F, 0.1F, 15, true},
          AffineSearch{31, -0.9F, 0.05F, 36, false}}) {
      const auto with = [&](const ScaleSearchOps& ops) {
        return run(x, weights, n, [&](const SearchGroups& groups) { ops.affine(groups, search); });
      };
      ASSERT_TRUE(with(*GetParam()) == with(scalar_search_ops())) << search.max_code;
    }
  });
}

TEST_P(ScaleSearch, SymmetricIsTheReferences) {
  for_each_case([&](const auto& x, const auto& weights, int n) {
    for (const int max_code : {4, 8, 16, 32}) {
      const auto with = [&](const ScaleSearchOps& ops) {
        return run(x, weights, n,
                   [&](const SearchGroups& groups) { ops.symmetric(groups, max_code); });
      };
      ASSERT_TRUE(with(*GetParam()) == with(scalar_search_ops())) << max_code;
    }
  });
}

TEST_P(ScaleSearch, DescentIsTheReferences) {
  for_each_case([&](const auto& x, const auto& weights, int n) {
    const auto with = [&](const ScaleSearchOps& ops) {
      return run(x, weights, n, [&](const SearchGroups& groups) { ops.descent(groups); });
    };
    ASSERT_TRUE(with(*GetParam()) == with(scalar_search_ops()));
  });
}

TEST_P(ScaleSearch, RoundingIsTheReferences) {
  for_each_case([&](const auto& x, const auto& weights, int n) {
    std::vector<float> scale, offset;
    for (int g = 0; g < kSearchGroups; ++g) {
      scale.push_back(g == 5 ? 0.0F : weights[static_cast<size_t>(g)] - 0.5F);
      offset.push_back(g % 2 == 0 ? 0.0F : weights[static_cast<size_t>(g + 16)]);
    }
    const auto with = [&](const ScaleSearchOps& ops) {
      return run(x, weights, n, [&](const SearchGroups& groups) {
        ops.round(groups, {scale.data(), offset.data(), -4, 3});
      });
    };
    ASSERT_TRUE(with(*GetParam()) == with(scalar_search_ops()));
  });
}

/// What blocks are rounded to nearest to, by one table.
struct Nearest {
  std::vector<float> scale, min;
  std::vector<uint8_t> codes;

  template <class Round>
  Nearest(const std::vector<float>& x, Round round)
      : scale(x.size() / kNearestBlock, 7.0F), min(scale), codes(x.size(), 99) {
    round(NearestBlocks{static_cast<int64_t>(scale.size()), x.data(), scale.data(), min.data(),
                        codes.data()});
  }
  bool operator==(const Nearest& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;  // -0 is not 0
    };
    return codes == other.codes && same(scale, other.scale) && same(min, other.min);
  }
};

/// Zeros of both signs, extremes of both signs that are equally large, halves between two codes.
TEST_P(ScaleSearch, NearestIsTheReferences) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    std::vector<float> x;
    for (int b = 0; b < 17; ++b) {
      for (int i = 0; i < kNearestBlock; ++i) {
        const float value = value_of(seed, b, i);
        x.push_back(b == 13 ? std::copysign(0.0F, value) : b == 14 ? std::fabs(value) * 0 : value);
      }
      if (b == 15) x[x.size() - 5] = -(x[x.size() - 9] = 20);
      if (b == 16) x[x.size() - 3] = -(x[x.size() - 2] = 127);
    }
    const auto both = [&](const auto& round) {
      return Nearest(x, [&](const NearestBlocks& blocks) { round(*GetParam(), blocks); }) ==
             Nearest(x, [&](const NearestBlocks& blocks) { round(scalar_search_ops(), blocks); });
    };
    for (const int half : {8, 16}) {
      ASSERT_TRUE(both([&](const auto& ops, const auto& b) { ops.nearest_symmetric(b, half); }))
          << half << ", seed " << seed;
    }
    for (const int most : {15, 31}) {
      ASSERT_TRUE(both([&](const auto& ops, const auto& b) { ops.nearest_affine(b, most); }))
          << most << ", seed " << seed;
    }
    ASSERT_TRUE(both([](const auto& ops, const auto& b) { ops.nearest_magnitude(b); }))
        << "seed " << seed;
  }
}

/// Rows whose blocks do not fill the lanes, too.
TEST_P(ScaleSearch, RowsHaveTheSameBytes) {
  for (const DType dtype : {DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K,
                            DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0}) {
    for (const int n_blocks : {1, 2, 3, 17}) {
      const int n = n_blocks * info(dtype).block_elems;
      std::vector<float> x, importance;
      for (int i = 0; i < n; ++i) {
        const float value = value_of(11, i / 32, i % 32);
        x.push_back(std::fabs(value) > 100 ? value * 1e-18F : value);
        importance.push_back(static_cast<float>(random_uniform(3, 1, static_cast<uint64_t>(i))));
      }
      const auto with = [&](const ScaleSearchOps& ops, bool is_weighed) {
        std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, n, "row")));
        is_weighed ? encode_row(dtype, x.data(), importance.data(), n, bytes.data(), ops)
                   : encode_row(dtype, x.data(), n, bytes.data(), ops);
        return bytes;
      };
      for (const bool is_weighed : {false, true}) {
        EXPECT_EQ(with(*GetParam(), is_weighed), with(scalar_search_ops(), is_weighed))
            << name_of(dtype) << ", " << n_blocks << " blocks";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ScaleSearch, testing::ValuesIn(tables()),
                         [](const auto& test) { return std::string(test.param->name); });

}  // namespace
}  // namespace qw::kernels
