#include "support/model_runner.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include "base/error.h"

namespace qw::test {

namespace {

constexpr int64_t kMaxTokens = 1024;

}  // namespace

std::unique_ptr<Backend> make_test_backend(std::string_view variant) {
  BackendOptions options;
  options.n_threads = 2;
  if (variant == "cpu_f32") options.activations = ActivationMode::kF32;
  return make_backend(variant == "reference" ? "reference" : "cpu", options);
}

DType kv_type_of(std::string_view variant) {
  return variant == "cpu" ? KvSpec{}.type : DType::kF32;
}

bool is_exact(std::string_view variant) {
  return variant == "reference" || variant == "cpu_f32";
}

ModelRunner::ModelRunner(const std::string& path, std::string_view variant, DType kv_type)
    : path_(path), backend_(make_test_backend(variant)) {
  LoadOptions options;
  options.quiet = true;
  options.on_warning = [](const std::string&) {};
  model_ = Model::load(Checkpoint::open(path), *backend_, options);
  const int page = backend_->kv_page_tokens();
  kv_ = model_->make_kv((kMaxTokens + page - 1) / page, kv_type);
}

void ModelRunner::reset() {
  length_ = 0;
}

std::vector<float> ModelRunner::append(const std::vector<int32_t>& ids,
                                       const std::vector<int32_t>& rows,
                                       ForwardObserver* observer) {
  const auto n = static_cast<int64_t>(ids.size());
  QW_CHECK(length_ + n <= kMaxTokens);
  const int64_t page_tokens = kv_->page_tokens, n_pages = kv_->spec.n_pages;
  BatchPlan plan;
  plan.tokens = ids;
  // Pages from the last to the first: nothing may depend on their order in memory.
  for (int64_t p = 0; p * page_tokens < length_ + n; ++p)
    plan.pages.push_back(static_cast<int32_t>(n_pages - 1 - p));
  for (int64_t i = length_; i < length_ + n; ++i) {
    plan.positions.push_back(static_cast<int32_t>(i));
    const int64_t page = plan.pages[static_cast<size_t>(i / page_tokens)];
    plan.slots.push_back(static_cast<int32_t>(page * page_tokens + i % page_tokens));
  }
  length_ += n;
  plan.seq_begin = {0, static_cast<int32_t>(n)};
  plan.seq_context = {static_cast<int32_t>(length_)};
  plan.seq_rope_length = plan.seq_context;
  plan.adapters = {adapter};
  plan.page_begin = {0, static_cast<int32_t>(plan.pages.size())};
  plan.logit_rows = rows;
  std::vector<float> out(rows.size() * static_cast<size_t>(vocab()));
  model_->forward(plan, *kv_, out.data(), observer);
  return out;
}

std::vector<float> ModelRunner::logits(const std::vector<int32_t>& ids,
                                       const std::vector<int32_t>& rows,
                                       ForwardObserver* observer) {
  reset();
  return append(ids, rows, observer);
}

std::vector<GreedyStep> ModelRunner::greedy(const std::vector<int32_t>& prompt, size_t n_tokens,
                                            bool recompute) {
  std::vector<GreedyStep> out;
  std::vector<int32_t> all = prompt, input = prompt;
  reset();
  while (out.size() < n_tokens) {
    if (recompute) {
      reset();
      input = all;
    }
    std::vector<float> row = append(input, {static_cast<int32_t>(input.size() - 1)});
    const auto best = std::ranges::max_element(row);
    const auto token = static_cast<int32_t>(best - row.begin());
    const float top = *best;
    *best = -std::numeric_limits<float>::infinity();
    out.push_back({token, top - *std::ranges::max_element(row)});
    all.push_back(token);
    input = {token};
  }
  return out;
}

std::vector<double> ModelRunner::logprobs(const std::vector<int32_t>& ids) {
  std::vector<int32_t> rows;
  for (size_t i = 0; i + 1 < ids.size(); ++i)
    rows.push_back(static_cast<int32_t>(i));
  const std::vector<float> all = logits(ids, rows);
  std::vector<double> out;
  for (size_t i = 0; i < rows.size(); ++i) {
    const float* row = all.data() + i * static_cast<size_t>(vocab());
    const double largest = *std::max_element(row, row + vocab());
    double sum = 0;
    for (int64_t v = 0; v < vocab(); ++v)
      sum += std::exp(static_cast<double>(row[v]) - largest);
    out.push_back(static_cast<double>(row[ids[i + 1]]) - largest - std::log(sum));
  }
  return out;
}

Difference largest_difference(const std::vector<float>& got, const std::vector<float>& expected,
                              int64_t cols) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (got.size() != expected.size() || got.empty() || got.size() % static_cast<size_t>(cols) != 0)
    return {kInfinity, kInfinity};
  Difference out;
  for (size_t begin = 0; begin < got.size(); begin += static_cast<size_t>(cols)) {
    const auto row = std::span(expected).subspan(begin, static_cast<size_t>(cols));
    const auto [low, high] = std::ranges::minmax(row);
    for (size_t i = 0; i < row.size(); ++i) {
      const double d = std::abs(static_cast<double>(got[begin + i]) - static_cast<double>(row[i]));
      if (!std::isfinite(d)) return {kInfinity, kInfinity};
      out.absolute = std::max(out.absolute, d);
      out.relative = std::max(out.relative, d / std::max(static_cast<double>(high - low), 1e-30));
    }
  }
  return out;
}

