#include "quantize/kept_types.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/checked.h"
#include "base/error.h"
#include "quant/step_rows.h"

namespace qw::quantize {

namespace {

using Parts = std::vector<const LinearSource*>;

/// From few bits to many.
constexpr std::array kTargets = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                 DType::kQ8_0};

const GroupAffine* groups_of(const LinearSource& source) {
  const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data);
  return groups == nullptr ? nullptr : groups->get();
}

/// Which of kTargets hold all rows of a matrix.
std::array<bool, kTargets.size()> fitting(const LinearSource& source, ThreadPool& pool,
                                          const CancelFlag* cancel) {
  constexpr int64_t kRows = 16;
  std::array<std::atomic<bool>, kTargets.size()> fits;
  for (auto& one : fits)
    one = true;
  pool.parallel_for(ceil_div(source.n, kRows), 1, [&](int64_t first, int64_t last, int) {
    if (cancel != nullptr) cancel->check("reading " + source.name);
    const int64_t row = first * kRows, n_rows = std::min(last * kRows, source.n) - row;
    StepRows steps;
    std::vector<float> decoded(static_cast<size_t>(n_rows * source.k));
    read_steps(source, row, n_rows, steps);
    source.decode_rows(row, n_rows, decoded.data());
    for (size_t t = 0; t < kTargets.size(); ++t) {
      for (int64_t r = 0; r < n_rows && fits[t]; ++r) {
        if (!steps_fit(kTargets[t], steps, r, decoded.data() + r * source.k)) fits[t] = false;
      }
    }
  });
  std::array<bool, kTargets.size()> out{};
  std::ranges::copy(fits, out.begin());
  return out;
}

/// The type whose grid is nearest to one of groups that no type holds.
DType nearest(const GroupAffine& groups) {
  if (groups.bits > 4) return DType::kQ8_0;
  std::vector<float> zeros(static_cast<size_t>(groups.n_groups));
  groups.zeros(0, 1, zeros.data());
  const bool symmetric =
      groups.form == GroupAffine::Form::kZeroPoint && std::ranges::all_of(zeros, [&](float zero) {
        return zero == static_cast<float>(1 << (groups.bits - 1));
      });
  return symmetric ? DType::kQ4_0 : DType::kQ4_1;
}

/// A float type that holds every weight of a matrix.
DType float_of(const LinearSource& source) {
  if (const auto* dense = std::get_if<DenseRows>(&source.data))
    return dense->dtype == DType::kF64 ? DType::kF32 : dense->dtype;
  const auto* levels = std::get_if<std::shared_ptr<const CodebookBlocks>>(&source.data);
  return levels == nullptr ? DType::kF32 : (*levels)->value_type;
}

/// A float type that holds all of them.
DType float_of(const Parts& parts) {
  const DType first = float_of(*parts.front());
  const bool is_one =
      std::ranges::all_of(parts, [&](const auto* part) { return float_of(*part) == first; });
  return is_one ? first : DType::kF32;
}

/// The smallest of kTargets that holds all groups, or the one that is nearest.
DType type_of_groups(const Parts& parts, ThreadPool& pool, const CancelFlag* cancel) {
  std::array<bool, kTargets.size()> fits;
  fits.fill(true);
  for (const LinearSource* part : parts) {
    const auto one = fitting(*part, pool, cancel);
    for (size_t t = 0; t < fits.size(); ++t)
      fits[t] = fits[t] && one[t];
  }
  for (size_t t = 0; t < fits.size(); ++t) {
    if (fits[t]) return kTargets[t];
  }
  return nearest(*groups_of(*parts.front()));
}

/// Of experts some may be quantised and others not.
DType type_of(const Parts& parts, std::optional<DType> blocks, ThreadPool& pool,
              const CancelFlag* cancel) {
  const auto all = [&](const auto& is) {
    return std::ranges::all_of(parts, [&](const auto* part) { return is(*part); });
  };
  const auto is_dense = [](const LinearSource& part) {
    return std::holds_alternative<DenseRows>(part.data);
  };
  if (all(is_dense)) return float_of(parts);
  if (blocks) return *blocks;
  // Stacked in GGUF, experts are of one type.
  if (const auto* rows = std::get_if<BlockRows>(&parts.front()->data)) return rows->dtype;
  const bool fits_blocks = parts.front()->k % 32 == 0;  // else no block type holds such rows
  const auto has_groups = [](const LinearSource& part) { return groups_of(part) != nullptr; };
  return fits_blocks && all(has_groups) ? type_of_groups(parts, pool, cancel) : float_of(parts);
}

void add(const ModuleId& id, const Parts& parts, DType dtype, KeptTypes& out) {
  out.of[gguf_name(id) + ".weight"] = dtype;
  for (const LinearSource* part : parts) {
    const int64_t n = part->n * part->k;
    out.n_weights[dtype] += n;
    if (std::holds_alternative<DenseRows>(part->data)) continue;
    out.n_quantised[dtype] += n;
    const GroupAffine* groups = groups_of(*part);
    out.n_reordered += groups != nullptr && !groups->group_of.empty() ? 1 : 0;
  }
}

}  // namespace

KeptTypes find_kept_types(const NetworkSources& sources, std::optional<DType> blocks,
                          ThreadPool& pool, const CancelFlag* cancel) {
  struct Matrix {
    ModuleId id;
    Parts parts;  // experts' are one in GGUF
  };
  std::map<std::string, Matrix> matrices;
  sources.for_each([&](const LinearParts& linear) {
    for (size_t i = 0; i < linear.parts.size(); ++i) {
      Matrix& matrix = matrices[gguf_name(linear.modules[i])];
      matrix.id = linear.modules[i];
      matrix.parts.push_back(&linear.parts[i]);
    }
  });
  KeptTypes out;
  for (const auto& [name, matrix] : matrices) {
    // llama.cpp computes routers in f32, which holds every bit of them.
    const bool is_router =
        matrix.id.slot == Slot::kRouter || matrix.id.slot == Slot::kSharedExpertGate;
    add(matrix.id, matrix.parts,
        is_router ? DType::kF32 : type_of(matrix.parts, blocks, pool, cancel), out);
  }
  return out;
}

}  // namespace qw::quantize
