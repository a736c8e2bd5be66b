// Codes of quantised checkpoints in GPTQ and AWQ directories: the same weights, and refusals.
#include "quantize/transcode_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/test_support.h"
#include "quant/affine_matrix.h"
#include "quantize/weight_comparison.h"
#include "support/cli_fixture.h"
#include "support/golden.h"

namespace qw::test {
namespace {

using nlohmann::json;
using quantize::LayerPlan;
using quantize::TranscodeRequest;
using quantize::WeightDifference;
using Format = TranscodeRequest::Format;

struct Opened {
  explicit Opened(const std::string& path)
      : checkpoint(Checkpoint::open(path)),
        config(ModelConfig::from_checkpoint(*checkpoint)),
        sources(open_network(*checkpoint, config)) {}
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
};

struct Case {
  const char* path;
  Format format;
  bool v2 = true;
  AwqVersion version = AwqVersion::kGemm;
  double most = 0;  // of the error; 0: exact
};

class TranscodedDirectory : public ::testing::TestWithParam<Case> {};

TEST_P(TranscodedDirectory, HoldsEveryWeight) {
  const Case one = GetParam();
  const auto path = find_golden(one.path);
  if (!path) GTEST_SKIP() << "no golden " << one.path;
  const TempDir folder;
  const Opened model(*path);
  TranscodeRequest request;
  request.output = folder / "out";
  request.format = one.format;
  request.zero_from_0 = one.v2;
  request.version = one.version;
  const quantize::LayerSource source{*model.checkpoint, model.config, model.sources};
  const quantize::LayerPlan plan = plan_transcode(source, nullptr, request);
  EXPECT_TRUE(plan.warnings.empty());
  ThreadPool pool(2);
  write_transcoded(source, plan, pool, request);
  const Opened made(request.output);
  EXPECT_EQ(made.config.quantization.method, one.format == Format::kGptq ? "gptq" : "awq");
  EXPECT_EQ(made.config.quantization.group_size, model.config.quantization.group_size);
  if (one.format == Format::kGptq) {
    // AWQ's zero points are anywhere.
    EXPECT_EQ(made.config.quantization.sym, model.config.quantization.method == "gptq");
    EXPECT_EQ(made.config.quantization.desc_act, model.config.quantization.desc_act);
  }
  const WeightDifference total = total_of(quantize::compare_weights(
      model.sources, made.sources, pool, [](int64_t) {}, nullptr));
  EXPECT_EQ(total.is_exact(), one.most == 0) << total.n_changed;
  EXPECT_LE(total.relative(), one.most);
}

constexpr auto kGptq = Format::kGptq, kAwq = Format::kAwq;
INSTANTIATE_TEST_SUITE_P(
    Published, TranscodedDirectory,
    ::testing::Values(
        Case{"gptq/int4_g128_official", kAwq}, Case{"gptq/int4_g128_official", kGptq, false},
        Case{"gptq/int4_g128_official", kAwq, false, AwqVersion::kGemv},
        Case{"gptq/int4_g128_asym_gptq_v2", kAwq}, Case{"gptq/int4_g128_desc_act", kGptq},
        Case{"gptq/moe_int4_g128", kAwq}, Case{"gptq/int8_g128_official", kGptq},
        Case{"gptq/int4_g128_official", kAwq, false, AwqVersion::kGemvFast},
        Case{"gptq/int4_g128_asym_gptq_v2", kAwq, false, AwqVersion::kGemvFast, 0.0005},
        Case{"awq/gemm_g128_official", kGptq}, Case{"awq/gemv_g128", kGptq},
        Case{"awq/gemm_g64", kAwq, false, AwqVersion::kGemv},
        Case{"awq/gemv_fast_g128", kAwq, false, AwqVersion::kGemvFast},
        Case{"awq/gemv_fast_g128", kAwq, false, AwqVersion::kGemm, 0.0005}));

/// What the plan refuses, before anything is written.
TEST(TranscodedGrids, FormatsHaveNoPlaceForSomeGrids) {
  const auto path = find_golden("gptq/int4_g128_desc_act");
  if (!path) GTEST_SKIP() << "no golden";
  Opened model(*path);
  TranscodeRequest request;
  const auto refused = [&](Format format, const char* part) {
    request.format = format;
    expect_error(ErrorKind::kUnsupported, {part}, [&] {
      plan_transcode({*model.checkpoint, model.config, model.sources}, nullptr, request);
    });
  };
  refused(kAwq, "act-order");
  // v1 stores zero points less one.
  LinearSource& o = model.sources.layers[0].o.parts[0];
  auto matrix = std::make_shared<AffineMatrix>();
  matrix->n = o.n;
  matrix->k = o.k;
  matrix->bits = 4;
  matrix->group_size = 128;
  matrix->n_groups = o.k / 128;
  matrix->code_values.assign(static_cast<size_t>(o.n * o.k), 3);
  matrix->scale_values.assign(static_cast<size_t>(o.n * matrix->n_groups), 0.5F);
  matrix->zero_values.assign(matrix->scale_values.size(), 0.0F);
  o = source_of(o.name, matrix);
  refused(kGptq, "zero points from 1");
  request.zero_from_0 = true;
  const LayerPlan plan =
      plan_transcode({*model.checkpoint, model.config, model.sources}, nullptr, request);
  EXPECT_GT(plan.n_matrices, 0);
}

class CliTranscodeDirectory : public CliTest {
 protected:
  std::string path(const char* name) const { return (folder_ / name).string(); }
  json ran(std::vector<std::string> args) {
    args.push_back("--json");
    const Ran ran = qianwen(args);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.code == 0 ? json::parse(ran.out) : json();
  }
  void quantise(const char* to, const char* name, std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"quantize", kBundled, "--to", to, "--output", path(name)};
    if (std::string(to).starts_with("gptq")) more = {"--calibration-tokens", "1024"};
    args.insert(args.end(), more.begin(), more.end());
    ran(args);
  }
  std::vector<std::string> convert(const char* from, const char* to, const char* output) const {
    return {"convert", path(from), "--to", to, "--output", path(output)};
  }
};

TEST_F(CliTranscodeDirectory, GptqToAwqAndBackIsTheSameFile) {
  quantise("gptq-int4", "a");
  const json there = ran(convert("a", "awq", "b"));
  EXPECT_EQ(there["weights"]["exact"], true);
  EXPECT_EQ(there["matrices"], 42);
  const json back = ran(convert("b", "gptq", "c"));
  EXPECT_EQ(back["weights"]["exact"], true);
  const auto weights = [&](const char* name) {
    return read_text_file(path(name) + "/model.safetensors");
  };
  EXPECT_EQ(weights("a"), weights("c"));
  EXPECT_FALSE(std::filesystem::exists(path("c.unproven")));
  EXPECT_FALSE(std::filesystem::exists(path("c.work")));
  expect_failure(qianwen(convert("b", "gptq", "c")), 2, "not there yet");
}

TEST_F(CliTranscodeDirectory, BlocksBecomeGroupsOf32) {
  quantise("q4_0", "m.gguf", {"--embedding-type", "f16"});
  const json made = ran(convert("m.gguf", "gptq", "a"));
  for (const json& tensor : made["weights"]["tensors"]) {
    const bool is_bias = tensor["name"].get<std::string>().ends_with(".bias");
    EXPECT_EQ(tensor["exact"] == true || is_bias, true) << tensor;
  }
  EXPECT_LT(made["weights"]["relative_error"], 1e-6);  // a bias below what f16 resolves
  const json config = json::parse(read_text_file(path("a") + "/quantize_config.json"));
  EXPECT_EQ(config["group_size"], 32);
  EXPECT_EQ(config["sym"], true);
}

TEST_F(CliTranscodeDirectory, SaysWhatItCannotDo) {
  expect_failure(qianwen({"convert", kBundled, "--to", "awq", "--output", path("x")}), 2,
                 "quantised already");
  quantise("gptq-int8", "wide");
  expect_failure(qianwen(convert("wide", "awq", "x")), 5, "4 bits");
  quantise("q4_k_m", "m.gguf");
  expect_failure(qianwen(convert("m.gguf", "gptq", "x")), 5, "one scale");
  // Minimums that are no whole steps.
  quantise("q4_1", "min.gguf", {"--embedding-type", "f16"});
  expect_failure(qianwen(convert("min.gguf", "awq", "x")), 5, "--max-error");
  EXPECT_FALSE(std::filesystem::exists(path("x")));
  EXPECT_FALSE(std::filesystem::exists(path("x.unproven")));
  auto args = convert("wide", "gptq", "x");
  args.insert(args.end(), {"--version", "gemv"});
  expect_failure(qianwen(args), 2, "--to awq");
  args = convert("wide", "gptq", "x");
  args.insert(args.end(), {"--type", "f16"});
  expect_failure(qianwen(args), 2, "--type");
}

}  // namespace
}  // namespace qw::test
