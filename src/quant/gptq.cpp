#include "quant/gptq.h"

#include <algorithm>
#include <limits>

#include "base/checked.h"
#include "quant/packed_codes.h"

namespace qw {

namespace {

constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();

/// Zero points of one group row, packed along n like one bit stream per 32 columns (kBits words).
/// v1 files store zero - 1, and a zero of 0 borrows from the fields above it in its word
/// (GPTQModel); adding one to every field of the whole unit, with carries, undoes exactly that.
class PackedZeros {
 public:
  PackedZeros() = default;
  PackedZeros(const RawTensor& tensor, int bits, bool v2)
      : data_(tensor.bytes.data()),
        owner_(tensor.owner),
        words_(tensor.shape[1]),
        bits_(bits),
        v2_(v2) {}

  /// The zero of column o in group g.
  int at(int64_t g, int64_t o) const noexcept {
    if (bits_ == 3) return field_of_3(g, o);
    const int64_t per_word = 32 / bits_;
    const uint32_t mask = (1u << bits_) - 1;
    uint32_t word = load_u32_at(g, o / per_word);
    if (!v2_)
      word += 0xFFFFFFFFu / mask;  // a one in the lowest bit of each field; carries end here
    return static_cast<int>(word >> (o % per_word * bits_) & mask);
  }

  /// True if column o's field, as far as it lies in the word where it begins, is stored as ones.
  bool is_ones(int64_t g, int64_t o) const noexcept {
    const auto shift = static_cast<int>(o * bits_ % 32);
    const uint32_t mask = (1u << std::min(bits_, 32 - shift)) - 1;
    return (load_u32_at(g, o * bits_ / 32) >> shift & mask) == mask;
  }

 private:
  /// 32 columns are 96 bits over three words; the last words may be missing in a file whose n is
  /// not a multiple of 32.
  int field_of_3(int64_t g, int64_t o) const noexcept {
    const int64_t first = o / 32 * 3;
    uint64_t low = load_u32_at(g, first) | static_cast<uint64_t>(load_u32_at(g, first + 1)) << 32;
    uint64_t high = load_u32_at(g, first + 2);
    if (!v2_) {
      constexpr uint64_t kOnesLow = 0x9249249249249249u, kOnesHigh = 0x24924924u;
      low += kOnesLow;
      high += kOnesHigh + (low < kOnesLow ? 1 : 0);
    }
    const auto bit = static_cast<int>(o % 32 * 3);
    if (bit < 62) return static_cast<int>(low >> bit & 7);
    if (bit == 63) return static_cast<int>((low >> 63 | high << 1) & 7);
    return static_cast<int>(high >> (bit - 64) & 7);
  }

  uint32_t load_u32_at(int64_t g, int64_t word) const noexcept {
    return word < words_ ? packed::load_u32(data_, g * words_ + word) : 0;
  }

  const std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;
  int64_t words_ = 0;
  int bits_ = 4;
  bool v2_ = false;
};

class GptqSource final : public GroupAffine {
 public:
  const std::byte* qweight = nullptr;  // [k * bits / 32, n] words
  std::shared_ptr<const void> qweight_owner;
  PackedZeros packed_zeros;
  packed::FloatTensor scale_tensor;  // [n_groups, n]

  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    switch (bits) {
      case 2:
        return unpack<2>(row, n_rows, out);
      case 3:
        return unpack<3>(row, n_rows, out);
      case 4:
        return unpack<4>(row, n_rows, out);
      default:
        return unpack<8>(row, n_rows, out);
    }
  }
  void scales(int64_t row, int64_t n_rows, float* out) const override {
    packed::gather_by_group(scale_tensor, n, n_groups, row, n_rows, out);
  }
  void zeros(int64_t row, int64_t n_rows, float* out) const override {
    for (int64_t g = 0; g < n_groups; ++g) {
      for (int64_t r = 0; r < n_rows; ++r) {
        out[r * n_groups + g] = static_cast<float>(packed_zeros.at(g, row + r));
      }
    }
  }

 private:
  /// The file keeps the words of one row n apart. Tiles of 64 columns: the words of neighbouring
  /// rows share cache lines, and each row's codes are written as one whole line.
  template <int kBits>
  void unpack(int64_t row, int64_t n_rows, uint8_t* out) const {
    constexpr int64_t kTile = 64;
    const int64_t whole = k / 32 * 32;
    for (int64_t first = 0; first < whole; first += kTile) {
      const int64_t end = std::min(first + kTile, whole);
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t i = first; i < end; i += 32) {
          packed::spread_32<kBits>(word(i / 32 * kBits, row + r), n, out + r * k + i);
        }
      }
    }
    // k * bits is a multiple of 32, so what is left is whole words (never with 3 bits).
    constexpr int64_t kPerWord = 32 / kBits;
    for (int64_t i = whole; i < k; ++i) {
      for (int64_t r = 0; r < n_rows; ++r) {
        const uint32_t packed_word = packed::load_u32(word(i / kPerWord, row + r), 0);
        out[r * k + i] =
            static_cast<uint8_t>(packed_word >> (i % kPerWord * kBits) & ((1u << kBits) - 1));
      }
    }
  }

  const std::byte* word(int64_t word_row, int64_t column) const noexcept {
    return qweight + (word_row * n + column) * 4;
  }
};

