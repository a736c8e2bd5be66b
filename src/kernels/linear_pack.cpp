#include "kernels/linear_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "base/checked.h"
#include "base/half.h"
#include "kernels/cpu/linear_layouts.h"
#include "quant/ggml_blocks_layout.h"

namespace qw::kernels {

namespace {

struct Geometry {
  int64_t unit_blocks, unit_bytes;
};

template <class L>
Geometry geometry_of(int64_t group_blocks) {
  const int64_t blocks = L::kUnitBlocks != 0 ? L::kUnitBlocks : group_blocks;
  return {blocks, L::kHeader + blocks * 64 * L::kBits};
}

Geometry geometry(LinearLayout layout, int64_t group_blocks) {
  switch (layout) {
    case LinearLayout::kQ4_0:
      return geometry_of<LayoutQ4_0>(0);
    case LinearLayout::kQ4_1:
      return geometry_of<LayoutQ4_1>(0);
    case LinearLayout::kQ5_0:
      return geometry_of<LayoutQ5_0>(0);
    case LinearLayout::kQ5_1:
      return geometry_of<LayoutQ5_1>(0);
    case LinearLayout::kQ8_0:
      return geometry_of<LayoutQ8_0>(0);
    case LinearLayout::kQ2_K:
      return geometry_of<LayoutQ2_K>(0);
    case LinearLayout::kQ3_K:
      return geometry_of<LayoutQ3_K>(0);
    case LinearLayout::kQ4_K:
      return geometry_of<LayoutQ4_K>(0);
    case LinearLayout::kQ5_K:
      return geometry_of<LayoutQ5_K>(0);
    case LinearLayout::kQ6_K:
      return geometry_of<LayoutQ6_K>(0);
    case LinearLayout::kIq4Nl:
      return geometry_of<LayoutIq4Nl>(0);
    case LinearLayout::kIq4Xs:
      return geometry_of<LayoutIq4Xs>(0);
    case LinearLayout::kMxfp4:
      return geometry_of<LayoutMxfp4>(0);
    case LinearLayout::kGroup2:
      return geometry_of<Group<2>>(group_blocks);
    case LinearLayout::kGroup3:
      return geometry_of<Group<3>>(group_blocks);
    case LinearLayout::kGroup4:
      return geometry_of<Group<4>>(group_blocks);
    case LinearLayout::kGroup8:
      return geometry_of<Group<8>>(group_blocks);
    case LinearLayout::kGroup4Offset:
      return geometry_of<LayoutGroup4Offset>(group_blocks);
    default:
      return {1, 0};  // rows and dense layouts have no units
  }
}

LinearLayout layout_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return LinearLayout::kF32;
    case DType::kF16:
      return LinearLayout::kF16;
    case DType::kBF16:
      return LinearLayout::kBf16;
    case DType::kQ4_0:
      return LinearLayout::kQ4_0;
    case DType::kQ4_1:
      return LinearLayout::kQ4_1;
    case DType::kQ5_0:
      return LinearLayout::kQ5_0;
    case DType::kQ5_1:
      return LinearLayout::kQ5_1;
    case DType::kQ8_0:
      return LinearLayout::kQ8_0;
    case DType::kQ2_K:
      return LinearLayout::kQ2_K;
    case DType::kQ3_K:
      return LinearLayout::kQ3_K;
    case DType::kQ4_K:
      return LinearLayout::kQ4_K;
    case DType::kQ5_K:
      return LinearLayout::kQ5_K;
    case DType::kQ6_K:
      return LinearLayout::kQ6_K;
    case DType::kIQ4_NL:
      return LinearLayout::kIq4Nl;
    case DType::kIQ4_XS:
      return LinearLayout::kIq4Xs;
    case DType::kMXFP4:
      return LinearLayout::kMxfp4;
    default:
      return LinearLayout::kRows;
  }
}

/// Columns sorted by group, where every group then fills whole blocks; nullopt: it does not.
std::optional<std::vector<int32_t>> columns_by_group(const GroupAffine& source) {
  std::vector<int64_t> size(static_cast<size_t>(source.n_groups), 0);
  for (int32_t g : source.group_of)
    ++size[static_cast<size_t>(g)];
  if (std::any_of(size.begin(), size.end(), [&](int64_t n) { return n != source.group_size; })) {
    return std::nullopt;
  }
  std::vector<int32_t> columns(static_cast<size_t>(source.k));
  std::iota(columns.begin(), columns.end(), 0);
  std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
    return source.group_of[static_cast<size_t>(a)] < source.group_of[static_cast<size_t>(b)];
  });
  return columns;
}

