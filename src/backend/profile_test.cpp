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

/// A matrix [n, k] with these values.
LinearSource matrix(int64_t n, int64_t k, const std::string& name, std::vector<float> values) {
  LinearSource out = ones(n, k, name);
  auto owner = std::make_shared<std::vector<float>>(std::move(values));
  out.data = DenseRows{DType::kF32, reinterpret_cast<const std::byte*>(owner->data()), 4 * k};
  out.owner = owner;
  return out;
}

/// Expert e is best for rows of unit vector e, and expert e + 1 second.
MoeWeights mixture(Backend& backend, int64_t n_experts, int64_t hidden, int64_t inter,
                   bool shared) {
  const auto packed = [&](const LinearSource& source) {
    Linear out;
    out.name = "layers.4." + source.name;
    out.weight = backend.pack_linear({&source, 1});
    return out;
  };
  std::vector<float> router(static_cast<size_t>(n_experts * hidden), 0.0F);
  for (int64_t e = 0; e < n_experts; ++e) {
    router[static_cast<size_t>(e * hidden + e)] = 2;
    router[static_cast<size_t>((e + 1) % n_experts * hidden + e)] = 1;
  }
  MoeWeights moe;
  moe.top_k = 2;
  moe.router = packed(matrix(n_experts, hidden, "router", router));
  for (int64_t e = 0; e < n_experts; ++e) {
    moe.gate_up.push_back(packed(ones(2 * inter, hidden, "gate_up")));
    moe.down.push_back(packed(ones(hidden, inter, "down")));
  }
  if (shared) {
    moe.shared_gate = packed(ones(1, hidden, "shared_gate"));
    moe.shared_gate_up = packed(ones(4 * inter, hidden, "shared_gate_up"));
    moe.shared_down = packed(ones(hidden, 2 * inter, "shared_down"));
  }
  return moe;
}

TEST(Profile, AMixtureCountsTheExpertsThatRowsWereRoutedTo) {
  constexpr int64_t kExperts = 6, kHidden = 32, kInter = 16;
  for (const bool shared : {false, true}) {
    Profile profile;
    BackendOptions options;
    options.n_threads = 1;
    options.profile = &profile;
    const auto backend = make_backend("cpu", options);
    const MoeWeights moe = mixture(*backend, kExperts, kHidden, kInter, shared);
    double always = static_cast<double>(moe.router.weight->read_bytes),
           always_operations = 2.0 * kHidden * kExperts;
    if (shared) {
      for (const Linear* layer : {&moe.shared_gate, &moe.shared_gate_up, &moe.shared_down})
        always += static_cast<double>(layer->weight->read_bytes);
      always_operations += 2.0 * kHidden * (1 + 6 * kInter);
    }
    const auto per_expert =
        static_cast<double>(moe.gate_up[0].weight->read_bytes + moe.down[0].weight->read_bytes);
    // Rows by their best expert, and how many experts these and the next ones are.
    for (const auto& [rows, n_taken] : std::vector<std::pair<std::vector<int64_t>, int>>{
             {{4}, 2}, {{5}, 2}, {{1, 1, 1}, 2}, {{0, 1}, 3}, {{0, 1, 2, 3, 4, 5}, 6}}) {
      SCOPED_TRACE(testing::PrintToString(rows));
      const auto n = static_cast<int64_t>(rows.size());
      std::vector<float> values(static_cast<size_t>(n * kHidden), 0.0F);
      for (int64_t r = 0; r < n; ++r)
        values[static_cast<size_t>(r * kHidden + rows[static_cast<size_t>(r)])] = 1;
      const auto h = backend->allocate(n, kHidden), y = backend->allocate(n, kHidden);
      backend->upload_rows(values.data(), h->view);
      profile.clear();
      backend->moe_ffn(h->view, moe, y->view, nullptr);
      const OpRecord& record = profile.at("moe_ffn", 4);
      EXPECT_EQ(record.calls, 1);
      EXPECT_EQ(record.bytes, always + n_taken * per_expert);
      EXPECT_EQ(record.operations,
                static_cast<double>(n) * (always_operations + 2 * 2.0 * kHidden * 3 * kInter));
      EXPECT_EQ(record.kernel, moe.gate_up[0].weight->kernel);
    }
    // Who asks for the router's logits gets them.
    std::vector<float> values(kHidden, 0.0F), logits(kExperts, -1.0F);
    values[2] = 1;
    const auto h = backend->allocate(1, kHidden), y = backend->allocate(1, kHidden);
    backend->upload_rows(values.data(), h->view);
    backend->moe_ffn(h->view, moe, y->view, logits.data());
    EXPECT_EQ(logits, (std::vector<float>{0, 0, 2, 1, 0, 0}));
    EXPECT_EQ(profile.records().size(), 1u);
  }
}

}  // namespace
}  // namespace qw
