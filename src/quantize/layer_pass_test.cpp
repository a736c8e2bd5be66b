// Layer by layer for all sequences gives what the forward pass gives, sequence by sequence, bit for
// bit, and shows the very inputs of each matrix.
#include "quantize/layer_pass.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>

#include "support/tiny_checkpoint.h"

namespace qw::quantize {
namespace {

using test::TinyCheckpoint;
using test::TinyShape;
using Floats = std::vector<float>;

const std::vector<std::vector<int32_t>> kSequences = {
    {1, 5, 9, 30, 2, 2, 7}, {8}, {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6}};

/// Everything that a forward pass of all sequences, one after the other, puts out under each name.
class Values : public ForwardObserver {
 public:
  bool wants(std::string_view) override { return true; }
  void on_value(std::string_view name, int64_t rows, int64_t cols, const float* values) override {
    Floats& to = by_name[std::string(name)];
    to.insert(to.end(), values, values + rows * cols);
  }
  std::map<std::string, Floats> by_name;
};

struct Case {
  TinyCheckpoint tiny;
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
  std::unique_ptr<Backend> backend;
  Values expected;

  Case(const TinyShape& shape, const char* device)
      : tiny(shape),
        checkpoint(tiny.open()),
        config(ModelConfig::from_checkpoint(*checkpoint)),
        sources(open_network(*checkpoint, config)) {
    BackendOptions options;
    options.n_threads = 2;
    options.activations = ActivationMode::kF32;
    backend = make_backend(device, options);
    LoadOptions load;
    load.quiet = true;
    const auto model = Model::load(checkpoint, *backend, load);
    const int page_tokens = backend->kv_page_tokens();
    for (const auto& ids : kSequences) {
      BatchPlan plan = test::plan_of(ids);
      plan.pages.clear();
      for (int32_t page = 0; page * page_tokens < std::ssize(ids); ++page)
        plan.pages.push_back(page);
      plan.page_begin.back() = static_cast<int32_t>(plan.pages.size());
      const auto kv = model->make_kv(std::ssize(plan.pages), DType::kF32);
      model->forward(plan, *kv, nullptr, &expected);
    }
  }
  const Floats& value(const std::string& name, int layer) {
    return expected.by_name.at("layer" + std::to_string(layer) + "." + name);
  }
};

class LayerPassTest : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  Case make() const {
    const auto [device, n_experts] = GetParam();
    return {TinyShape{.hidden = 32,
                      .intermediate = 64,
                      .n_experts = n_experts,
                      .expert_intermediate = 32,
                      .shared_intermediate = 64},
            device};
  }
};

TEST_P(LayerPassTest, GivesWhatTheForwardPassGives) {
  Case c = make();
  LayerPass pass(*c.backend, c.config, kSequences, nullptr);
  EXPECT_EQ(pass.n_tokens(), 29);
  pass.embed(*c.backend->pack_embedding(c.sources.embedding.parts.front()));
  EXPECT_EQ(pass.hidden(), c.expected.by_name.at("hidden.embed"));
  for (int layer = 0; layer < 2; ++layer) {
    const LayerWeights w =
        pack_layer(*c.backend, c.sources.layers[static_cast<size_t>(layer)], c.config);
    Floats seen;
    std::vector<int64_t> lengths;
    const auto expect = [&](const char* what, int64_t cols, const Floats& expected) {
      EXPECT_EQ(seen, expected) << what << ' ' << layer;
      EXPECT_EQ(lengths, (std::vector<int64_t>{7 * cols, cols, 21 * cols}));
      seen.clear();
      lengths.clear();
    };
    const auto take = [&](int64_t cols) {
      return [&, cols](const float* x, int64_t n) {
        seen.insert(seen.end(), x, x + n * cols);
        lengths.push_back(n * cols);
      };
    };
    pass.norm_inputs(w, take(32));
    expect("norm", 32, c.value("input_layernorm", layer));
    pass.attend(w, take(32));
    expect("attention", 32, c.value("attn_context", layer));
    pass.add_attention(w, take(32));
    expect("ffn", 32, c.value("post_attention_layernorm", layer));
    if (w.moe == nullptr) {
      // What down is multiplied with: the block's output says whether it is right.
      pass.gated(w.gate_up, take(64));
      EXPECT_EQ(seen.size(), 29u * 64);
    } else {
      const auto routed = pass.route(*w.moe);
      const Floats& scores = c.value("router_logits", layer);
      for (int32_t t = 0; t < 29; ++t) {
        int64_t n_chosen = 0;
        float least = 1e9F, most = -1e9F;  // of the chosen; of the others
        for (size_t e = 0; e < routed.size(); ++e) {
          const bool chosen = std::ranges::binary_search(routed[e], t);
          const float score = scores[static_cast<size_t>(t) * routed.size() + e];
          n_chosen += chosen ? 1 : 0;
          (chosen ? least : most) = chosen ? std::min(least, score) : std::max(most, score);
        }
        EXPECT_EQ(n_chosen, 2);
        EXPECT_GE(least, most);
      }
      const std::vector<int32_t> tokens = {0, 7, 8, 28};
      pass.expert_inputs(tokens, take(32));
      const Floats& all = c.value("post_attention_layernorm", layer);
      for (size_t i = 0; i < tokens.size(); ++i) {
        const auto from = all.begin() + tokens[i] * 32;
        EXPECT_EQ(Floats(seen.begin() + static_cast<int64_t>(i) * 32,
                         seen.begin() + static_cast<int64_t>(i + 1) * 32),
                  Floats(from, from + 32));
      }
      seen.clear();
      pass.expert_gated(tokens, w.moe->gate_up[1], take(32));
      const Floats some = seen;
      seen.clear();
      pass.expert_gated(std::vector<int32_t>{7}, w.moe->gate_up[1], take(32));
      EXPECT_EQ(Floats(some.begin() + 32, some.begin() + 64), seen);
    }
    pass.add_feed_forward(w);
    EXPECT_EQ(pass.hidden(), c.expected.by_name.at("hidden.layer." + std::to_string(layer)));
  }
}

TEST_P(LayerPassTest, GoesOnFromWhatWasKept) {
  Case c = make();
  LayerPass pass(*c.backend, c.config, kSequences, nullptr);
  pass.set_hidden(c.expected.by_name.at("hidden.layer.0"), 1);
  const LayerWeights w = pack_layer(*c.backend, c.sources.layers[1], c.config);
  const auto nothing = [](const float*, int64_t) {};
  pass.attend(w, nothing);
  pass.add_attention(w, nothing);
  pass.add_feed_forward(w);
  EXPECT_EQ(pass.hidden(), c.expected.by_name.at("hidden.layer.1"));
}

INSTANTIATE_TEST_SUITE_P(All, LayerPassTest,
                         testing::Combine(testing::Values("reference", "cpu"),
                                          testing::Values(0, 4)));

TEST(LayerPass, SaysWhatIsWrong) {
  Case c(TinyShape{}, "reference");
  expect_error(ErrorKind::kInvalidArgument, {"sequence 1", "ids from 0 to 31", "got 32"}, [&] {
    LayerPass(*c.backend, c.config, {{1, 2}, {32}}, nullptr);
  });
  expect_error(ErrorKind::kInvalidArgument, {"sequence 0", "got none"},
               [&] { LayerPass(*c.backend, c.config, {{}}, nullptr); });
  LayerPass pass(*c.backend, c.config, kSequences, nullptr);
  pass.embed(*c.backend->pack_embedding(c.sources.embedding.parts.front()));
  Floats broken = pass.hidden();
  broken[9 * 16 + 3] = std::numeric_limits<float>::infinity();
  pass.set_hidden(broken, 1);
  const LayerWeights w = pack_layer(*c.backend, c.sources.layers[1], c.config);
  expect_error(ErrorKind::kCorrupt, {"layer 1", "token 9 of all"},
               [&] { pass.norm_inputs(w, [](const float*, int64_t) {}); });
}

TEST(LayerPass, StopsWhenAsked) {
  Case c(TinyShape{}, "reference");
  CancelFlag cancel;
  cancel.cancel();
  LayerPass pass(*c.backend, c.config, kSequences, &cancel);
  expect_error(ErrorKind::kCancelled, {},
               [&] { pass.embed(*c.backend->pack_embedding(c.sources.embedding.parts.front())); });
}

}  // namespace
}  // namespace qw::quantize
