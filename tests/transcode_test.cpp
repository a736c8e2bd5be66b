// Quantised checkpoints in another format: which hold every weight, what is said of those that do
// not, and that a model computes the same from either.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/half.h"
#include "quant/affine_matrix.h"
#include "quant/ggml_blocks.h"
#include "quant/step_rows.h"
#include "quantize/gguf_recipe.h"
#include "quantize/kept_types.h"
#include "quantize/weight_comparison.h"
#include "support/cli_fixture.h"
#include "support/golden.h"

namespace qw::test {
namespace {

using nlohmann::json;
using quantize::find_kept_types;
using quantize::KeptTypes;
using quantize::WeightDifference;
using ::testing::HasSubstr;

struct Opened {
  explicit Opened(const std::string& path)
      : checkpoint(Checkpoint::open(path)),
        config(ModelConfig::from_checkpoint(*checkpoint)),
        sources(open_network(*checkpoint, config)) {}
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
};

LinearSource transcoded(const LinearSource& part, DType dtype) {
  std::vector<float> decoded(static_cast<size_t>(part.n * part.k));
  part.decode_rows(0, part.n, decoded.data());
  StepRows steps;
  read_steps(part, 0, part.n, steps);
  const int64_t bytes_per_row = row_bytes(dtype, part.k, "row");
  const auto bytes =
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(part.n * bytes_per_row));
  for (int64_t r = 0; r < part.n; ++r) {
    encode_steps(dtype, steps, r, decoded.data() + r * part.k, nullptr,
                 bytes->data() + r * bytes_per_row);
  }
  LinearSource out = part;
  out.data = BlockRows{dtype, bytes->data(), bytes_per_row};
  out.owner = bytes;
  out.row_begin = 0;
  return out;
}

/// The network with what was quantised in the types that were chosen for it.
NetworkSources transcoded(const NetworkSources& from, const KeptTypes& types) {
  NetworkSources out = from;
  const auto change = [&](LinearParts& linear) {
    for (size_t i = 0; i < linear.parts.size(); ++i) {
      const std::string name = gguf_name(linear.modules[i]) + ".weight";
      if (has_steps(linear.parts[i]))
        linear.parts[i] = transcoded(linear.parts[i], types.of.at(name));
    }
  };
  for (LayerSources& layer : out.layers) {
    for (LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down,
                               &layer.moe.shared_gate_up, &layer.moe.shared_down})
      change(*parts);
    for (auto* experts : {&layer.moe.gate_up, &layer.moe.down}) {
      for (LinearParts& parts : *experts)
        change(parts);
    }
  }
  return out;
}

struct Golden {
  const char* path;
  DType type;
  double least = 0, most = 0;  // of the error; 0: exact
};
void PrintTo(const Golden& golden, std::ostream* out) {
  *out << golden.path;
}

class TranscodedGolden : public ::testing::TestWithParam<Golden> {};

TEST_P(TranscodedGolden, HoldsEveryWeightOrIsMeasured) {
  const Golden golden = GetParam();
  const auto path = find_golden(golden.path);
  if (!path) GTEST_SKIP() << "no golden " << golden.path;
  const Opened model(*path);
  ThreadPool pool(2);
  const KeptTypes types = find_kept_types(model.sources, std::nullopt, pool, nullptr);
  ASSERT_EQ(types.n_quantised.size(), 1u);
  EXPECT_EQ(types.n_quantised.begin()->first, golden.type)
      << name_of(types.n_quantised.begin()->first);
  EXPECT_TRUE(is_float(types.of.at("token_embd.weight")));
  const auto all = quantize::compare_weights(
      model.sources, transcoded(model.sources, types), pool, [](int64_t) {}, nullptr);
  const WeightDifference total = total_of(all);
  EXPECT_EQ(total.is_exact(), golden.most == 0) << total.n_changed;
  EXPECT_GE(total.relative(), golden.least);
  EXPECT_LE(total.relative(), golden.most);
}

using enum DType;
INSTANTIATE_TEST_SUITE_P(
    Published, TranscodedGolden,
    ::testing::Values(
        Golden{"gptq/int4_g128_official", kQ4_0}, Golden{"gptq/int8_g128_official", kQ8_0},
        Golden{"gptq/int4_g32", kQ4_0}, Golden{"gptq/int4_perchannel", kQ4_0},
        Golden{"gptq/int3_g128", kQ4_0}, Golden{"gptq/int2_g64", kQ4_0},
        Golden{"gptq/int4_g128_desc_act_static", kQ4_0}, Golden{"gptq/int4_g128_asym", kQ5_0},
        Golden{"gptq/int4_g128_asym_gptq_v2", kQ5_0}, Golden{"gptq/moe_int4_g128", kQ4_0},
        Golden{"gptq/int4_g128_desc_act", kQ4_0, 0.01, 0.2},
        Golden{"awq/gemm_g128_official", kQ5_0}, Golden{"awq/gemm_g64", kQ5_0},
        Golden{"awq/gemv_g128", kQ5_0}, Golden{"awq/gemv_fast_g128", kQ4_1}));

