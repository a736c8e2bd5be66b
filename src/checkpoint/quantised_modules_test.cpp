// What a configuration says of single modules: GPTQModel's `dynamic`.
#include "checkpoint/quantised_modules.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "checkpoint/test_support.h"

namespace qw {
namespace {

using nlohmann::ordered_json;

QuantizationConfig read(const char* dynamic, const char* more = "") {
  const std::string text = std::string(R"({"quant_method": "gptq", "bits": 4, "group_size": 128,
    "sym": false)") + more +
                           R"(, "dynamic": )" + dynamic + "}";
  return read_quantization_config(ordered_json::parse(text), "config.json");
}

TEST(ModuleRules, TheFirstThatMatchesDecidesAlone) {
  const QuantizationConfig q = read(R"x({
    "+:.*\\.3\\.self_attn\\.(q|k|v)_proj$": {"bits": 8},
    ".*\\.3\\.": {"group_size": 32, "sym": true, "mse": 0.1},
    "-:.*\\.down_proj": {},
    "+:model\\.layers\\.": {"bits": 2, "group_size": -1, "desc_act": true}})x");
  ASSERT_EQ(q.rules.size(), 4u);
  const GptqConfig attention = q.gptq_of("model.layers.3.self_attn.k_proj");
  EXPECT_EQ(attention.bits, 8);
  EXPECT_EQ(attention.group_size, 128);
  EXPECT_FALSE(attention.sym);
  // Not what later ones say besides.
  const GptqConfig up = q.gptq_of("model.layers.3.mlp.up_proj");
  EXPECT_EQ(up.bits, 4);
  EXPECT_EQ(up.group_size, 32);
  EXPECT_TRUE(up.sym);
  EXPECT_FALSE(up.desc_act);
  EXPECT_TRUE(q.rule_of("model.layers.3.mlp.down_proj")->is_quantised);
  EXPECT_FALSE(q.rule_of("model.layers.4.mlp.down_proj")->is_quantised);
  const GptqConfig rest = q.gptq_of("model.layers.4.mlp.up_proj");
  EXPECT_EQ(rest.bits, 2);
  EXPECT_EQ(rest.group_size, -1);
  EXPECT_TRUE(rest.desc_act);
  EXPECT_EQ(q.rule_of("lm_head"), nullptr);
  EXPECT_EQ(q.gptq_of("lm_head").bits, 4);
  EXPECT_TRUE(read("null").rules.empty());
}

TEST(ModuleRules, RefusesWhatItCannotHonour) {
  const auto refuses = [](ErrorKind kind, const char* dynamic, std::vector<std::string> words) {
    words.emplace_back("config.json");
    expect_error(kind, words, [&] { read(dynamic); });
  };
  refuses(ErrorKind::kCorrupt, "[]", {"dynamic", "object"});
  refuses(ErrorKind::kCorrupt, R"({"a": 8})", {"dynamic, a", "object"});
  refuses(ErrorKind::kCorrupt, R"({"a": {"bits": "8"}})", {"bits"});
  refuses(ErrorKind::kCorrupt, R"({"a": {"group_size": 0}})", {"group_size"});
  refuses(ErrorKind::kCorrupt, R"({"-:(a": {}})", {"pattern of names"});
  refuses(ErrorKind::kUnsupported, R"({"+:(?!b)a": {}})", {"pattern of names", "look-around"});
  refuses(ErrorKind::kUnsupported, R"({"a": {"checkpoint_format": "gptq_v2"}})",
          {"checkpoint_format", "gptq_v2"});
  refuses(ErrorKind::kUnsupported, R"({"a": {"method": "awq"}})", {"method", "awq"});
  refuses(ErrorKind::kUnsupported, R"({"a": {"pack_dtype": "int8"}})", {"pack_dtype"});
  refuses(ErrorKind::kUnsupported, R"({"a": {"adapter": {"rank": 8}}})", {"adapter"});
  EXPECT_EQ(
      read(R"({"a": {"checkpoint_format": "gptq_v2"}})", R"(, "checkpoint_format": "gptq_v2")")
          .rules.size(),
      1u);
}

}  // namespace
}  // namespace qw
