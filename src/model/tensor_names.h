// The parts of a Qwen2 network and what each container calls them: one table, two columns.
//
// Level 5 (model). A module is a slot (what it does), a layer and, for experts, an index. Names
// are module names; files append ".weight", ".bias", ".qweight" and so on.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace qw {

enum class Slot {
  kEmbedding,
  kFinalNorm,
  kLmHead,
  kInputNorm,
  kQ,
  kK,
  kV,
  kO,
  kPostNorm,
  kGate,
  kUp,
  kDown,
  kRouter,
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  kSharedExpertGate,
};

/// Whether the slot holds the weights of a norm: a vector, not a matrix.
constexpr bool is_norm(Slot slot) {
  return slot == Slot::kInputNorm || slot == Slot::kPostNorm || slot == Slot::kFinalNorm;
}

struct ModuleId {
  Slot slot = Slot::kEmbedding;
  int layer = -1;   // -1: not in a layer
  int expert = -1;  // -1: not an expert, or (GGUF) all experts in one tensor
  bool operator==(const ModuleId&) const = default;
};

/// "model.layers.3.mlp.experts.7.gate_proj"
std::string hf_name(const ModuleId& id);
/// "blk.3.ffn_gate_exps": experts share one stacked tensor, so `expert` does not show.
std::string gguf_name(const ModuleId& id);

/// The inverse functions; nullopt for a name that no module has.
std::optional<ModuleId> parse_hf_name(std::string_view name);
std::optional<ModuleId> parse_gguf_name(std::string_view name);

/// Tensors that old files carry and nobody reads (inverse frequencies, attention masks).
bool is_ignorable_tensor(std::string_view name);

}  // namespace qw
