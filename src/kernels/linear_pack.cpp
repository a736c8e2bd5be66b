#include "kernels/linear_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "base/checked.h"
#include "base/half.h"
#include "kernels/cpu/linear_layouts.h"
#include "kernels/linear_pack_blocks.h"
#include "quant/ggml_blocks_layout.h"

namespace qw::kernels {

namespace {

struct Geometry {
  int64_t unit_blocks, unit_bytes;
};

template <class... Named>
Geometry find_geometry(LayoutList<Named...>, LinearLayout layout, int64_t group_blocks) {
  Geometry out{1, 0};  // rows and dense layouts have no units
  const auto look_at = [&]<class L>(LinearLayout name, const L*) {
    if (name != layout) return;
    out.unit_blocks = L::kUnitBlocks != 0 ? L::kUnitBlocks : group_blocks;
    out.unit_bytes = L::kHeader + out.unit_blocks * 64 * L::kBits;
  };
  (look_at(Named::kName, static_cast<const typename Named::Layout*>(nullptr)), ...);
  return out;
}

LinearLayout dense_layout_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return LinearLayout::kF32;
    case DType::kF16:
      return LinearLayout::kF16;
    case DType::kBF16:
      return LinearLayout::kBf16;
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

// ---- panels -------------------------------------------------------------------------------------

PackStatus pack_block_panel(const LinearSource& source, const BlockRows& rows, const PackPlan& plan,
                            int64_t panel, uint8_t* out) {
  const DTypeInfo& type = info(rows.dtype);
  const BlockPanel in{
      .rows = rows.data + panel * kLanes * rows.row_bytes,
      .row_bytes = rows.row_bytes,
      .n_lanes = static_cast<int>(std::min<int64_t>(kLanes, source.n - panel * kLanes)),
      .n_blocks = source.k / type.block_elems,
      .blocks_per_unit = plan.matrix.unit_blocks * kBlock / type.block_elems,
      .unit_bytes = plan.matrix.unit_bytes};
  return block_packing_of(rows.dtype).pack_panel(in, out) ? PackStatus::kOk
                                                          : PackStatus::kNotFinite;
}

/// Element size 2 or 4: column c of lane l goes to `place(c) + l`.
void pack_dense_panel(const LinearSource& source, const DenseRows& rows, int64_t panel,
                      uint8_t* out) {
  const int64_t end = std::min<int64_t>(kLanes, source.n - panel * kLanes);
  const int64_t bytes = rows.dtype == DType::kF32 ? 4 : 2;
  constexpr int64_t kColumns = 64;  // at a time, so that the lines written stay in L1
  for (int64_t begin = 0; begin < source.k; begin += kColumns) {
    const int64_t stop = std::min(source.k, begin + kColumns);
    std::memset(out + begin * kLanes * bytes, 0,
                static_cast<size_t>(round_up<int64_t>(stop - begin, 2) * kLanes * bytes));
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

/// 32 codes of every row as a block's planes.
void put_codes(int bits, const Rows& rows, uint8_t* planes) {
  Words words[8];
  read_words<8>(rows, 0, words);
  switch (bits) {
    case 2:
      return put_planes<2>(words, planes);
    case 3:
      return put_planes<3>(words, planes);
    case 4:
      return put_planes<4>(words, planes);
    default:
      return put_planes<8>(words, planes);
  }
}

PackStatus pack_group_panel(const LinearSource& source, const GroupAffine& groups,
                            const PackPlan& plan, int64_t panel, GroupScratch& scratch,
                            uint8_t* out) {
  const int64_t k = source.k, n_groups = groups.n_groups, per_unit = plan.matrix.unit_blocks;
  const int64_t end = std::min<int64_t>(kLanes, source.n - panel * kLanes);
  const int64_t row = source.row_begin + panel * kLanes;
  scratch.codes.assign(static_cast<size_t>(kLanes * k), 0);
  scratch.scales.resize(static_cast<size_t>(kLanes * n_groups));
  scratch.zeros.resize(scratch.scales.size());
  groups.codes(row, end, scratch.codes.data());
  groups.scales(row, end, scratch.scales.data());
  groups.zeros(row, end, scratch.zeros.data());
  const bool offset = groups.form == GroupAffine::Form::kOffset;
  PackStatus status = PackStatus::kOk;
  for (int64_t b = 0; b < k / kBlock; ++b) {
    uint8_t* unit = out + b / per_unit * plan.matrix.unit_bytes;
    if (b % per_unit == 0) std::memset(unit, 0, static_cast<size_t>(plan.matrix.unit_bytes));
    uint8_t* planes = unit + 64 + b % per_unit * 64 * groups.bits;
    const auto* codes = reinterpret_cast<const std::byte*>(scratch.codes.data());
    if (plan.columns.empty()) {
      put_codes(groups.bits, {codes + b * kBlock, k}, planes);
    } else {
      std::byte gathered[kLanes * kBlock];
      const int32_t* columns = plan.columns.data() + b * kBlock;
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < kBlock; ++i)
          gathered[lane * kBlock + i] = codes[lane * k + columns[i]];
      }
      put_codes(groups.bits, {gathered, kBlock}, planes);
    }
  }
  for (int lane = 0; lane < end; ++lane) {
    for (int64_t g = 0; g < n_groups; ++g) {
      const auto i = static_cast<size_t>(lane * n_groups + g);
      const PackStatus one = pack_group_header(scratch.scales[i], scratch.zeros[i], offset, lane,
                                               out + g * plan.matrix.unit_bytes);
      if (one == PackStatus::kNotFinite || status == PackStatus::kOk) status = one;
    }
  }
  return status;
}

// ---- rows that stay as published ---------------------------------------------------------------

/// Far above every code of every format: a scale that is finite with this factor gives finite
/// weights. Scales of f16 always do; those of f32 may not.
constexpr float kLargestCode = 1024.0F;

bool groups_are_finite(const GroupAffine& groups, int64_t row, int64_t n_rows) {
  std::vector<float> values(static_cast<size_t>(n_rows * groups.n_groups));
  const auto all_finite = [&] {
    return std::all_of(values.begin(), values.end(),
                       [](float v) { return std::isfinite(v * kLargestCode); });
  };
  groups.scales(row, n_rows, values.data());
  if (!all_finite()) return false;
  groups.zeros(row, n_rows, values.data());
  return all_finite();
}

bool codebook_is_finite(const CodebookBlocks& source, int64_t row, int64_t n_rows) {
  if (n_rows == 0) return true;
  const float largest = source.value_type == DType::kF16 ? 65504.0F : 0x1.FEp127F;
  float level = 0;
  for (const float each : source.levels)
    level = std::max(level, std::abs(each));
  const int64_t first = row * source.k / source.block_size;
  const int64_t last = ((row + n_rows) * source.k - 1) / source.block_size;
  std::vector<float> scales(static_cast<size_t>(last - first + 1));
  source.scales(first, last - first + 1, scales.data());
  return std::all_of(scales.begin(), scales.end(),
                     [&](float scale) { return std::abs(scale) * level <= largest; });
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
  } else if (std::holds_alternative<std::shared_ptr<const CodebookBlocks>>(source.data)) {
    plan.why_rows = "no panel layout for levels that are no integers";
  } else if (const auto* blocks = std::get_if<BlockRows>(&source.data)) {
    plan.layout = block_packing_of(blocks->dtype).layout;
  } else {
    plan.layout = dense_layout_of(std::get<DenseRows>(source.data).dtype);
  }
  const Geometry units = find_geometry(QuantisedLayouts{}, plan.layout, plan.matrix.unit_blocks);
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
  if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
    return groups_are_finite(**groups, source.row_begin + row, n_rows);
  }
  if (const auto* codebook = std::get_if<std::shared_ptr<const CodebookBlocks>>(&source.data))
    return codebook_is_finite(**codebook, source.row_begin + row, n_rows);
  return true;
}

}  // namespace qw::kernels
