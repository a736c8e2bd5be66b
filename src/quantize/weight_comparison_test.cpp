// Two networks beside each other: every weight of every kind counts, and counts where it is.
#include "quantize/weight_comparison.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quantize/checkpoint_test_support.h"

namespace qw::quantize {
namespace {

using test::Bench;
using test::kDense;
using test::kMoe;

std::vector<WeightDifference> compared(Bench& bench, const NetworkSources& other) {
  return compare_weights(
      bench.sources, other, bench.pool, [](int64_t) {}, nullptr);
}

/// A copy of the matrix with one weight changed.
LinearSource with_change(const LinearSource& source, int64_t row, int64_t column, float by) {
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(source.n * source.k));
  source.decode_rows(0, source.n, values->data());
  (*values)[static_cast<size_t>(row * source.k + column)] += by;
  return LinearSource::of_floats(source.name, source.n, source.k, std::move(values));
}

/// The one that changed; its name.
std::string only_change(const std::vector<WeightDifference>& all) {
  std::string name;
  for (const WeightDifference& one : all) {
    if (one.is_exact()) continue;
    EXPECT_EQ(name, "") << one.name;
    EXPECT_EQ(one.n_changed, 1) << one.name;
    name = one.name;
  }
  return name;
}

TEST(WeightComparison, SeesEveryKindOfWeight) {
  for (const auto& shape : {kDense, kMoe}) {
    Bench bench(shape);
    bench.open();
    EXPECT_TRUE(total_of(compared(bench, bench.sources)).is_exact());
    const auto changed = [&](const std::function<void(NetworkSources&)>& change) {
      NetworkSources other = bench.sources;
      change(other);
      return only_change(compared(bench, other));
    };
    using N = NetworkSources;
    EXPECT_EQ(changed([](N& n) { n.final_norm[3] += 1; }), "model.norm");
    EXPECT_EQ(changed([](N& n) { n.layers[1].input_norm[3] += 1; }),
              "model.layers.1.input_layernorm");
    EXPECT_EQ(changed([](N& n) { n.layers[0].post_norm[0] += 1; }),
              "model.layers.0.post_attention_layernorm");
    // The biases of q, k and v follow each other; the last is v's.
    EXPECT_EQ(changed([](N& n) { n.layers[0].qkv.bias.back() += 1; }),
              "model.layers.0.self_attn.v_proj.bias");
    EXPECT_EQ(changed([](N& n) { n.layers[0].qkv.bias.front() += 1; }),
              "model.layers.0.self_attn.q_proj.bias");
    for (const int64_t row : {0, 15, 16, 63}) {
      EXPECT_EQ(changed([&](N& n) {
                  LinearSource& o = n.layers[1].o.parts[0];
                  o = with_change(o, row, o.k - 1, 0.5F);
                }),
                "model.layers.1.self_attn.o_proj")
          << row;
    }
    if (shape.n_experts == 0) continue;
    EXPECT_EQ(changed([](N& n) {
                LinearSource& down = n.layers[1].moe.down[2].parts[0];
                down = with_change(down, 5, 5, 0.5F);
              }),
              "model.layers.1.mlp.experts.2.down_proj");
    EXPECT_EQ(changed([](N& n) {
                LinearSource& router = n.layers[0].moe.router.parts[0];
                router = with_change(router, 1, 1, 0.5F);
              }),
              "model.layers.0.mlp.gate");
  }
}

TEST(WeightComparison, FiguresAreOfTheChangeAndTheWeights) {
  const auto floats = [](std::vector<float> values) {
    const auto n = std::ssize(values) / 2;
    return LinearSource::of_floats("m", n, 2,
                                   std::make_shared<const std::vector<float>>(std::move(values)));
  };
  const WeightDifference one =
      compare_matrices(floats({3, 4, 0.0F, 12}), floats({3, 4.5F, -0.0F, 10}), {});
  EXPECT_EQ(one.n_weights, 4);
  EXPECT_EQ(one.n_changed, 2);
  EXPECT_EQ(one.largest, 2);
  EXPECT_DOUBLE_EQ(one.relative(), std::sqrt((0.25 + 4) / (9 + 16 + 144)));
  EXPECT_FALSE(one.was_quantised);
  EXPECT_EQ(one.from, "f32");
  const WeightDifference from_nothing = compare_matrices(floats({0, 0}), floats({0, 1}), {});
  EXPECT_TRUE(std::isinf(from_nothing.relative()));
  const WeightDifference nan = compare_matrices(floats({1, 1}), floats({1, std::nanf("")}), {});
  EXPECT_TRUE(std::isinf(nan.relative()));  // no bound takes it
  EXPECT_TRUE(
      compare_matrices(floats({1, std::nanf("")}), floats({1, std::nanf("")}), {}).is_exact());
}

TEST(WeightComparison, NetworksMustBeOfTheSameModules) {
  Bench bench(kDense);
  bench.open();
  const NetworkSources& whole = bench.sources;
  NetworkSources fewer = whole, smaller = whole;
  fewer.layers.pop_back();
  LinearSource& o = smaller.layers[0].o.parts[0];
  o = o.slice_rows(0, o.n - 1);
  const auto refused = [&](const NetworkSources& from, const NetworkSources& to,
                           const std::vector<std::string>& parts) {
    expect_error(ErrorKind::kInvalidArgument, parts, [&] {
      compare_weights(
          from, to, bench.pool, [](int64_t) {}, nullptr);
    });
  };
  refused(whole, fewer, {"model.layers.1", "in the first only"});
  refused(fewer, whole, {"model.layers.1", "in the second only"});
  refused(whole, smaller, {"self_attn.o_proj", "63 x 64"});
}

}  // namespace
}  // namespace qw::quantize