void plan_groups(const GroupAffine& source, PackPlan& plan) {
  const bool offset = source.form == GroupAffine::Form::kOffset;
  const int64_t group = source.n_groups == 1 ? source.k : source.group_size;
  if (group % kBlock != 0 || source.n_groups * group != source.k) {
    plan.why_rows = "groups are not whole blocks of 32 columns";
    return;
  }
  if (offset && source.bits != 4) {
    plan.why_rows = "offsets with other than 4 bits";
    return;
  }
  if (!source.group_of.empty() && source.n_groups > 1) {
    auto columns = columns_by_group(source);
    if (!columns) {
      plan.why_rows = "groups of unequal size";
      return;
    }
    if (!std::is_sorted(columns->begin(), columns->end())) plan.columns = std::move(*columns);
  }
  switch (source.bits) {
    case 2:
      plan.layout = LinearLayout::kGroup2;
      break;
    case 3:
      plan.layout = LinearLayout::kGroup3;
      break;
    case 4:
      plan.layout = offset ? LinearLayout::kGroup4Offset : LinearLayout::kGroup4;
      break;
    case 8:
      plan.layout = LinearLayout::kGroup8;
      break;
    default:
      plan.why_rows = "bits per code";
      return;
  }
  plan.matrix.unit_blocks = group / kBlock;
}

// ---- codes of one block of 32 columns into one lane
// ---------------------------------------------------

uint32_t word(const uint8_t* p) noexcept {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}
void put(uint8_t* p, uint32_t w) noexcept {
  std::memcpy(p, &w, 4);
}

/// Bit kFrom of the codes of group j becomes bit j of the plane.
template <int kFrom>
void put_bit_plane(const uint8_t* codes, uint8_t* lane) noexcept {
  uint32_t plane = 0;
  for (int j = 0; j < 8; ++j)
    plane |= (word(codes + 4 * j) >> kFrom & 0x01010101U) << j;
  put(lane, plane);
}
template <int kFrom>
void put_two_bit_planes(const uint8_t* codes, uint8_t* lane) noexcept {
  for (int v = 0; v < 2; ++v) {
    uint32_t plane = 0;
    for (int i = 0; i < 4; ++i)
      plane |= (word(codes + 16 * v + 4 * i) >> kFrom & 0x03030303U) << 2 * i;
    put(lane + 64 * v, plane);
  }
}

/// The planes of linear_layouts.h; `block` is the block's first byte.
template <int kBits>
void put_codes(const uint8_t* codes, int lane, uint8_t* block) noexcept {
  uint8_t* out = block + 4 * lane;
  if constexpr (kBits == 8) {
    for (int j = 0; j < 8; ++j)
      put(out + 64 * j, word(codes + 4 * j));
  } else if constexpr (kBits >= 4) {
    for (int v = 0; v < 4; ++v) {
      put(out + 64 * v,
          (word(codes + 4 * v) & 0x0F0F0F0FU) | (word(codes + 16 + 4 * v) & 0x0F0F0F0FU) << 4);
    }
  } else {
    put_two_bit_planes<0>(codes, out);
  }
  if constexpr (kBits == 5) put_bit_plane<4>(codes, out + 256);
  if constexpr (kBits == 3) put_bit_plane<2>(codes, out + 128);
  if constexpr (kBits == 6) put_two_bit_planes<4>(codes, out + 256);
}

template <class L>
void put_block(const uint8_t* codes, int lane, int64_t block, uint8_t* unit) noexcept {
  put_codes<L::kBits>(codes, lane, unit + L::kHeader + block * 64 * L::kBits);
}

bool is_finite(F16Bits bits) noexcept {
  return (bits & 0x7C00) != 0x7C00;
}

void put_f16(uint8_t* header, int lane, F16Bits bits) noexcept {
  std::memcpy(header + 2 * lane, &bits, 2);
}
void put_f32(uint8_t* header, int lane, F16Bits bits) noexcept {
  const float value = f16_to_f32(bits);
  std::memcpy(header + 4 * lane, &value, 4);
}

