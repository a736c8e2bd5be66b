// Runs a model without the engine: one sequence, its own pages, logits where they are wanted.
//
// Part of the tests.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"
#include "tensor/raw_tensor.h"

namespace qw::test {

/// A backend in one of the ways it is tested: "reference"; "cpu_f32", activations kept in f32;
/// "cpu_f32kv", rounded activations; "cpu", as users run it. All but the last have an f32 cache.
std::unique_ptr<Backend> make_test_backend(std::string_view variant);

/// Type of the KV cache of a variant: the program's default for "cpu", else f32.
DType kv_type_of(std::string_view variant);

/// True for the variants that calculate in f32 (or f64) throughout.
bool is_exact(std::string_view variant);

struct GreedyStep {
  int32_t token = 0;
  float margin = 0;  // best minus second best logit
};

class ModelRunner {
 public:
  ModelRunner(const std::string& path, std::string_view variant)
      : ModelRunner(path, variant, kv_type_of(variant)) {}
  ModelRunner(const std::string& path, std::string_view variant, DType kv_type);

  Model& model() { return *model_; }
  const std::string& path() const { return path_; }
  int64_t vocab() const { return model_->config().vocab; }

  /// Starts the sequence anew.
  void reset();
  /// Appends `ids` in one step; logits [rows.size(), vocab] at these rows of `ids`.
  std::vector<float> append(const std::vector<int32_t>& ids, const std::vector<int32_t>& rows,
                            ForwardObserver* observer = nullptr);
  /// reset() and append().
  std::vector<float> logits(const std::vector<int32_t>& ids, const std::vector<int32_t>& rows,
                            ForwardObserver* observer = nullptr);
  /// Greedy continuation with the cache. `recompute`: the whole sequence anew at every step.
  std::vector<GreedyStep> greedy(const std::vector<int32_t>& prompt, size_t n_tokens,
                                 bool recompute = false);
  /// log p(ids[i + 1] | ids[0..i]), in f64.
  std::vector<double> logprobs(const std::vector<int32_t>& ids);

  int32_t adapter = -1;

 private:
  std::string path_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> kv_;
  int64_t length_ = 0;  // tokens in the cache
};

/// Keeps every value it is shown.
class Recorder : public ForwardObserver {
 public:
  bool wants(std::string_view) override { return true; }
  void on_value(std::string_view name, int64_t rows, int64_t cols, const float* values) override {
    values_[std::string(name)].assign(values, values + rows * cols);
  }
  const std::map<std::string, std::vector<float>>& values() const { return values_; }

 private:
  std::map<std::string, std::vector<float>> values_;
};

/// The largest |got - expected| over rows of `cols` values, plain and relative to the row's range
/// (largest minus smallest expected value). Infinite when a value is not finite or sizes differ.
struct Difference {
  double absolute = 0, relative = 0;
};
Difference largest_difference(const std::vector<float>& got, const std::vector<float>& expected,
                              int64_t cols);

/// An f32 tensor as floats.
std::vector<float> floats_of(const RawTensor& tensor);

/// How many steps must agree before a margin at or under `tolerance` lets the rest diverge; and
/// whether they do.
struct GreedyCheck {
  size_t must_agree = 0;
  size_t agree = 0;
};
GreedyCheck compare_greedy(const std::vector<GreedyStep>& got, const std::vector<int32_t>& tokens,
                           const std::vector<float>& margins, double tolerance);

/// The largest difference of logits, relative to the range of a row, that docs/accuracy.md states
/// for the default CPU backend on this model: the bound of its loosest weight format, and of the
/// variant's KV cache.
double logits_bound(const Model& model, std::string_view variant);

/// Names of the folders (or of the files NAME.json, without ending) below a golden folder that hold
/// expected values, from the project and the shared folder, sorted.
std::vector<std::string> golden_names(const std::string& folder);

/// `text` with everything but letters and digits replaced, as names of tests must be.
std::string test_name(std::string text);

}  // namespace qw::test
