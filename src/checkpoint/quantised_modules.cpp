#include "checkpoint/quantised_modules.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/checked.h"
#include "base/error.h"
#include "checkpoint/hf_config.h"
#include "quant/awq.h"
#include "quant/gptq.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

/// The first of several spellings that is there.
std::optional<int64_t> first_int(const ordered_json& json,
                                 std::initializer_list<std::string_view> keys,
                                 std::string_view file) {
  for (const std::string_view key : keys) {
    if (const auto value = optional_int(json, key, file)) return value;
  }
  return std::nullopt;
}

void read_gptq(const ordered_json& json, std::string_view file, QuantizationConfig& q) {
  q.desc_act = optional_bool(json, "desc_act", file).value_or(false);
  q.sym = optional_bool(json, "sym", file).value_or(true);
  const std::string format = optional_string(json, "checkpoint_format", file).value_or("gptq");
  if (format != "gptq" && format != "gptq_v2") {
    fail(ErrorKind::kUnsupported, "config",
         "checkpoint_format: expected gptq or gptq_v2, got {} ({})", printable(format), file);
  }
  if (optional_bool(json, "is_marlin_format", file).value_or(false)) {
    fail(ErrorKind::kUnsupported, "config",
         "is_marlin_format: expected false (plain GPTQ packing), got true ({})", file);
  }
  q.v2_zeros = format == "gptq_v2";
}

void read_awq(const ordered_json& json, std::string_view file, QuantizationConfig& q) {
  q.awq_version = optional_string(json, "version", file).value_or("gemm");
  std::ranges::transform(q.awq_version, q.awq_version.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  });
  q.zero_point = optional_bool(json, "zero_point", file).value_or(true);
  if (!q.zero_point) {
    fail(ErrorKind::kUnsupported, "config",
         "AWQ zero_point: expected true (the layouts that are read store zero points), got false "
         "({})",
         file);
  }
  constexpr std::array<std::string_view, 3> kVersions = {"gemm", "gemv", "gemv_fast"};
  if (std::ranges::find(kVersions, q.awq_version) == kVersions.end()) {
    fail(ErrorKind::kUnsupported, "config", "AWQ version: expected {}, got {} ({})",
         fmt::join(kVersions, ", "), printable(q.awq_version), file);
  }
}

}  // namespace

QuantizationConfig read_quantization_config(const ordered_json& json, std::string_view file) {
  QuantizationConfig q;
  if (!json.is_object()) {
    fail(ErrorKind::kCorrupt, "config", "quantization_config: expected an object, got {} ({})",
         describe_json(json), file);
  }
  // AutoGPTQ's own quantize_config.json of early releases and AutoAWQ's quant_config.json have no
  // quant_method; their keys tell them apart.
  const bool awq_keys = find_member(json, "w_bit", file) || find_member(json, "q_group_size", file);
  const auto method = optional_string(json, "quant_method", file);
  q.method = method ? *method : awq_keys ? "awq" : "gptq";
  if (q.method != "gptq" && q.method != "awq") {
    fail(ErrorKind::kUnsupported, "config",
         "quantisation method: expected gptq or awq, got {} ({})", printable(q.method), file);
  }
  const auto bits = first_int(json, {"bits", "w_bit"}, file);
  const auto group = first_int(json, {"group_size", "q_group_size"}, file);
  if (!bits || !group) {
    fail(ErrorKind::kCorrupt, "config", "quantisation: expected bits and group_size, got {} ({})",
         describe_json(json), file);
  }
  q.bits = checked_cast<int>(*bits, "bits", file);
  q.group_size = *group;
  if (q.group_size < -1 || q.group_size == 0) {
    fail(ErrorKind::kCorrupt, "config", "group_size: expected -1 or a positive number, got {} ({})",
         q.group_size, file);
  }
  if (const ordered_json* modules = find_member(json, "modules_to_not_convert", file)) {
    for (const ordered_json& module : *modules)
      if (module.is_string()) q.modules_to_not_convert.push_back(module.get<std::string>());
  }
  q.method == "gptq" ? read_gptq(json, file, q) : read_awq(json, file, q);
  return q;
}

std::vector<std::string> quantised_module_tensors(const TensorStore& tensors,
                                                  const QuantizationConfig& config,
                                                  const std::string& module) {
  std::vector<std::string> names = {module + ".qweight", module + ".qzeros", module + ".scales"};
  std::string order = module + ".g_idx";
  if (config.method == "gptq" && tensors.find(order) != nullptr) names.push_back(std::move(order));
  return names;
}

LinearSource open_quantised_module(const TensorStore& tensors, const QuantizationConfig& config,
                                   const std::string& module, std::string* warning) {
  const RawTensor& codes = tensors.at(module + ".qweight");
  const RawTensor& zeros = tensors.at(module + ".qzeros");
  const RawTensor& scales = tensors.at(module + ".scales");
  std::shared_ptr<const GroupAffine> affine;
  if (config.method == "gptq") {
    affine = open_gptq({.bits = config.bits,
                        .group_size = config.group_size,
                        .desc_act = config.desc_act,
                        .sym = config.sym,
                        .v2_zeros = config.v2_zeros},
                       {.module = module,
                        .qweight = &codes,
                        .qzeros = &zeros,
                        .scales = &scales,
                        .g_idx = tensors.find(module + ".g_idx")},
                       warning);
  } else {
    QW_CHECK(config.method == "awq", "quantisation method {}", config.method);
    const AwqVersion version = config.awq_version == "gemv"        ? AwqVersion::kGemv
                               : config.awq_version == "gemv_fast" ? AwqVersion::kGemvFast
                                                                   : AwqVersion::kGemm;
    affine = open_awq({.bits = config.bits, .group_size = config.group_size, .version = version},
                      {.module = module, .qweight = &codes, .qzeros = &zeros, .scales = &scales});
  }
  LinearSource source;
  source.name = module + ".qweight";
  source.n = affine->n;
  source.k = affine->k;
  source.data = std::move(affine);
  source.owner = codes.owner;
  return source;
}

}  // namespace qw
