// The recipes of llama-quantize: which GGML type each tensor of a model gets under a name such as
// Q4_K_M.
//
// Level 6 (quantize). Files of the same name hold the same types as llama.cpp's, so that sizes,
// speed and expectations carry over. Source of the rules: llama.cpp's llama-quant.cpp (August
// 2026), restated as a table; checked against its own dry runs on all published sizes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tensor_names.h"
#include "tensor/dtype.h"

namespace qw {

/// What the rules ask of a model.
struct RecipeModel {
  int n_layers = 0, n_heads = 0, n_kv_heads = 0, n_experts = 0;
  bool tied = false;  // no output matrix of its own: the embedding is quantised as one
};

/// What the rules ask of one matrix [.., cols].
struct RecipeTensor {
  ModuleId id;
  int64_t cols = 0;
};

struct GgufRecipe;

/// By name, in any case ("q4_k_m"); null: there is none.
const GgufRecipe* find_gguf_recipe(std::string_view name);
/// "Q4_0", "Q4_1", ...: all of them, in the order of bits.
std::vector<std::string_view> gguf_recipe_names();
/// "Q4_K_M".
std::string_view name_of(const GgufRecipe& recipe);
/// The type of most matrices.
DType base_of(const GgufRecipe& recipe);
/// The recipe that a file goes by whose types were not chosen by one: that of the type which most
/// weights have, of the types that name or begin a recipe; F32 where there is none.
const GgufRecipe* recipe_like(const std::map<DType, int64_t>& n_weights);
/// The number that general.file_type holds.
uint32_t file_type_of(const GgufRecipe& recipe);

/// The type of one matrix, fallback included. `has_imatrix`: importance weights are at hand, which
/// changes some choices. Errors: unsupported, where the recipe has no type for such rows
/// (Q4_0 and the other types of 32 elements have no fallback).
DType recipe_type(const GgufRecipe& recipe, const RecipeModel& model, const RecipeTensor& tensor,
                  bool has_imatrix);

/// Whether a matrix is worth little when this type is chosen without importance weights, so that
/// the program asks for them.
bool needs_imatrix(const GgufRecipe& recipe, const RecipeTensor& tensor, DType type);

/// What is written where `cols` is no multiple of the type's block: the type of 32 elements that
/// is nearest in bits, else F16; nullopt: the type has no such rule.
std::optional<DType> fallback_type(DType type, int64_t cols);

}  // namespace qw
