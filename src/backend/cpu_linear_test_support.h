// Random matrices of every published format, and the contexts that multiply them: shared by the
// tests of the CPU backend's linear layers.
//
// Level 4 (backend), tests only.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "backend/cpu_linear.h"
#include "base/half.h"
#include "base/rng.h"
#include "kernels/registry.h"
#include "quant/ggml_blocks.h"

namespace qw::test {

using kernels::IsaLevel;

struct Random {
  uint64_t seed, next = 0;
  float normal() { return static_cast<float>(random_normal(seed, 1, next++)); }
  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_bits(seed, 2, next++) % static_cast<uint64_t>(n));
  }
};

/// Groups with codes, scales and zeros drawn at random.
class RandomGroups final : public GroupAffine {
 public:
  RandomGroups(Random& random, int64_t n_, int64_t k_, int bits_, int64_t group, Form form_,
               bool act_order) {
    n = n_;
    k = k_;
    bits = bits_;
    group_size = group;
    n_groups = (k + group - 1) / group;
    form = form_;
    codes_.resize(static_cast<size_t>(n * k));
    for (auto& code : codes_)
      code = static_cast<uint8_t>(random.below(1 << bits));
    scales_.resize(static_cast<size_t>(n * n_groups));
    zeros_.resize(scales_.size());
    for (auto& scale : scales_)
      scale = f16_to_f32(f32_to_f16(0.01F * random.normal()));
    for (auto& zero : zeros_) {
      zero = form == Form::kZeroPoint ? static_cast<float>(random.below((1 << bits) + 1))
                                      : f16_to_f32(f32_to_f16(0.05F * random.normal()));
    }
    if (!act_order) return;
    group_of.resize(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i)
      group_of[static_cast<size_t>(i)] = static_cast<int32_t>(i / group);
    for (int64_t i = k - 1; i > 0; --i) {
      std::swap(group_of[static_cast<size_t>(i)],
                group_of[static_cast<size_t>(random.below(i + 1))]);
    }
  }
  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    std::copy_n(codes_.begin() + row * k, n_rows * k, out);
  }
  void scales(int64_t row, int64_t n_rows, float* out) const override {
    std::copy_n(scales_.begin() + row * n_groups, n_rows * n_groups, out);
  }
  void zeros(int64_t row, int64_t n_rows, float* out) const override {
    std::copy_n(zeros_.begin() + row * n_groups, n_rows * n_groups, out);
  }
  std::vector<uint8_t> codes_;
  std::vector<float> scales_, zeros_;
};

/// A published form: a plain or block type, or groups.
struct Format {
  std::string name;
  std::optional<DType> dtype;
  int bits = 0;
  int64_t group = 0;  // 0: per channel
  bool offset = false, act_order = false;
  int64_t k_step() const { return dtype ? info(*dtype).block_elems : std::max<int64_t>(group, 32); }
};

/// What GoogleTest calls a format.
inline void PrintTo(const Format& format, std::ostream* out) {
  *out << format.name;
}

inline std::vector<DType> all_block_types() {
  std::vector<DType> out;
  for (int64_t id = 0; id < 64; ++id) {
    const std::optional<DType> type = dtype_from_ggml_id(id);
    if (type && is_block(*type)) out.push_back(*type);
  }
  return out;
}

inline std::vector<Format> all_formats() {
  std::vector<Format> out;
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kF64})
    out.push_back({std::string(name_of(type)), type});
  for (DType type : all_block_types())
    out.push_back({std::string(name_of(type)), type});
  for (int bits : {2, 3, 4, 8}) {
    const std::string name = "int" + std::to_string(bits);
    out.push_back({name + "_g32", {}, bits, 32});
    out.push_back({name + "_g128", {}, bits, 128});
    out.push_back({name + "_g128_act_order", {}, bits, 128, false, true});
    out.push_back({name + "_channel", {}, bits, 0});
  }
  out.push_back({"int4_g40_act_order", {}, 4, 40, false, true});
  out.push_back({"int4_g128_offset", {}, 4, 128, true});
  return out;
}

