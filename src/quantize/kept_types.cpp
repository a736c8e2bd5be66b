#include "quantize/kept_types.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <tuple>

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

DType type_of(const Parts& parts, std::optional<DType> blocks, ThreadPool& pool,
              const CancelFlag* cancel) {
  const LinearSource& first = *parts.front();
  if (const auto* dense = std::get_if<DenseRows>(&first.data))
    return dense->dtype == DType::kF64 ? DType::kF32 : dense->dtype;
  if (blocks) return *blocks;
  if (const auto* rows = std::get_if<BlockRows>(&first.data)) return rows->dtype;
  if (first.k % 32 != 0) return DType::kF32;  // no block type holds such rows
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
  return nearest(*groups_of(first));
}

}  // namespace

bool KeptTypes::Key::operator<(const Key& other) const {
  return std::tuple(id.slot, id.layer) < std::tuple(other.id.slot, other.id.layer);
}

KeptTypes::KeptTypes(const NetworkSources& sources, std::optional<DType> blocks, ThreadPool& pool,
                     const CancelFlag* cancel) {
  std::map<Key, Parts> matrices;  // experts' are one in GGUF
  sources.for_each([&](const LinearParts& linear) {
    for (size_t i = 0; i < linear.parts.size(); ++i)
      matrices[{linear.modules[i]}].push_back(&linear.parts[i]);
  });
  for (const auto& [key, parts] : matrices)
    add(key.id, parts, blocks, pool, cancel);
}

void KeptTypes::add(const ModuleId& id, const Parts& parts, std::optional<DType> blocks,
                    ThreadPool& pool, const CancelFlag* cancel) {
  // llama.cpp computes routers in f32, which holds every bit of them.
  const bool is_router = id.slot == Slot::kRouter || id.slot == Slot::kSharedExpertGate;
  const DType dtype = is_router ? DType::kF32 : type_of(parts, blocks, pool, cancel);
  types_[{id}] = dtype;
  if (std::holds_alternative<DenseRows>(parts.front()->data)) return;
  for (const LinearSource* part : parts) {
    n_weights_[dtype] += part->n * part->k;
    const GroupAffine* groups = groups_of(*part);
    n_reordered_ += groups != nullptr && !groups->group_of.empty() ? 1 : 0;
  }
}

DType KeptTypes::of(const ModuleId& id) const {
  const auto found = types_.find({id});
  QW_CHECK(found != types_.end(), "a type for {}", hf_name(id));
  return found->second;
}

std::optional<DType> KeptTypes::main() const {
  if (n_weights_.empty()) return std::nullopt;
  return std::ranges::max_element(n_weights_, {}, [](const auto& one) { return one.second; })
      ->first;
}

}  // namespace qw::quantize
