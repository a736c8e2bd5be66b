// AWQ beside AutoAWQ on one published layer: its search and codes as a reference, less error by
// default.
//
// Expected values: golden/awq/quantiser_layer, of a layer of golden/gptq/base_dense, which are too
// large to be copied into the project; they are looked for in QIANWEN_SHARED (default: ../shared
// beside the project).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/half.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "checkpoint/safetensors.h"
#include "quantize/awq_layer.h"
#include "quantize/gptq_layer.h"
#include "quantize/test_support.h"

namespace qw::quantize {
namespace {

using test::at;
using test::Floats;
using test::Team;

std::string golden_root() {
  const char* shared = std::getenv("QIANWEN_SHARED");
  return shared != nullptr ? std::string(shared) : QIANWEN_SOURCE_DIR "/../shared";
}

/// The layer, its published search, and a pass that stands before it.
struct Golden {
  nlohmann::json expected;
  std::map<std::string, RawTensor> tensors;
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
  std::unique_ptr<Backend> backend = make_reference_backend({});
  Team team;

  Floats floats(const std::string& name) const {
    const RawTensor& tensor = tensors.at(name);
    Floats out;
    for (int64_t i = 0; i < tensor.shape.n_elems(); ++i) {
      if (tensor.dtype == DType::kF16) {
        uint16_t half;
        std::memcpy(&half, tensor.bytes.data() + i * 2, 2);
        out.push_back(f16_to_f32(half));
      } else {
        float value;
        std::memcpy(&value, tensor.bytes.data() + i * 4, 4);
        out.push_back(value);
      }
    }
    return out;
  }
  const LayerSources& layer() const { return sources.layers.front(); }

  LayerPass begin() const {
    LayerPass pass(*backend, config, expected["calibration_ids"], nullptr);
    pass.embed(*backend->pack_embedding(sources.embedding.parts.front()));
    return pass;
  }
  QuantisedLayer quantise(const AwqOptions& options, AwqTrace* trace, LayerPass& pass) const {
    return awq_layer(layer(), config, {options, {}, trace}, *backend, team, pass);
  }
  /// Mean square of what changes in the output of the layer.
  double change(const QuantisedLayer& quantised) const {
    LayerPass published = begin(), changed = begin();
    pass_layer(layer(), config, *backend, published);
    pass_layer(with(quantised), config, *backend, changed);
    double sum = 0;
    for (size_t i = 0; i < published.hidden().size(); ++i) {
      const double difference = static_cast<double>(published.hidden()[i]) -
                                static_cast<double>(changed.hidden()[i]);
      sum += difference * difference;
    }
    return sum / static_cast<double>(published.hidden().size());
  }
  /// The layer as it would be read from the file.
  LayerSources with(const QuantisedLayer& quantised) const {
    LayerSources out = layer();
    size_t next = 0;
    for (LinearParts* parts : {&out.qkv, &out.o, &out.gate_up, &out.down}) {
      for (LinearSource& part : parts->parts)
        part = source_of(part.name, quantised.modules[next++].matrix);
    }
    size_t begin_of_bias = 0;
    for (const RawTensor& tensor : quantised.tensors) {
      if (tensor.dtype != DType::kF16 || tensor.name.ends_with(".scales")) continue;
      const Floats values = read_vector(tensor);
      if (tensor.name.ends_with("input_layernorm.weight")) out.input_norm = values;
      if (tensor.name.ends_with("post_attention_layernorm.weight")) out.post_norm = values;
      if (!tensor.name.ends_with(".bias")) continue;
      std::ranges::copy(values, out.qkv.bias.begin() + static_cast<int64_t>(begin_of_bias));
      begin_of_bias += values.size();
    }
    return out;
  }
};

std::unique_ptr<Golden> read_golden() {
  const std::string folder = golden_root() + "/golden/awq/quantiser_layer";
  if (!std::filesystem::exists(folder)) return nullptr;
  auto out = std::make_unique<Golden>();
  out->expected = nlohmann::json::parse(read_text_file(folder + "/expected.json"));
  const auto file = MappedFile::open(folder + "/tensors.safetensors");
  for (RawTensor& tensor : read_safetensors(file).tensors)
    out->tensors.emplace(tensor.name, tensor);
  out->checkpoint = Checkpoint::open(golden_root() + "/golden/gptq/base_dense");
  out->config = ModelConfig::from_checkpoint(*out->checkpoint);
  out->sources = open_network(*out->checkpoint, out->config);
  return out;
}

double largest_relative_difference(const Floats& a, const Floats& b) {
  if (a.size() != b.size()) return 1e9;
  double out = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double expected = b[i];
    out = std::max(out, std::abs(a[i] - expected) / std::max(std::abs(expected), 1e-30));
  }
  return out;
}

double share_equal(std::span<const float> a, std::span<const float> b, float tolerance) {
  EXPECT_EQ(a.size(), b.size());
  size_t n = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    n += std::abs(a[i] - b[i]) <= tolerance * std::abs(b[i]) ? 1 : 0;
  return static_cast<double>(n) / static_cast<double>(a.size());
}

AwqOptions reference() {
  AwqOptions out;
  out.mode = AwqOptions::Mode::kReference;
  return out;
}

TEST(AwqGolden, InputsAreThoseThatTheLayerWasPublishedWith) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no golden/awq/quantiser_layer";
  EXPECT_EQ(golden->begin().hidden(), golden->floats("hidden_states"));
}

