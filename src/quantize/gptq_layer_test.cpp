// One layer: what goes on to the next is the layer as quantised, and whether its own matrices see
// each other quantised is as asked for.
#include "quantize/gptq_layer.h"

#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "support/tiny_checkpoint.h"

namespace qw::quantize {
namespace {

using test::TinyCheckpoint;
using test::TinyShape;

struct Layer {
  TinyCheckpoint tiny{TinyShape{.hidden = 64, .intermediate = 96}};
  std::shared_ptr<const Checkpoint> checkpoint = tiny.open();
  ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  NetworkSources sources = open_network(*checkpoint, config);
  std::unique_ptr<Backend> backend = make_reference_backend({});
  const LayerSources& first = sources.layers.front();

  LayerPass begin() {
    std::vector<std::vector<int32_t>> sequences(12);
    uint32_t state = 7;
    for (auto& ids : sequences) {
      for (int t = 0; t < 20; ++t) {
        state = state * 1664525 + 1013904223;
        ids.push_back(static_cast<int32_t>(state >> 24) % 32);
      }
    }
    LayerPass pass(*backend, config, sequences, nullptr);
    pass.embed(*backend->pack_embedding(sources.embedding.parts.front()));
    return pass;
  }
  std::vector<QuantisedModule> quantise(bool true_sequential, LayerPass& pass) {
    GptqLayerOptions options;
    options.gptq.bits = 3;
    options.gptq.group_size = 32;
    options.true_sequential = true_sequential;
    const MatrixTeam team{nullptr, &kernels::matrix_ops(kernels::detect_isa())};
    return gptq_layer(first, config, options, *backend, team, pass);
  }
};

TEST(GptqLayer, TheNextLayerSeesThisOneQuantised) {
  Layer layer;
  for (const bool true_sequential : {true, false}) {
    LayerPass pass = layer.begin();
    const std::vector<QuantisedModule> modules = layer.quantise(true_sequential, pass);
    ASSERT_EQ(modules.size(), 7u);
    LayerSources quantised = layer.first;
    size_t next = 0;
    for (LinearParts* parts : {&quantised.qkv, &quantised.o, &quantised.gate_up, &quantised.down}) {
      for (size_t i = 0; i < parts->parts.size(); ++i, ++next) {
        EXPECT_EQ(modules[next].id, parts->modules[i]);
        parts->parts[i] = source_of(parts->parts[i].name, modules[next].matrix);
      }
    }
    LayerPass expected = layer.begin();
    pass_layer(quantised, layer.config, *layer.backend, expected);
    EXPECT_EQ(pass.hidden(), expected.hidden()) << true_sequential;
    EXPECT_EQ(pass.layer(), 1);
    EXPECT_EQ(expected.layer(), 1);
  }
}

TEST(GptqLayer, MatricesSeeThoseBeforeThemQuantisedOrNot) {
  Layer layer;
  LayerPass one = layer.begin(), other = layer.begin();
  const auto sequential = layer.quantise(true, one), parallel = layer.quantise(false, other);
  for (size_t i = 0; i < 3; ++i)  // q, k, v have nothing before them
    EXPECT_EQ(sequential[i].matrix->code_values, parallel[i].matrix->code_values);
  for (size_t i = 3; i < 7; ++i)
    EXPECT_NE(sequential[i].loss, parallel[i].loss) << i;
}

}  // namespace
}  // namespace qw::quantize