/// n rows of k columns in zeroed blocks.
inline LinearSource empty_blocks(DType type, int64_t n, int64_t k) {
  const int64_t bytes_per_row = row_bytes(type, k, "test");
  auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(n * bytes_per_row));
  return {.name = "test." + std::string(name_of(type)),
          .n = n,
          .k = k,
          .data = BlockRows{type, bytes->data(), bytes_per_row},
          .owner = bytes};
}

/// The bytes of a source of blocks.
inline std::byte* block_bytes(const LinearSource& source) {
  return const_cast<std::byte*>(std::get<BlockRows>(source.data).data);
}

/// Random codes under scales of about `size`, of both signs, now and then 0.
inline void random_codes(Random& random, DType type, float size, int64_t n_bytes, std::byte* out) {
  for (int64_t i = 0; i < n_bytes; ++i)
    out[i] = static_cast<std::byte>(random.below(256));
  for (int64_t at = 0; at < n_bytes; at += info(type).block_bytes) {
    const float scale = random.below(9) == 0 ? 0.0F : size * random.normal();
    set_block_scale(type, f32_to_f16(scale), out + at);
  }
}

inline LinearSource make_source(const Format& format, int64_t n, int64_t k, uint64_t seed) {
  Random random{seed};
  LinearSource out;
  out.name = "test." + format.name;
  out.n = n;
  out.k = k;
  if (!format.dtype) {
    out.data = std::make_shared<const RandomGroups>(
        random, n, k, format.bits, format.group == 0 ? k : format.group,
        format.offset ? GroupAffine::Form::kOffset : GroupAffine::Form::kZeroPoint,
        format.act_order);
    return out;
  }
  const int64_t bytes_per_row = row_bytes(*format.dtype, k, "test");
  auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(n * bytes_per_row));
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t r = 0; r < n; ++r) {
    // Mixed magnitudes from row to row and along the row, and a few zeros.
    const float size = std::exp2(static_cast<float>(random.below(12)) - 8.0F);
    if (is_grid_type(*format.dtype)) {
      random_codes(random, *format.dtype, size / 32, bytes_per_row,
                   bytes->data() + r * bytes_per_row);
      continue;
    }
    for (auto& value : row)
      value = random.below(9) == 0 ? 0.0F
                                   : size * random.normal() * (random.below(40) == 0 ? 8.0F : 1.0F);
    if (r % 7 == 3) std::fill(row.begin(), row.begin() + std::min<int64_t>(k, 64), 0.0F);
    encode_row(*format.dtype, row.data(), k, bytes->data() + r * bytes_per_row);
  }
  if (is_block(*format.dtype)) {
    out.data = BlockRows{*format.dtype, bytes->data(), bytes_per_row};
  } else {
    out.data = DenseRows{*format.dtype, bytes->data(), bytes_per_row};
  }
  out.owner = bytes;
  return out;
}

inline std::vector<float> make_x(int64_t m, int64_t k, uint64_t seed) {
  Random random{seed};
  std::vector<float> x(static_cast<size_t>(m * k));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = random.normal() * std::exp2(static_cast<float>(static_cast<int64_t>(i / 32 % 9) - 4));
    if (i / 32 % 11 == 5) x[i] = 0.0F;
  }
  return x;
}

inline std::vector<IsaLevel> levels_here() {
  return kernels::levels_of(kernels::detect_isa());
}

inline CpuContext make_context(IsaLevel level, ActivationMode mode, int n_threads = 1) {
  BackendOptions options;
  options.n_threads = n_threads;
  options.isa = kernels::name_of(level);
  options.activations = mode;
  return CpuContext(options);
}

inline std::vector<float> run(const CpuLinear& weight, const std::vector<float>& x, int64_t m,
                              CpuContext& context, const float* bias = nullptr) {
  std::vector<float> y(static_cast<size_t>(m * weight.n), -7.0F);
  run_cpu_linear(weight, {x.data(), weight.k, m, y.data(), weight.n, bias}, context);
  return y;
}

}  // namespace qw::test