/// Nibbles in the order of Q4_0.
void nibbles(const std::array<uint8_t, 16>& qs, uint8_t* codes) noexcept {
  for (size_t i = 0; i < 16; ++i) {
    codes[i] = qs[i] & 15;
    codes[i + 16] = static_cast<uint8_t>(qs[i] >> 4);
  }
}
void add_fifth_bits(const std::array<uint8_t, 4>& qh, uint8_t* codes) noexcept {
  const auto bits = std::bit_cast<uint32_t>(qh);
  for (size_t i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(codes[i] | (bits >> i & 1) << 4);
}

// ---- one published block into lane `lane` of a unit; false: a scale is not finite
// ------------------------ `part` counts published blocks within the unit.

bool put_in(const BlockQ4_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutQ4_0>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockQ4_1& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_f16(unit + 64 + 32 * part, lane, in.m);
  put_block<LayoutQ4_1>(codes, lane, part, unit);
  return is_finite(in.d) && is_finite(in.m);
}
bool put_in(const BlockQ5_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  add_fifth_bits(in.qh, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutQ5_0>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockQ5_1& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  add_fifth_bits(in.qh, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_f16(unit + 64 + 32 * part, lane, in.m);
  put_block<LayoutQ5_1>(codes, lane, part, unit);
  return is_finite(in.d) && is_finite(in.m);
}
bool put_in(const BlockQ8_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  for (size_t i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(in.qs[i] + 128);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutQ8_0>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockIQ4_NL& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutIq4Nl>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockMXFP4& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  unit[16 * part + lane] = in.e;
  put_block<LayoutMxfp4>(codes, lane, part, unit);
  return true;  // every exponent is a number: 255 is 2^127
}

/// Header of Q4_K and Q5_K.
void put_k4_header(F16Bits d, F16Bits dmin, const std::array<uint8_t, 12>& packed, int lane,
                   uint8_t* unit) noexcept {
  put_f16(unit, lane, d);
  put_f16(unit + 32, lane, dmin);
  const K4Scales scales = unpack_k4_scales(packed);
  for (size_t s = 0; s < 8; ++s) {
    unit[64 + 16 * s + static_cast<size_t>(lane)] = scales.scale[s];
    unit[192 + 16 * s + static_cast<size_t>(lane)] = scales.min[s];
  }
}
bool put_in(const BlockQ4_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_k4_header(in.d, in.dmin, in.scales, lane, unit);
  for (size_t c = 0; c < 4; ++c) {
    uint8_t low[32], high[32];
    for (size_t i = 0; i < 32; ++i) {
      low[i] = in.qs[32 * c + i] & 15;
      high[i] = static_cast<uint8_t>(in.qs[32 * c + i] >> 4);
    }
    put_block<LayoutQ4_K>(low, lane, static_cast<int64_t>(2 * c), unit);
    put_block<LayoutQ4_K>(high, lane, static_cast<int64_t>(2 * c + 1), unit);
  }
  return is_finite(in.d) && is_finite(in.dmin);
}
bool put_in(const BlockQ5_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_k4_header(in.d, in.dmin, in.scales, lane, unit);
  for (size_t c = 0; c < 4; ++c) {
    uint8_t low[32], high[32];
    for (size_t i = 0; i < 32; ++i) {
      const int q = in.qs[32 * c + i], h = in.qh[i];
      low[i] = static_cast<uint8_t>((q & 15) | (h >> (2 * c) & 1) << 4);
      high[i] = static_cast<uint8_t>(q >> 4 | (h >> (2 * c + 1) & 1) << 4);
    }
    put_block<LayoutQ5_K>(low, lane, static_cast<int64_t>(2 * c), unit);
    put_block<LayoutQ5_K>(high, lane, static_cast<int64_t>(2 * c + 1), unit);
  }
  return is_finite(in.d) && is_finite(in.dmin);
}
bool put_in(const BlockQ6_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, in.d);
  for (size_t s = 0; s < 16; ++s) {
    unit[64 + 16 * s + static_cast<size_t>(lane)] = static_cast<uint8_t>(in.scales[s]);
  }
  for (size_t b = 0; b < 8; ++b) {  // 32 elements: half h, plane p
    const size_t h = b / 4, p = b % 4;
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i) {
      const int low = in.ql[64 * h + 32 * (p % 2) + i] >> (4 * (p / 2)) & 15;
      const int high = in.qh[32 * h + i] >> (2 * p) & 3;
      codes[i] = static_cast<uint8_t>(low | high << 4);
    }
    put_block<LayoutQ6_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockQ3_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, in.d);
  const std::array<int8_t, 16> scales = unpack_q3_k_scales(in.scales);
  for (size_t s = 0; s < 16; ++s) {
    unit[64 + 16 * s + static_cast<size_t>(lane)] = static_cast<uint8_t>(scales[s]);
  }
  for (size_t b = 0; b < 8; ++b) {
    const size_t h = b / 4, p = b % 4;
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i) {
      const int low = in.qs[32 * h + i] >> (2 * p) & 3, high = in.hmask[i] >> (4 * h + p) & 1;
      codes[i] = static_cast<uint8_t>(low | high << 2);
    }
    put_block<LayoutQ3_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockQ2_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f16(unit, lane, in.d);
  put_f16(unit + 32, lane, in.dmin);
  for (size_t s = 0; s < 16; ++s)
    unit[64 + 16 * s + static_cast<size_t>(lane)] = in.scales[s];
  for (size_t b = 0; b < 8; ++b) {
    const size_t h = b / 4, p = b % 4;
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = in.qs[32 * h + i] >> (2 * p) & 3;
    put_block<LayoutQ2_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d) && is_finite(in.dmin);
}
bool put_in(const BlockIQ4_XS& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, in.d);
  const std::array<int8_t, 8> scales = unpack_iq4_xs_scales(in);
  for (size_t b = 0; b < 8; ++b) {
    unit[64 + 16 * b + static_cast<size_t>(lane)] = static_cast<uint8_t>(scales[b]);
    std::array<uint8_t, 16> qs;
    std::copy_n(in.qs.begin() + 16 * static_cast<std::ptrdiff_t>(b), 16, qs.begin());
    uint8_t codes[32];
    nibbles(qs, codes);
    put_block<LayoutIq4Xs>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

// ---- panels
// -------------------------------------------------------------------------------------------

template <class Block>
bool pack_block_row(const std::byte* row, int64_t n_blocks, int64_t per_unit, int lane,
                    int64_t unit_bytes, uint8_t* panel) noexcept {
  bool finite = true;
  for (int64_t i = 0; i < n_blocks; ++i) {
    const auto block = load_block<Block>(row + i * static_cast<int64_t>(sizeof(Block)));
    finite &= put_in(block, i % per_unit, lane, panel + i / per_unit * unit_bytes);
  }
  return finite;
}

using PackRow = bool (*)(const std::byte*, int64_t, int64_t, int, int64_t, uint8_t*) noexcept;

PackRow pack_row_of(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return pack_block_row<BlockQ4_0>;
    case DType::kQ4_1:
      return pack_block_row<BlockQ4_1>;
    case DType::kQ5_0:
      return pack_block_row<BlockQ5_0>;
    case DType::kQ5_1:
      return pack_block_row<BlockQ5_1>;
    case DType::kQ8_0:
      return pack_block_row<BlockQ8_0>;
    case DType::kQ2_K:
      return pack_block_row<BlockQ2_K>;
    case DType::kQ3_K:
      return pack_block_row<BlockQ3_K>;
    case DType::kQ4_K:
      return pack_block_row<BlockQ4_K>;
    case DType::kQ5_K:
      return pack_block_row<BlockQ5_K>;
    case DType::kQ6_K:
      return pack_block_row<BlockQ6_K>;
    case DType::kIQ4_NL:
      return pack_block_row<BlockIQ4_NL>;
    case DType::kIQ4_XS:
      return pack_block_row<BlockIQ4_XS>;
    case DType::kMXFP4:
      return pack_block_row<BlockMXFP4>;
    default:
      return nullptr;
  }
}

PackStatus pack_block_panel(const LinearSource& source, const BlockRows& rows, const PackPlan& plan,
                            int64_t panel, uint8_t* out) {
  const DTypeInfo& type = info(rows.dtype);
  const int64_t n_blocks = source.k / type.block_elems;
  const int64_t per_unit = plan.matrix.unit_blocks * kBlock / type.block_elems;
  const PackRow pack_row = pack_row_of(rows.dtype);
  QW_CHECK(pack_row != nullptr, "{} has no panel layout", type.name);
  bool finite = true;
  const int64_t end = std::min<int64_t>(kLanes, source.n - panel * kLanes);
  for (int lane = 0; lane < end; ++lane) {
    finite &= pack_row(rows.data + (panel * kLanes + lane) * rows.row_bytes, n_blocks, per_unit,
                       lane, plan.matrix.unit_bytes, out);
  }
  return finite ? PackStatus::kOk : PackStatus::kNotFinite;
}

/// Element size 2 or 4: column c of lane l goes to `place(c) + l`.
void pack_dense_panel(const LinearSource& source, const DenseRows& rows, int64_t panel,
                      uint8_t* out) {
  const int64_t end = std::min<int64_t>(kLanes, source.n - panel * kLanes);
  constexpr int64_t kColumns = 64;  // at a time, so that the lines written stay in L1
  for (int64_t begin = 0; begin < source.k; begin += kColumns) {
    const int64_t stop = std::min(source.k, begin + kColumns);
    for (int64_t lane = 0; lane < end; ++lane) {
      const std::byte* row = rows.data + (panel * kLanes + lane) * rows.row_bytes;
      for (int64_t c = begin; c < stop; ++c) {
        if (rows.dtype == DType::kF32) {
          std::memcpy(out + (c * kLanes + lane) * 4, row + 4 * c, 4);
        } else if (rows.dtype == DType::kF16) {
          std::memcpy(out + (c * kLanes + lane) * 2, row + 2 * c, 2);
        } else {  // bf16: columns 2i and 2i + 1 of a lane in one word
          std::memcpy(out + ((c / 2 * kLanes + lane) * 2 + c % 2) * 2, row + 2 * c, 2);
        }
      }
    }
  }
}

struct GroupScratch {
  std::vector<uint8_t> codes;
  std::vector<float> scales, zeros;
};

void put_group_codes(int bits, const uint8_t* codes, int lane, uint8_t* block) noexcept {
  switch (bits) {
    case 2:
      return put_codes<2>(codes, lane, block);
    case 3:
      return put_codes<3>(codes, lane, block);
    case 4:
      return put_codes<4>(codes, lane, block);
    default:
      return put_codes<8>(codes, lane, block);
  }
}

PackStatus pack_group_header(float scale, float zero, bool offset, int lane, uint8_t* unit) {
  if (!std::isfinite(scale) || !std::isfinite(zero)) return PackStatus::kNotFinite;
  const F16Bits scale_bits = f32_to_f16(scale);
  const F16Bits zero_bits =
      offset ? f32_to_f16(zero) : static_cast<uint16_t>(std::clamp(zero, 0.0F, 256.0F));
  put_f16(unit, lane, scale_bits);
  put_f16(unit + 32, lane, zero_bits);
  const float zero_back = offset ? f16_to_f32(zero_bits) : static_cast<float>(zero_bits);
  return f16_to_f32(scale_bits) == scale && zero_back == zero ? PackStatus::kOk
                                                              : PackStatus::kNotExact;
}

PackStatus pack_group_panel(const LinearSource& source, const GroupAffine& groups,
                            const PackPlan& plan, int64_t panel, GroupScratch& scratch,
                            uint8_t* out) {
  const int64_t k = source.k, n_groups = groups.n_groups, per_unit = plan.matrix.unit_blocks;
  const int64_t end = std::min<int64_t>(kLanes, source.n - panel * kLanes);
  const int64_t row = source.row_begin + panel * kLanes;
  scratch.codes.resize(static_cast<size_t>(kLanes * k));
  scratch.scales.resize(static_cast<size_t>(kLanes * n_groups));
  scratch.zeros.resize(scratch.scales.size());
  groups.codes(row, end, scratch.codes.data());
  groups.scales(row, end, scratch.scales.data());
  groups.zeros(row, end, scratch.zeros.data());
  const bool offset = groups.form == GroupAffine::Form::kOffset;
  PackStatus status = PackStatus::kOk;
  for (int lane = 0; lane < end; ++lane) {
    const uint8_t* codes = scratch.codes.data() + lane * k;
    for (int64_t b = 0; b < k / kBlock; ++b) {
      uint8_t* unit = out + b / per_unit * plan.matrix.unit_bytes;
      uint8_t gathered[kBlock];
      const uint8_t* block = codes + b * kBlock;
      if (!plan.columns.empty()) {
        for (int i = 0; i < kBlock; ++i)
          gathered[i] = codes[plan.columns[static_cast<size_t>(b * kBlock + i)]];
        block = gathered;
      }
      put_group_codes(groups.bits, block, lane, unit + 64 + b % per_unit * 64 * groups.bits);
    }
    for (int64_t g = 0; g < n_groups; ++g) {
      const auto i = static_cast<size_t>(lane * n_groups + g);
      const PackStatus one = pack_group_header(scratch.scales[i], scratch.zeros[i], offset, lane,
                                               out + g * plan.matrix.unit_bytes);
      if (one == PackStatus::kNotFinite || status == PackStatus::kOk) status = one;
    }
  }
  return status;
}

}  // namespace

PackPlan plan_pack(const LinearSource& source) {
  PackPlan plan;
  plan.matrix.k = source.k;
  plan.matrix.n_blocks = ceil_div<int64_t>(source.k, kBlock);
  plan.matrix.n_panels = ceil_div<int64_t>(source.n, kLanes);
  plan.matrix.unit_blocks = 1;
  if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
    plan_groups(**groups, plan);
  } else if (const auto* blocks = std::get_if<BlockRows>(&source.data)) {
    plan.layout = layout_of(blocks->dtype);
  } else {
    plan.layout = layout_of(std::get<DenseRows>(source.data).dtype);
  }
  const Geometry units = geometry(plan.layout, plan.matrix.unit_blocks);
  plan.matrix.unit_blocks = units.unit_blocks;
  plan.matrix.unit_bytes = units.unit_bytes;
  const int64_t even_columns = round_up<int64_t>(source.k, 2);
  switch (plan.layout) {
    case LinearLayout::kRows:
      if (plan.why_rows.empty()) plan.why_rows = "no panel layout for this type";
      break;
    case LinearLayout::kF32:
      plan.matrix.panel_bytes = even_columns * kLanes * 4;
      break;
    case LinearLayout::kF16:
    case LinearLayout::kBf16:
      plan.matrix.panel_bytes = even_columns * kLanes * 2;
      break;
    default:
      plan.matrix.panel_bytes =
          ceil_div(plan.matrix.n_blocks, units.unit_blocks) * units.unit_bytes;
  }
  return plan;
}

