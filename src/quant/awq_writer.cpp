// The other direction of awq.cpp: codes, scales and zero points into published tensors.
//
// Level 2 (quant).
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>

#include "base/checked.h"
#include "base/half.h"
#include "quant/awq.h"

namespace qw {

namespace {

[[noreturn]] void refuse(std::string_view module, std::string_view expected, std::string_view got) {
  fail(ErrorKind::kUnsupported, "awq", "{}: expected {}, got {}", printable(module), expected, got);
}

/// Calls visit(row, codes) for every row.
void for_rows(const GroupAffine& matrix, std::string_view module,
              const std::function<void(int64_t, const uint8_t*)>& visit) {
  constexpr int64_t kRows = 16;
  std::vector<uint8_t> codes(static_cast<size_t>(kRows * matrix.k));
  for (int64_t row = 0; row < matrix.n; row += kRows) {
    const int64_t n_rows = std::min(kRows, matrix.n - row);
    matrix.codes(row, n_rows, codes.data());
    const auto end = codes.begin() + n_rows * matrix.k;
    if (std::any_of(codes.begin(), end, [](uint8_t code) { return code > 15; })) {
      fail(ErrorKind::kInternal, "awq", "{}: expected codes below 16, got more (rows {} to {})",
           printable(module), row, row + n_rows - 1);
    }
    for (int64_t r = 0; r < n_rows; ++r)
      visit(row + r, codes.data() + r * matrix.k);
  }
}

/// The eight codes or zero points of a word in GEMM's order: output 8c + o is nibble o / 2, of odd
/// ones 4 + o / 2.
constexpr int gemm_shift(int64_t output) noexcept {
  return static_cast<int>(4 * (output % 8 / 2 + output % 2 * 4));
}

/// The f16 that holds `value`, which it must.
uint16_t half_of(float value, std::string_view module, std::string_view suffix) {
  const uint16_t half = f32_to_f16(value);
  if (!std::isfinite(value) || f16_to_f32(half) != value) {
    fail(ErrorKind::kUnsupported, "awq", "{}.{}: expected values that f16 holds, got {}",
         printable(module), suffix, value);
  }
  return half;
}

/// Words of qzeros in a row of GEMV; eight times as many groups in GEMV_FAST. AutoAWQ's
/// calculate_zeros_width: the published kernels load so many at a time.
int64_t zeros_width(int64_t n_groups, int64_t group_size) {
  const int64_t unit = group_size >= 128 ? 1 : group_size == 64 ? 2 : 4;
  return round_up<int64_t>(ceil_div<int64_t>(n_groups, 8), unit);
}

void check_zero(float zero, std::string_view module) {
  if (zero >= 0 && zero <= 15 && zero == std::floor(zero)) return;
  fail(ErrorKind::kUnsupported, "awq", "{}.qzeros: expected zero points 0 to 15, got {}",
       printable(module), zero);
}

class Writer {
 public:
  Writer(const GroupAffine& matrix, AwqVersion version, std::string_view module)
      : m_(matrix), version_(version), module_(module) {}

  AwqFile write() {
    write_codes();
    scales_.resize(static_cast<size_t>(m_.n * m_.n_groups));
    zeros_.resize(scales_.size());
    m_.scales(0, m_.n, scales_.data());
    m_.zeros(0, m_.n, zeros_.data());
    switch (version_) {
      case AwqVersion::kGemm:
        write_gemm_groups();
        break;
      case AwqVersion::kGemv:
        write_gemv_groups();
        break;
      case AwqVersion::kGemvFast:
        write_gemv_fast_groups();
        break;
    }
    return std::move(out_);
  }
  std::vector<std::byte> write_qweight() {
    write_codes();
    return std::move(out_.qweight);
  }

 private:
  void write_codes() {
    switch (version_) {
      case AwqVersion::kGemm:
        return write_gemm_codes();
      case AwqVersion::kGemv:
        return write_gemv_codes();
      case AwqVersion::kGemvFast:
        return write_gemv_fast_codes();
    }
  }

