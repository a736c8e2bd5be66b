// Whole checkpoints to GPTQ: what is written opens and runs, an interruption changes no byte, and
// what cannot be done is refused before anything is computed.
#include "quantize/gptq_checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "base/half.h"
#include "quantize/checkpoint_test_support.h"

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

  GptqRequest request(const std::string& name) const {
    GptqRequest out;
    out.gptq.group_size = 32;
    out.output = folder / name;
    return out;
  }
  void write(const GptqRequest& request, const CalibrationSet& set = calibration()) {
    open();
    const LayerPlan plan = plan_gptq(source(), nullptr, request);
    write_gptq(source(), plan, set, *backend, pool, request);
  }
};

double relative_error(const LinearParts& published, const LinearParts& quantised) {
  double difference = 0, size = 0;
  for (size_t p = 0; p < published.parts.size(); ++p) {
    const auto n = static_cast<size_t>(published.parts[p].n * published.parts[p].k);
    std::vector<float> a(n), b(n);
    published.parts[p].decode_rows(0, published.parts[p].n, a.data());
    quantised.parts[p].decode_rows(0, published.parts[p].n, b.data());
    for (size_t i = 0; i < n; ++i) {
      difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
      size += std::pow(static_cast<double>(a[i]), 2);
    }
  }
  return std::sqrt(difference / size);
}

/// As f16 holds them.
void expect_close(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_EQ(f16_to_f32(f32_to_f16(a[i])), b[i]);
}

void expect_quantised(const NetworkSources& published, const std::string& output,
                      const std::string& format) {
  const auto checkpoint = Checkpoint::open(output);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  EXPECT_EQ(config.quantization.method, "gptq");
  const NetworkSources sources = open_network(*checkpoint, config);
  EXPECT_TRUE(sources.warnings.empty());
  const auto expect_like = [&](const LinearParts& a, const LinearParts& b) {
    if (a.parts.empty()) return;
    EXPECT_EQ(b.format(), format) << a.name;
    expect_close(a.bias, b.bias);
    EXPECT_LT(relative_error(a, b), 0.25) << a.name;
  };
  for (size_t l = 0; l < sources.layers.size(); ++l) {
    const LayerSources &a = published.layers[l], &b = sources.layers[l];
    expect_close(a.input_norm, b.input_norm);
    expect_like(a.qkv, b.qkv);
    expect_like(a.o, b.o);
    expect_like(a.gate_up, b.gate_up);
    expect_like(a.down, b.down);
    expect_like(a.moe.shared_gate_up, b.moe.shared_gate_up);
    expect_like(a.moe.shared_down, b.moe.shared_down);
    ASSERT_EQ(a.moe.down.size(), b.moe.down.size());
    for (size_t e = 0; e < a.moe.down.size(); ++e) {
      expect_like(a.moe.gate_up[e], b.moe.gate_up[e]);
      expect_like(a.moe.down[e], b.moe.down[e]);
    }
    if (!a.moe.router.parts.empty()) {
      EXPECT_LT(relative_error(a.moe.router, b.moe.router), 0x1p-11);
    }
  }
  EXPECT_LT(relative_error(published.embedding, sources.embedding), 0x1p-11);
}

