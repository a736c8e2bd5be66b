// Linear kernels per layout and shape: decode in GB/s and prefill in GOP/s, beside the limits of
// this host measured in the same run.
//
// Decode walks over enough copies of a matrix to leave every cache. Run with
// --benchmark_filter=q4_k,
// --benchmark_repetitions=5; QIANWEN_ISA caps the instruction set, QIANWEN_THREADS sets the team.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "backend/cpu_limits.h"
#include "backend/cpu_linear.h"
#include "base/half.h"
#include "base/rng.h"
#include "quant/ggml_blocks.h"

namespace qw {
namespace {

struct Shape {
  const char* name;
  int64_t n, k;
};
constexpr Shape kShapes[] = {
    {"0.5B_gate_up", 5632, 1024}, {"0.5B_down", 1024, 2816}, {"7B_gate_up", 22016, 4096}};
constexpr const char* kFormats[] = {
    "q4_0",  "q4_1",  "q5_0",    "q5_1",   "q8_0",  "q2_k",    "q3_k",  "q4_k",   "q5_k",   "q6_k",
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "tq1_0",
    "tq2_0", "mxfp4", "nvfp4",   "q1_0",   "q2_0",  "bf16",    "f16",   "f32",    "int4",   "int8"};

/// GPTQ-like groups of 128 whose content is a formula: nothing to store.
class FormulaGroups final : public GroupAffine {
 public:
  FormulaGroups(int64_t n_, int64_t k_, int bits_) {
    n = n_, k = k_, bits = bits_, group_size = 128, n_groups = k / 128;
  }
  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    for (int64_t i = 0; i < n_rows * k; ++i)
      out[i] = static_cast<uint8_t>((i * 7 + row) & ((1 << bits) - 1));
  }
  void scales(int64_t, int64_t n_rows, float* out) const override {
    std::fill_n(out, n_rows * n_groups, 0x1.8p-7F);
  }
  void zeros(int64_t, int64_t n_rows, float* out) const override {
    std::fill_n(out, n_rows * n_groups, 8.0F);
  }
};

LinearSource make_source(const std::string& format, const Shape& shape) {
  LinearSource out;
  out.name = format;
  out.n = shape.n;
  out.k = shape.k;
  if (format == "int4" || format == "int8") {
    out.data = std::make_shared<const FormulaGroups>(shape.n, shape.k, format == "int4" ? 4 : 8);
    return out;
  }
  const DType type = *dtype_from_name(format);
  const int64_t bytes_per_row = row_bytes(type, shape.k, format);
  auto bytes =
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(shape.n * bytes_per_row));
  std::vector<float> row(static_cast<size_t>(shape.k));
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = 0.05F * static_cast<float>(random_normal(1, 2, i));
  if (!is_grid_type(type)) {
    encode_row(type, row.data(), shape.k, bytes->data());
  } else {
    for (int64_t i = 0; i < bytes_per_row; ++i)
      (*bytes)[static_cast<size_t>(i)] =
          static_cast<std::byte>(random_bits(5, 6, static_cast<uint64_t>(i)));
    for (int64_t at = 0; at < bytes_per_row; at += info(type).block_bytes)
      set_block_scale(type, f32_to_f16(0.01F), bytes->data() + at);
  }
  for (int64_t r = 1; r < shape.n; ++r)
    std::memcpy(bytes->data() + r * bytes_per_row, bytes->data(),
                static_cast<size_t>(bytes_per_row));
  if (is_block(type)) {
    out.data = BlockRows{type, bytes->data(), bytes_per_row};
  } else {
    out.data = DenseRows{type, bytes->data(), bytes_per_row};
  }
  out.owner = bytes;
  return out;
}

CpuContext& context() {
  static CpuContext one([] {
    BackendOptions options;
    if (const char* threads = std::getenv("QIANWEN_THREADS"))
      options.n_threads = std::atoi(threads);
    return options;
  }());
  return one;
}

const HostLimits& limits() {
  static const HostLimits one = measure_limits(context().isa, context().pool);
  return one;
}

void linear(benchmark::State& state, const std::string& format, const Shape& shape, int64_t m) {
  const LinearSource source = make_source(format, shape);
  const int64_t copies =
      m > 4 ? 1 : std::clamp<int64_t>((256 << 20) / source.published_bytes(), 1, 64);
  std::vector<std::unique_ptr<CpuLinear>> weights;
  for (int64_t i = 0; i < copies; ++i)
    weights.push_back(pack_cpu_linear(std::span(&source, 1), context()));
  std::vector<float> x(static_cast<size_t>(m * shape.k)), y(static_cast<size_t>(m * shape.n));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(random_normal(3, 4, i));
  int64_t runs = 0;
  for (auto _ : state) {
    for (const auto& weight : weights)
      run_cpu_linear(*weight, {x.data(), shape.k, m, y.data(), shape.n}, context());
    runs += copies;
  }
  const double bytes = static_cast<double>(weights[0]->read_bytes * runs);
  const double ops = 2.0 * static_cast<double>(shape.n * shape.k * m * runs);
  const bool bf16 = weights[0]->kernel.find("(bf16)") != std::string::npos;
  const bool f32 = weights[0]->kernel.find("(f32)") != std::string::npos;
  const double peak = bf16  ? limits().bf16_gflop_per_second
                      : f32 ? limits().f32_gflop_per_second
                            : limits().int8_gop_per_second;
  using benchmark::Counter;
  state.SetLabel(weights[0]->kernel);
  if (m <= 4) {
    state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsRate);
    state.counters["of_read_%"] =
        Counter(bytes * 1e-7 / limits().read_gb_per_second, Counter::kIsRate);
  } else {
    state.counters["GOP/s"] = Counter(ops * 1e-9, Counter::kIsRate);
    state.counters["of_peak_%"] = Counter(ops * 1e-7 / peak, Counter::kIsRate);
  }
}

void register_all() {
  for (const char* format : kFormats) {
    for (const Shape& shape : kShapes) {
      if (row_bytes(DType::kF32, shape.k, "bench") * shape.n > (64 << 20) &&
          std::strcmp(format, "f32") == 0)
        continue;
      for (int64_t m : {1, 4, 512}) {
        benchmark::RegisterBenchmark(
            fmt::format("{}/{}/rows:{}", format, shape.name, m).c_str(),
            [=](benchmark::State& state) { linear(state, format, shape, m); })
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond)
            ->MinTime(0.1);
      }
    }
  }
}

}  // namespace
}  // namespace qw

int main(int argc, char** argv) {
  qw::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const qw::HostLimits& limits = qw::limits();
  std::fprintf(stderr,
               "limits of this host, %d threads: read %.1f GB/s, int8 %.0f GOP/s, bf16 %.0f "
               "GFLOP/s, f32 %.0f GFLOP/s\n",
               qw::context().pool.size(), limits.read_gb_per_second, limits.int8_gop_per_second,
               limits.bf16_gflop_per_second, limits.f32_gflop_per_second);
  benchmark::RunSpecifiedBenchmarks();
}
