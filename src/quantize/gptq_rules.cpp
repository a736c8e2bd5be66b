#include "quantize/gptq_rules.h"

#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "base/error.h"
#include "model/tensor_names.h"

namespace qw::quantize {

namespace {

/// What stands behind "model.layers.N." or, of an expert, behind its number; null for modules whose
/// names the rule of another one covers.
const char* tail_of(Slot slot) {
  switch (slot) {
    case Slot::kQ:
      return R"(self_attn\.(q|k|v|qkv)_proj$)";
    case Slot::kO:
      return R"(self_attn\.o_proj$)";
    case Slot::kGate:
      return R"(mlp\.(gate|up|gate_up)_proj$)";
    case Slot::kDown:
      return R"(mlp\.down_proj$)";
    case Slot::kExpertGate:
      return R"((gate|up|gate_up)_proj$)";
    case Slot::kExpertDown:
      return "down_proj$";
    case Slot::kSharedGate:
      return R"(mlp\.shared_expert\.(gate|up|gate_up)_proj$)";
    case Slot::kSharedDown:
      return R"(mlp\.shared_expert\.down_proj$)";
    default:
      return nullptr;
  }
}

std::string any_of(const std::set<int>& numbers) {
  return numbers.size() == 1 ? fmt::format("{}", *numbers.begin())
                             : fmt::format("({})", fmt::join(numbers, "|"));
}

}  // namespace

nlohmann::ordered_json gptq_rules(const std::map<std::string, int>& bits) {
  // By slot, bits and, of experts, layer: the layers, or the experts.
  std::map<std::tuple<Slot, int, int>, std::set<int>> rules;
  for (const auto& [name, number] : bits) {
    const auto id = parse_hf_name(name);
    QW_CHECK(id, "{}: a module", name);
    if (tail_of(id->slot) == nullptr) continue;
    const bool is_expert = id->expert >= 0;
    rules[{id->slot, number, is_expert ? id->layer : -1}].insert(is_expert ? id->expert
                                                                           : id->layer);
  }
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const auto& [key, numbers] : rules) {
    const auto& [slot, number, layer] = key;
    const std::string where = layer >= 0 ? fmt::format(R"({}\.mlp\.experts\.)", layer) : "";
    out[fmt::format(R"(+:model\.layers\.{}{}\.{})", where, any_of(numbers), tail_of(slot))] = {
        {"bits", number}};
  }
  return out;
}

}  // namespace qw::quantize
