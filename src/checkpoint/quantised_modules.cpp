#include "checkpoint/quantised_modules.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/checked.h"
#include "base/error.h"
#include "checkpoint/bnb_state.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/module_codes.h"
#include "quant/awq.h"
#include "quant/bitsandbytes.h"

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

/// Errors: corrupt.
void check_group_size(int64_t group_size, std::string_view file) {
  if (group_size >= -1 && group_size != 0) return;
  fail(ErrorKind::kCorrupt, "config", "group_size: expected -1 or a positive number, got {} ({})",
       group_size, file);
}

/// What a rule may say of how bytes lie is what holds for all modules.
void check_rule_layout(const ordered_json& rule, std::string_view key, std::string_view format,
                       std::string_view file) {
  const auto expect = [&](std::string_view name, std::string_view value) {
    const ordered_json* found = find_member(rule, name, file);
    if (found == nullptr || (found->is_string() && found->get<std::string>() == value)) return;
    fail(ErrorKind::kUnsupported, "config", "dynamic, {}: expected {} {}, got {} ({})",
         printable(key), name, value, describe_json(*found), file);
  };
  for (const char* name : {"quant_method", "method"})
    expect(name, "gptq");
  for (const char* name : {"checkpoint_format", "format"})
    expect(name, format);
  expect("pack_dtype", "int32");
  if (const ordered_json* adapter = find_member(rule, "adapter", file)) {
    fail(ErrorKind::kUnsupported, "config", "dynamic, {}: expected no adapter, got {} ({})",
         printable(key), describe_json(*adapter), file);
  }
}

