#include "quant/code_grid.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "base/error.h"
#include "quant/ggml_blocks.h"
#include "quant/ggml_codecs.h"

namespace qw {

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// ---- where the codes of a block lie ------------------------------------------------------------

/// `bits` bits of a code from bit `place` on, which lie in a byte from `shift` on.
struct Field {
  uint8_t* byte;
  int shift, bits, place;
};
/// A code is one field or two.
struct Fields {
  std::array<Field, 2> of;
  size_t n;
};
Fields one(uint8_t& byte, size_t shift, int bits) {
  return {{{{&byte, static_cast<int>(shift), bits, 0}, {}}}, 1};
}
Fields two(uint8_t& low, size_t low_shift, int low_bits, uint8_t& high, size_t high_shift,
           int high_bits) {
  return {{{{&low, static_cast<int>(low_shift), low_bits, 0},
            {&high, static_cast<int>(high_shift), high_bits, low_bits}}},
          2};
}

/// Nibbles of 32 elements: j low, j + 16 high.
template <typename Qs>
uint8_t& nibble_of(Qs& qs, size_t i) {
  return qs[i % 16];
}

template <typename Block>
Fields nibbles(Block& b, size_t i) {
  return one(nibble_of(b.qs, i), i / 16 * 4, 4);
}
template <typename Block>
Fields nibbles_and_fifth(Block& b, size_t i) {
  return two(nibble_of(b.qs, i), i / 16 * 4, 4, b.qh[i / 8], i % 8, 1);
}
/// Pairs of bits in the order of Q2_K.
template <typename Block>
Fields pairs(Block& b, size_t i) {
  return one(b.qs[i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2);
}

Fields fields(BlockQ4_0& b, size_t i) {
  return nibbles(b, i);
}
Fields fields(BlockQ4_1& b, size_t i) {
  return nibbles(b, i);
}
Fields fields(BlockIQ4_NL& b, size_t i) {
  return nibbles(b, i);
}
Fields fields(BlockMXFP4& b, size_t i) {
  return nibbles(b, i);
}
Fields fields(BlockQ5_0& b, size_t i) {
  return nibbles_and_fifth(b, i);
}
Fields fields(BlockQ5_1& b, size_t i) {
  return nibbles_and_fifth(b, i);
}
Fields fields(BlockQ2_K& b, size_t i) {
  return pairs(b, i);
}
Fields fields(BlockTQ2_0& b, size_t i) {
  return pairs(b, i);
}
Fields fields(BlockQ3_K& b, size_t i) {
  const Fields low = pairs(b, i);
  return two(*low.of[0].byte, static_cast<size_t>(low.of[0].shift), 2, b.hmask[i % 32], i / 32, 1);
}
Fields fields(BlockQ4_K& b, size_t i) {
  return one(b.qs[i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4);
}
Fields fields(BlockQ5_K& b, size_t i) {
  return two(b.qs[i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4, b.qh[i % 32], i / 32, 1);
}
Fields fields(BlockQ6_K& b, size_t i) {
  const size_t half = i / 128, part = i % 128 / 32, place = i % 32;
  return two(b.ql[64 * half + 32 * (part % 2) + place], part / 2 * 4, 4, b.qh[32 * half + place],
             2 * part, 2);
}
Fields fields(BlockIQ4_XS& b, size_t i) {
  return one(b.qs[i / 32 * 16 + i % 16], i % 32 / 16 * 4, 4);
}
Fields fields(BlockNVFP4& b, size_t i) {
  return one(b.qs[i / 16 * 8 + i % 8], i % 16 / 8 * 4, 4);
}
Fields fields(BlockQ1_0& b, size_t i) {
  return one(b.qs[i / 8], i % 8, 1);
}
Fields fields(BlockQ2_0& b, size_t i) {
  return one(b.qs[i / 4], i % 4 * 2, 2);
}

template <typename Block>
uint8_t code_of(Block& block, size_t i) {
  if constexpr (std::is_same_v<Block, BlockQ8_0>) {
    return static_cast<uint8_t>(block.qs[i] + 128);
  } else {
    const Fields parts = fields(block, i);
    unsigned code = 0;
    for (size_t f = 0; f < parts.n; ++f) {
      const Field& field = parts.of[f];
      code |= (static_cast<unsigned>(*field.byte) >> field.shift & ((1U << field.bits) - 1))
              << field.place;
    }
    return static_cast<uint8_t>(code);
  }
}

template <typename Block>
void set_code(Block& block, size_t i, uint8_t code) {
  if constexpr (std::is_same_v<Block, BlockQ8_0>) {
    block.qs[i] = static_cast<int8_t>(code - 128);
  } else {
    const Fields parts = fields(block, i);
    for (size_t f = 0; f < parts.n; ++f) {
      const Field& field = parts.of[f];
      const unsigned mask = (1U << field.bits) - 1;
      *field.byte =
          static_cast<uint8_t>((*field.byte & ~(mask << field.shift)) |
                               (static_cast<unsigned>(code) >> field.place & mask) << field.shift);
    }
  }
}

/// What a type's codes stand for. `high`: the code that a step is found from.
struct Type {
  GridLevels levels;
  uint8_t high = 0;
};
Type affine(int n) {
  return {{.n = n}, static_cast<uint8_t>(n - 1)};
}
Type codebook(const std::array<int8_t, 16>& values, uint8_t high) {
  Type out{{.n = 16, .is_affine = false}, high};
  std::ranges::copy(values, out.levels.values.begin());
  return out;
}

/// Calls visit(Block(), type) for a type with a code for each weight; false: `dtype` is none.
template <typename Visit>
bool visit_block(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kQ4_0:
      return visit(BlockQ4_0(), affine(16)), true;
    case DType::kQ4_1:
      return visit(BlockQ4_1(), affine(16)), true;
    case DType::kQ5_0:
      return visit(BlockQ5_0(), affine(32)), true;
    case DType::kQ5_1:
      return visit(BlockQ5_1(), affine(32)), true;
    case DType::kQ8_0:
      return visit(BlockQ8_0(), affine(256)), true;
    case DType::kQ2_K:
      return visit(BlockQ2_K(), affine(4)), true;
    case DType::kQ3_K:
      return visit(BlockQ3_K(), affine(8)), true;
    case DType::kQ4_K:
      return visit(BlockQ4_K(), affine(16)), true;
    case DType::kQ5_K:
      return visit(BlockQ5_K(), affine(32)), true;
    case DType::kQ6_K:
      return visit(BlockQ6_K(), affine(64)), true;
    case DType::kIQ4_NL:
      return visit(BlockIQ4_NL(), codebook(kIq4Values, 15)), true;
    case DType::kIQ4_XS:
      return visit(BlockIQ4_XS(), codebook(kIq4Values, 15)), true;
    case DType::kMXFP4:
      return visit(BlockMXFP4(), codebook(kE2m1Doubled, 7)), true;
    case DType::kNVFP4:
      return visit(BlockNVFP4(), codebook(kE2m1Doubled, 7)), true;
    case DType::kTQ2_0:
      return visit(BlockTQ2_0(), affine(3)), true;
    case DType::kQ1_0:
      return visit(BlockQ1_0(), affine(2)), true;
    case DType::kQ2_0:
      return visit(BlockQ2_0(), affine(4)), true;
    default:
      return false;
  }
}

template <typename Block>
void decode_all(Block block, uint8_t code, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i)
    set_code(block, i, code);
  ggml::decode(block, out);
}

/// A block with all codes 0 tells the bases, and one with all codes high the steps.
template <typename Block>
void read_block(const std::byte* bytes, size_t n, const Type& type, uint8_t* codes, float* steps,
                float* bases) {
  auto block = load_block<Block>(bytes);
  for (size_t i = 0; i < n; ++i)
    codes[i] = code_of(block, i);
  decode_all(block, type.high, n, steps);
  if (!type.levels.is_affine) {
    for (size_t i = 0; i < n; ++i)
      steps[i] /= type.levels.values[type.high];
    std::fill_n(bases, n, 0.0F);
    return;
  }
  decode_all(block, 0, n, bases);
  for (size_t i = 0; i < n; ++i)
    steps[i] = (steps[i] - bases[i]) / static_cast<float>(type.high);
}

void read_blocks(const BlockRows& blocks, int64_t row, int64_t n_rows, int64_t k, GridRows& out) {
  const DTypeInfo& dtype = info(blocks.dtype);
  visit_block(blocks.dtype, [&](auto block, const Type& type) {
    for (int64_t r = 0; r < n_rows; ++r) {
      const std::byte* bytes = blocks.data + (row + r) * blocks.row_bytes;
      for (int64_t i = 0; i < k; i += dtype.block_elems, bytes += dtype.block_bytes) {
        const size_t to = at(r * k + i);
        read_block<decltype(block)>(bytes, at(dtype.block_elems), type, &out.codes[to],
                                    &out.steps[to], &out.bases[to]);
      }
    }
  });
}

LinearSource blocks_with_codes(const LinearSource& source, const std::vector<uint8_t>& codes) {
  const auto& from = std::get<BlockRows>(source.data);
  const DTypeInfo& dtype = info(from.dtype);
  auto bytes =
      std::make_shared<std::vector<std::byte>>(from.data, from.data + source.n * from.row_bytes);
  visit_block(from.dtype, [&](auto block, const Type&) {
    for (int64_t r = 0; r < source.n; ++r) {
      std::byte* to = bytes->data() + r * from.row_bytes;
      for (int64_t i = 0; i < source.k; i += dtype.block_elems, to += dtype.block_bytes) {
        block = load_block<decltype(block)>(to);
        for (int64_t e = 0; e < dtype.block_elems; ++e)
          set_code(block, at(e), codes[at(r * source.k + i + e)]);
        std::memcpy(to, &block, sizeof block);
      }
    }
  });
  LinearSource out = source;
  out.data = BlockRows{from.dtype, bytes->data(), from.row_bytes};
  out.owner = std::move(bytes);
  return out;
}

// ---- groups and codebooks ----------------------------------------------------------------------

class RecodedGroups final : public GroupAffine {
 public:
  RecodedGroups(std::shared_ptr<const GroupAffine> from, std::vector<uint8_t> codes)
      : GroupAffine(*from), from_(std::move(from)), codes_(std::move(codes)) {}
  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    std::copy_n(codes_.begin() + row * k, n_rows * k, out);
  }
  void scales(int64_t row, int64_t n_rows, float* out) const override {
    from_->scales(row, n_rows, out);
  }
  void zeros(int64_t row, int64_t n_rows, float* out) const override {
    from_->zeros(row, n_rows, out);
  }

 private:
  std::shared_ptr<const GroupAffine> from_;
  std::vector<uint8_t> codes_;
};

class RecodedCodebook final : public CodebookBlocks {
 public:
  RecodedCodebook(std::shared_ptr<const CodebookBlocks> from, std::vector<uint8_t> codes)
      : CodebookBlocks(*from), from_(std::move(from)), codes_(std::move(codes)) {}
  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    std::copy_n(codes_.begin() + row * k, n_rows * k, out);
  }
  void scales(int64_t first, int64_t count, float* out) const override {
    from_->scales(first, count, out);
  }