void expect_search(const Golden& golden, const AwqTrace& trace) {
  EXPECT_EQ(trace.pairs.size(), golden.expected["pairs"].size());
  for (const auto& expected : golden.expected["pairs"]) {
    const std::string name = expected["prev"];
    SCOPED_TRACE(name);
    const AwqTrace::Pair& pair = trace.pairs.at(name);
    EXPECT_LT(largest_relative_difference(pair.x_sizes, golden.floats(name + ".x_mean")), 1e-5);
    EXPECT_LT(largest_relative_difference(pair.w_sizes, golden.floats(name + ".w_mean")), 1e-5);
    EXPECT_EQ(pair.ratio, expected["best_ratio"].get<double>());
    // Of v and up that name is the packed scales'.
    if (golden.tensors.at(name + ".scales").dtype == DType::kF32) {
      EXPECT_LT(largest_relative_difference(pair.scales, golden.floats(name + ".scales")), 1e-5);
    }
    const std::vector<double> losses = expected["loss_per_ratio"];
    ASSERT_EQ(pair.losses.size(), losses.size());
    for (size_t i = 0; i < losses.size(); ++i)
      EXPECT_NEAR(pair.losses[i], losses[i], 1e-3 * losses[i]) << i;
  }
  EXPECT_EQ(trace.clip.size(), golden.expected["clip"].size());
  for (const auto& [name, bounds] : trace.clip) {
    EXPECT_GE(share_equal(bounds, golden.floats(name + ".clip_max"), 1e-5F), 0.97) << name;
  }
}

void expect_layer(const Golden& golden, const QuantisedLayer& quantised) {
  std::map<std::string, RawTensor> made;
  for (const RawTensor& tensor : quantised.tensors)
    made.emplace(tensor.name.substr(std::string("model.layers.0.").size()), tensor);
  for (const auto& [name, sha] : golden.expected["dequant_sha256_f32"].items()) {
    SCOPED_TRACE(name);
    const auto decode = [&](const std::map<std::string, RawTensor>& from) {
      return test::decode(source_of(
          name, open_awq({}, {name, &from.at(name + ".qweight"), &from.at(name + ".qzeros"),
                              &from.at(name + ".scales")})));
    };
    const Floats ours = decode(made), published = decode(golden.tensors);
    EXPECT_EQ(sha256_hex(std::as_bytes(std::span(published))), sha);
    EXPECT_GE(share_equal(ours, published, 0), 0.97);
  }
  const auto near = [&](const std::string& ours, const std::string& published) {
    const Floats a = read_vector(made.at(ours)), b = golden.floats(published);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_NEAR(a[i], b[i], 0.001F * std::abs(b[i]) + 1e-6F) << ours << ' ' << i;
  };
  near("input_layernorm.weight", "input_layernorm.weight");
  near("post_attention_layernorm.weight", "post_attention_layernorm.weight");
  near("self_attn.v_proj.bias", "self_attn.v_proj.bias_after");
  const double mse = golden.expected["layer_output_mse"]["awq"];
  EXPECT_NEAR(golden.change(quantised), mse, 0.02 * mse);
}

TEST(AwqGolden, ReferenceModeSearchesAndPublishesAsAutoAwq) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no golden/awq/quantiser_layer";
  AwqTrace trace;
  LayerPass pass = golden->begin();
  const QuantisedLayer quantised = golden->quantise(reference(), &trace, pass);
  expect_search(*golden, trace);
  expect_layer(*golden, quantised);
  // The next layer gets what the published one gives.
  LayerPass published = golden->begin();
  pass_layer(golden->layer(), golden->config, *golden->backend, published);
  EXPECT_EQ(pass.hidden(), published.hidden());
}

TEST(AwqGolden, BetterModeHasLessErrorAndTheNextLayerSeesIt) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no golden/awq/quantiser_layer";
  LayerPass pass = golden->begin();
  const QuantisedLayer quantised = golden->quantise({}, nullptr, pass);
  const double mse = golden->expected["layer_output_mse"]["awq"];
  const double better = golden->change(quantised);
  std::printf("layer output, mean squared error: AutoAWQ %.5f, better %.5f, ratio %.3f\n", mse,
              better, better / mse);
  for (const QuantisedModule& module : quantised.modules)
    std::printf("  %s: ratio %.2f\n", hf_name(module.id).c_str(), module.ratio.value_or(-1));
  EXPECT_LT(better, 0.2 * mse);
  LayerPass expected = golden->begin();
  pass_layer(golden->with(quantised), golden->config, *golden->backend, expected);
  EXPECT_EQ(pass.hidden(), expected.hidden());
}

}  // namespace
}  // namespace qw::quantize
