// The types that llama-quantize gives every tensor: its own dry runs, on small models of every kind
// and on the published sizes.
#include "quantize/gguf_recipe.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/golden.h"

namespace qw {
namespace {

using nlohmann::json;

std::string upper_name(DType type) {
  std::string name(name_of(type));
  for (char& c : name)
    c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

/// Columns of a module's matrix.
int64_t cols_of(const ModuleId& id, const json& config) {
  switch (id.slot) {
    case Slot::kDown:
      return config["intermediate_size"];
    case Slot::kExpertDown:
      return config["moe_intermediate_size"];
    case Slot::kSharedDown:
      return config["shared_expert_intermediate_size"];
    default:
      return config["hidden_size"];
  }
}

RecipeModel model_of(const json& config) {
  return {.n_layers = config["num_hidden_layers"],
          .n_heads = config["num_attention_heads"],
          .n_kv_heads = config["num_key_value_heads"],
          .n_experts = config.value("num_experts", 0),
          .tied = config["tie_word_embeddings"]};
}

ModuleId module_of(std::string name) {
  name.resize(name.size() - std::string_view(".weight").size());
  const std::optional<ModuleId> id = parse_gguf_name(name);
  if (!id) throw std::runtime_error(name);
  return *id;
}

TEST(GgufRecipe, GivesWhatLlamaQuantizeGives) {
  const auto path = test::find_golden("gguf/mix_types.json");
  ASSERT_TRUE(path);
  const json models = test::read_json(*path);
  int n_types = 0, n_refused = 0;
  for (const auto& [model_name, model] : models.items()) {
    const json& config = model["config"];
    for (const auto& [mix, result] : model["mixes"].items()) {
      SCOPED_TRACE(model_name + " " + mix);
      const size_t plus = mix.find('+');
      const GgufRecipe* recipe = find_gguf_recipe(mix.substr(0, plus));
      ASSERT_NE(recipe, nullptr);
      if (result.contains("refused")) {
        ++n_refused;
        EXPECT_THROW(recipe_type(*recipe, model_of(config),
                                 {{Slot::kDown, 0}, cols_of({Slot::kDown, 0}, config)},
                                 plus != std::string::npos),
                     Error);
        continue;
      }
      for (const auto& [name, type] : result["types"].items()) {
        const ModuleId id = module_of(name);
        if (id.slot == Slot::kRouter || id.slot == Slot::kSharedExpertGate) continue;  // not quantised
        EXPECT_EQ(upper_name(recipe_type(*recipe, model_of(config), {id, cols_of(id, config)},
                                         plus != std::string::npos)),
                  type)
            << name;
        ++n_types;
      }
    }
  }
  EXPECT_GT(n_types, 2000);
  EXPECT_GT(n_refused, 4);
}

json published(const char* name) {
  struct Shape {
    const char* name;
    int hidden, intermediate, layers, heads, kv_heads;
  };
  for (const Shape& s : std::initializer_list<Shape>{{"0.5B", 1024, 2816, 24, 16, 16},
                                                     {"1.8B", 2048, 5504, 24, 16, 16},
                                                     {"4B", 2560, 6912, 40, 20, 20},
                                                     {"7B", 4096, 11008, 32, 32, 32},
                                                     {"14B", 5120, 13696, 40, 40, 40},
                                                     {"32B", 5120, 27392, 64, 40, 8},
                                                     {"72B", 8192, 24576, 80, 64, 64},
                                                     {"110B", 8192, 49152, 80, 64, 8},
                                                     {"MoE-A2.7B", 2048, 5632, 24, 16, 16}}) {
    if (std::string_view(s.name) != name) continue;
    json config = {{"hidden_size", s.hidden},
                   {"intermediate_size", s.intermediate},
                   {"num_hidden_layers", s.layers},
                   {"num_attention_heads", s.heads},
                   {"num_key_value_heads", s.kv_heads},
                   {"tie_word_embeddings", s.hidden == 1024}};
    if (std::string_view(name).starts_with("MoE")) {
      config.update({{"num_experts", 60},
                     {"moe_intermediate_size", 1408},
                     {"shared_expert_intermediate_size", 5632}});
    }
    return config;
  }
  throw std::runtime_error(name);
}

TEST(GgufRecipe, GivesWhatLlamaQuantizeGivesThePublishedSizes) {
  const auto path = test::find_golden("gguf/real_size_types.json");
  ASSERT_TRUE(path);
  const json sizes = test::read_json(*path);
  int n_types = 0;
  for (const auto& [size, mixes] : sizes.items()) {
    const json config = published(size.c_str());
    for (const auto& [mix, kinds] : mixes.items()) {
      const GgufRecipe* recipe = find_gguf_recipe(mix);
      ASSERT_NE(recipe, nullptr) << mix;
      for (const auto& [kind, given] : kinds.items()) {
        if (kind.starts_with("_")) continue;
        SCOPED_TRACE(size + " " + mix + " " + kind);
        const bool in_layers = kind != "token_embd.weight" && kind != "output.weight";
        const int n = in_layers ? config["num_hidden_layers"].get<int>() : 1;
        const json runs =
            given.is_string() ? json::array({json::array({given, 0, n - 1})}) : given;
        for (const json& run : runs) {
          for (int layer = run[1]; layer <= run[2]; ++layer) {
            const ModuleId id =
                module_of(in_layers ? "blk." + std::to_string(layer) + "." + kind : kind);
            ASSERT_EQ(upper_name(recipe_type(*recipe, model_of(config), {id, cols_of(id, config)},
                                             false)),
                      run[0])
                << layer;
            ++n_types;
          }
        }
      }
    }
  }
  EXPECT_GT(n_types, 40000);
}

TEST(GgufRecipe, NamesAreFoundInAnyCase) {
  EXPECT_EQ(find_gguf_recipe("q4_k_m"), find_gguf_recipe("Q4_K_M"));
  EXPECT_EQ(find_gguf_recipe("q4_k"), nullptr);
  for (const std::string_view name : gguf_recipe_names())
    EXPECT_EQ(name_of(*find_gguf_recipe(name)), name);
}

}  // namespace
}  // namespace qw
