// What is measured does not depend on what is kept to measure it.
#include "quantize/network_probe.h"

#include <gtest/gtest.h>

#include "quantize/checkpoint_test_support.h"

namespace qw::quantize {
namespace {

using test::calibration;

/// The module's matrix, a little changed.
ChangedMatrix changed(const NetworkSources& sources, const ModuleId& id) {
  ChangedMatrix out;
  out.id = id;
  const auto take = [&](const LinearParts& parts) {
    for (size_t i = 0; i < parts.modules.size(); ++i) {
      if (parts.modules[i] != id) continue;
      const LinearSource& from = parts.parts[i];
      auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(from.n * from.k));
      from.decode_rows(0, from.n, values->data());
      for (size_t v = 0; v < values->size(); v += 3)
        (*values)[v] *= 0.9F;
      out.make = [from, values] {
        return LinearSource::of_floats(from.name, from.n, from.k, values);
      };
    }
  };
  sources.for_each(take);
  EXPECT_TRUE(out.make);
  return out;
}

struct Bench : test::Bench {
  explicit Bench(const test::TinyShape& shape) : test::Bench(shape) { open(); }

  NetworkProbe probe(int64_t packed_bytes, int64_t hidden_bytes) {
    return {source(), set,     *backend,
            pool,     nullptr, {.packed_bytes = packed_bytes, .hidden_bytes = hidden_bytes}};
  }
  const CalibrationSet set = calibration(6);
};

/// All that may be changed, alone and together.
std::vector<std::vector<ChangedMatrix>> cases(const Bench& bench) {
  const NetworkSources& from = bench.sources;
  const int last = bench.config.n_layers - 1;
  const auto one = [&](Slot slot, int layer, int expert = -1) {
    return changed(from, {slot, layer, expert});
  };
  std::vector<std::vector<ChangedMatrix>> out = {
      {one(Slot::kEmbedding, -1)},
      {one(Slot::kQ, 0)},
      {one(Slot::kO, 2), one(Slot::kV, 2)},
      {one(Slot::kO, 1), one(Slot::kK, last)},
      {one(Slot::kQ, last)},
  };
  if (!from.tied) out.push_back({one(Slot::kLmHead, -1)});
  if (bench.config.moe) {
    out.push_back({one(Slot::kExpertDown, 1, 2), one(Slot::kSharedUp, 3)});
  } else {
    out.push_back({one(Slot::kDown, 3), one(Slot::kGate, 1), one(Slot::kUp, 1)});
  }
  return out;
}

TEST(NetworkProbe, MeasuresTheSameWhateverItKeeps) {
  constexpr int64_t kAll = int64_t{1} << 40;
  for (test::TinyShape shape : {test::kDense, test::kMoe}) {
    for (const bool tied : {false, true}) {
      shape.tied = tied;
      shape.n_layers = 5;
      Bench bench(shape);
      NetworkProbe keeps_all = bench.probe(kAll, kAll);
      const auto all = cases(bench);
      std::vector<double> expected;
      for (const auto& matrices : all) {
        expected.push_back(keeps_all.kl(matrices));
        EXPECT_GT(expected.back(), 0);
      }
      const double none = keeps_all.kl(std::vector<ChangedMatrix>());
      EXPECT_LT(none, 1e-15);  // but for the rounding of logarithms
      const int64_t whole = keeps_all.packed_bytes();
      const int64_t state = bench.set.n_tokens * bench.config.hidden * 4;
      for (const auto& [packed, hidden] : std::vector<std::pair<int64_t, int64_t>>{
               {0, 0}, {0, kAll}, {kAll, 0}, {whole / 2, 4 * state}, {whole - 1, 3 * state}}) {
        NetworkProbe probe = bench.probe(packed, hidden);
        EXPECT_LE(probe.packed_bytes(), packed);
        EXPECT_EQ(probe.packed_bytes() == 0, packed == 0);
        for (size_t i = 0; i < all.size(); ++i) {
          EXPECT_EQ(probe.kl(all[i]), expected[i])
              << i << ", " << packed << " of " << whole << ", " << hidden;
        }
        EXPECT_EQ(probe.kl(std::vector<ChangedMatrix>()), none);
      }
    }
  }
}

/// Another checkpoint is measured as its matrices are in the place of the network's own.
TEST(NetworkProbe, MeasuresAnotherCheckpoint) {
  for (const bool tied : {false, true}) {
    test::TinyShape shape = test::kDense;
    shape.tied = tied;
    Bench bench(shape), other(shape);
    NetworkProbe probe = bench.probe(0, 0);
    EXPECT_LT(probe.kl(other.source()), 1e-15);
    test::Bench changed_bench(shape);
    const auto change = [&](const std::string& name) {
      for (float& value : changed_bench.tiny.tensors.at(name).values)
        value *= 0.9F;
    };
    change("model.layers.0.self_attn.o_proj.weight");
    change("model.layers.1.mlp.down_proj.weight");
    change(tied ? "model.embed_tokens.weight" : "lm_head.weight");
    changed_bench.open();
    std::vector<ChangedMatrix> matrices;
    changed_bench.sources.for_each([&](const LinearParts& parts) {
      for (size_t i = 0; i < parts.parts.size(); ++i)
        matrices.push_back({parts.modules[i], [part = parts.parts[i]] { return part; }});
    });
    std::vector<int> layers;
    const double kl = probe.kl(changed_bench.source(), [&](int layer) { layers.push_back(layer); });
    EXPECT_GT(kl, 0);
    EXPECT_EQ(kl, probe.kl(matrices));
    EXPECT_EQ(layers, (std::vector<int>{0, 1}));
  }
  Bench bench(test::kDense);
  test::TinyShape shape = test::kDense;
  shape.vocab += 8;
  Bench other(shape);
  NetworkProbe probe = bench.probe(0, 0);
  expect_error(ErrorKind::kInvalidArgument, {"vocabulary: expected 48 tokens, got 56"},
               [&] { probe.kl(other.source()); });
  EXPECT_EQ(NetworkProbe::n_predictions(bench.config, bench.set), probe.n_predictions());
}

}  // namespace
}  // namespace qw::quantize
