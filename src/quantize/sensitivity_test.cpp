// What each matrix costs in each type: an interrupted measurement goes on, to the same numbers.
#include "quantize/sensitivity.h"

#include <gtest/gtest.h>

#include "quantize/checkpoint_test_support.h"
#include "quantize/gguf_recipe.h"

namespace qw::quantize {
namespace {

void expect_equal(const std::vector<MatrixChoices>& a, const std::vector<MatrixChoices>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    ASSERT_EQ(a[i].choices.size(), b[i].choices.size()) << a[i].name;
    for (size_t c = 0; c < a[i].choices.size(); ++c) {
      const MatrixChoice &x = a[i].choices[c], &y = b[i].choices[c];
      EXPECT_EQ(x.dtype, y.dtype) << a[i].name;
      EXPECT_EQ(x.bytes, y.bytes) << a[i].name;
      EXPECT_EQ(x.error, y.error) << a[i].name;
      EXPECT_EQ(x.damage, y.damage) << a[i].name;
    }
  }
}

struct Bench : test::Bench {
  explicit Bench(const test::TinyShape& shape) : test::Bench(shape) {
    open();
    for (const LayerSources& layer : sources.layers)
      for_each_quantised(layer, [&](const LinearParts& parts) { add(parts); });
  }
  void add(const LinearParts& parts) {
    for (size_t i = 0; i < parts.parts.size(); ++i) {
      GgufTensor& tensor = tensors.emplace_back();
      tensor.id = parts.modules[i];
      tensor.name = gguf_name(tensor.id) + ".weight";
      tensor.shape = {parts.parts[i].n, parts.parts[i].k};
      tensor.parts = {parts.parts[i]};
    }
  }
  /// `n_kls`: how often a divergence was asked for.
  std::vector<MatrixChoices> measure(SensitivityOptions options, int& n_kls) {
    const auto kl = [&](const std::vector<const GgufTensor*>& changed) {
      ++n_kls;
      return 0.1 / static_cast<double>(changed.front()->name.size() + changed.size());
    };
    return measure_choices(tensors, config.n_layers, kl, pool, options);
  }
  std::vector<GgufTensor> tensors;
};

TEST(Sensitivity, GoesOnWhereItWasInterrupted) {
  Bench bench(test::kDense);
  int n_kls = 0;
  const auto straight = bench.measure({}, n_kls);
  const auto n = std::ssize(bench.tensors);
  EXPECT_EQ(std::ssize(straight), n);
  EXPECT_EQ(n_kls, n);
  EXPECT_GT(straight[0].choices.size(), 4u);

  CancelFlag cancel;
  SensitivityOptions options;
  options.cancel = &cancel;
  {
    MeasurementJournal journal(bench.folder / "m", "job");
    options.journal = &journal;
    options.on_progress = [&](int64_t done, int64_t) {
      if (done == 5) cancel.cancel();
    };
    expect_error(ErrorKind::kCancelled, {}, [&] { bench.measure(options, n_kls); });
    EXPECT_EQ(journal.size(), 6u);
  }
  cancel.reset();
  MeasurementJournal journal(bench.folder / "m", "job");
  options.journal = &journal;
  std::vector<size_t> sizes;
  options.on_progress = [&](int64_t, int64_t total) {
    EXPECT_EQ(total, 2 * n);
    sizes.push_back(journal.size());
  };
  expect_equal(bench.measure(options, n_kls), straight);
  ASSERT_EQ(std::ssize(sizes), 2 * n);
  EXPECT_EQ(sizes[5], 6u);  // nothing new
  EXPECT_EQ(sizes[6], 7u);

  // What is known is what is taken.
  MeasurementJournal other(bench.folder / "other", "job");
  options.journal = &other;
  other.add("errors of " + bench.tensors[1].name,
            std::vector<double>(straight[1].choices.size(), 0.25));
  options.on_progress = {};
  EXPECT_EQ(bench.measure(options, n_kls)[1].choices[2].error, 0.25);
  MeasurementJournal odd(bench.folder / "odd", "job");
  options.journal = &odd;
  odd.add("errors of " + bench.tensors[1].name, {1, 2});
  expect_error(ErrorKind::kInvalidArgument, {"measurements: expected", "errors of blk.0."},
               [&] { bench.measure(options, n_kls); });
}

}  // namespace
}  // namespace qw::quantize