 private:
  std::shared_ptr<const CodebookBlocks> from_;
  std::vector<uint8_t> codes_;
};

void read_groups(const GroupAffine& source, int64_t row, int64_t n_rows, GridRows& out) {
  const int64_t n_groups = source.n_groups, k = source.k;
  std::vector<float> scales(at(n_rows * n_groups)), zeros(scales.size());
  source.codes(row, n_rows, out.codes.data());
  source.scales(row, n_rows, scales.data());
  source.zeros(row, n_rows, zeros.data());
  const bool has_offsets = source.form == GroupAffine::Form::kOffset;
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t group =
          source.group_of.empty() ? i / source.group_size : int64_t{source.group_of[at(i)]};
      const size_t from = at(r * n_groups + group), to = at(r * k + i);
      out.steps[to] = scales[from];
      out.bases[to] = has_offsets ? zeros[from] : -(scales[from] * zeros[from]);
    }
  }
}

void read_codebook(const CodebookBlocks& source, int64_t row, int64_t n_rows, GridRows& out) {
  const int64_t size = source.block_size, begin = row * source.k, count = n_rows * source.k;
  if (count == 0) return;
  const int64_t first = begin / size, last = (begin + count - 1) / size;
  std::vector<float> scales(at(last - first + 1));
  source.codes(row, n_rows, out.codes.data());
  source.scales(first, last - first + 1, scales.data());
  for (int64_t i = 0; i < count; ++i)
    out.steps[at(i)] = scales[at((begin + i) / size - first)];
  std::ranges::fill(out.bases, 0.0F);
}

