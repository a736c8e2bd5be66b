// Whole checkpoints to nf4: what is written opens and computes nearly the same, an interruption
// changes no byte, and what cannot be done is refused before anything is computed.
#include "quantize/nf4_checkpoint.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "quantize/checkpoint_test_support.h"
#include "quantize/gptq_layer.h"

namespace qw::quantize {
namespace {

namespace fs = std::filesystem;
using test::files_of;
using test::kDense;
using test::kMoe;
using test::TinyShape;

struct Bench : test::Bench {
  using test::Bench::Bench;

  Nf4Request request(const std::string& name) const {
    Nf4Request out;
    out.output = folder / name;
    return out;
  }
  void write(Nf4Request request) {
    open();
    request.kept_dtype = request.nf4.dtype = nf4_dtype(sources);
    const LayerPlan plan = plan_nf4(source(), nullptr, request);
    write_nf4(source(), plan, *backend, pool, request);
  }
};

/// Every matrix that is written is what encode_nf4 makes of the original's; what is kept, is kept.
void expect_opens(Bench& bench, const Nf4Request& request) {
  const auto checkpoint = Checkpoint::open(request.output);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  EXPECT_EQ(config.quantization.method, "bitsandbytes");
  EXPECT_EQ(config.quantization.bnb_type, "nf4");
  EXPECT_EQ(config.quantization.bnb_double, request.nf4.double_quant);
  const NetworkSources made = open_network(*checkpoint, config);
  EXPECT_TRUE(made.warnings.empty());
  Nf4Options options = request.nf4;
  options.dtype = nf4_dtype(bench.sources);
  int n_matrices = 0;
  const auto compare = [&](const LinearParts& before, const LinearParts& after, bool quantised) {
    ASSERT_EQ(before.parts.size(), after.parts.size());
    for (size_t i = 0; i < before.parts.size(); ++i) {
      const LinearSource &from = before.parts[i], &to = after.parts[i];
      EXPECT_EQ(quantised, to.format_name().starts_with("nf4")) << to.name << to.format_name();
      LinearSource expected = from;
      Bnb4File file;
      if (quantised) {
        ++n_matrices;
        file = encode_nf4(from, options);
        const Bnb4File::Views views = file.views("m");
        expected.data = open_bnb4(file.state, views.tensors("m"));
        expected.row_begin = 0;
      }
      std::vector<float> a(static_cast<size_t>(from.n * from.k)), b(a.size());
      expected.decode_rows(0, from.n, a.data());
      to.decode_rows(0, from.n, b.data());
      EXPECT_EQ(a, b) << from.name;
    }
  };
  for (size_t l = 0; l < made.layers.size(); ++l) {
    const LayerSources &before = bench.sources.layers[l], &after = made.layers[l];
    compare(before.qkv, after.qkv, true);
    compare(before.o, after.o, true);
    compare(before.gate_up, after.gate_up, true);
    compare(before.down, after.down, true);
    compare(before.moe.router, after.moe.router, false);
    compare(before.moe.shared_gate, after.moe.shared_gate, false);
    ASSERT_EQ(before.moe.down.size(), after.moe.down.size());
    for (size_t e = 0; e < after.moe.down.size(); ++e)
      compare(before.moe.down[e], after.moe.down[e], true);
  }
  compare(bench.sources.embedding, made.embedding, false);
  EXPECT_GT(n_matrices, 0);
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

TEST(Nf4Checkpoint, WhatIsWrittenOpensInEveryForm) {
  Bench bench(kDense);
  const auto run = [&](const char* name, auto change) {
    SCOPED_TRACE(name);
    Nf4Request request = bench.request(name);
    change(request);
    bench.write(request);
    expect_opens(bench, request);
  };
  run("plain", [](Nf4Request&) {});
  run("double", [](Nf4Request& r) { r.nf4.double_quant = true; });
  run("blocks", [](Nf4Request& r) { r.nf4.block_size = 4096; });
  run("reference", [](Nf4Request& r) { r.nf4.mode = Nf4Options::Mode::kReference; });
  run("shards", [](Nf4Request& r) { r.shard_bytes = 20'000; });
  EXPECT_TRUE(fs::exists(bench.folder / "shards/model.safetensors.index.json"));
}

TEST(Nf4Checkpoint, MixturesNameWhatIsKept) {
  Bench bench(kMoe);
  const Nf4Request request = bench.request("moe");
  bench.write(request);
  expect_opens(bench, request);
  const auto json =
      nlohmann::json::parse(files_of(request.output).at("config.json")).at("quantization_config");
  const auto kept = json.at("llm_int8_skip_modules").get<std::vector<std::string>>();
  for (const char* name :
       {"lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.shared_expert_gate"})
    EXPECT_NE(std::ranges::find(kept, name), kept.end()) << name;
}

/// Hidden states behind the last layer.
std::vector<float> outputs(const NetworkSources& sources, const ModelConfig& config,
                           Backend& backend) {
  LayerPass pass(backend, config, test::calibration(6).sequences, nullptr);
  pass.embed(*backend.pack_embedding(sources.embedding.parts.front()));
  for (const LayerSources& layer : sources.layers)
    pass_layer(layer, config, backend, pass);
  return pass.hidden();
}

/// Weights of four bits give what the same values in f32 give, bit for bit.
TEST(Nf4Checkpoint, ComputesWithWhatItHolds) {
  Bench bench(kDense);
  Nf4Request request = bench.request("nf4");
  request.nf4.double_quant = true;
  bench.write(request);
  const auto checkpoint = Checkpoint::open(request.output);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  const NetworkSources sources = open_network(*checkpoint, config);
  NetworkSources dense = sources;
  for (LayerSources& layer : dense.layers) {
    for (LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      for (LinearSource& part : parts->parts) {
        auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(part.n * part.k));
        part.decode_rows(0, part.n, values->data());
        part = LinearSource::of_floats(part.name, part.n, part.k, std::move(values));
      }
    }
  }
  BackendOptions options;
  options.activations = ActivationMode::kF32;
  const auto cpu = make_cpu_backend(options);
  const auto reference = make_reference_backend({});
  for (Backend* backend : {cpu.get(), reference.get()}) {
    EXPECT_EQ(outputs(sources, config, *backend), outputs(dense, config, *backend));
    EXPECT_NE(outputs(sources, config, *backend), outputs(bench.sources, config, *backend));
  }
  const auto bytes = [&](const LinearParts& parts) {
    return cpu->pack_linear(parts.parts)->resident_bytes;
  };
  EXPECT_LT(bytes(sources.layers[0].down), bytes(dense.layers[0].down) / 4);
}

TEST(Nf4Checkpoint, AnInterruptionChangesNoByte) {
  Bench straight(kDense);
  straight.write(straight.request("nf4"));
  Bench bench(kDense);
  Nf4Request request = bench.request("nf4");
  CancelFlag cancel;
  request.cancel = &cancel;
  request.on_layer = [&](int, const auto&) { cancel.cancel(); };
  expect_error(ErrorKind::kCancelled, {}, [&] { bench.write(request); });
  EXPECT_FALSE(fs::exists(request.output));
  expect_error(ErrorKind::kInvalidArgument, {"another's", request.output + ".work"}, [&] {
    Nf4Request other = request;
    other.nf4.block_size = 128;
    bench.write(other);
  });
  cancel.reset();
  std::vector<size_t> n_modules;
  request.on_layer = [&](int, const auto& modules) { n_modules.push_back(modules.size()); };
  bench.write(request);
  ASSERT_EQ(n_modules.size(), 2u);
  EXPECT_EQ(n_modules[0], 0u);  // was there
  EXPECT_GT(n_modules[1], 0u);
  EXPECT_EQ(files_of(request.output), files_of(straight.folder / "nf4"));
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

TEST(Nf4Checkpoint, RefusesBlocksThatTheLibraryHasNot) {
  Bench bench(kDense);
  for (const int64_t size : {0, 16, 96, 8192}) {
    Nf4Request request = bench.request("nf4");
    request.nf4.block_size = size;
    expect_error(ErrorKind::kInvalidArgument, {"block size", "4096"},
                 [&] { bench.write(request); });
    EXPECT_FALSE(fs::exists(request.output + ".work"));
  }
}

}  // namespace
}  // namespace qw::quantize
