// Whole checkpoints to AWQ: what is written opens and computes nearly the same, an interruption
// changes no byte, and what cannot be done is refused before anything is computed.
#include "quantize/awq_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "quantize/checkpoint_test_support.h"
#include "quantize/gptq_layer.h"

namespace qw::quantize {
namespace {

namespace fs = std::filesystem;
using test::calibration;
using test::files_of;
using test::kDense;
using test::kMoe;
using test::TinyShape;

struct Bench : test::Bench {
  using test::Bench::Bench;

  AwqRequest request(const std::string& name) const {
    AwqRequest out;
    out.awq.group_size = 32;
    out.output = folder / name;
    return out;
  }
  void write(const AwqRequest& request, const CalibrationSet& set = calibration()) {
    open();
    const LayerPlan plan = plan_awq(source(), nullptr, request);
    write_awq(source(), plan, set, *backend, pool, request);
  }
};

/// Hidden states behind the last layer.
std::vector<float> outputs(const std::string& path, Backend& backend, ModelConfig* config_out) {
  const auto checkpoint = Checkpoint::open(path);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  const NetworkSources sources = open_network(*checkpoint, config);
  EXPECT_TRUE(sources.warnings.empty());
  LayerPass pass(backend, config, calibration(6).sequences, nullptr);
  pass.embed(*backend.pack_embedding(sources.embedding.parts.front()));
  for (const LayerSources& layer : sources.layers)
    pass_layer(layer, config, backend, pass);
  if (config_out != nullptr) *config_out = config;
  return pass.hidden();
}

double relative_change(const std::vector<float>& from, const std::vector<float>& to) {
  double change = 0, size = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    change += std::pow(static_cast<double>(to[i]) - static_cast<double>(from[i]), 2);
    size += std::pow(static_cast<double>(from[i]), 2);
  }
  return std::sqrt(change / size);
}

/// What is written opens as AWQ of that version and computes nearly the same.
double expect_opens(Bench& bench, const AwqRequest& request) {
  ModelConfig config;
  const auto made = outputs(request.output, *bench.backend, &config);
  EXPECT_EQ(config.quantization.method, "awq");
  EXPECT_EQ(config.quantization.awq_version, name_of(request.awq.version));
  EXPECT_EQ(config.quantization.group_size, request.awq.group_size);
  EXPECT_FALSE(fs::exists(request.output + ".work"));
  const double change =
      relative_change(outputs(bench.tiny.path(), *bench.backend, nullptr), made);
  EXPECT_LT(change, 0.2);
  EXPECT_GT(change, 0);
  return change;
}

TEST(AwqCheckpoint, WhatIsWrittenOpensInEveryForm) {
  // 128 inputs at least for gemv_fast, whose chunks are 64; two heads of keys for four of queries.
  Bench bench(TinyShape{.hidden = 64, .intermediate = 128, .vocab = 48});
  const auto run = [&](const char* name, auto change) {
    SCOPED_TRACE(name);
    AwqRequest request = bench.request(name);
    change(request);
    bench.write(request);
    return expect_opens(bench, request);
  };
  const double gemm = run("gemm", [](AwqRequest&) {});
  const double gemv = run("gemv", [](AwqRequest& r) { r.awq.version = AwqVersion::kGemv; });
  EXPECT_EQ(gemv, gemm);
  run("fast", [](AwqRequest& r) { r.awq.version = AwqVersion::kGemvFast; });
  run("g64", [](AwqRequest& r) { r.awq.group_size = 64; });
  run("channel", [](AwqRequest& r) { r.awq.group_size = -1; });
  const double reference =
      run("reference", [](AwqRequest& r) { r.awq.mode = AwqOptions::Mode::kReference; });
  EXPECT_LT(gemm, reference);
  run("shards", [](AwqRequest& r) { r.shard_bytes = 20'000; });
  EXPECT_TRUE(fs::exists(bench.folder / "shards/model.safetensors.index.json"));
}

TEST(AwqCheckpoint, ExpertsAreQuantisedAndTheRouterIsNot) {
  Bench bench(kMoe);
  AwqRequest request = bench.request("moe");
  std::vector<QuantisedModule> seen;
  request.on_layer = [&](int, const std::vector<QuantisedModule>& modules) {
    seen.insert(seen.end(), modules.begin(), modules.end());
  };
  bench.write(request);
  expect_opens(bench, request);
  EXPECT_EQ(seen.size(), 2u * (4 + 4 * 3 + 3));
  EXPECT_TRUE(std::ranges::none_of(seen, &QuantisedModule::is_cold));
  const auto config = nlohmann::json::parse(files_of(request.output).at("config.json"));
  const auto kept = config["quantization_config"]["modules_to_not_convert"];
  EXPECT_EQ(kept.size(), 4u);
  EXPECT_EQ(kept[0], "model.layers.0.mlp.gate");
  seen.clear();
  request.output += "-few";
  bench.write(request, calibration(6));
  expect_opens(bench, request);
  for (const QuantisedModule& module : seen) {
    if (module.id.expert < 0) continue;
    EXPECT_EQ(module.is_cold, module.n_tokens == 144);
  }
  EXPECT_TRUE(std::ranges::any_of(seen, &QuantisedModule::is_cold));

  request = bench.request("reference");
  request.awq.mode = AwqOptions::Mode::kReference;
  expect_error(ErrorKind::kUnsupported, {"AutoAWQ", "mixtures"}, [&] { bench.write(request); });
}

TEST(AwqCheckpoint, AnInterruptionChangesNoByte) {
  for (const TinyShape& shape : {kDense, kMoe}) {
    Bench bench(shape);
    test::expect_resumes<AwqRequest>(
        bench.request("straight"), bench.request("interrupted"),
        [&](const AwqRequest& request, const CalibrationSet& set) { bench.write(request, set); },
        [](AwqRequest& other) { other.awq.version = AwqVersion::kGemv; });
  }
}

TEST(AwqCheckpoint, RefusesBeforeAnythingIsComputed) {
  Bench bench(kDense);
  AwqRequest request = bench.request("there");
  fs::create_directory(request.output);
  expect_error(ErrorKind::kInvalidArgument, {"not there yet"}, [&] { bench.write(request); });
  request = bench.request("groups");
  request.awq.group_size = 0;
  expect_error(ErrorKind::kInvalidArgument, {"group_size"}, [&] { bench.write(request); });
  request.awq.group_size = 64;
  expect_error(ErrorKind::kUnsupported, {"down_proj", "whole groups", "64 x 96"},
               [&] { bench.write(request); });
  request.awq.group_size = 16;
  request.awq.version = AwqVersion::kGemv;
  expect_error(ErrorKind::kUnsupported, {"groups of 32, 64, or 128", "gemm holds any"},
               [&] { bench.write(request); });
  request.awq.group_size = 32;
  request.awq.version = AwqVersion::kGemvFast;
  expect_error(ErrorKind::kUnsupported, {"down_proj", "multiple of 64", "gemv_fast"},
               [&] { bench.write(request); });
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

TEST(AwqCheckpoint, ValuesThatAreNotFiniteAreNamed) {
  const auto with = [](const std::string& tensor, float value) {
    auto bench = std::make_unique<Bench>(kDense);
    std::ranges::fill(bench->tiny.tensors.at(tensor).values, value);
    return bench;
  };
  const auto scores = with("model.layers.1.self_attn.k_proj.bias", 3e38F);
  expect_error(ErrorKind::kInvalidArgument, {"layers.1", "f16 holds"},
               [&] { scores->write(scores->request("out")); });
  const auto squares = with("model.layers.1.input_layernorm.weight", 1e25F);
  expect_error(ErrorKind::kInvalidArgument, {"layers.1.qkv", "squares fit f32"},
               [&] { squares->write(squares->request("out")); });
  const auto scales = with("model.layers.0.self_attn.o_proj.weight", 1e20F);
  expect_error(ErrorKind::kInvalidArgument, {"layers.0.self_attn.o_proj", "f16 holds"},
               [&] { scales->write(scales->request("out")); });
}

/// What comes before o is mostly the biases of v here, so they must be divided as v's rows are.
TEST(AwqCheckpoint, DivisorsReachBiases) {
  for (const TinyShape& shape : {kDense, kMoe}) {
    Bench bench(shape);
    for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
      const std::string name = layer + std::string("self_attn.v_proj.bias");
      for (float& value : bench.tiny.tensors.at(name).values)
        value *= 40;
    }
    AwqRequest request = bench.request("biases");
    int n_scaled = 0;
    request.on_layer = [&](int, const auto& modules) {
      EXPECT_EQ(modules[3].id.slot, Slot::kO);
      n_scaled += modules[3].ratio.has_value() ? 1 : 0;
    };
    bench.write(request);
    EXPECT_GT(n_scaled, 0);
    EXPECT_LT(expect_opens(bench, request), 0.01);
  }
}

/// An input that is always 0 tells nothing of its scale: it is 1, so the others' are what they
/// would be without it, and nothing is divided by nearly nothing.
TEST(AwqCheckpoint, DeadInputsAreHarmless) {
  Bench bench(kDense);
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    auto& values = bench.tiny.tensors.at(std::string("model.layers.0.") + norm + ".weight").values;
    values[3] = 0;
    values[40] = 1e-9F;  // 0 in f16
  }
  AwqRequest request = bench.request("dead");
  std::vector<QuantisedModule> seen;
  request.on_layer = [&](int, const auto& modules) {
    seen.insert(seen.end(), modules.begin(), modules.end());
  };
  bench.write(request);
  EXPECT_EQ(seen[0].n_dead, 1);
  expect_opens(bench, request);
  const auto checkpoint = Checkpoint::open(request.output);
  const auto norm = read_vector(checkpoint->tensors.at("model.layers.0.input_layernorm.weight"));
  EXPECT_EQ(norm[3], 0);
  EXPECT_EQ(norm[40], 0);
}

}  // namespace
}  // namespace qw::quantize
