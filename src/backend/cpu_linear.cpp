#include "backend/cpu_linear.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace qw {

namespace {

/// The published rows as they are, decoded whenever they are used: right for every source.
class RowsLinear final : public CpuLinear {
 public:
  explicit RowsLinear(std::span<const LinearSource> parts) : parts_(parts.begin(), parts.end()) {
    for (const LinearSource& part : parts_) {
      n += part.n;
      resident_bytes += part.published_bytes();
    }
    k = parts_.front().k;
    read_bytes = resident_bytes;
    kernel = "rows/generic";
  }

  void decode_rows(int64_t row, int64_t n_rows, float* out) const override {
    for (const LinearSource& part : parts_) {
      const int64_t begin = std::clamp<int64_t>(row, 0, part.n);
      const int64_t end = std::clamp<int64_t>(row + n_rows, 0, part.n);
      if (begin < end) {
        part.decode_rows(begin, end - begin, out);
        out += (end - begin) * k;
      }
      row -= part.n;
    }
  }

 private:
  std::vector<LinearSource> parts_;
};

}  // namespace

CpuContext::CpuContext(const BackendOptions& options)
    : pool(options.n_threads > 0 ? options.n_threads : physical_cores()),
      isa(kernels::choose_isa(options.isa)),
      activations(options.activations),
      deterministic(options.deterministic) {}

std::unique_ptr<CpuLinear> pack_cpu_linear(std::span<const LinearSource> parts, CpuContext& context) {
  QW_CHECK(!parts.empty(), "nothing to pack");
  for (const LinearSource& part : parts) {
    QW_CHECK(part.k == parts.front().k, "{}: k {} beside {}", part.name, part.k, parts.front().k);
  }
  return std::make_unique<RowsLinear>(parts);
}

void run_cpu_linear(const CpuLinear& weight, const CpuLinearCall& call, CpuContext& context) {
  context.pool.parallel_for(weight.n, 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> rows(static_cast<size_t>((end - begin) * weight.k));
    weight.decode_rows(begin, end - begin, rows.data());
    for (int64_t t = 0; t < call.m; ++t) {
      for (int64_t o = begin; o < end; ++o) {
        const float* w = rows.data() + (o - begin) * weight.k;
        const float* x = call.x + t * call.ldx;
        float lanes[16] = {};
        int64_t i = 0;
        for (; i + 16 <= weight.k; i += 16)
          for (int l = 0; l < 16; ++l) lanes[l] += w[i + l] * x[i + l];
        float sum = 0;
        for (float lane : lanes) sum += lane;
        for (; i < weight.k; ++i) sum += w[i] * x[i];
        float& y = call.y[t * call.ldy + o];
        if (call.bias != nullptr) sum += call.bias[o];
        y = call.accumulate ? y + sum : sum;
      }
    }
  });
}

}  // namespace qw
