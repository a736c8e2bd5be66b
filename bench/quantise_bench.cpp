// What second-order quantisation spends its time in, as a share of the f32 peak that `qianwen info`
// measures on the same host: X^T X of the inputs, the factor of the Hessian and its inverse, and a
// whole matrix.
//
// Counters: GFLOP/s counts k^2 per token for the Hessian (a triangle), k^3 / 3 for the factor and
// for the inverse, n k^2 for the feedback of a matrix [n, k]; "% of peak" is of all threads.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "backend/cpu_limits.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "quantize/gptq_solver.h"

namespace qw::quantize {
namespace {

struct Host {
  kernels::Isa isa = kernels::choose_isa("");
  ThreadPool pool{physical_cores()};
  MatrixTeam team{&pool, &kernels::matrix_ops(isa)};
  double peak = measure_limits(isa, pool).f32_gflop_per_second;
};

Host& host() {
  static Host out;
  return out;
}

/// A share of the peak of this very moment would be fairer on a shared host, and noisier.
void report(benchmark::State& state, double flops) {
  const double gflops = flops * static_cast<double>(state.iterations()) / 1e9;
  using benchmark::Counter;
  state.counters["GFLOP/s"] = Counter(gflops, Counter::kIsRate);
  state.counters["% of peak"] = Counter(100 * gflops / host().peak, Counter::kIsRate);
}

std::vector<float> inputs(int64_t n_tokens, int64_t k) {
  std::vector<float> out(static_cast<size_t>(n_tokens * k));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(random_uniform(1, 0, i)) - 0.5F;
  return out;
}

constexpr int64_t kTokens = 512;

std::unique_ptr<Hessian> make_hessian(int64_t k) {
  auto out = std::make_unique<Hessian>("bench", k, host().team);
  const std::vector<float> x = inputs(kTokens, k);
  out->add(x.data(), kTokens, k);
  return out;
}

void BM_Hessian(benchmark::State& state) {
  const int64_t k = state.range(0);
  const std::vector<float> x = inputs(kTokens, k);
  Hessian hessian("bench", k, host().team);
  for (auto _ : state)
    hessian.add(x.data(), kTokens, k);
  report(state, static_cast<double>(kTokens * k) * static_cast<double>(k));
}
BENCHMARK(BM_Hessian)->Arg(4096)->Arg(11008)->UseRealTime()->Unit(benchmark::kMillisecond);

enum Part { kFactor, kInverse };

void factor(benchmark::State& state, Part part) {
  const int64_t k = state.range(0);
  const auto hessian = make_hessian(k);
  std::vector<float> a(static_cast<size_t>(k * k));
  for (auto _ : state) {
    state.PauseTiming();
    std::copy_n(hessian->lower(), k * k, a.begin());
    for (int64_t i = 0; i < k; ++i)
      a[static_cast<size_t>(i * (k + 1))] += 10;
    if (part == kFactor) state.ResumeTiming();
    benchmark::DoNotOptimize(cholesky(host().team, a.data(), k));
    if (part == kFactor) continue;
    state.ResumeTiming();
    invert_lower(host().team, a.data(), k);
  }
  const auto size = static_cast<double>(k);
  report(state, size * size * size / 3);
}
void BM_Cholesky(benchmark::State& state) {
  factor(state, kFactor);
}
BENCHMARK(BM_Cholesky)->Arg(4096)->Arg(11008)->UseRealTime()->Unit(benchmark::kMillisecond);
void BM_InvertFactor(benchmark::State& state) {
  factor(state, kInverse);
}
BENCHMARK(BM_InvertFactor)->Arg(4096)->Arg(11008)->UseRealTime()->Unit(benchmark::kMillisecond);

/// A matrix [n, k] of 4-bit codes in groups of 128; arguments: n, k, mode.
void BM_Gptq(benchmark::State& state) {
  const int64_t n = state.range(0), k = state.range(1);
  GptqOptions options;
  options.mode = static_cast<GptqOptions::Mode>(state.range(2));
  options.damp = 0.1;
  const auto values = std::make_shared<const std::vector<float>>(inputs(n, k));
  const LinearSource w = LinearSource::of_floats("bench", n, k, values);
  const GptqFactor factor(*make_hessian(k), options, host().team);
  for (auto _ : state)
    benchmark::DoNotOptimize(gptq_quantise(w, factor, host().team).loss);
  report(state, static_cast<double>(n * k) * static_cast<double>(k));
}
BENCHMARK(BM_Gptq)
    ->ArgNames({"n", "k", "reference"})
    ->Args({4096, 4096, 0})
    ->Args({4096, 4096, 1})
    ->Args({11008, 4096, 0})
    ->Args({11008, 4096, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace qw::quantize