/// Zero points in the minimums of Q4_1: no more is lost than f16 rounds.
TEST(Transcoded, AwqToMinimumsLosesTheRoundingOnly) {
  const auto path = find_golden("awq/gemm_g128_official");
  if (!path) GTEST_SKIP() << "no golden";
  const Opened model(*path);
  ThreadPool pool(2);
  const KeptTypes types = find_kept_types(model.sources, kQ4_1, pool, nullptr);
  const WeightDifference total = total_of(quantize::compare_weights(
      model.sources, transcoded(model.sources, types), pool, [](int64_t) {}, nullptr));
  EXPECT_GT(total.relative(), 0);
  EXPECT_LT(total.relative(), 0.0005);
}

TEST(Transcoded, ComparisonSeesOneWeight) {
  const auto path = find_golden("gptq/int4_g32");
  if (!path) GTEST_SKIP() << "no golden";
  const Opened model(*path);
  ThreadPool pool(2);
  const KeptTypes types = find_kept_types(model.sources, std::nullopt, pool, nullptr);
  NetworkSources other = transcoded(model.sources, types);
  LinearSource& o = other.layers[0].o.parts[0];
  const auto& rows = std::get<BlockRows>(o.data);
  const auto bytes =
      std::make_shared<std::vector<std::byte>>(rows.data, rows.data + o.n * rows.row_bytes);
  bytes->back() ^= std::byte{0x10};
  o.data = BlockRows{rows.dtype, bytes->data(), rows.row_bytes};
  o.owner = bytes;
  const auto all = quantize::compare_weights(
      model.sources, other, pool, [](int64_t) {}, nullptr);
  EXPECT_EQ(total_of(all).n_changed, 1);
  for (const WeightDifference& one : all)
    EXPECT_EQ(one.is_exact(), one.name != "model.layers.0.self_attn.o_proj") << one.name;
}

/// Groups of 128 with this zero point, all codes in each block of 32, as far as they fit.
LinearSource on_grid(const LinearSource& like, int bits, float zero) {
  auto matrix = std::make_shared<AffineMatrix>();
  matrix->n = like.n;
  matrix->k = like.k;
  matrix->bits = bits;
  matrix->group_size = 128;
  matrix->n_groups = like.k / 128;
  for (int64_t i = 0; i < like.n * like.k; ++i)
    matrix->code_values.push_back(static_cast<uint8_t>(i * 37 % (1 << bits)));
  const float scale = f16_to_f32(f32_to_f16(0.0127F));  // five of it are no f16
  matrix->scale_values.assign(static_cast<size_t>(like.n * matrix->n_groups), scale);
  matrix->zero_values.assign(matrix->scale_values.size(), zero);
  return source_of(like.name, matrix);
}

/// A stack of experts is of one type, which must hold them all.
TEST(Transcoded, ExpertsOfSeveralKinds) {
  const auto path = find_golden("gptq/moe_int4_g128");
  if (!path) GTEST_SKIP() << "no golden";
  const Opened model(*path);
  NetworkSources mixed = model.sources;
  std::vector<LinearParts>& down = mixed.layers[0].moe.down;
  std::vector<LinearParts>& gate_up = mixed.layers[0].moe.gate_up;
  // One was left out of quantising.
  const LinearSource& one = down[0].parts[0];
  const std::vector<std::byte> halves(static_cast<size_t>(2 * one.n * one.k));
  down[0].parts[0].data = DenseRows{kF16, halves.data(), 2 * one.k};
  // One has zero points that need five bits.
  gate_up[0].parts[0] = on_grid(gate_up[0].parts[0], 4, 5);
  ThreadPool pool(2);
  const KeptTypes types = find_kept_types(mixed, std::nullopt, pool, nullptr);
  EXPECT_EQ(types.of.at("blk.0.ffn_down_exps.weight"), kF32);
  EXPECT_EQ(types.of.at("blk.0.ffn_gate_exps.weight"), kQ5_0);
  EXPECT_EQ(types.of.at("blk.0.ffn_up_exps.weight"), kQ4_0);
  EXPECT_EQ(types.of.at("blk.0.ffn_gate_inp.weight"), kF32);
}

