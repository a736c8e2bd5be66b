#include "quantize/gguf_recipe.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "base/error.h"

namespace qw {

namespace {

/// Layers that a rule is for. n: the number of layers.
enum class Where : uint8_t {
  kAll,
  kFirst2,
  kFirst4,
  kFirstSixteenth,  // the first n / 16
  kFirstEighth,
  kMiddle,    // all but the first and the last eighth
  kMoreBits,  // the first and last eighth, and every third between
};

/// Models that a rule is for.
enum class Who : uint8_t {
  kAny,
  kGqa4,          // at least four heads share keys and values
  kGqa4OrMoe,     // the same, or at least four experts
  kEightExperts,  // exactly eight
};

/// Whether importance weights are at hand.
enum class With : uint8_t { kEither, kImatrix, kNoImatrix };

struct Rule {
  DType type;
  Where where = Where::kAll;
  Who who = Who::kAny;
  With with = With::kEither;
};

/// The first rule that fits decides; none: the recipe's base type.
using Rules = std::vector<Rule>;

/// How the index of a layer's down projection is found: by its layer, or, in the recipes of one to
/// two bits, by how many have come before it, which are two a layer in a mixture of experts.
enum class DownIndex : uint8_t { kLayer, kTensor };

}  // namespace

struct GgufRecipe {
  std::string_view name;
  uint32_t file_type;
  DType base;
  DType output = DType::kQ6_K;  // of the output matrix; not where the base is F16, BF16, F32
  Rules embedding{}, v{}, q{}, k{}, o{}, down{}, gate_up{};
  DownIndex down_index = DownIndex::kLayer;
  bool bumps_v_of_80_layers = true;
};

namespace {

using enum DType;
using enum Where;
using enum Who;
using enum With;

const Rule kFiveBitsOfEight{kQ5_K, kAll, kEightExperts};
const Rule kEightBitsOfEight{kQ8_0, kAll, kEightExperts};

/// The recipes of one to two bits give what is most sensitive `v`, and four bits where that is
/// cheap.
GgufRecipe tiny(std::string_view name, uint32_t file_type, DType base, DType v, DType embedding,
                Rules o) {
  o.insert(o.begin(), kFiveBitsOfEight);
  return {.name = name,
          .file_type = file_type,
          .base = base,
          .output = kQ5_K,
          .embedding = {{embedding}},
          .v = {{kQ4_K, kAll, kGqa4OrMoe}, {v}},
          .k = {{kQ4_K, kAll, kEightExperts}},
          .o = std::move(o),
          .down = {{v, kFirstEighth}},
          .down_index = DownIndex::kTensor,
          .bumps_v_of_80_layers = false};
}

/// Others give the keys and values of eight experts eight bits: they are small beside them.
GgufRecipe common(GgufRecipe recipe) {
  recipe.v.insert(recipe.v.begin(), kEightBitsOfEight);
  recipe.k.insert(recipe.k.begin(), kEightBitsOfEight);
  return recipe;
}

std::vector<GgufRecipe> make_recipes() {
  const auto plain = [](std::string_view name, uint32_t file_type, DType base) {
    return common({.name = name, .file_type = file_type, .base = base});
  };
  const auto floats = [](std::string_view name, uint32_t file_type, DType base) {
    return GgufRecipe{.name = name, .file_type = file_type, .base = base, .output = base};
  };
  const Rules more_six = {{kQ6_K, kMoreBits}};
  std::vector<GgufRecipe> r;
  r.push_back(tiny("IQ1_S", 24, kIQ1_S, kQ2_K, kQ2_K, {{kIQ2_XXS}}));
  r.push_back(tiny("IQ1_M", 31, kIQ1_M, kQ2_K, kQ2_K, {{kIQ2_XXS}}));
  r.push_back(plain("Q1_0", 40, kQ1_0));
  GgufRecipe ternary = plain("TQ1_0", 36, kTQ1_0);
  ternary.embedding = {{kQ4_K}};
  r.push_back(ternary);
  ternary.name = "TQ2_0", ternary.file_type = 37, ternary.base = kTQ2_0;
  r.push_back(ternary);
  ternary.name = "Q2_0", ternary.file_type = 41, ternary.base = kQ2_0;
  r.push_back(ternary);
  r.push_back(tiny("IQ2_XXS", 19, kIQ2_XXS, kQ2_K, kQ2_K, {}));
  r.push_back(tiny("IQ2_XS", 20, kIQ2_XS, kQ2_K, kQ2_K, {}));
  r.push_back(tiny("IQ2_S", 28, kIQ2_XS, kIQ3_S, kIQ3_S, {{kIQ3_S}}));
  r.push_back(tiny("IQ2_M", 29, kIQ2_S, kIQ3_S, kIQ3_S, {{kIQ3_S}}));
  r.push_back(common({.name = "Q2_K_S",
                      .file_type = 21,
                      .base = kQ2_K,
                      .v = {{kQ4_K, kAll, kGqa4}},
                      .down = {{kQ4_K, kFirstEighth}}}));
  r.push_back(common({.name = "Q2_K",
                      .file_type = 10,
                      .base = kQ2_K,
                      .v = {{kQ4_K, kAll, kGqa4}, {kQ3_K}},
                      .o = {kFiveBitsOfEight, {kQ3_K}},
                      .down = {{kQ3_K}}}));
  r.push_back(
      common({.name = "IQ3_XXS",
              .file_type = 23,
              .base = kIQ3_XXS,
              .output = kQ5_K,
              .embedding = {{kIQ3_S}},
              .v = {{kQ4_K, kAll, kGqa4}, {kIQ3_S, kAll, kAny, kNoImatrix}},
              .q = {{kIQ2_S}},
              .k = {{kIQ2_S}},
              .o = {kFiveBitsOfEight, {kIQ3_S}},
              .down = {{kQ4_K, kFirstEighth, kAny, kNoImatrix}, {kQ3_K, kAll, kAny, kNoImatrix}}}));
  r.push_back(common({.name = "IQ3_XS",
                      .file_type = 22,
                      .base = kIQ3_S,
                      .v = {{kQ4_K, kAll, kGqa4}},
                      .q = {{kIQ3_XXS}},
                      .k = {{kIQ3_XXS}},
                      .o = {kFiveBitsOfEight},
                      .gate_up = {{kIQ3_XXS, kMiddle}}}));
  r.push_back(common({.name = "IQ3_S",
                      .file_type = 26,
                      .base = kIQ3_S,
                      .v = {{kQ4_K, kAll, kGqa4}},
                      .o = {kFiveBitsOfEight}}));
  r.push_back(common({.name = "IQ3_M",
                      .file_type = 27,
                      .base = kIQ3_S,
                      .v = {{kQ4_K}},
                      .o = {kFiveBitsOfEight, {kQ4_K}},
                      .down = {{kQ4_K, kFirstEighth}, {kQ4_K, kMoreBits, kEightExperts}}}));
  r.push_back(common({.name = "Q3_K_S", .file_type = 11, .base = kQ3_K, .o = {kFiveBitsOfEight}}));
  r.push_back(common({.name = "Q3_K_M",
                      .file_type = 12,
                      .base = kQ3_K,
                      .v = {{kQ5_K, kFirst2}, {kQ4_K}},
                      .o = {kFiveBitsOfEight, {kQ4_K}},
                      .down = {{kQ5_K, kFirstSixteenth}, {kQ4_K}}}));
  r.push_back(common({.name = "Q3_K_L",
                      .file_type = 13,
                      .base = kQ3_K,
                      .v = {{kQ5_K}},
                      .o = {{kQ3_K, kAll, kEightExperts}, {kQ5_K}},
                      .down = {{kQ5_K}}}));
  for (const auto& [name, file_type, base] :
       {std::tuple{"IQ4_XS", 30u, kIQ4_XS}, std::tuple{"IQ4_NL", 25u, kIQ4_NL}}) {
    r.push_back(common({.name = name,
                        .file_type = file_type,
                        .base = base,
                        .v = {{kQ5_K, kAll, kGqa4}},
                        .o = {kFiveBitsOfEight},
                        .down = {{kQ5_K, kFirstEighth, kAny, kNoImatrix}}}));
  }
  r.push_back(common({.name = "Q4_0",
                      .file_type = 2,
                      .base = kQ4_0,
                      .down = {{kQ4_1, kFirstEighth, kAny, kImatrix}}}));
  r.push_back(plain("Q4_1", 3, kQ4_1));
  r.push_back({.name = "MXFP4_MOE", .file_type = 38, .base = kMXFP4, .output = kQ8_0});
  r.push_back(common({.name = "Q4_K_S",
                      .file_type = 14,
                      .base = kQ4_K,
                      .v = {{kQ5_K, kFirst4}},
                      .o = {kFiveBitsOfEight},
                      .down = {{kQ5_K, kFirstEighth}}}));
  r.push_back(common({.name = "Q4_K_M",
                      .file_type = 15,
                      .base = kQ4_K,
                      .v = more_six,
                      .o = {kFiveBitsOfEight},
                      .down = more_six}));
  r.push_back(common({.name = "Q5_0",
                      .file_type = 8,
                      .base = kQ5_0,
                      .down = {{kQ5_1, kFirstEighth, kAny, kImatrix}}}));
  r.push_back(plain("Q5_1", 9, kQ5_1));
  r.push_back(plain("Q5_K_S", 16, kQ5_K));
  r.push_back(
      common({.name = "Q5_K_M", .file_type = 17, .base = kQ5_K, .v = more_six, .down = more_six}));
  r.push_back(plain("Q6_K", 18, kQ6_K));
  r.push_back(plain("Q8_0", 7, kQ8_0));
  r.push_back(floats("F16", 1, kF16));
  r.push_back(floats("BF16", 32, kBF16));
  r.push_back(floats("F32", 0, kF32));
  return r;
}

const std::vector<GgufRecipe>& recipes() {
  static const std::vector<GgufRecipe> kRecipes = make_recipes();
  return kRecipes;
}

bool fits(const Rule& rule, const RecipeModel& model, int index, bool has_imatrix) {
  const int n = model.n_layers;
  const bool gqa4 = model.n_heads >= 4 * model.n_kv_heads;
  switch (rule.who) {
    case kAny:
      break;
    case kGqa4:
      if (!gqa4) return false;
      break;
    case kGqa4OrMoe:
      if (!gqa4 && model.n_experts < 4) return false;
      break;
    case kEightExperts:
      if (model.n_experts != 8) return false;
      break;
  }
  if (rule.with == kImatrix && !has_imatrix) return false;
  if (rule.with == kNoImatrix && has_imatrix) return false;
  switch (rule.where) {
    case kAll:
      return true;
    case kFirst2:
      return index < 2;
    case kFirst4:
      return index < 4;
    case kFirstSixteenth:
      return index < n / 16;
    case kFirstEighth:
      return index < n / 8;
    case kMiddle:
      return index >= n / 8 && index < 7 * n / 8;
    case kMoreBits:
      return index < n / 8 || index >= 7 * n / 8 || (index - n / 8) % 3 == 2;
  }
  return false;
}

DType choose(const Rules& rules, const GgufRecipe& recipe, const RecipeModel& model, int index,
             bool has_imatrix) {
  const auto rule = std::ranges::find_if(
      rules, [&](const Rule& one) { return fits(one, model, index, has_imatrix); });
  return rule == rules.end() ? recipe.base : rule->type;
}

DType output_type(const GgufRecipe& recipe, int64_t cols) {
  if (cols % info(recipe.base).block_elems != 0) return kQ8_0;
  return recipe.base == kQ8_0 ? kQ8_0 : recipe.output;
}

bool is_expert(Slot slot) {
  return slot == Slot::kExpertGate || slot == Slot::kExpertUp || slot == Slot::kExpertDown;
}

DType v_type(const GgufRecipe& recipe, const RecipeModel& model, int layer, bool has_imatrix) {
  const DType type = choose(recipe.v, recipe, model, layer, has_imatrix);
  // Of 80 layers are the 72B and the 110B, where eight heads share values: bits are cheap there.
  const bool is_cheap = recipe.bumps_v_of_80_layers && model.n_layers == 80;
  return is_cheap && (type == kQ3_K || type == kQ4_K) ? kQ5_K : type;
}

DType type_before_fallback(const GgufRecipe& recipe, const RecipeModel& model,
                           const RecipeTensor& tensor, bool has_imatrix) {
  const Slot slot = tensor.id.slot;
  const int layer = tensor.id.layer;
  if (is_float(recipe.base)) return recipe.base;
  if (slot == Slot::kLmHead || (slot == Slot::kEmbedding && model.tied))
    return output_type(recipe, tensor.cols);
  if (recipe.base == kMXFP4) return is_expert(slot) ? kMXFP4 : kQ8_0;
  switch (slot) {
    case Slot::kEmbedding:
      return choose(recipe.embedding, recipe, model, 0, has_imatrix);
    case Slot::kV:
      return v_type(recipe, model, layer, has_imatrix);
    case Slot::kQ:
      return choose(recipe.q, recipe, model, layer, has_imatrix);
    case Slot::kK:
      return choose(recipe.k, recipe, model, layer, has_imatrix);
    case Slot::kO:
      return choose(recipe.o, recipe, model, layer, has_imatrix);
    case Slot::kDown:
    case Slot::kExpertDown:
    case Slot::kSharedDown: {
      const bool by_tensor = recipe.down_index == DownIndex::kTensor && slot != Slot::kDown;
      const int index = by_tensor ? 2 * layer + (slot == Slot::kSharedDown ? 1 : 0) : layer;
      return choose(recipe.down, recipe, model, index, has_imatrix);
    }
    default:
      return choose(recipe.gate_up, recipe, model, layer, has_imatrix);
  }
}

}  // namespace

const GgufRecipe* find_gguf_recipe(std::string_view name) {
  const auto same = [name](const GgufRecipe& recipe) {
    return std::ranges::equal(
        name, recipe.name, [](unsigned char a, unsigned char b) { return std::toupper(a) == b; });
  };
  const auto found = std::ranges::find_if(recipes(), same);
  return found == recipes().end() ? nullptr : &*found;
}

std::vector<std::string_view> gguf_recipe_names() {
  std::vector<std::string_view> names;
  for (const GgufRecipe& recipe : recipes())
    names.push_back(recipe.name);
  return names;
}

std::string_view name_of(const GgufRecipe& recipe) {
  return recipe.name;
}

DType base_of(const GgufRecipe& recipe) {
  return recipe.base;
}

const GgufRecipe* recipe_like(const std::map<DType, int64_t>& n_weights) {
  const GgufRecipe* best = find_gguf_recipe("F32");
  int64_t most = 0;
  for (const auto& [dtype, n] : n_weights) {
    if (n <= most) continue;
    const GgufRecipe* like = find_gguf_recipe(name_of(dtype));
    const auto based = std::ranges::find(recipes(), dtype, &GgufRecipe::base);
    if (like == nullptr && based != recipes().end()) like = &*based;
    if (like == nullptr) continue;
    most = n;
    best = like;
  }
  return best;
}

uint32_t file_type_of(const GgufRecipe& recipe) {
  return recipe.file_type;
}

std::optional<DType> fallback_type(DType type, int64_t cols) {
  if (cols % info(type).block_elems == 0) return type;
  DType other = kF16;
  switch (type) {
    case kIQ1_S:
    case kIQ1_M:
    case kIQ2_XXS:
    case kIQ2_XS:
    case kIQ2_S:
    case kIQ3_XXS:
    case kIQ3_S:
    case kIQ4_XS:
      other = kIQ4_NL;
      break;
    case kQ2_0:
    case kQ2_K:
    case kQ3_K:
    case kTQ1_0:
    case kTQ2_0:
      other = kQ4_0;
      break;
    case kQ4_K:
      other = kQ5_0;
      break;
    case kQ5_K:
      other = kQ5_1;
      break;
    case kQ6_K:
      other = kQ8_0;
      break;
    default:
      return std::nullopt;
  }
  return cols % info(other).block_elems == 0 ? other : kF16;
}

DType recipe_type(const GgufRecipe& recipe, const RecipeModel& model, const RecipeTensor& tensor,
                  bool has_imatrix) {
  const DType type = type_before_fallback(recipe, model, tensor, has_imatrix);
  const std::optional<DType> fallback = fallback_type(type, tensor.cols);
  if (!fallback) {
    fail(
        ErrorKind::kUnsupported, "quantize",
        "{}: expected rows of a multiple of {} for {}, got {} ({}); a k-quant such as Q4_K_M has a "
        "rule for such rows",
        recipe.name, info(type).block_elems, info(type).name, tensor.cols, gguf_name(tensor.id));
  }
  return *fallback;
}

bool needs_imatrix(const GgufRecipe& recipe, const RecipeTensor& tensor, DType type) {
  if (tensor.id.slot == Slot::kEmbedding || tensor.id.slot == Slot::kLmHead) return false;
  switch (type) {
    case kIQ1_S:
    case kIQ1_M:
    case kIQ2_XXS:
    case kIQ2_XS:
    case kIQ2_S:
    case kIQ3_XXS:
      return true;
    case kQ2_K:
      return recipe.name == "Q2_K_S";
    default:
      return false;
  }
}

}  // namespace qw
