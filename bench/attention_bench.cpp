// Attention of the CPU backend on the shapes of real models: decoding deep in a context as a share
// of the read bandwidth measured by the same program, and prefill in GFLOP/s.
//
// Counters: GB/s reads of the KV cache, GFLOP/s counts 4 * head_dim per (query, visible key).
#include <benchmark/benchmark.h>

#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "backend/backend.h"
#include "base/rng.h"
#include "base/thread_pool.h"

namespace qw {
namespace {

struct Shape {
  int n_heads, n_kv_heads, head_dim;
};
constexpr Shape kShapes[] = {{16, 16, 64}, {16, 16, 128}, {40, 8, 128}};  // 0.5B, 1.8B, 32B
constexpr DType kTypes[] = {DType::kF16, DType::kBF16, DType::kF32, DType::kQ8_0, DType::kQ4_0};

int threads() {
  return physical_cores();
}

/// One layer's cache, filled by a prefill, and a plan for the last `n_new` tokens of `depth`.
class Setup {
 public:
  Setup(const Shape& shape, DType type, int depth, int n_new)
      : shape_(shape),
        spec_{shape.n_heads, shape.n_kv_heads, shape.head_dim,
              1.0F / std::sqrt(static_cast<float>(shape.head_dim)), 0} {
    BackendOptions options;
    options.n_threads = threads();
    backend_ = make_cpu_backend(options);
    const int page = backend_->kv_page_tokens();
    const int n_pages = (depth + page - 1) / page;
    kv_ = backend_->make_kv({1, shape.n_kv_heads, shape.head_dim, n_pages, type});
    constexpr int kChunk = 512;
    for (int begin = 0; begin < depth; begin += kChunk)
      start(begin, std::min(depth, begin + kChunk));
    start(depth - n_new, depth);
    o_ = backend_->allocate(n_new, int64_t{shape.n_heads} * shape.head_dim);
  }

  void attend() { backend_->paged_attention(qkv_->view, *kv_, 0, spec_, o_->view); }
  double cache_bytes() const { return static_cast<double>(kv_->resident_bytes); }
  double flops() const {
    double out = 0;
    for (const int32_t p : plan_.positions)
      out += 4.0 * shape_.head_dim * shape_.n_heads * (p + 1);
    return out;
  }

 private:
  /// Writes k and v of tokens [begin, end), and leaves their queries ready.
  void start(int begin, int end) {
    const int page = backend_->kv_page_tokens();
    plan_ = {};
    for (int p = begin; p < end; ++p) {
      plan_.tokens.push_back(0);
      plan_.positions.push_back(p);
      plan_.slots.push_back(p);
    }
    plan_.seq_begin = {0, end - begin};
    plan_.seq_context = {end};
    plan_.pages.resize(static_cast<size_t>((end + page - 1) / page));
    std::iota(plan_.pages.begin(), plan_.pages.end(), 0);
    plan_.page_begin = {0, static_cast<int32_t>(plan_.pages.size())};
    const int64_t cols = int64_t{shape_.n_heads + 2 * shape_.n_kv_heads} * shape_.head_dim;
    qkv_ = backend_->allocate(end - begin, cols);
    std::vector<float> values(static_cast<size_t>((end - begin) * cols));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(random_uniform(1, static_cast<uint64_t>(begin), i)) - 0.5F;
    backend_->upload_rows(values.data(), qkv_->view);
    cos_.assign(static_cast<size_t>((end - begin) * shape_.head_dim / 2), 1.0F);
    sin_.assign(cos_.size(), 0.0F);
    backend_->begin_step(plan_, cos_, sin_);
    backend_->rope_store_kv(qkv_->view, *kv_, 0, spec_);
  }

  Shape shape_;
  AttentionSpec spec_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<RowsBuffer> qkv_, o_;
  BatchPlan plan_;
  std::vector<float> cos_, sin_;
};

/// Reading memory with all threads: the yardstick of decoding.
void BM_ReadBandwidth(benchmark::State& state) {
  ThreadPool pool(threads());
  std::vector<uint64_t> data(size_t{512} << 17, 1);  // 512 MiB
  for (auto _ : state) {
    std::atomic<uint64_t> total{0};
    pool.parallel_for(static_cast<int64_t>(data.size()), 1 << 17,
                      [&](int64_t begin, int64_t end, int) {
                        uint64_t sums[8] = {};
                        for (int64_t i = begin; i < end; i += 8) {
                          for (int j = 0; j < 8; ++j)
                            sums[j] += data[static_cast<size_t>(i + j)];
                        }
                        total += std::accumulate(sums, sums + 8, uint64_t{0});
                      });
    benchmark::DoNotOptimize(total.load());
  }
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(data.size() * 8) / 1e9,
                                              benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_ReadBandwidth)->UseRealTime()->Unit(benchmark::kMillisecond);

/// One token at the end of `depth`; arguments: shape, type, depth.
void BM_Decode(benchmark::State& state) {
  Setup setup(kShapes[state.range(0)], kTypes[state.range(1)], static_cast<int>(state.range(2)), 1);
  for (auto _ : state)
    setup.attend();
  state.SetLabel(std::string(name_of(kTypes[state.range(1)])));
  state.counters["GB/s"] =
      benchmark::Counter(setup.cache_bytes() / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_Decode)
    ->ArgsProduct({{0, 1, 2}, {0}, {1024, 16384}})
    ->ArgsProduct({{0}, {1, 2, 3, 4}, {1024, 16384}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// The last `chunk` tokens of `depth` in one step; arguments: shape, type, depth, chunk.
void BM_Prefill(benchmark::State& state) {
  Setup setup(kShapes[state.range(0)], kTypes[state.range(1)], static_cast<int>(state.range(2)),
              static_cast<int>(state.range(3)));
  for (auto _ : state)
    setup.attend();
  state.SetLabel(std::string(name_of(kTypes[state.range(1)])));
  state.counters["GFLOP/s"] =
      benchmark::Counter(setup.flops() / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_Prefill)
    ->Args({0, 0, 8192, 8192})
    ->Args({0, 0, 8192, 512})
    ->Args({1, 0, 8192, 512})
    ->Args({2, 0, 8192, 512})
    ->Args({0, 3, 8192, 512})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace qw