  template <typename Visit>  // visit(output, group, scale, zero)
  void for_groups(const Visit& visit) const {
    for (int64_t o = 0; o < m_.n; ++o) {
      for (int64_t g = 0; g < m_.n_groups; ++g) {
        const auto at = static_cast<size_t>(o * m_.n_groups + g);
        visit(o, g, scales_[at], zeros_[at]);
      }
    }
  }

  void write_gemm_codes() {
    const int64_t k = m_.k, width = m_.n / 8;
    out_.qweight_shape = {k, width};
    std::vector<uint32_t> words(static_cast<size_t>(k * width));
    for_rows(m_, module_, [&](int64_t o, const uint8_t* codes) {
      const int shift = gemm_shift(o);
      uint32_t* to = words.data() + o / 8;
      for (int64_t i = 0; i < k; ++i)
        to[i * width] |= uint32_t{codes[i]} << shift;
    });
    out_.qweight = bytes_of(words);
  }

  void write_gemm_groups() {
    const int64_t n = m_.n, width = n / 8;
    out_.qzeros_shape = {m_.n_groups, width};
    out_.scales_shape = {m_.n_groups, n};
    std::vector<uint32_t> words(static_cast<size_t>(m_.n_groups * width));
    out_.scales.resize(static_cast<size_t>(m_.n_groups * n));
    for_groups([&](int64_t o, int64_t g, float scale, float zero) {
      check_zero(zero, module_);
      words[static_cast<size_t>(g * width + o / 8)] |= static_cast<uint32_t>(zero) << gemm_shift(o);
      out_.scales[static_cast<size_t>(g * n + o)] = half_of(scale, module_, "scales");
    });
    out_.qzeros = bytes_of(words);
  }

  void write_gemv_codes() {
    const int64_t n = m_.n, words_per_row = m_.k / 8;
    out_.qweight_shape = {n, words_per_row};
    std::vector<uint32_t> words(static_cast<size_t>(n * words_per_row));
    for_rows(m_, module_, [&](int64_t o, const uint8_t* codes) {
      for (int64_t i = 0; i < m_.k; ++i)
        words[static_cast<size_t>(o * words_per_row + i / 8)] |= uint32_t{codes[i]}
                                                                 << (4 * (i % 8));
    });
    out_.qweight = bytes_of(words);
  }

  void write_gemv_groups() {
    const int64_t n = m_.n, width = zeros_width(m_.n_groups, m_.group_size);
    out_.qzeros_shape = {n, width};
    out_.scales_shape = {n, width * 8};
    std::vector<uint32_t> words(static_cast<size_t>(n * width));
    out_.scales.resize(static_cast<size_t>(n * width * 8));
    for_groups([&](int64_t o, int64_t g, float scale, float zero) {
      check_zero(zero, module_);
      words[static_cast<size_t>(o * width + g / 8)] |= static_cast<uint32_t>(zero) << (4 * (g % 8));
      out_.scales[static_cast<size_t>(o * width * 8 + g)] = half_of(scale, module_, "scales");
    });
    out_.qzeros = bytes_of(words);
  }

  void write_gemv_fast_codes() {
    const int64_t n = m_.n, k = m_.k;
    out_.qweight_shape = {n / 4, k};
    out_.qweight_dtype = DType::kI16;
    std::vector<uint16_t> words(static_cast<size_t>(n / 4 * k));
    for_rows(m_, module_, [&](int64_t o, const uint8_t* codes) {
      // As GemvFastSource reads them: half-word 8h + j holds inputs 32h + j + {0, 8, 16, 24}.
      for (int64_t i = 0; i < k; ++i) {
        const int64_t half_word = o / 4 * k + i / 64 * 64 + o % 4 * 16 + i % 64 / 32 * 8 + i % 8;
        words[static_cast<size_t>(half_word)] |=
            static_cast<uint16_t>(codes[i] << (4 * (i % 32 / 8)));
      }
    });
    out_.qweight = bytes_of(words);
  }

