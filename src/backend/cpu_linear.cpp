#include "backend/cpu_linear.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include "backend/cpu_linear_packed.h"
#include "base/error.h"
#include "base/log.h"
#include "quant/ggml_blocks.h"

namespace qw {

using kernels::ActivationForm;
using kernels::kBlock;
using kernels::kLanes;
using kernels::LinearLayout;
using kernels::PackPlan;
using kernels::PackStatus;

namespace {

bool is_quantised(LinearLayout layout) noexcept {
  return layout > LinearLayout::kBf16;
}

/// How a layout's activations are rounded under a mode. Error bounds per output element, with
/// u = sum |x w|: int8 about u / 254 per block of 32 (in practice far less), bf16 u / 256, f32 K
/// eps u.
const kernels::LinearKernel* choose_kernel(LinearLayout layout, const CpuContext& context,
                                           bool* round_to_bf16) {
  const auto find = [&](ActivationForm form) {
    return kernels::find_linear_kernel(context.isa, layout, form);
  };
  *round_to_bf16 = false;
  const kernels::LinearKernel* kernel = nullptr;
  switch (context.activations) {
    case ActivationMode::kAuto:
      kernel = find(is_quantised(layout) ? ActivationForm::kInt8 : ActivationForm::kBf16);
      break;
    case ActivationMode::kInt8:
      kernel = find(ActivationForm::kInt8);
      break;
    case ActivationMode::kBf16:
      kernel = find(ActivationForm::kBf16);
      *round_to_bf16 = kernel == nullptr;
      break;
    case ActivationMode::kF32:
      break;
  }
  if (kernel == nullptr) kernel = find(ActivationForm::kF32);
  QW_CHECK(kernel != nullptr, "no kernel for {}", kernels::name_of(layout));
  return kernel;
}

/// Runs `pack` over all panels; the worst status wins.
PackStatus pack_all(const LinearSource& source, const PackPlan& plan, uint8_t* data,
                    ThreadPool& pool) {
  std::atomic<int> worst{static_cast<int>(PackStatus::kOk)};
  const auto note = [&](PackStatus status) {
    int seen = worst.load();
    // kNotFinite is an error whatever else was found.
    while (status != PackStatus::kOk && seen != static_cast<int>(PackStatus::kNotFinite) &&
           !worst.compare_exchange_weak(seen, static_cast<int>(status))) {
    }
  };
  pool.parallel_for(plan.matrix.n_panels, 4, [&](int64_t begin, int64_t end, int) {
    note(kernels::pack_panels(source, plan, begin, end - begin, data));
  });
  return static_cast<PackStatus>(worst.load());
}

[[noreturn]] void fail_not_finite(const LinearSource& source) {
  fail(ErrorKind::kCorrupt, "pack", "{}: expected finite scales, got NaN or infinity ({})",
       printable(source.name), source.format_name());
}

/// The published bytes stay where they are.
void keep_rows(const LinearSource& source, PackedPart& part, ThreadPool& pool) {
  std::atomic<bool> finite{true};
  pool.parallel_for(source.n, 64, [&](int64_t begin, int64_t end, int) {
    if (!kernels::scales_are_finite(source, begin, end - begin)) finite = false;
  });
  if (!finite) fail_not_finite(source);
  part.source = source;
}

/// Panels of a part, from the store of packed weights where it has them. What was packed is stored.
PackStatus fill_part(const LinearSource& source, const PackPlan& plan, PackedPart& part,
                     CpuContext& context) {
  PackedStore* store = context.store.get();
  std::string name;
  if (store != nullptr && PackedStore::can_name(source)) {
    AlignedBytes first(plan.matrix.panel_bytes, source.name);
    const PackStatus status = kernels::pack_panels(source, plan, 0, 1, first.data());
    if (status != PackStatus::kOk) return status;
    const std::span<const uint8_t> panel(first.data(), static_cast<size_t>(first.size()));
    name = store->name_of(source, plan, panel, context.pool);
    part.stored = store->find(name, plan.bytes(), context.pool);
    if (part.stored != nullptr) {
      part.matrix.data = PackedStore::panels_of(*part.stored);
      return PackStatus::kOk;
    }
  }
  const std::shared_ptr<uint8_t> bytes = context.weights.take(plan.bytes(), source.name);
  part.bytes = bytes;
  part.matrix.data = bytes.get();
  const PackStatus status = pack_all(source, plan, bytes.get(), context.pool);
  if (status == PackStatus::kOk && !name.empty())
    store->put(name, {bytes.get(), static_cast<size_t>(plan.bytes())}, context.pool);
  return status;
}

PackedPart pack_part(const LinearSource& source, CpuContext& context) {
  PackedPart part;
  part.n = source.n;
  part.source.name = source.name;
  PackPlan plan = kernels::plan_pack(source);
  part.matrix = plan.matrix;
  if (plan.layout != LinearLayout::kRows) {
    switch (fill_part(source, plan, part, context)) {
      case PackStatus::kOk:
        break;
      case PackStatus::kNotFinite:
        fail_not_finite(source);
      case PackStatus::kNotExact:
        plan.layout = LinearLayout::kRows;
        plan.why_rows = "scales or zeros outside f16";
        plan.columns.clear();
        part.bytes = {};
        part.matrix.data = nullptr;
        break;
    }
  }
  if (plan.layout == LinearLayout::kRows) {
    logger().debug("{}: {} is decoded row by row: {}", source.name, source.format_name(),
                   plan.why_rows);
    keep_rows(source, part, context.pool);
  }
  part.kernel = choose_kernel(plan.layout, context, &part.round_to_bf16);
  if (!plan.columns.empty()) {
    part.columns = std::make_shared<const std::vector<int32_t>>(std::move(plan.columns));
  }
  return part;
}

}  // namespace

std::unique_ptr<CpuLinear> pack_cpu_linear(std::span<const LinearSource> parts,
                                           CpuContext& context) {
  QW_CHECK(!parts.empty(), "nothing to pack");
  auto out = std::make_unique<PackedLinear>();
  out->k = parts.front().k;
  for (const LinearSource& source : parts) {
    QW_CHECK(source.k == out->k, "{}: k {} beside {}", source.name, source.k, out->k);
    QW_CHECK(source.n > 0 && source.k > 0, "{}: [{}, {}]", source.name, source.n, source.k);
    PackedPart part = pack_part(source, context);
    part.first_row = out->n;
    out->n += source.n;
    const int64_t bytes = part.matrix.data != nullptr
                              ? part.matrix.n_panels * part.matrix.panel_bytes
                              : source.published_bytes();
    out->resident_bytes += bytes;
    out->read_bytes += bytes;
    for (const PackedPart& other : out->parts) {
      if (part.columns && other.columns && *part.columns == *other.columns)
        part.columns = other.columns;
    }
    const std::string name = kernels::name_of(*part.kernel);
    if (out->kernel.find(name) == std::string::npos)
      out->kernel += (out->kernel.empty() ? "" : " + ") + name;
    out->parts.push_back(std::move(part));
  }
  return out;
}

// ---- decoding -----------------------------------------------------------------------------------

namespace {

/// Rows [row, row + n_rows) of one part.
void decode_part(const PackedPart& part, int64_t k, int64_t row, int64_t n_rows, float* out) {
  if (part.kernel->decode == nullptr) return part.source.decode_rows(row, n_rows, out);
  std::vector<float> columns(static_cast<size_t>(part.matrix.n_blocks * kBlock * kLanes));
  for (int64_t panel = row / kLanes; panel * kLanes < row + n_rows; ++panel) {
    part.kernel->decode({part.matrix, panel, 0, part.matrix.n_blocks, columns.data()});
    const int64_t first = std::max(row, panel * kLanes),
                  last = std::min(row + n_rows, (panel + 1) * kLanes);
    for (int64_t r = first; r < last; ++r) {
      float* to = out + (r - row) * k;
      const float* from = columns.data() + r % kLanes;
      for (int64_t c = 0; c < k; ++c) {
        to[part.columns ? (*part.columns)[static_cast<size_t>(c)] : c] = from[c * kLanes];
      }
    }
  }
}

}  // namespace

void PackedLinear::decode_rows(int64_t row, int64_t n_rows, float* out) const {
  QW_CHECK(row >= 0 && n_rows >= 0 && row <= n - n_rows, "rows {}+{} of {}", row, n_rows, n);
  for (const PackedPart& part : parts) {
    const int64_t begin = std::clamp<int64_t>(row - part.first_row, 0, part.n);
    const int64_t end = std::clamp<int64_t>(row + n_rows - part.first_row, 0, part.n);
    if (begin >= end) continue;
    decode_part(part, k, begin, end - begin, out);
    out += (end - begin) * k;
  }
}

void decode_columns(const LinearSource& source, int64_t row, int64_t n_rows, int64_t column,
                    int64_t n_columns, float* out) {
  const auto decode_all = [&](const auto& rows) {
    const DTypeInfo& type = info(rows.dtype);
    const int64_t offset = column / type.block_elems * type.block_bytes;
    for (int64_t r = 0; r < n_rows; ++r) {
      decode_row(rows.dtype, rows.data + (row + r) * rows.row_bytes + offset, n_columns,
                 out + r * n_columns);
    }
  };
  if (const auto* blocks = std::get_if<BlockRows>(&source.data)) return decode_all(*blocks);
  decode_all(std::get<DenseRows>(source.data));
}

}  // namespace qw