/// Eight bits with zero points are on no grid of GGUF.
TEST(Transcoded, TheNearestGridIsOfAsManyBits) {
  const auto path = find_golden("gptq/int4_g128_official");
  if (!path) GTEST_SKIP() << "no golden";
  const Opened model(*path);
  NetworkSources wide = model.sources;
  wide.layers[0].o.parts[0] = on_grid(wide.layers[0].o.parts[0], 8, 100);
  ThreadPool pool(2);
  const KeptTypes types = find_kept_types(wide, std::nullopt, pool, nullptr);
  EXPECT_EQ(types.of.at("blk.0.attn_output.weight"), kQ8_0);
}

TEST(Transcoded, FilesGoByTheTypeOfMostWeights) {
  const auto name = [](const std::map<DType, int64_t>& n_weights) {
    return std::string(name_of(*recipe_like(n_weights)));
  };
  EXPECT_EQ(name({{kQ4_0, 3}, {kF16, 2}}), "Q4_0");
  EXPECT_EQ(name({{kQ4_0, 2}, {kQ8_0, 3}}), "Q8_0");
  EXPECT_EQ(name({{kQ2_K, 5}}), "Q2_K");
  EXPECT_EQ(name({{kQ4_K, 5}, {kQ6_K, 4}}), "Q4_K_S");
  EXPECT_EQ(name({{kF64, 5}, {kBF16, 1}}), "BF16");  // no recipe is of f64
  EXPECT_EQ(name({}), "F32");
}

class CliTranscode : public CliTest {
 protected:
  std::string path(const char* name) const { return (folder_ / name).string(); }
  json ran(const std::vector<std::string>& args) {
    std::vector<std::string> all = args;
    all.push_back("--json");
    RunOptions patient;  // quantising looks at every layer
    patient.timeout_s = 600;
    const Ran ran = qianwen(all, patient);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.code == 0 ? json::parse(ran.out) : json();
  }
};

TEST_F(CliTranscode, GptqKeepsItsCodesInGguf) {
  ran({"quantize", kBundled, "--to", "gptq-int4", "--calibration-tokens", "1024", "--output",
       path("gptq")});
  const json made =
      ran({"convert", path("gptq"), "--to", "gguf", "--type", "same", "--output", path("m.gguf")});
  EXPECT_EQ(made["weights"]["exact"], true);
  EXPECT_EQ(made["weights"]["changed"], 0);
  EXPECT_EQ(made["warnings"], json::array());
  EXPECT_EQ(made["types"]["q4_0"]["tensors"], 42);
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf.unproven")));
  // The same numbers, and so the same logits where they are computed in the same order.
  const std::string text = write("text.txt", "The capital of Japan is Tokyo. 3 + 4 = 7.");
  const json same =
      ran({"compare", path("gptq"), path("m.gguf"), "--file", text, "--device", "reference"});
  EXPECT_EQ(same["kl_max"], 0);
  EXPECT_EQ(same["a"], same["b"]);
  // quantize finds the codes too, and says so of each kind of matrix.
  const Ran again = qianwen({"quantize", path("gptq"), "--to", "q4_0", "--output", path("q.gguf")});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("down_proj"));
  EXPECT_THAT(again.out, HasSubstr("42 matrices  exact"));
  EXPECT_THAT(again.err, ::testing::Not(HasSubstr("second time")));
}

TEST_F(CliTranscode, IsProvedInSeveralFilesToo) {
  ran({"quantize", kBundled, "--to", "nf4", "--output", path("nf4")});
  const std::vector<std::string> split = {
      "convert",      path("nf4"),           "--to", "gguf", "--type", "same", "--output",
      path("m.gguf"), "--max-shard-tensors", "30"};
  const json made = ran(split);
  EXPECT_EQ(made["weights"]["exact"], true);
  ASSERT_EQ(made["files"].size(), 3u);
  for (const json& file : made["files"])
    EXPECT_TRUE(std::filesystem::exists(file.get<std::string>())) << file;
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf")));
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf.unproven")));
  // The levels of nf4 are no grid: its values are in bf16, as they are decoded.
  EXPECT_EQ(made["types"]["bf16"]["tensors"], 43);
  expect_failure(qianwen(split), 2, "m-00001-of-00003.gguf");
  // What is not proved leaves what was there.
  std::vector<std::string> narrow = split;
  narrow[5] = "q4_0";
  narrow.push_back("--force");
  expect_failure(qianwen(narrow), 5, "--max-error");
  const std::string text = write("text.txt", "The capital of Japan is Tokyo.");
  const json same =
      ran({"compare", path("nf4"), made["files"][0], "--file", text, "--device", "reference"});
  EXPECT_EQ(same["kl_max"], 0);
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf.unproven")));
  expect_failure(qianwen({"convert", path("nf4"), "--to", "awq", "--output", path("x")}), 5,
                 "groups of integers");
}