TEST(GptqCheckpoint, WhatIsWrittenOpensInEveryForm) {
  Bench bench(kDense);
  const auto run = [&](const char* name, const std::string& format, auto change) {
    SCOPED_TRACE(name);
    GptqRequest request = bench.request(name);
    change(request);
    bench.write(request);
    expect_quantised(bench.sources, request.output, format);
    EXPECT_FALSE(fs::exists(request.output + ".work"));
  };
  run("sym", "int4 g32 (zero point)", [](GptqRequest&) {});
  run("asym", "int4 g32 (zero point)", [](GptqRequest& r) { r.gptq.sym = false; });
  run("v2", "int4 g32 (zero point)", [](GptqRequest& r) {
    r.gptq.sym = false;
    r.gptq.zero_from_0 = true;
  });
  run("int8", "int8 g32 (zero point)", [](GptqRequest& r) { r.gptq.bits = 8; });
  run("channel", "int4 per channel (zero point)", [](GptqRequest& r) { r.gptq.group_size = -1; });
  run("parallel", "int4 g32 (zero point)", [](GptqRequest& r) { r.true_sequential = false; });
  run("reference", "int4 g32 (zero point)",
      [](GptqRequest& r) { r.gptq.mode = GptqOptions::Mode::kReference; });
  run("shards", "int4 g32 (zero point)", [](GptqRequest& r) { r.shard_bytes = 20'000; });
  EXPECT_TRUE(fs::exists(bench.folder / "shards/model.safetensors.index.json"));
  GptqRequest request = bench.request("act");
  request.gptq.desc_act = true;
  bench.write(request);
  const auto opened = Checkpoint::open(request.output);
  EXPECT_TRUE(ModelConfig::from_checkpoint(*opened).quantization.desc_act);
}

TEST(GptqCheckpoint, ExpertsAreQuantisedAndColdOnesAreTold) {
  Bench bench(kMoe);
  GptqRequest request = bench.request("moe");
  std::vector<QuantisedModule> seen;
  request.on_layer = [&](int, const std::vector<QuantisedModule>& modules) {
    seen.insert(seen.end(), modules.begin(), modules.end());
  };
  bench.write(request);
  expect_quantised(bench.sources, request.output, "int4 g32 (zero point)");
  EXPECT_EQ(seen.size(), 2u * (4 + 4 * 3 + 3));
  // 960 tokens choose 2 of 4 experts each; of 72 tokens none is chosen for 64.
  EXPECT_TRUE(std::ranges::none_of(seen, &QuantisedModule::is_cold));
  seen.clear();
  request.output += "-few";
  bench.write(request, calibration(6));
  for (const QuantisedModule& module : seen) {
    if (module.id.expert < 0) continue;
    EXPECT_EQ(module.is_cold, module.n_tokens == 144);
  }
  EXPECT_TRUE(std::ranges::any_of(seen, &QuantisedModule::is_cold));
}

TEST(GptqCheckpoint, AnInterruptionChangesNoByte) {
  for (const TinyShape& shape : {kDense, kMoe}) {
    Bench bench(shape);
    test::expect_resumes<GptqRequest>(
        bench.request("straight"), bench.request("interrupted"),
        [&](const GptqRequest& request, const CalibrationSet& set) { bench.write(request, set); },
        [](GptqRequest& other) { other.gptq.damp = 0.02; });
  }
}

TEST(GptqCheckpoint, HiddenStatesOlderThanALayerAreNotMixedWithIt) {
  Bench bench(kDense);
  const GptqRequest straight = bench.request("straight");
  bench.write(straight);
  GptqRequest request = bench.request("killed");
  CancelFlag cancel;
  request.cancel = &cancel;
  request.on_layer = [&](int, const auto&) { cancel.cancel(); };
  expect_error(ErrorKind::kCancelled, {}, [&] { bench.write(request); });
  // As if the process had been killed between the second layer's file and its hidden states.
  fs::copy(request.output + ".work/layer-00000.safetensors",
           request.output + ".work/layer-00001.safetensors");
  cancel.reset();
  request.on_layer = {};
  bench.write(request);
  EXPECT_EQ(files_of(request.output), files_of(straight.output));
}

TEST(GptqCheckpoint, RefusesBeforeAnythingIsComputed) {
  Bench bench(kDense);
  bench.open();
  GptqRequest request = bench.request("there");
  fs::create_directory(request.output);
  expect_error(ErrorKind::kInvalidArgument, {"not there yet"}, [&] { bench.write(request); });
  request.output = bench.folder / "no/where";
  expect_error(ErrorKind::kIo, {"work directory", "no/where"}, [&] { bench.write(request); });
  request.output = bench.folder / "strange";
  fs::create_directory(request.output + ".work");
  std::ofstream(request.output + ".work/mine") << "mine";
  expect_error(ErrorKind::kInvalidArgument, {"interrupted run left"},
               [&] { bench.write(request); });
  request = bench.request("bits");
  request.gptq.bits = 5;
  expect_error(ErrorKind::kInvalidArgument, {"bits"}, [&] { bench.write(request); });

  Bench odd(TinyShape{.hidden = 64, .intermediate = 72});
  expect_error(ErrorKind::kUnsupported, {"gate_proj", "multiples of 32", "72 x 64", "q8_0"},
               [&] { odd.write(odd.request("odd")); });
  EXPECT_FALSE(fs::exists(odd.folder / "odd.work"));
}

TEST(GptqCheckpoint, ValuesThatAreNotFiniteAreNamed) {
  const auto with = [](const std::string& tensor, float value) {
    auto bench = std::make_unique<Bench>(kDense);
    std::ranges::fill(bench->tiny.tensors.at(tensor).values, value);
    return bench;
  };
  const auto scores = with("model.layers.1.self_attn.k_proj.bias", 3e38F);
  expect_error(ErrorKind::kCorrupt, {"layer 1, attention", "finite"},
               [&] { scores->write(scores->request("out")); });
  const auto squares = with("model.layers.1.input_layernorm.weight", 1e25F);
  expect_error(ErrorKind::kInvalidArgument, {"layers.1.qkv", "squares fit f32"},
               [&] { squares->write(squares->request("out")); });
  const auto scales = with("model.layers.0.self_attn.o_proj.weight", 1e20F);
  expect_error(ErrorKind::kInvalidArgument, {"layers.0.self_attn.o_proj", "f16 holds"},
               [&] { scales->write(scales->request("out")); });
}

TEST(GptqCheckpoint, UnevenGroupsAreWarnedOf) {
  Bench bench(kDense);
  bench.open();
  GptqRequest request = bench.request("uneven");
  request.gptq.group_size = 40;
  const LayerPlan plan = plan_gptq(bench.source(), nullptr, request);
  ASSERT_EQ(plan.warnings.size(), 1u);
  EXPECT_NE(plan.warnings[0].find("group size 40"), std::string::npos);
  bench.write(request);
  expect_quantised(bench.sources, request.output, "int4 g40 (zero point)");
}

}  // namespace
}  // namespace qw::quantize
