// AWQ: published tensors qweight, qzeros, scales in the GEMM, GEMV and GEMV_FAST layouts -> GroupAffine.
//
// Level 2 (quant). Source of the layouts: AutoAWQ 0.2.7; docs/formats.md.
#pragma once

#include <memory>
#include <string>

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

}  // namespace qw