/// GPTQModel's `dynamic`: {"+:PATTERN": {"bits": 8, ...}, "-:PATTERN": {}}. A key without a sign is
/// as one with a plus. Fields that say how modules were quantised, not how they lie, are passed
/// over, as they are at the top.
void read_rules(const ordered_json& json, std::string_view format, std::string_view file,
                QuantizationConfig& q) {
  // All rules are tried on every module: bounds the work that a hostile file asks for.
  constexpr size_t kMaxSteps = size_t{1} << 17;
  const ordered_json* dynamic = find_member(json, "dynamic", file);
  if (dynamic == nullptr) return;
  if (!dynamic->is_object()) {
    fail(ErrorKind::kCorrupt, "config", "dynamic: expected an object, got {} ({})",
         describe_json(*dynamic), file);
  }
  size_t n_steps = 0;
  for (const auto& [key, value] : dynamic->items()) {
    std::string_view pattern = key;
    const bool is_signed = pattern.starts_with("+:") || pattern.starts_with("-:");
    if (is_signed) pattern.remove_prefix(2);
    ModuleRule& rule = q.rules.emplace_back(ModuleRule{.names = NamePattern(pattern, file)});
    n_steps += rule.names.n_steps();
    if (n_steps > kMaxSteps) {
      fail(ErrorKind::kUnsupported, "config", "dynamic: expected at most {} steps, got {} ({})",
           kMaxSteps, n_steps, file);
    }
    rule.is_quantised = !key.starts_with("-:");
    if (!rule.is_quantised) continue;
    if (!value.is_object()) {
      fail(ErrorKind::kCorrupt, "config", "dynamic, {}: expected an object, got {} ({})",
           printable(key), describe_json(value), file);
    }
    check_rule_layout(value, key, format, file);
    if (const auto bits = optional_int(value, "bits", file))
      rule.bits = checked_cast<int>(*bits, "bits", file);
    rule.group_size = optional_int(value, "group_size", file);
    if (rule.group_size) check_group_size(*rule.group_size, file);
    rule.desc_act = optional_bool(value, "desc_act", file);
    rule.sym = optional_bool(value, "sym", file);
  }
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
  read_rules(json, format, file, q);
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

/// Transformers' BitsAndBytesConfig. What a matrix is made of stands beside it, so that little of
/// this is needed to read one.
void read_bitsandbytes(const ordered_json& json, std::string_view file, QuantizationConfig& q) {
  if (optional_bool(json, "load_in_8bit", file).value_or(false)) {
    fail(ErrorKind::kUnsupported, "config",
         "bitsandbytes: expected load_in_4bit (nf4 or fp4), got load_in_8bit ({})", file);
  }
  q.bits = 4;
  q.bnb_type = optional_string(json, "bnb_4bit_quant_type", file).value_or("fp4");
  if (q.bnb_type != "nf4" && q.bnb_type != "fp4") {
    fail(ErrorKind::kUnsupported, "config", "bnb_4bit_quant_type: expected nf4 or fp4, got {} ({})",
         printable(q.bnb_type), file);
  }
  q.bnb_double = optional_bool(json, "bnb_4bit_use_double_quant", file).value_or(false);
}

void read_modules(const ordered_json& json, std::string_view key, std::string_view file,
                  QuantizationConfig& q) {
  const ordered_json* modules = find_member(json, key, file);
  if (modules == nullptr) return;
  for (const ordered_json& module : *modules)
    if (module.is_string()) q.modules_to_not_convert.push_back(module.get<std::string>());
}

/// Tensors of one matrix; null where the file has none.
Bnb4Tensors bnb4_tensors(const TensorStore& tensors, const std::string& module) {
  const std::string weight = module + ".weight";
  Bnb4Tensors out;
  out.module = module;
  out.weight = tensors.find(weight);
  out.absmax = tensors.find(weight + ".absmax");
  out.quant_map = tensors.find(weight + ".quant_map");
  out.nested_absmax = tensors.find(weight + ".nested_absmax");
  out.nested_quant_map = tensors.find(weight + ".nested_quant_map");
  for (const char* type : {"nf4", "fp4"}) {
    if (out.quant_state == nullptr)
      out.quant_state = tensors.find(fmt::format("{}.quant_state.bitsandbytes__{}", weight, type));
  }
  return out;
}

LinearSource open_bnb4_module(const TensorStore& tensors, const std::string& module) {
  const Bnb4Tensors found = bnb4_tensors(tensors, module);
  if (found.quant_state == nullptr) {
    fail(ErrorKind::kCorrupt, "bitsandbytes",
         "{}.weight.quant_state.bitsandbytes__nf4 (or __fp4): expected this tensor, got none",
         printable(module));
  }
  auto matrix = open_bnb4(read_bnb4_state(*found.quant_state), found);
  LinearSource source;
  source.name = module + ".weight";
  source.n = matrix->n;
  source.k = matrix->k;
  source.data = std::move(matrix);
  source.owner = found.weight->owner;
  return source;
}

AwqVersion awq_version_of(const QuantizationConfig& config) {
  return config.awq_version == "gemv"        ? AwqVersion::kGemv
         : config.awq_version == "gemv_fast" ? AwqVersion::kGemvFast
                                             : AwqVersion::kGemm;
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
  const bool bnb_keys = find_member(json, "load_in_4bit", file) != nullptr;
  q.method = method ? *method : awq_keys ? "awq" : bnb_keys ? "bitsandbytes" : "gptq";
  if (q.method != "gptq" && q.method != "awq" && q.method != "bitsandbytes") {
    fail(ErrorKind::kUnsupported, "config",
         "quantisation method: expected gptq, awq or bitsandbytes, got {} ({})",
         printable(q.method), file);
  }
  if (q.method == "bitsandbytes") {
    read_bitsandbytes(json, file, q);
    read_modules(json, "llm_int8_skip_modules", file, q);
    return q;
  }
  const auto bits = first_int(json, {"bits", "w_bit"}, file);
  const auto group = first_int(json, {"group_size", "q_group_size"}, file);
  if (!bits || !group) {
    fail(ErrorKind::kCorrupt, "config", "quantisation: expected bits and group_size, got {} ({})",
         describe_json(json), file);
  }
  q.bits = checked_cast<int>(*bits, "bits", file);
  q.group_size = *group;
  check_group_size(q.group_size, file);
  read_modules(json, "modules_to_not_convert", file, q);
  q.method == "gptq" ? read_gptq(json, file, q) : read_awq(json, file, q);
  return q;
}

const ModuleRule* QuantizationConfig::rule_of(std::string_view module) const {
  const auto found = std::ranges::find_if(
      rules, [&](const ModuleRule& rule) { return rule.names.matches_start(module); });
  return found == rules.end() ? nullptr : &*found;
}

GptqConfig QuantizationConfig::gptq_of(std::string_view module) const {
  GptqConfig out = {.bits = bits,
                    .group_size = group_size,
                    .desc_act = desc_act,
                    .sym = sym,
                    .v2_zeros = v2_zeros};
  if (const ModuleRule* rule = rule_of(module)) {
    out.bits = rule->bits.value_or(out.bits);
    out.group_size = rule->group_size.value_or(out.group_size);
    out.desc_act = rule->desc_act.value_or(out.desc_act);
    out.sym = rule->sym.value_or(out.sym);
  }
  return out;
}

bool is_quantised_module(const TensorStore& tensors, const std::string& module) {
  return tensors.find(module + ".qweight") != nullptr ||
         tensors.find(module + ".weight.absmax") != nullptr;
}

std::string module_of_codes(const TensorStore& tensors, const std::string& tensor) {
  for (const std::string_view suffix : {".qweight", ".weight"}) {
    if (!tensor.ends_with(suffix)) continue;
    std::string module = tensor.substr(0, tensor.size() - suffix.size());
    if (suffix == ".qweight" || is_quantised_module(tensors, module)) return module;
  }
  return {};
}

std::vector<std::string> quantised_module_tensors(const TensorStore& tensors,
                                                  const QuantizationConfig& config,
                                                  const std::string& module) {
  if (config.method == "bitsandbytes") {
    const Bnb4Tensors found = bnb4_tensors(tensors, module);
    std::vector<std::string> names = {module + ".weight"};
    for (const RawTensor* tensor : {found.absmax, found.quant_map, found.nested_absmax,
                                    found.nested_quant_map, found.quant_state}) {
      if (tensor != nullptr) names.push_back(tensor->name);
    }
    return names;
  }
  std::vector<std::string> names = {module + ".qweight", module + ".qzeros", module + ".scales"};
  std::string order = module + ".g_idx";
  if (config.method == "gptq" && tensors.find(order) != nullptr) names.push_back(std::move(order));
  return names;
}

LinearSource open_quantised_module(const TensorStore& tensors, const QuantizationConfig& config,
                                   const std::string& module, std::string* warning) {
  if (config.method == "bitsandbytes") return open_bnb4_module(tensors, module);
  const RawTensor& codes = tensors.at(module + ".qweight");
  const RawTensor& zeros = tensors.at(module + ".qzeros");
  const RawTensor& scales = tensors.at(module + ".scales");
  std::shared_ptr<const GroupAffine> affine;
  if (config.method == "gptq") {
    if (const ModuleRule* rule = config.rule_of(module); rule != nullptr && !rule->is_quantised) {
      fail(ErrorKind::kCorrupt, "config",
           "module {}: expected its weight, for dynamic's -:{} says that it is not quantised, got "
           "qweight",
           printable(module), printable(rule->names.text()));
    }
    affine = open_gptq(config.gptq_of(module),
                       {.module = module,
                        .qweight = &codes,
                        .qzeros = &zeros,
                        .scales = &scales,
                        .g_idx = tensors.find(module + ".g_idx")},
                       warning);
  } else {
    QW_CHECK(config.method == "awq", "quantisation method {}", config.method);
    affine = open_awq(
        {.bits = config.bits, .group_size = config.group_size, .version = awq_version_of(config)},
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

std::vector<std::byte> publish_module_codes(const QuantizationConfig& config,
                                            const std::string& module, const LinearSource& matrix) {
  const auto bytes_of = [](const auto& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  if (const auto* codebook = std::get_if<std::shared_ptr<const CodebookBlocks>>(&matrix.data)) {
    std::vector<uint8_t> codes(static_cast<size_t>(matrix.n * matrix.k));
    (*codebook)->codes(0, matrix.n, codes.data());
    return bytes_of(pack_bnb4_codes(codes));
  }
  const GroupAffine& groups = *std::get<std::shared_ptr<const GroupAffine>>(matrix.data);
  if (config.method == "gptq") return bytes_of(publish_gptq_codes(groups, module));
  return publish_awq_codes(groups, awq_version_of(config), module);
}

}  // namespace qw