template <typename T>
const T* held(const LinearSource& source) {
  const auto* pointer = std::get_if<std::shared_ptr<const T>>(&source.data);
  return pointer == nullptr ? nullptr : pointer->get();
}

}  // namespace

std::optional<GridLevels> grid_levels(const LinearSource& source) {
  std::optional<GridLevels> out;
  if (const auto* blocks = std::get_if<BlockRows>(&source.data)) {
    visit_block(blocks->dtype, [&](auto, const Type& type) { out = type.levels; });
  } else if (const auto* groups = held<GroupAffine>(source)) {
    out = GridLevels{.n = 1 << groups->bits};
  } else if (const auto* codebook = held<CodebookBlocks>(source)) {
    out = GridLevels{16, false, codebook->levels, codebook->value_type};
  }
  return out;
}

void read_grid(const LinearSource& source, int64_t row, int64_t n_rows, GridRows& out) {
  QW_CHECK(row >= 0 && n_rows >= 0 && row <= source.n - n_rows, "rows {}+{} of {}", row, n_rows,
           source.n);
  out.codes.resize(at(n_rows * source.k));
  out.steps.resize(out.codes.size());
  out.bases.resize(out.codes.size());
  if (const auto* blocks = std::get_if<BlockRows>(&source.data))
    return read_blocks(*blocks, row, n_rows, source.k, out);
  if (const auto* groups = held<GroupAffine>(source))
    return read_groups(*groups, source.row_begin + row, n_rows, out);
  const auto* codebook = held<CodebookBlocks>(source);
  QW_CHECK(codebook != nullptr, "floats have no codes");
  read_codebook(*codebook, source.row_begin + row, n_rows, out);
}

LinearSource with_codes(const LinearSource& source, std::vector<uint8_t> codes) {
  QW_CHECK(std::ssize(codes) == source.n * source.k && source.row_begin == 0,
           "{} codes for [{}, {}] from row {}", codes.size(), source.n, source.k, source.row_begin);
  if (std::holds_alternative<BlockRows>(source.data)) return blocks_with_codes(source, codes);
  LinearSource out = source;
  if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
    out.data = std::shared_ptr<const GroupAffine>(
        std::make_shared<RecodedGroups>(*groups, std::move(codes)));
    return out;
  }
  out.data = std::shared_ptr<const CodebookBlocks>(std::make_shared<RecodedCodebook>(
      std::get<std::shared_ptr<const CodebookBlocks>>(source.data), std::move(codes)));
  return out;
}

}  // namespace qw