/// Rounding again, to directories: a figure of what it changes.
TEST_F(CliTranscode, QuantisingAgainIsMeasured) {
  ran({"quantize", kBundled, "--to", "gptq-int8", "--calibration-tokens", "512", "--output",
       path("a")});
  for (const std::string to : {"nf4", "gptq-int4", "gptq-int8", "awq"}) {
    std::vector<std::string> args = {"quantize", path("a"), "--to", to, "--output", path("b")};
    if (to != "nf4") args.insert(args.end(), {"--calibration-tokens", "512"});
    const json made = ran(args);
    std::filesystem::remove_all(path("b"));
    const double error = made["weights"]["relative_error"];
    EXPECT_GT(error, to == "gptq-int8" ? 0.0001 : 0.03) << to;
    EXPECT_LT(error, to == "gptq-int8" ? 0.02 : 0.2) << to;
    ASSERT_EQ(made["warnings"].size(), 2u) << to;
    EXPECT_THAT(made["warnings"][1].get<std::string>(), HasSubstr("42 of 42 quantised matrices"));
  }
  const Ran told = qianwen({"quantize", path("a"), "--to", "nf4", "--output", path("b")});
  EXPECT_THAT(told.out, HasSubstr("down_proj"));
  EXPECT_THAT(ran({"quantize", kBundled, "--to", "nf4", "--output", path("c")})["warnings"],
              json::array());
}

TEST_F(CliTranscode, ActOrderIsTold) {
  ran({"quantize", kBundled, "--to", "gptq-int4", "--desc-act", "--calibration-tokens", "512",
       "--output", path("a")});
  const std::vector<std::string> same = {"convert", path("a"), "--to",     "gguf",
                                         "--type",  "same",    "--output", path("m.gguf")};
  expect_failure(qianwen(same), 5, "within 0.1 %");
  std::vector<std::string> forced = same;
  forced.insert(forced.end(), {"--max-error", "0.3"});
  const json made = ran(forced);
  ASSERT_EQ(made["warnings"].size(), 2u);
  EXPECT_THAT(made["warnings"][0].get<std::string>(), HasSubstr("42 matrices"));
  EXPECT_THAT(made["warnings"][0].get<std::string>(), HasSubstr("act-order"));
  EXPECT_EQ(made["types"]["q4_0"]["tensors"], 42);
  // GPTQ keeps the order.
  EXPECT_EQ(ran({"convert", path("a"), "--to", "gptq", "--output", path("b")})["weights"]["exact"],
            true);
}

TEST_F(CliTranscode, WhatDoesNotFitIsMeasuredAndRefused) {
  ran({"quantize", kBundled, "--to", "gptq-int8", "--calibration-tokens", "1024", "--output",
       path("gptq")});
  const std::vector<std::string> narrow = {"convert", path("gptq"), "--to",     "gguf",
                                           "--type",  "q4_0",       "--output", path("m.gguf")};
  expect_failure(qianwen(narrow), 5, "--max-error");
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf")));
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf.unproven")));
  std::vector<std::string> forced = narrow;
  forced.insert(forced.end(), {"--max-error", "0.2"});
  const json made = ran(forced);
  EXPECT_EQ(made["weights"]["exact"], false);
  EXPECT_GT(made["weights"]["relative_error"], 0.02);
  EXPECT_LT(made["weights"]["relative_error"], 0.2);
  ASSERT_EQ(made["warnings"].size(), 1u);
  EXPECT_THAT(made["warnings"][0].get<std::string>(), HasSubstr("rounded a second time"));
  // quantize does it without being forced, with the same figure.
  const json rounded = ran({"quantize", path("gptq"), "--to", "q4_0", "--output", path("q.gguf")});
  EXPECT_EQ(rounded["warnings"].size(), 1u);
  EXPECT_GT(rounded["weights"]["relative_error"], 0.02);

  expect_failure(
      qianwen({"convert", kBundled, "--to", "gguf", "--type", "q4_0", "--output", path("a.gguf")}),
      2, "quantised already");
  expect_failure(qianwen({"convert", path("gptq"), "--to", "safetensors", "--type", "same",
                          "--output", path("a")}),
                 2, "f16, bf16 or f32");
  expect_failure(qianwen({"convert", path("gptq"), "--to", "gguf", "--max-error", "1", "--output",
                          path("a.gguf")}),
                 2, "--type same");
}

}  // namespace
}  // namespace qw::test
