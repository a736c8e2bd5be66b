// GPTQ: published tensors qweight, qzeros, scales, g_idx -> GroupAffine.
//
// Level 2 (quant). Layout and the three rules for zeros: docs/formats.md; sources are AutoGPTQ
// 0.7.1 and GPTQModel (v1 zeros hold zero - 1, v2 zeros the zero itself).
#pragma once

#include <memory>
#include <string>

#include "quant/linear_source.h"

namespace qw {

struct GptqConfig {
  int bits = 4;             // 2, 3, 4, 8
  int64_t group_size = 128; // -1: per channel
  bool desc_act = false;
  bool sym = true;
  bool v2_zeros = false;    // checkpoint_format "gptq_v2"
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

}  // namespace qw
