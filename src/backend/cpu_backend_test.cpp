// Operations of the CPU backend against the reference backend, and the equalities of the numeric
// contract: threads, batch mates and pieces change no bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/backend.h"
#include "base/error.h"
#include "base/rng.h"

namespace qw {
namespace {

std::vector<float> normals(int64_t n, uint64_t stream, float scale = 1) {
  std::vector<float> out(static_cast<size_t>(n));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = scale * static_cast<float>(random_normal(3, stream, i));
  return out;
}

LinearSource matrix(int64_t n, int64_t k, uint64_t stream) {
  auto values = std::make_shared<std::vector<float>>(
      normals(n * k, stream, 1 / std::sqrt(static_cast<float>(k))));
  LinearSource out;
  out.name = "test.weight";
  out.n = n;
  out.k = k;
  out.data = DenseRows{DType::kF32, reinterpret_cast<const std::byte*>(values->data()), k * 4};
  out.owner = values;
  return out;
}

Linear linear_layer(Backend& backend, int64_t n, int64_t k, uint64_t stream, bool bias = false) {
  Linear out;
  out.name = "test";
  const LinearSource source = matrix(n, k, stream);
  out.weight = backend.pack_linear({&source, 1});
  if (bias) out.bias = backend.upload(normals(n, stream + 1000));
  return out;
}

LoraDelta delta(Backend& backend, int32_t adapter, int64_t begin, int64_t n, int64_t k,
                uint64_t stream, bool dora) {
  LoraDelta out;
  out.adapter = adapter;
  out.out_begin = begin;
  out.scale = 0.75F;
  const LinearSource a = matrix(3, k, stream), b = matrix(n, 3, stream + 1);
  out.a = backend.pack_linear({&a, 1});
  out.b = backend.pack_linear({&b, 1});
  if (dora) out.row_factor = backend.upload(normals(n, stream + 2));
  return out;
}

/// A step of sequences with these numbers of tokens and these adapters; ids 0, 1, 2 ...
BatchPlan plan_of(const std::vector<int>& lengths, std::vector<int32_t> adapters = {}) {
  BatchPlan plan;
  plan.seq_begin = {0};
  plan.page_begin = {0};
  for (const int length : lengths) {
    for (int p = 0; p < length; ++p) {
      plan.tokens.push_back(static_cast<int32_t>(plan.tokens.size()));
      plan.positions.push_back(p);
      plan.slots.push_back(p);
    }
    plan.seq_begin.push_back(static_cast<int32_t>(plan.tokens.size()));
    plan.seq_context.push_back(length);
    plan.page_begin.push_back(0);
  }
  plan.adapters = std::move(adapters);
  return plan;
}

BackendOptions threads(int n) {
  BackendOptions out;
  out.n_threads = n;
  out.activations = ActivationMode::kF32;
  return out;
}

std::vector<float> values_of(const Backend& backend, const Rows& rows) {
  std::vector<float> out(static_cast<size_t>(rows.rows * rows.cols));
  backend.download(rows, out.data());
  return out;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& want, float tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], tolerance) << i;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Runs `op(backend, plan)` on the reference and on the CPU with 1, 2, 4 threads: near the
/// reference, and the same bits on any number of threads.
template <class Op>
void expect_like_reference(const BatchPlan& plan, float tolerance, Op op) {
  const auto run = [&](std::unique_ptr<Backend> backend) {
    backend->begin_step(plan, {}, {});
    return op(*backend);
  };
  const std::vector<float> want = run(make_reference_backend({}));
  const std::vector<float> alone = run(make_cpu_backend(threads(1)));
  expect_near(alone, want, tolerance);
  for (const int n : {2, 4})
    EXPECT_TRUE(same_bits(run(make_cpu_backend(threads(n))), alone)) << n << " threads";
}

TEST(CpuBackend, EmbedsAndNormsAsTheReference) {
  const BatchPlan plan = plan_of({3, 300});
  expect_like_reference(plan, 2e-5F, [&](Backend& backend) {
    const auto table = backend.pack_embedding(matrix(400, 90, 1));
    const auto x = backend.allocate(303, 90), h = backend.allocate(303, 90),
               y = backend.allocate(303, 90);
    backend.embed(*table, 0, 100, x->view);
    backend.embed(*table, 100, 303, x->view);
    backend.upload_rows(normals(303 * 90, 5).data(), y->view);
    const auto w = backend.upload(normals(90, 6));
    backend.add_rms_norm(y->view, x->view, *w, 1e-6F, h->view);
    std::vector<float> out = values_of(backend, h->view), sum = values_of(backend, x->view);
    backend.add_rms_norm({}, x->view, *w, 1e-6F, h->view);
    const std::vector<float> again = values_of(backend, h->view);
    out.insert(out.end(), sum.begin(), sum.end());
    out.insert(out.end(), again.begin(), again.end());
    return out;
  });
}

TEST(CpuBackend, LinearAddsBiasAccumulatesAndGivesLogits) {
  const BatchPlan plan = plan_of({7});
  expect_like_reference(plan, 5e-5F, [&](Backend& backend) {
    const Linear layer = linear_layer(backend, 37, 50, 1, true);
    const auto x = backend.allocate(7, 50), y = backend.allocate(7, 37);
    backend.upload_rows(normals(7 * 50, 2).data(), x->view);
    backend.linear(x->view, layer, y->view);
    backend.linear(x->view, layer, y->view, {.accumulate = true});
    std::vector<float> out = values_of(backend, y->view), head(3 * 37);
    const std::vector<int32_t> rows = {1, 2, 6};
    backend.logits(x->view, rows, layer, head.data());
    out.insert(out.end(), head.begin(), head.end());
    return out;
  });
}

TEST(CpuBackend, LoraAndDoraReachOnlyTheirSequences) {
  for (const bool dora : {false, true}) {
    const BatchPlan plan = plan_of({4, 1, 3, 2}, {1, -1, 0, 1});
    expect_like_reference(plan, 1e-4F, [&](Backend& backend) {
      Linear layer = linear_layer(backend, 40, 48, 1, true);
      layer.deltas.push_back(delta(backend, 0, 0, 40, 48, 50, dora));
      layer.deltas.push_back(delta(backend, 1, 0, 16, 48, 60, dora));
      layer.deltas.push_back(delta(backend, 1, 24, 16, 48, 70, dora));
      layer.deltas.push_back(delta(backend, 1, 24, 16, 48, 80, dora));  // two on the same rows
      const auto x = backend.allocate(10, 48), y = backend.allocate(10, 40);
      backend.upload_rows(normals(10 * 48, 2).data(), x->view);
      backend.linear(x->view, layer, y->view);
      std::vector<float> out = values_of(backend, y->view);
      // Rows of the plan in another order, as experts see them.
      const std::vector<int32_t> rows_of_plan = {9, 4, 5};
      backend.linear(x->view.first(3), layer, y->view.first(3), {.accumulate = true}, rows_of_plan);
      const std::vector<float> mapped = values_of(backend, y->view.first(3));
      out.insert(out.end(), mapped.begin(), mapped.end());
      return out;
    });
  }
}

TEST(CpuBackend, SequenceWithoutAdapterIsUntouchedByOthers) {
  const auto backend = make_cpu_backend(threads(2));
  Linear layer = linear_layer(*backend, 40, 48, 1, true);
  const auto x = backend->allocate(3, 48), y = backend->allocate(3, 40);
  backend->upload_rows(normals(3 * 48, 2).data(), x->view);
  const BatchPlan plain = plan_of({3}), mixed = plan_of({1, 2}, {5, -1});
  backend->begin_step(plain, {}, {});
  backend->linear(x->view, layer, y->view);
  const std::vector<float> want = values_of(*backend, y->view);
  layer.deltas.push_back(delta(*backend, 5, 0, 40, 48, 50, false));
  backend->begin_step(mixed, {}, {});
  backend->linear(x->view, layer, y->view);
  const std::vector<float> got = values_of(*backend, y->view);
  EXPECT_FALSE(same_bits({got.begin(), got.begin() + 40}, {want.begin(), want.begin() + 40}));
  EXPECT_TRUE(same_bits({got.begin() + 40, got.end()}, {want.begin() + 40, want.end()}));
}

MoeWeights moe_weights(Backend& backend, int n_experts, int top_k, bool norm, bool shared) {
  constexpr int64_t kHidden = 32, kInter = 24;
  MoeWeights out;
  out.top_k = top_k;
  out.norm_topk_prob = norm;
  out.router = linear_layer(backend, n_experts, kHidden, 100);
  for (int e = 0; e < n_experts; ++e) {
    const auto stream = static_cast<uint64_t>(200 + 10 * e);
    out.gate_up.push_back(linear_layer(backend, 2 * kInter, kHidden, stream));
    out.down.push_back(linear_layer(backend, kHidden, kInter, stream + 1));
  }
  if (shared) {
    out.shared_gate_up = linear_layer(backend, 2 * 40, kHidden, 900);
    out.shared_down = linear_layer(backend, kHidden, 40, 901);
    out.shared_gate = linear_layer(backend, 1, kHidden, 902);
  }
  return out;
}

TEST(CpuBackend, MixtureOfExpertsMatchesTheReference) {
  for (const bool norm : {false, true}) {
    for (const bool shared : {false, true}) {
      const BatchPlan plan = plan_of({70}, {0});
      expect_like_reference(plan, 2e-5F, [&](Backend& backend) {
        MoeWeights moe = moe_weights(backend, 6, 2, norm, shared);
        moe.gate_up[3].deltas.push_back(delta(backend, 0, 24, 24, 32, 300, false));
        const auto h = backend.allocate(70, 32), y = backend.allocate(70, 32);
        backend.upload_rows(normals(70 * 32, 8, 2).data(), h->view);
        std::vector<float> logits(70 * 6);
        backend.moe_ffn(h->view, moe, y->view, logits.data());
        std::vector<float> out = values_of(backend, y->view);
        out.insert(out.end(), logits.begin(), logits.end());
        return out;
      });
    }
  }
}

TEST(CpuBackend, ExpertsDoNotDependOnBatchMates) {
  const auto backend = make_cpu_backend(threads(2));
  const MoeWeights moe = moe_weights(*backend, 8, 3, true, true);
  const std::vector<float> rows = normals(40 * 32, 8, 2);
  const auto run = [&](int first, int count) {
    const BatchPlan plan = plan_of({count});
    backend->begin_step(plan, {}, {});
    const auto h = backend->allocate(count, 32), y = backend->allocate(count, 32);
    backend->upload_rows(rows.data() + first * 32, h->view);
    backend->moe_ffn(h->view, moe, y->view, nullptr);
    return values_of(*backend, y->view);
  };
  const std::vector<float> all = run(0, 40);
  for (int r = 0; r < 40; ++r)
    EXPECT_TRUE(same_bits(run(r, 1), {all.begin() + r * 32, all.begin() + (r + 1) * 32})) << r;
}

TEST(CpuBackend, EqualRouterWeightsGoToTheLowerExpert) {
  const auto backend = make_cpu_backend(threads(1));
  MoeWeights moe = moe_weights(*backend, 6, 2, false, false);
  const auto values = std::make_shared<std::vector<float>>(6 * 32, 0.0F);  // every expert scores 0
  LinearSource zeros = matrix(6, 32, 1);
  zeros.data = DenseRows{DType::kF32, reinterpret_cast<const std::byte*>(values->data()), 32 * 4};
  zeros.owner = values;
  moe.router.weight = backend->pack_linear({&zeros, 1});
  const BatchPlan plan = plan_of({1});
  backend->begin_step(plan, {}, {});
  const auto h = backend->allocate(1, 32), y = backend->allocate(1, 32),
             part = backend->allocate(1, 32);
  backend->upload_rows(normals(32, 8).data(), h->view);
  backend->moe_ffn(h->view, moe, y->view, nullptr);
  std::vector<float> want(32);
  for (size_t e : {0, 1}) {
    backend->ffn(h->view, moe.gate_up[e], moe.down[e], part->view);
    const std::vector<float> one = values_of(*backend, part->view);
    for (size_t i = 0; i < 32; ++i)
      want[i] += one[i] / 6.0F;
  }
  expect_near(values_of(*backend, y->view), want, 1e-6F);
}

TEST(CpuBackend, SiluMulSplitsLongRowsWithoutATrace) {
  const BatchPlan plan = plan_of({2});
  expect_like_reference(plan, 1e-5F, [&](Backend& backend) {
    const auto a = backend.allocate(2, 2 * 9001);
    backend.upload_rows(normals(2 * 2 * 9001, 4).data(), a->view);
    backend.silu_mul(a->view);
    return values_of(backend, a->view.slice_cols(0, 9001));
  });
}

/// Both backends: what one promises the other must too.
std::vector<std::unique_ptr<Backend>> both_backends() {
  std::vector<std::unique_ptr<Backend>> out;
  out.push_back(make_reference_backend({}));
  out.push_back(make_cpu_backend(threads(4)));
  return out;
}

void expect_fault(Backend& backend, int64_t row, std::string_view what) {
  const auto fault = backend.take_fault();
  ASSERT_TRUE(fault.has_value()) << backend.name();
  EXPECT_EQ(fault->row, row) << backend.name();
  EXPECT_EQ(fault->what, what) << backend.name();
  EXPECT_FALSE(backend.take_fault().has_value()) << backend.name();
}

TEST(Backends, FaultsNameTheFirstRowAndAreTakenOnce) {
  for (const auto& backend : both_backends()) {
    const BatchPlan plan = plan_of({200});
    backend->begin_step(plan, {}, {});
    std::vector<float> values = normals(200 * 700, 1);
    values[150 * 700 + 3] = std::numeric_limits<float>::quiet_NaN();
    values[40 * 700 + 349] = std::numeric_limits<float>::infinity();
    const auto x = backend->allocate(200, 700), h = backend->allocate(200, 700);
    backend->upload_rows(values.data(), x->view);
    backend->add_rms_norm({}, x->view, *backend->upload(std::vector<float>(700, 1.0F)), 1e-6F,
                          h->view);
    expect_fault(*backend, 40, "input of rms norm");
    backend->silu_mul(x->view);
    expect_fault(*backend, 40, "gated activation");
  }
}

TEST(Backends, FaultsOfExpertsNameTheRowOfTheStep) {
  for (const auto& backend : both_backends()) {
    const MoeWeights moe = moe_weights(*backend, 6, 2, true, true);
    const BatchPlan plan = plan_of({70});
    backend->begin_step(plan, {}, {});
    std::vector<float> values = normals(70 * 32, 8);
    const auto h = backend->allocate(70, 32), y = backend->allocate(70, 32);
    // Finite scores, and gate times up beyond f32.
    for (size_t i = 51 * 32; i < 52 * 32; ++i)
      values[i] *= 1e30F;
    backend->upload_rows(values.data(), h->view);
    backend->moe_ffn(h->view, moe, y->view, nullptr);
    expect_fault(*backend, 51, "gated activation");
    values[33 * 32] = std::numeric_limits<float>::quiet_NaN();
    backend->upload_rows(values.data(), h->view);
    backend->moe_ffn(h->view, moe, y->view, nullptr);
    expect_fault(*backend, 33, "router logits");
  }
}

TEST(Backends, BrokenPlansAreRefused) {
  for (const auto& backend : both_backends()) {
    const auto table = backend->pack_embedding(matrix(4, 8, 1));
    const auto x = backend->allocate(9, 8);
    EXPECT_THROW(backend->embed(*table, 0, 1, x->view), Error);  // before begin_step
    const BatchPlan plan = plan_of({9});
    backend->begin_step(plan, {}, {});
    EXPECT_THROW(backend->embed(*table, 0, 9, x->view), Error);  // token 4 of 4
    BatchPlan broken = plan;
    broken.slots.pop_back();
    EXPECT_THROW(backend->begin_step(broken, {}, {}), Error);
    broken = plan;
    broken.seq_context[0] = 8;  // the last token is at position 8
    EXPECT_THROW(backend->begin_step(broken, {}, {}), Error);
    broken = plan;
    broken.positions[0] = -1;
    EXPECT_THROW(backend->begin_step(broken, {}, {}), Error);
    const auto h = backend->allocate(1, 32), y = backend->allocate(1, 32);
    const MoeWeights moe = moe_weights(*backend, 2, 3, true, false);
    EXPECT_THROW(backend->moe_ffn(h->view, moe, y->view, nullptr), Error);  // top 3 of 2
  }
}

TEST(MakeBackend, KnowsItsDevices) {
  EXPECT_EQ(make_backend("cpu", {})->name(), "cpu");
  EXPECT_EQ(make_backend("reference", {})->name(), "reference");
  try {
    make_backend("tpu", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(error.message().find("tpu"), std::string::npos);
  }
}

}  // namespace
}  // namespace qw
