// Bits by what matrices are seen to cost: they go where the damage is, and a directory with several
// numbers of bits is read as it was written.
#include "quantize/gptq_sensitivity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "quantize/byte_budget.h"
#include "quantize/checkpoint_test_support.h"
#include "quantize/gptq_rules.h"

namespace qw::quantize {
namespace {

using test::calibration;

struct Bench : test::Bench {
  using test::Bench::Bench;

  GptqRequest request(const std::string& name) const {
    GptqRequest out;
    out.gptq.group_size = 32;
    out.output = folder / name;
    return out;
  }
  std::vector<GptqGroup> measure(const GptqRequest& request, int probe_bits = 4) {
    open();
    const CalibrationSet set = calibration();
    NetworkProbe probe(source(), set, *backend, pool, nullptr);
    GptqSensitivityOptions options;
    options.probe_bits = probe_bits;
    return measure_gptq(
        source(), set, [&]() -> NetworkProbe& { return probe; }, *backend, pool, request, options);
  }
};

std::vector<size_t> choose(const std::vector<GptqGroup>& groups, int64_t bytes) {
  std::vector<std::vector<BudgetChoice>> items;
  for (const GptqGroup& group : groups) {
    items.emplace_back();
    for (const GptqGroupChoice& choice : group.choices)
      items.back().push_back({choice.bytes, choice.damage});
  }
  return choose_within(items, bytes);
}

/// What uniform bits take.
int64_t bytes_of(const std::vector<GptqGroup>& groups, size_t choice) {
  return std::accumulate(
      groups.begin(), groups.end(), int64_t{0},
      [&](int64_t sum, const GptqGroup& group) { return sum + group.choices[choice].bytes; });
}

/// Bits of a group, as they are read from the directory.
int bits_of(const LinearParts& parts) {
  int bits = 0;
  for (const LinearSource& part : parts.parts) {
    const int own = std::get<std::shared_ptr<const GroupAffine>>(part.data)->bits;
    EXPECT_TRUE(bits == 0 || bits == own) << parts.name;
    bits = own;
  }
  return bits;
}

TEST(GptqSensitivity, BitsGoWhereTheDamageIs) {
  Bench bench(test::kDense);
  // What comes of this matrix is next to nothing beside the rest.
  for (float& value : bench.tiny.tensors.at("model.layers.0.mlp.down_proj.weight").values)
    value *= 1e-3F;
  GptqRequest request = bench.request("out");
  const std::vector<GptqGroup> groups = bench.measure(request);
  ASSERT_EQ(groups.size(), 8u);
  for (const GptqGroup& group : groups) {
    EXPECT_EQ(group.choices.size(), 4u);
    for (size_t i = 1; i < group.choices.size(); ++i) {
      EXPECT_LT(group.choices[i - 1].bytes, group.choices[i].bytes) << group.name;
      EXPECT_GT(group.choices[i - 1].error, group.choices[i].error) << group.name;
    }
    // A rounding error falls to a quarter for a bit more, and with feedback no slower than that.
    EXPECT_GT(group.choices[2].error, 50 * group.choices[3].error) << group.name;
    EXPECT_GT(group.choices[2].damage, 0) << group.name;
  }
  EXPECT_EQ(groups[3].name, "layers.0.down");
  EXPECT_LT(groups[3].choices[2].damage, 0.01 * groups[7].choices[2].damage);

  const int64_t budget = bytes_of(groups, 2);
  set_bits(request, groups, choose(groups, budget));
  const LayerPlan plan = plan_gptq(bench.source(), nullptr, request);
  EXPECT_LE(plan.quantised_bytes, budget);
  EXPECT_GT(plan.quantised_bytes, budget * 9 / 10);
  write_gptq(bench.source(), plan, calibration(), *bench.backend, bench.pool, request);
  const auto opened = Checkpoint::open(request.output);
  const NetworkSources read = open_network(*opened, ModelConfig::from_checkpoint(*opened));
  EXPECT_EQ(bits_of(read.layers[0].down), 2);
  for (const LayerSources& layer : read.layers) {
    for (const LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      EXPECT_EQ(bits_of(*parts), request.options_of(parts->modules[0]).bits) << parts->name;
  }
  EXPECT_GT(bits_of(read.layers[1].down), 2);
}

TEST(GptqSensitivity, ExpertsHaveBitsOfTheirOwn) {
  Bench bench(test::kMoe);
  GptqRequest request = bench.request("moe");
  const std::vector<GptqGroup> groups = bench.measure(request, 2);
  ASSERT_EQ(groups.size(), 2u * (2 + 4 * 2 + 2));
  // The errors of a layer's experts are parts of what they give together.
  for (const char* kind : {".gate_up", ".down"}) {
    double sum = 0;
    for (const GptqGroup& group : groups) {
      if (group.name.starts_with("layers.1.experts.") && group.name.ends_with(kind))
        sum += group.choices[0].error;
    }
    EXPECT_GT(sum, 0.01) << kind;
    EXPECT_LT(sum, 1) << kind;
  }
  // Whatever is chosen is what is read.
  std::vector<size_t> chosen(groups.size());
  for (size_t i = 0; i < groups.size(); ++i)
    chosen[i] = i * 7 % 4;
  set_bits(request, groups, chosen);
  const LayerPlan plan = plan_gptq(bench.source(), nullptr, request);
  write_gptq(bench.source(), plan, calibration(), *bench.backend, bench.pool, request);
  const auto opened = Checkpoint::open(request.output);
  const ModelConfig config = ModelConfig::from_checkpoint(*opened);
  const NetworkSources read = open_network(*opened, config);
  size_t next = 0;
  for (const LayerSources& layer : read.layers) {
    const auto expect_bits = [&](const LinearParts& parts) {
      const auto found = std::ranges::find(groups, parts.name, &GptqGroup::name);
      ASSERT_NE(found, groups.end()) << parts.name;
      const auto at = static_cast<size_t>(found - groups.begin());
      EXPECT_EQ(bits_of(parts), groups[at].choices[chosen[at]].bits) << parts.name;
      ++next;
    };
    for_each_quantised(layer, expect_bits);
  }
  EXPECT_EQ(next, groups.size());
  int64_t bytes = 0;
  for (const RawTensor& tensor : opened->tensors.all())
    bytes += std::ssize(tensor.bytes);
  EXPECT_EQ(bytes, plan.bytes());
  // And it runs.
  LayerPass pass(*bench.backend, config, calibration().sequences, nullptr);
  pass.embed(*bench.backend->pack_embedding(read.embedding.parts.front()));
  for (const LayerSources& layer : read.layers)
    pass_layer(layer, config, *bench.backend, pass);
  EXPECT_TRUE(std::ranges::all_of(pass.hidden(), [](float x) { return std::isfinite(x); }));
}

/// Interrupted behind any layer it goes on with the next, to the same numbers.
TEST(GptqSensitivity, GoesOnWhereItWasInterrupted) {
  for (test::TinyShape shape : {test::kDense, test::kMoe}) {
    shape.n_layers = 3;
    Bench bench(shape);
    const GptqRequest request = bench.request("out");
    const std::vector<GptqGroup> straight = bench.measure(request);
    for (int ends_after = 0; ends_after < 3; ++ends_after) {
      const CalibrationSet set = calibration();
      const std::string path = bench.folder / fmt::format("m{}", ends_after);
      std::vector<bool> known;
      int n_probes = 0;
      const auto measure = [&](CancelFlag* cancel, const std::string& job) {
        WorkDirectory work(path, job);
        GptqRequest own = request;
        own.cancel = cancel;
        GptqSensitivityOptions options;
        options.work = &work;
        options.on_layer = [&](int layer, bool is_known) {
          known.push_back(is_known);
          if (cancel != nullptr && layer == ends_after) cancel->cancel();
        };
        std::optional<NetworkProbe> probe;
        const auto open = [&]() -> NetworkProbe& {
          ++n_probes;
          if (!probe) probe.emplace(bench.source(), set, *bench.backend, bench.pool, nullptr);
          return *probe;
        };
        return measure_gptq(bench.source(), set, open, *bench.backend, bench.pool, own, options);
      };
      CancelFlag cancel;
      const bool is_done = ends_after == 2;
      if (is_done) {
        measure(&cancel, "job");
      } else {
        expect_error(ErrorKind::kCancelled, {}, [&] { measure(&cancel, "job"); });
      }
      expect_error(ErrorKind::kInvalidArgument, {"another's"}, [&] { measure(nullptr, "other"); });
      known.clear();
      n_probes = 0;
      const std::vector<GptqGroup> resumed = measure(nullptr, "job");
      EXPECT_EQ(std::ranges::count(known, true), ends_after + 1);
      EXPECT_EQ(known.size(), 3u);
      EXPECT_EQ(n_probes == 0, is_done);
      ASSERT_EQ(resumed.size(), straight.size());
      for (size_t i = 0; i < straight.size(); ++i) {
        EXPECT_EQ(resumed[i].name, straight[i].name);
        EXPECT_EQ(resumed[i].modules, straight[i].modules);
        EXPECT_EQ(resumed[i].n_weights, straight[i].n_weights);
        ASSERT_EQ(resumed[i].choices.size(), straight[i].choices.size());
        for (size_t c = 0; c < straight[i].choices.size(); ++c) {
          const GptqGroupChoice &a = resumed[i].choices[c], &b = straight[i].choices[c];
          EXPECT_EQ(a.bits, b.bits);
          EXPECT_EQ(a.bytes, b.bytes);
          EXPECT_EQ(a.error, b.error) << a.bits << " bits of " << straight[i].name;
          EXPECT_EQ(a.damage, b.damage) << a.bits << " bits of " << straight[i].name;
        }
      }
    }
  }
}

TEST(GptqRules, MatchSingleAndFusedNames) {
  std::map<std::string, int> bits;
  for (const char* module :
       {"layers.3.self_attn.q_proj", "layers.3.self_attn.k_proj", "layers.3.self_attn.v_proj",
        "layers.5.self_attn.q_proj", "layers.5.self_attn.k_proj", "layers.5.self_attn.v_proj",
        "layers.3.mlp.gate_proj", "layers.3.mlp.up_proj", "layers.1.mlp.experts.7.down_proj",
        "layers.1.mlp.experts.17.down_proj"})
    bits["model." + std::string(module)] = 8;
  bits["model.layers.2.mlp.shared_expert.down_proj"] = 2;
  const nlohmann::ordered_json rules = gptq_rules(bits);
  ASSERT_EQ(rules.size(), 4u) << rules;
  const QuantizationConfig config = read_quantization_config(
      {{"bits", 4}, {"group_size", 128}, {"quant_method", "gptq"}, {"dynamic", rules}}, "test");
  for (const auto& [module, own] : bits)
    EXPECT_EQ(config.gptq_of(module).bits, own) << module;
  // As vLLM and SGLang ask.
  EXPECT_EQ(config.gptq_of("model.layers.5.self_attn.qkv_proj").bits, 8);
  EXPECT_EQ(config.gptq_of("model.layers.3.mlp.gate_up_proj").bits, 8);
  for (const char* other :
       {"model.layers.4.self_attn.qkv_proj", "model.layers.5.mlp.gate_up_proj",
        "model.layers.35.self_attn.q_proj", "model.layers.3.self_attn.o_proj",
        "model.layers.1.mlp.experts.1.down_proj", "model.layers.1.mlp.experts.77.down_proj"})
    EXPECT_EQ(config.gptq_of(other).bits, 4) << other;
}

}  // namespace
}  // namespace qw::quantize
