// GPTQ: published tensors qweight, qzeros, scales, g_idx -> GroupAffine.
//
// Level 2 (quant). Layout and the three rules for zeros: docs/formats.md; sources are AutoGPTQ
// 0.7.1 and GPTQModel (v1 zeros hold zero - 1, v2 zeros the zero itself).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "quant/linear_source.h"

namespace qw {

struct GptqConfig {
  int bits = 4;              // 2, 3, 4, 8
  int64_t group_size = 128;  // -1: per channel
  bool desc_act = false;
  bool sym = true;
  bool v2_zeros = false;  // checkpoint_format "gptq_v2"
};

struct GptqTensors {
  std::string module;  // "model.layers.0.self_attn.q_proj", for messages
  const RawTensor* qweight = nullptr;
  const RawTensor* qzeros = nullptr;
  const RawTensor* scales = nullptr;
  const RawTensor* g_idx = nullptr;  // may be absent: i / group_size
};

/// Errors: corrupt (types, shapes, g_idx out of range), unsupported (bits). `warning`, if not
/// null, gets a sentence when the file itself has lost information (v1 wrap of a zero of 0).
std::shared_ptr<const GroupAffine> open_gptq(const GptqConfig& config, const GptqTensors& tensors,
                                             std::string* warning = nullptr);

/// The published tensors of one matrix, little-endian, row-major.
struct GptqFile {
  Shape qweight_shape, qzeros_shape, scales_shape, g_idx_shape;
  std::vector<uint32_t> qweight;  // I32 [k * bits / 32, n]
  std::vector<uint32_t> qzeros;   // I32 [n_groups, ceil(n * bits / 32)]
  std::vector<uint16_t> scales;   // F16 [n_groups, n]
  std::vector<int32_t> g_idx;     // I32 [k]

  /// Views of these tensors, named `module`.qweight and so on; this must outlive them.
  struct Views {
    RawTensor qweight, qzeros, scales, g_idx;
    GptqTensors tensors(std::string module) const;
  };
  Views views(const std::string& module) const;
};

/// What open_gptq reads, as AutoGPTQ (v1) and GPTQModel (v2) lay it out: opened again it gives the
/// same codes, scales, zeros and groups. `module` is for messages. Errors: unsupported, for what
/// the format cannot hold (k * bits no multiple of 32, scales that are no f16, a zero point of 0 in
/// v1, which stores zero - 1 and would wrap, one of 2^bits, offsets instead of zero points).
GptqFile publish_gptq(const GroupAffine& matrix, bool v2_zeros, std::string_view module);

/// Its qweight alone, [k * bits / 32, n]: of a matrix whose other tensors are there already.
/// Errors: unsupported (bits, k * bits no multiple of 32).
std::vector<uint32_t> publish_gptq_codes(const GroupAffine& matrix, std::string_view module);

}  // namespace qw
