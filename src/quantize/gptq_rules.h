// GPTQModel's `dynamic`: which modules have another number of bits than the rest.
//
// Level 6 (quantize). Read by GPTQModel (and Transformers through it), vLLM, SGLang and
// checkpoint/quantised_modules.h. Source: GPTQModel's QuantizeConfig; vLLM's gptq_utils.py, which
// asks with the names of fused modules (qkv_proj, gate_up_proj), so that rules match those too.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace qw::quantize {

/// {"+:model\.layers\.(3|5)\.self_attn\.(q|k|v|qkv)_proj$": {"bits": 8}, ...} for `bits`: of
/// modules by name ("model.layers.3.self_attn.q_proj"), of q, k, v and of gate, up all with the
/// same. One rule for all layers of a kind of matrix, or for the experts of a layer.
nlohmann::ordered_json gptq_rules(const std::map<std::string, int>& bits);

}  // namespace qw::quantize