std::vector<float> floats_of(const RawTensor& tensor) {
  QW_CHECK(tensor.dtype == DType::kF32);
  std::vector<float> out(tensor.bytes.size() / sizeof(float));
  std::memcpy(out.data(), tensor.bytes.data(), out.size() * sizeof(float));
  return out;
}

GreedyCheck compare_greedy(const std::vector<GreedyStep>& got, const std::vector<int32_t>& tokens,
                           const std::vector<float>& margins, double tolerance) {
  GreedyCheck out;
  while (out.must_agree < tokens.size() && static_cast<double>(margins[out.must_agree]) > tolerance)
    ++out.must_agree;
  while (out.agree < std::min(got.size(), tokens.size()) &&
         got[out.agree].token == tokens[out.agree])
    ++out.agree;
  return out;
}

double logits_bound(const Model& model, std::string_view variant) {
  // Keys and values in f16 are off by 2^-11 of themselves; a layer hands that on, and the layers'
  // shares add up to about as much again.
  double bound = kv_type_of(variant) == DType::kF16 ? 1e-3 : 1e-4;
  for (const Model::LayerInfo& layer : model.layers()) {
    // "f32", "bf16 + q4_k", ...: the loosest part counts. Plain floats may never meet rounder
    // activations than their own; what others meet, their kernels' names say.
    if (layer.format == "f32" || layer.format == "f16") continue;
    const bool rounds = layer.kernel.find("(int8)") != std::string::npos;
    if (layer.format == "bf16" || layer.kernel.find("(bf16)") != std::string::npos)
      bound = std::max(bound, 0.01);
    if (rounds && layer.format != "bf16") bound = std::max(bound, 0.05);
  }
  return bound;
}

std::vector<std::string> golden_names(const std::string& folder) {
  namespace fs = std::filesystem;
  std::set<std::string> names;
  const char* from_env = std::getenv("QIANWEN_SHARED");
  const fs::path source = QIANWEN_SOURCE_DIR;
  const fs::path shared = from_env != nullptr ? fs::path(from_env) : source / ".." / "shared";
  for (const fs::path& root : {source / "tests" / "golden", shared / "golden"}) {
    if (!fs::is_directory(root / folder)) continue;
    for (const auto& entry : fs::directory_iterator(root / folder)) {
      if (fs::exists(entry.path() / "expected.json")) names.insert(entry.path().filename());
      if (entry.path().extension() == ".json") names.insert(entry.path().stem());
    }
  }
  return {names.begin(), names.end()};
}

std::string test_name(std::string text) {
  std::ranges::replace_if(
      text, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return text;
}

}  // namespace qw::test