PackStatus pack_panels(const LinearSource& source, const PackPlan& plan, int64_t first,
                       int64_t n_panels, uint8_t* data) {
  PackStatus status = PackStatus::kOk;
  GroupScratch scratch;
  for (int64_t panel = first; panel < first + n_panels && status != PackStatus::kNotFinite;
       ++panel) {
    uint8_t* out = data + panel * plan.matrix.panel_bytes;
    std::memset(out, 0, static_cast<size_t>(plan.matrix.panel_bytes));
    PackStatus one = PackStatus::kOk;
    if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
      one = pack_group_panel(source, **groups, plan, panel, scratch, out);
    } else if (const auto* blocks = std::get_if<BlockRows>(&source.data)) {
      one = pack_block_panel(source, *blocks, plan, panel, out);
    } else {
      pack_dense_panel(source, std::get<DenseRows>(source.data), panel, out);
    }
    if (one == PackStatus::kNotFinite || status == PackStatus::kOk) status = one;
  }
  return status;
}

bool scales_are_finite(const LinearSource& source, int64_t row, int64_t n_rows) {
  const auto* rows = std::get_if<BlockRows>(&source.data);
  if (rows == nullptr) return true;
  // Offset of the f16 scale; IQ1_M spreads it over its sub-scales, NVFP4's are all numbers.
  int64_t at = 0;
  switch (rows->dtype) {
    case DType::kIQ1_M:
    case DType::kNVFP4:
      return true;
    case DType::kTQ1_0:
      at = offsetof(BlockTQ1_0, d);
      break;
    case DType::kTQ2_0:
      at = offsetof(BlockTQ2_0, d);
      break;
    case DType::kQ8_K:
      return true;
    default:
      break;
  }
  const int64_t block_bytes = info(rows->dtype).block_bytes;
  for (int64_t r = row; r < row + n_rows; ++r) {
    const std::byte* bytes = rows->data + r * rows->row_bytes;
    for (int64_t i = at; i < rows->row_bytes; i += block_bytes) {
      F16Bits bits;
      std::memcpy(&bits, bytes + i, 2);
      if (!is_finite(bits)) return false;
    }
  }
  return true;
}

}  // namespace qw::kernels
