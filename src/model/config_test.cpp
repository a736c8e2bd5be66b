// ModelConfig: every published size, what newer and older files write, and what is refused.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/peft_config.h"
#include "model/tensor_names.h"

namespace qw {

namespace {

using nlohmann::json;
using testing::HasSubstr;

json base_config() {
  return {{"architectures", {"Qwen2ForCausalLM"}},
          {"model_type", "qwen2"},
          {"hidden_act", "silu"},
          {"hidden_size", 1024},
          {"intermediate_size", 2816},
          {"vocab_size", 151936},
          {"num_hidden_layers", 24},
          {"num_attention_heads", 16},
          {"num_key_value_heads", 16},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1e6},
          {"tie_word_embeddings", true},
          {"max_position_embeddings", 32768},
          {"sliding_window", 32768},
          {"use_sliding_window", false},
          {"max_window_layers", 21},
          {"eos_token_id", 151643}};
}

ModelConfig parse(const json& config) {
  Checkpoint checkpoint;
  checkpoint.config_json = config.dump();
  return ModelConfig::from_checkpoint(checkpoint);
}

Error error_of(const json& config) {
  try {
    parse(config);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "was accepted: " << config;
  return Error(ErrorKind::kInternal, "");
}

TEST(ModelConfigTest, ParameterCountsOfPublishedSizes) {
  const auto count = [](int64_t hidden, int64_t inter, int layers, int heads, int kv, int64_t vocab,
                        bool tied) {
    json c = base_config();
    c["hidden_size"] = hidden;
    c["intermediate_size"] = inter;
    c["num_hidden_layers"] = layers;
    c["num_attention_heads"] = heads;
    c["num_key_value_heads"] = kv;
    c["vocab_size"] = vocab;
    c["tie_word_embeddings"] = tied;
    return parse(c).n_parameters();
  };
  EXPECT_EQ(count(1024, 2816, 24, 16, 16, 151936, true), 463987712);
  EXPECT_EQ(count(2048, 5504, 24, 16, 16, 151936, false), 1836828672);
  EXPECT_EQ(count(2560, 6912, 40, 20, 20, 151936, false), 3950369280);
  EXPECT_EQ(count(4096, 11008, 32, 32, 32, 151936, false), 7721324544);
  EXPECT_EQ(count(5120, 13696, 40, 40, 40, 152064, false), 14167290880);
  EXPECT_EQ(count(5120, 27392, 64, 40, 8, 152064, false), 32512218112);
  EXPECT_EQ(count(8192, 24576, 80, 64, 64, 152064, false), 72287920128);
  EXPECT_EQ(count(8192, 49152, 80, 64, 8, 152064, false), 111209914368);
}

TEST(ModelConfigTest, MixtureOfExperts) {
  json c = base_config();
  c["architectures"] = {"Qwen2MoeForCausalLM"};
  c.update({{"hidden_size", 2048},
            {"intermediate_size", 5632},
            {"tie_word_embeddings", false},
            {"num_experts", 60},
            {"num_experts_per_tok", 4},
            {"moe_intermediate_size", 1408},
            {"shared_expert_intermediate_size", 5632},
            {"norm_topk_prob", false},
            {"decoder_sparse_step", 1}});
  const ModelConfig config = parse(c);
  EXPECT_EQ(config.n_parameters(), 14315784192);
  EXPECT_NEAR(static_cast<double>(config.n_parameters_active()), 2.07e9, 0.01e9);
  c["decoder_sparse_step"] = 2;
  c["mlp_only_layers"] = {3};
  const ModelConfig mixed = parse(c);
  EXPECT_FALSE(mixed.layer_is_sparse(0));
  EXPECT_TRUE(mixed.layer_is_sparse(1));
  EXPECT_FALSE(mixed.layer_is_sparse(3));
}

TEST(ModelConfigTest, NothingThatChangesNumbersHasADefault) {
  for (const char* key : {"rms_norm_eps", "rope_theta", "tie_word_embeddings", "hidden_act",
                          "hidden_size", "vocab_size", "max_position_embeddings"}) {
    json c = base_config();
    c.erase(key);
    const Error error = error_of(c);
    EXPECT_EQ(error.kind(), ErrorKind::kCorrupt) << key;
    EXPECT_THAT(error.message(), HasSubstr(key));
  }
}

TEST(ModelConfigTest, WhatIsNotSupportedSaysWhatIs) {
  const auto with = [](const char* key, json value) {
    json c = base_config();
    c[key] = std::move(value);
    const Error error = error_of(c);
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    return error.message();
  };
  EXPECT_THAT(with("architectures", {"LlamaForCausalLM"}), HasSubstr("Qwen2ForCausalLM"));
  EXPECT_THAT(with("hidden_act", "gelu"), HasSubstr("silu"));
  EXPECT_THAT(with("rope_scaling", {{"type", "longrope"}, {"factor", 2}}), HasSubstr("yarn"));
  EXPECT_THAT(with("quantization_config", {{"quant_method", "hqq"}}), HasSubstr("awq"));
  EXPECT_THAT(
      with("quantization_config", {{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}}),
      HasSubstr("load_in_4bit"));
}

TEST(ModelConfigTest, ImpossibleSizesAreRefused) {
  const auto with = [](const char* key, json value) {
    json c = base_config();
    c[key] = std::move(value);
    return error_of(c).kind();
  };
  EXPECT_EQ(with("num_hidden_layers", 0), ErrorKind::kCorrupt);
  EXPECT_EQ(with("num_hidden_layers", 1000000000), ErrorKind::kCorrupt);
  EXPECT_EQ(with("hidden_size", -1024), ErrorKind::kCorrupt);
  EXPECT_EQ(with("hidden_size", 9000000000000000000), ErrorKind::kCorrupt);
  EXPECT_EQ(with("num_attention_heads", 0), ErrorKind::kCorrupt);
  EXPECT_EQ(with("num_key_value_heads", 3), ErrorKind::kCorrupt);
  EXPECT_EQ(with("rms_norm_eps", 0), ErrorKind::kCorrupt);
  EXPECT_EQ(with("rope_theta", -1), ErrorKind::kCorrupt);
  EXPECT_EQ(with("vocab_size", "big"), ErrorKind::kCorrupt);
  EXPECT_EQ(with("eos_token_id", 151936), ErrorKind::kCorrupt);
  EXPECT_EQ(with("rope_scaling", {{"type", "linear"}, {"factor", 0}}), ErrorKind::kCorrupt);
}

TEST(ModelConfigTest, RopeScalingInEverySpelling) {
  json c = base_config();
  c["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(parse(c).rope.scaling, RopeScaling::kNone);
  c["rope_scaling"] = nullptr;
  EXPECT_EQ(parse(c).rope.scaling, RopeScaling::kNone);
  c["rope_scaling"] = {
      {"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 8192}};
  EXPECT_EQ(parse(c).rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(parse(c).rope.original_max_positions, 8192);
  c.erase("rope_scaling");
  c.erase("rope_theta");
  c["rope_parameters"] = {{"rope_theta", 5e6}, {"rope_type", "dynamic"}, {"factor", 2.0}};
  EXPECT_EQ(parse(c).rope.theta, 5e6);
  EXPECT_EQ(parse(c).rope.scaling, RopeScaling::kDynamic);
}

TEST(ModelConfigTest, SlidingWindowCountsOnlyWhenItIsUsed) {
  json c = base_config();
  EXPECT_EQ(parse(c).window_of_layer(23), 0);
  c["use_sliding_window"] = true;
  EXPECT_EQ(parse(c).window_of_layer(20), 0);
  EXPECT_EQ(parse(c).window_of_layer(21), 32768);
  c["sliding_window"] = nullptr;
  EXPECT_EQ(parse(c).window_of_layer(21), 0);
  c["sliding_window"] = 64;
  c["layer_types"] = std::vector<std::string>(24, "full_attention");
  c["layer_types"][2] = "sliding_attention";
  EXPECT_EQ(parse(c).window_of_layer(2), 64);
  EXPECT_EQ(parse(c).window_of_layer(23), 0);
}

TEST(ModelConfigTest, QuantisationInEverySpelling) {
  json c = base_config();
  c["quantization_config"] = {{"quant_method", "gptq"}, {"bits", 4},
                              {"group_size", 128},      {"desc_act", true},
                              {"sym", false},           {"checkpoint_format", "gptq_v2"}};
  const QuantizationConfig gptq = parse(c).quantization;
  EXPECT_EQ(gptq.method, "gptq");
  EXPECT_TRUE(gptq.desc_act && gptq.v2_zeros && !gptq.sym);
  c["quantization_config"] = {
      {"w_bit", 4}, {"q_group_size", 64}, {"version", "GEMV"}, {"zero_point", true}};
  const QuantizationConfig awq = parse(c).quantization;
  EXPECT_EQ(awq.method, "awq");
  EXPECT_EQ(awq.group_size, 64);
  EXPECT_EQ(awq.awq_version, "gemv");
  c["quantization_config"]["zero_point"] = false;
  EXPECT_THROW(parse(c), Error);
}

TEST(ModelConfigTest, EndTokensAsNumberAndAsList) {
  json c = base_config();
  EXPECT_EQ(parse(c).eos_ids, std::vector<int32_t>{151643});
  c["eos_token_id"] = {151645, 151643};
  EXPECT_EQ(parse(c).eos_ids, (std::vector<int32_t>{151645, 151643}));
}

TEST(TensorNames, BothColumnsAreInvertible) {
  for (int s = 0; s <= static_cast<int>(Slot::kSharedExpertGate); ++s) {
    ModuleId id{.slot = static_cast<Slot>(s)};
    const std::string plain = hf_name(id);
    if (plain.find("layers.") != std::string::npos) id.layer = 12;
    if (plain.find("experts.") != std::string::npos) id.expert = 3;
    EXPECT_EQ(parse_hf_name(hf_name(id)), id) << hf_name(id);
    id.expert = -1;  // one tensor for all experts
    EXPECT_EQ(parse_gguf_name(gguf_name(id)), id) << gguf_name(id);
  }
  for (const char* name :
       {"", "model.layers.", "model.layers.-1.self_attn.q_proj", "model.layers.01.self_attn.q_proj",
        "model.layers.99999999999.mlp.gate", "model.layers.1.self_attn.q_proj.weight"})
    EXPECT_FALSE(parse_hf_name(name)) << name;
}

TEST(PeftConfigTest, PatternsOverrideRankAndAlphaBySuffixOrExpression) {
  const json config = {{"peft_type", "LORA"},
                       {"r", 4},
                       {"lora_alpha", 8},
                       {"rank_pattern", {{"down_proj", 2}, {"layers\\.1\\..*q_proj", 16}}},
                       {"alpha_pattern", {{"q_proj", 32}}}};
  const PeftConfig peft = PeftConfig::parse(config.dump(), "test");
  EXPECT_EQ(peft.rank_of("model.layers.0.mlp.down_proj"), 2);
  EXPECT_EQ(peft.scaling_of("model.layers.0.mlp.down_proj"), 4);
  EXPECT_EQ(peft.rank_of("model.layers.1.self_attn.q_proj"), 16);
  EXPECT_EQ(peft.scaling_of("model.layers.1.self_attn.q_proj"), 2);
  EXPECT_EQ(peft.scaling_of("model.layers.0.self_attn.q_proj"), 8);
  EXPECT_EQ(peft.rank_of("model.layers.0.mlp.updown_proj"), 4) << "a suffix begins after a dot";
}

TEST(PeftConfigTest, RanksAreWholeAndPositive) {
  const auto is_corrupt = [](const char* key, json value) {
    json config = {{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}};
    config[key] = std::move(value);
    try {
      PeftConfig::parse(config.dump(), "test");
      return false;
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kCorrupt;
    }
  };
  EXPECT_TRUE(is_corrupt("r", 0));
  EXPECT_TRUE(is_corrupt("r", 2.5));
  EXPECT_TRUE(is_corrupt("rank_pattern", {{"q_proj", -1}}));
  EXPECT_TRUE(is_corrupt("rank_pattern", {{"q_proj", 1e300}}));
  EXPECT_FALSE(is_corrupt("rank_pattern", {{"q_proj", 8.0}}));
  EXPECT_FALSE(is_corrupt("alpha_pattern", {{"q_proj", 2.5}}));
}

TEST(PeftConfigTest, OptionsThatWouldBeIgnoredAreRefused) {
  const auto refused = [](const char* key, json value) {
    json config = {{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}};
    config[key] = std::move(value);
    try {
      const PeftConfig peft = PeftConfig::parse(config.dump(), "test");
      peft.rank_of("model.layers.0.mlp.down_proj");
      return false;
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kUnsupported;
    }
  };
  EXPECT_TRUE(refused("peft_type", "IA3"));
  EXPECT_TRUE(refused("bias", "all"));
  EXPECT_TRUE(refused("fan_in_fan_out", true));
  EXPECT_TRUE(refused("init_lora_weights", "pissa_niter_16"));
  EXPECT_TRUE(refused("rank_pattern", {{"(a+)+x", 2}})) << "could take for ever";
  EXPECT_FALSE(refused("init_lora_weights", "gaussian"));
  EXPECT_FALSE(refused("layer_replication", nullptr));
}

}  // namespace

}  // namespace qw