/// group_of from g_idx; empty when it is i / group_size anyway. Errors: corrupt.
std::vector<int32_t> read_groups(const RawTensor& g_idx, std::string_view module,
                                 const packed::Grouping& grouping) {
  std::vector<int32_t> groups(static_cast<size_t>(g_idx.shape[0]));
  if (!groups.empty()) std::memcpy(groups.data(), g_idx.bytes.data(), g_idx.bytes.size());
  bool in_order = true;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i] < 0 || groups[i] >= grouping.count) {
      fail(ErrorKind::kCorrupt, "gptq", "{}.g_idx: expected groups 0 to {}, got {} at {} ({})",
           printable(module), grouping.count - 1, groups[i], i, printable(g_idx.file));
    }
    in_order = in_order && groups[i] == static_cast<int64_t>(i) / grouping.size;
  }
  if (in_order) groups.clear();
  return groups;
}

/// Rows whose zero points a v1 file cannot tell. AutoGPTQ writes a zero of 0 as 32 ones from its
/// field to the top of the word and so overwrites the fields above; a field of ones below one that
/// is not all ones shows a borrow instead, as GPTQModel writes it, where nothing is lost.
std::vector<int64_t> lost_rows(const PackedZeros& zeros, int bits, int64_t n_groups, int64_t n) {
  std::vector<int64_t> lost;
  for (int64_t g = 0; g < n_groups; ++g) {
    for (int64_t begin = 0, end = 0; begin < n; begin = end) {
      // Columns whose field begins in the same word.
      const int64_t word = begin * bits / 32;
      while (end < n && end * bits / 32 == word)
        ++end;
      int64_t run = end;
      while (run > begin && zeros.is_ones(g, run - 1))
        --run;
      for (int64_t o = begin; o < run; ++o) {
        if (zeros.is_ones(g, o)) return {};
      }
      for (int64_t o = run + 1; o < end; ++o)
        lost.push_back(o);
    }
  }
  std::sort(lost.begin(), lost.end());
  lost.erase(std::unique(lost.begin(), lost.end()), lost.end());
  return lost;
}

std::string lost_rows_warning(std::string_view module, const std::vector<int64_t>& rows) {
  std::string list;
  constexpr size_t kShown = 16;
  for (size_t i = 0; i < std::min(rows.size(), kShown); ++i) {
    list += fmt::format("{}{}", i == 0 ? "" : ", ", rows[i]);
  }
  if (rows.size() > kShown) list += ", ...";
  return fmt::format(
      "{}.qzeros: a zero point of 0 was written over the zero points of {} output rows by the "
      "program "
      "that made the file (AutoGPTQ with sym=false); these rows may be wrong: {}",
      printable(module), rows.size(), list);
}

}  // namespace

std::shared_ptr<const GroupAffine> open_gptq(const GptqConfig& config, const GptqTensors& tensors,
                                             std::string* warning) {
  const std::string& module = tensors.module;
  if (config.bits != 2 && config.bits != 3 && config.bits != 4 && config.bits != 8) {
    fail(ErrorKind::kUnsupported, "gptq", "{}: expected 2, 3, 4 or 8 bits, got {}",
         printable(module), config.bits);
  }
  const RawTensor& qweight = packed::require(tensors.qweight, module, "qweight", 2, DType::kI32);
  const RawTensor& qzeros = packed::require(tensors.qzeros, module, "qzeros", 2, DType::kI32);
  auto source = std::make_shared<GptqSource>();
  source->scale_tensor = packed::require_floats(tensors.scales, module, "scales", 2);

  const int64_t bits = config.bits, words = qweight.shape[0], n = qweight.shape[1];
  packed::require_size(qweight, module, "qweight", 0, 1, kMaxSize / 32);
  packed::require_size(qweight, module, "qweight", 1, 1, kMaxSize / 32);
  if (words * 32 % bits != 0) {
    fail(ErrorKind::kCorrupt, "gptq",
         "{}.qweight: expected a multiple of 3 rows for 3 bits, got {} ({})", printable(module),
         qweight.shape.str(), printable(qweight.file));
  }
  const int64_t k = words * 32 / bits;
  const packed::Grouping grouping = packed::group_columns(k, config.group_size, module);
  packed::require_size(*tensors.scales, module, "scales", 0, grouping.count, grouping.count);
  packed::require_size(*tensors.scales, module, "scales", 1, n, n);
  packed::require_size(qzeros, module, "qzeros", 0, grouping.count, grouping.count);
  packed::require_size(qzeros, module, "qzeros", 1, ceil_div<int64_t>(n * bits, 32),
                       ceil_div<int64_t>(n, 32) * bits);
  if (tensors.g_idx != nullptr) {
    const RawTensor& g_idx = packed::require(tensors.g_idx, module, "g_idx", 1, DType::kI32);
    packed::require_size(g_idx, module, "g_idx", 0, k, k);
    source->group_of = read_groups(g_idx, module, grouping);
  } else if (config.desc_act && grouping.count > 1) {
    fail(ErrorKind::kCorrupt, "gptq", "{}.g_idx: expected this tensor with desc_act, got none",
         printable(module));
  }

  source->n = n;
  source->k = k;
  source->published = {qweight.bytes, qzeros.bytes, tensors.scales->bytes};
  source->bits = config.bits;
  source->group_size = grouping.size;
  source->n_groups = grouping.count;
  source->qweight = qweight.bytes.data();
  source->qweight_owner = qweight.owner;
  source->packed_zeros = PackedZeros(qzeros, config.bits, config.v2_zeros);
  if (warning != nullptr && !config.v2_zeros) {
    const std::vector<int64_t> rows =
        lost_rows(source->packed_zeros, config.bits, grouping.count, n);
    if (!rows.empty()) *warning = lost_rows_warning(module, rows);
  }
  return source;
}

}  // namespace qw
