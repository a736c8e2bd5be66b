// The profiled backend passes everything on, unchanged, and counts what it must.
#include "backend/profile.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace qw {
namespace {

LinearSource ones(int64_t n, int64_t k, const std::string& name) {
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(n * k), 1.0F);
  LinearSource out;
  out.name = name;
  out.n = n;
  out.k = k;
  out.data = DenseRows{DType::kF32, reinterpret_cast<const std::byte*>(values->data()), 4 * k};
  out.owner = values;
  return out;
}

TEST(Profile, NotesLayersBytesAndOperations) {
  Profile profile;
  BackendOptions options;
  options.n_threads = 1;
  options.profile = &profile;
  const auto backend = make_backend("cpu", options);
  EXPECT_EQ(backend->name(), "cpu");

  Linear layer{"layers.12.qkv", nullptr, nullptr, {}}, head{"lm_head", nullptr, nullptr, {}};
  const LinearSource w = ones(8, 32, layer.name);
  layer.weight = backend->pack_linear({&w, 1});
  head.weight = backend->pack_linear({&w, 1});
  const auto x = backend->allocate(3, 32), y = backend->allocate(3, 8);
  const std::vector<float> values(3 * 32, 2.0F);
  backend->upload_rows(values.data(), x->view);
  BatchPlan plan;
  plan.tokens = {0, 0, 0};
  plan.positions = {0, 1, 2};
  plan.slots = {0, 1, 2};
  plan.seq_begin = {0, 3};
  plan.seq_context = {3};
  plan.page_begin = {0, 1};
  plan.pages = {0};
  backend->begin_step(plan, {}, {});
  backend->linear(x->view, layer, y->view);
  backend->linear(x->view, layer, y->view);
  std::vector<float> out(8);
  const std::vector<int32_t> rows = {2};
  backend->logits(x->view, rows, head, out.data());

  EXPECT_EQ(out, std::vector<float>(8, 64.0F));
  const OpRecord& qkv = profile.at("qkv", 12);
  EXPECT_EQ(qkv.calls, 2);
  EXPECT_EQ(qkv.operations, 2 * 2.0 * 3 * 8 * 32);
  EXPECT_EQ(qkv.bytes, 2.0 * static_cast<double>(layer.weight->read_bytes));
  EXPECT_EQ(qkv.kernel, layer.weight->kernel);
  EXPECT_EQ(profile.at("lm_head", -1).operations, 2.0 * 8 * 32);
  EXPECT_GT(profile.seconds(), 0);
  profile.clear();
  EXPECT_TRUE(profile.records().empty());
}

TEST(Profile, AttentionCountsVisibleKeysAndTheirBytes) {
  Profile profile;
  BackendOptions options;
  options.n_threads = 1;
  options.profile = &profile;
  const auto backend = make_backend("cpu", options);
  const int page = backend->kv_page_tokens(), heads = 2, dim = 16, n = 5;
  const auto kv = backend->make_kv({3, heads, dim, 4, DType::kF32});
  const auto qkv = backend->allocate(n, 3 * heads * dim), o = backend->allocate(n, heads * dim);
  BatchPlan plan;
  plan.tokens.assign(n, 0);
  for (int t = 0; t < n; ++t) {
    plan.positions.push_back(t);
    plan.slots.push_back(2 * page + t);
  }
  plan.seq_begin = {0, n};
  plan.seq_context = {n};
  plan.page_begin = {0, 1};
  plan.pages = {2};
  const std::vector<float> cos(n * dim / 2, 1.0F), sin(n * dim / 2, 0.0F);
  const std::vector<float> zeros(static_cast<size_t>(n) * 3 * heads * dim, 0.0F);
  backend->upload_rows(zeros.data(), qkv->view);
  backend->begin_step(plan, cos, sin);
  for (const int64_t window : {0, 2}) {
    profile.clear();
    const AttentionSpec spec{heads, heads, dim, 0.25F, window};
    backend->rope_store_kv(qkv->view, *kv, 1, spec);
    backend->paged_attention(qkv->view, *kv, 1, spec, o->view);
    const OpRecord& record = profile.at("paged_attention", 1);
    const double seen = window == 0 ? 1 + 2 + 3 + 4 + 5 : 1 + 2 + 2 + 2 + 2;
    EXPECT_EQ(record.operations, 4.0 * heads * dim * seen);
    EXPECT_EQ(record.bytes, 2.0 * 4 * heads * dim * n);  // keys and values of five tokens
    EXPECT_EQ(profile.at("rope_store_kv", 1).calls, 1);
  }
}

}  // namespace
}  // namespace qw
