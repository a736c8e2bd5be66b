// AWQ: published tensors qweight, qzeros, scales in the GEMM, GEMV and GEMV_FAST layouts ->
// GroupAffine, and back.
//
// Level 2 (quant). Source of the layouts: AutoAWQ 0.2.7; docs/formats.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "quant/linear_source.h"

namespace qw {

enum class AwqVersion { kGemm, kGemv, kGemvFast };

struct AwqConfig {
  int bits = 4;
  int64_t group_size = 128;  // -1: per channel
  AwqVersion version = AwqVersion::kGemm;
};

struct AwqTensors {
  std::string module;
  const RawTensor* qweight = nullptr;
  const RawTensor* qzeros = nullptr;
  const RawTensor* scales = nullptr;
};

/// Errors: corrupt (types, shapes), unsupported (bits other than 4).
std::shared_ptr<const GroupAffine> open_awq(const AwqConfig& config, const AwqTensors& tensors);

/// "gemm", "gemv", "gemv_fast".
std::string_view name_of(AwqVersion version);

/// Errors: unsupported, when the layout cannot hold a matrix of these sizes (group size -1: one
/// group of all inputs), saying what can.
void check_awq_sizes(int64_t n, int64_t k, int64_t group_size, AwqVersion version,
                     std::string_view module);

/// Groups that a row has room for in the file: the gemv layouts pad them.
int64_t awq_stored_groups(int64_t k, int64_t group_size, AwqVersion version);

/// The published tensors of one matrix, little-endian, row-major.
struct AwqFile {
  Shape qweight_shape, qzeros_shape, scales_shape;
  DType qweight_dtype = DType::kI32, qzeros_dtype = DType::kI32;
  std::vector<std::byte> qweight, qzeros;
  std::vector<uint16_t> scales;  // F16

  /// Views of these tensors, named `module`.qweight and so on; this must outlive them.
  struct Views {
    RawTensor qweight, qzeros, scales;
    AwqTensors tensors(std::string module) const;
  };
  Views views(const std::string& module) const;
};

/// What open_awq reads, as AutoAWQ lays it out, padding included: opened again it gives the same
/// codes, scales and zero points (GEMV_FAST: offsets, see with_f16_offsets). Errors: unsupported,
/// for what the layout cannot hold (sizes, bits, act-order, values that are no f16).
AwqFile publish_awq(const GroupAffine& matrix, AwqVersion version, std::string_view module);

/// Its qweight alone: of a matrix whose other tensors are there already. Errors: unsupported, as
/// publish_awq.
std::vector<std::byte> publish_awq_codes(const GroupAffine& matrix, AwqVersion version,
                                         std::string_view module);

}  // namespace qw