  void write_gemv_fast_groups() {
    const int64_t n = m_.n, rows = zeros_width(m_.n_groups, m_.group_size) * 8;
    out_.qzeros_shape = out_.scales_shape = {rows, n};
    out_.qzeros_dtype = DType::kF16;
    std::vector<uint16_t> offsets(static_cast<size_t>(rows * n));
    out_.scales.resize(offsets.size());
    for_groups([&](int64_t o, int64_t g, float scale, float offset) {
      out_.scales[static_cast<size_t>(g * n + o)] = half_of(scale, module_, "scales");
      offsets[static_cast<size_t>(g * n + o)] = half_of(offset, module_, "qzeros");
    });
    out_.qzeros = bytes_of(offsets);
  }

  template <typename T>
  static std::vector<std::byte> bytes_of(const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return {bytes.begin(), bytes.end()};
  }

  const GroupAffine& m_;
  AwqVersion version_;
  std::string_view module_;
  std::vector<float> scales_, zeros_;
  AwqFile out_;
};

}  // namespace

std::string_view name_of(AwqVersion version) {
  constexpr std::array<std::string_view, 3> kNames = {"gemm", "gemv", "gemv_fast"};
  return kNames[static_cast<size_t>(version)];
}

void check_awq_sizes(int64_t n, int64_t k, int64_t group_size, AwqVersion version,
                     std::string_view module) {
  const bool fast = version == AwqVersion::kGemvFast, gemm = version == AwqVersion::kGemm;
  const int64_t group = group_size == -1 ? k : group_size;
  const auto sizes = fmt::format("{} x {} in groups of {}", n, k, group);
  if (n % 8 != 0) refuse(module, "a number of outputs that is a multiple of 8", sizes);
  if (group < 1 || k % group != 0) refuse(module, "inputs that are whole groups", sizes);
  const int64_t unit = fast ? 64 : gemm ? 1 : 8;
  if (k % unit != 0) {
    refuse(module,
           fmt::format("inputs that are a multiple of {} for version {}", unit, name_of(version)),
           sizes);
  }
  if (!gemm && group < 128 && group != 64 && group != 32) {
    refuse(module,
           fmt::format("groups of 32, 64, or 128 and more for version {} (gemm holds any)",
                       name_of(version)),
           sizes);
  }
}

int64_t awq_stored_groups(int64_t k, int64_t group_size, AwqVersion version) {
  const int64_t group = group_size == -1 ? k : group_size, n_groups = ceil_div(k, group);
  return version == AwqVersion::kGemm ? n_groups : zeros_width(n_groups, group) * 8;
}

AwqTensors AwqFile::Views::tensors(std::string module) const {
  return {std::move(module), &qweight, &qzeros, &scales};
}

AwqFile::Views AwqFile::views(const std::string& module) const {
  const auto view = [&](const char* suffix, DType dtype, const Shape& shape,
                        std::span<const std::byte> bytes) {
    RawTensor out;
    out.name = module + suffix;
    out.dtype = dtype;
    out.shape = shape;
    out.bytes = bytes;
    return out;
  };
  return {view(".qweight", qweight_dtype, qweight_shape, qweight),
          view(".qzeros", qzeros_dtype, qzeros_shape, qzeros),
          view(".scales", DType::kF16, scales_shape, std::as_bytes(std::span(scales)))};
}

namespace {

void check_matrix(const GroupAffine& matrix, AwqVersion version, std::string_view module) {
  if (matrix.bits != 4) refuse(module, "4 bits", fmt::format("{}", matrix.bits));
  if (!matrix.group_of.empty()) refuse(module, "groups of neighbours", "act-order");
  const bool offsets = version == AwqVersion::kGemvFast;
  if ((matrix.form == GroupAffine::Form::kOffset) != offsets) {
    refuse(module, offsets ? "offsets" : "zero points", offsets ? "zero points" : "offsets");
  }
  check_awq_sizes(matrix.n, matrix.k, matrix.group_size, version, module);
}

}  // namespace

AwqFile publish_awq(const GroupAffine& matrix, AwqVersion version, std::string_view module) {
  check_matrix(matrix, version, module);
  return Writer(matrix, version, module).write();
}

std::vector<std::byte> publish_awq_codes(const GroupAffine& matrix, AwqVersion version,
                                         std::string_view module) {
  check_matrix(matrix, version, module);
  return Writer(matrix, version, module).write_qweight();
}

}  // namespace qw
