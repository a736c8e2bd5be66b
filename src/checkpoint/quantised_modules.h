// Quantised modules of a Hugging Face checkpoint: what the configuration says about them, and the
// matrix that the tensors of one module stand for.
//
// Level 3 (checkpoint). Sources: quantization_config as Transformers, AutoGPTQ, AutoAWQ and
// bitsandbytes write it; how the bytes are read is quant/'s business. Above this, nobody knows the
// formats by name.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/name_pattern.h"
#include "quant/gptq.h"
#include "quant/linear_source.h"

namespace qw {

/// Modules that are stored otherwise than the rest: one entry of GPTQModel's `dynamic`.
struct ModuleRule {
  NamePattern names;
  bool is_quantised = true;  // false: "-:", a dense matrix
  std::optional<int> bits;   // none: those of all
  std::optional<int64_t> group_size;
  std::optional<bool> desc_act, sym;
};

/// How the weights are stored, from quantization_config / quantize_config.json.
struct QuantizationConfig {
  std::string method;  // "", "gptq", "awq", "bitsandbytes"
  int bits = 0;
  int64_t group_size = 0;  // -1: one group per row; 0: each module says it
  bool desc_act = false, sym = true, zero_point = true, v2_zeros = false;
  std::string awq_version;  // gemm, gemv, gemv_fast
  std::string bnb_type;     // of new matrices; each module says its own: nf4, fp4
  bool bnb_double = false;  // likewise: scales are quantised, too
  std::vector<std::string> modules_to_not_convert;
  std::vector<ModuleRule> rules;  // gptq: the first that matches a module decides

  /// Null: none matches.
  const ModuleRule* rule_of(std::string_view module) const;
  /// gptq: how this module is stored.
  GptqConfig gptq_of(std::string_view module) const;
};

/// `json`: the object of quantization_config, or a whole quantize_config.json; `file` names it in
/// errors. Errors: corrupt (missing field, wrong type), unsupported (method, packing, rules for
/// modules that are no matter of bits and groups; says what is supported).
QuantizationConfig read_quantization_config(const nlohmann::ordered_json& json,
                                            std::string_view file);

/// Whether `module` ("model.layers.0.self_attn.q_proj") is there in a quantised form.
bool is_quantised_module(const TensorStore& tensors, const std::string& module);
/// The module that this tensor holds the codes of; empty: none.
std::string module_of_codes(const TensorStore& tensors, const std::string& tensor);

/// Names of the tensors of one quantised module ("model.layers.0.self_attn.q_proj"), its codes
/// first; optional ones only when they are there.
std::vector<std::string> quantised_module_tensors(const TensorStore& tensors,
                                                  const QuantizationConfig& config,
                                                  const std::string& module);

/// One quantised module as the matrix that these tensors stand for. `warning` (may be null): see
/// open_gptq. Errors: not_found (a tensor), corrupt (also a module that by its rule is not
/// quantised), unsupported.
LinearSource open_quantised_module(const TensorStore& tensors, const QuantizationConfig& config,
                                   const std::string& module, std::string* warning);

}  // namespace qw
