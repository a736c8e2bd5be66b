#include "quantize/adapter_merge.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>

#include "base/error.h"
#include "model/low_rank.h"

namespace qw {

namespace {

/// Errors: corrupt, naming the module and the adapter's file, where one is NaN or infinite.
void check_finite(std::span<const float> values, const std::string& module,
                  const std::string& path) {
  const auto found = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
  if (found == values.end()) return;
  fail(ErrorKind::kCorrupt, "adapter", "module {}: expected finite values, got {} ({})",
       printable(module), *found, printable(path));
}

void check_finite(const LinearSource& matrix, const std::string& module, const std::string& path) {
  constexpr int64_t kRows = 64;
  std::vector<float> values(static_cast<size_t>(std::min(kRows, matrix.n) * matrix.k));
  for (int64_t row = 0; row < matrix.n; row += kRows) {
    const int64_t n = std::min(kRows, matrix.n - row);
    matrix.decode_rows(row, n, values.data());
    check_finite(std::span(values).first(static_cast<size_t>(n * matrix.k)), module, path);
  }
}

/// A matrix with changes.
class ChangedRows {
 public:
  /// `paths`: of the adapters that change it, for errors.
  ChangedRows(LinearSource base, std::string paths)
      : base_(std::move(base)), paths_(std::move(paths)) {}
  void add(const LowRankDelta& delta, double scale) { deltas_.emplace_back(delta, scale); }

  void decode(int64_t begin, int64_t n, float* out) const {
    const auto k = static_cast<size_t>(base_.k);
    std::vector<double> sum(k), change(k);
    base_.decode_rows(begin, n, out);
    for (int64_t r = 0; r < n; ++r) {
      const std::span<float> row(out + r * base_.k, k);
      std::ranges::copy(row, sum.begin());
      for (const DeltaRows& delta : deltas_) {
        delta.row(begin + r, change);
        delta.finish(begin + r, row, change);
        for (size_t i = 0; i < k; ++i)
          sum[i] += change[i];
      }
      std::ranges::transform(sum, row.begin(), [](double v) { return static_cast<float>(v); });
      // Finite adapters can come to more than a float holds; or the model's own weight is none.
      if (!paths_.empty()) check_finite(row, base_.name, paths_);
    }
  }

 private:
  LinearSource base_;
  std::string paths_;
  std::vector<DeltaRows> deltas_;
};

}  // namespace

bool AdapterMerge::ById::operator()(const ModuleId& a, const ModuleId& b) const {
  return std::tuple(a.slot, a.layer, a.expert) < std::tuple(b.slot, b.layer, b.expert);
}

AdapterMerge::AdapterMerge(const ModelConfig& config, const NetworkSources& sources,
                           const std::vector<AdapterSpec>& adapters)
    : config_(config) {
  sources.for_each([this](const LinearParts& linear) {
    for (size_t i = 0; i < linear.parts.size(); ++i)
      base_[linear.modules[i]] = &linear.parts[i];
  });
  base_[{Slot::kLmHead}] = &sources.lm_head.parts.front();
  for (const AdapterSpec& spec : adapters) {
    if (!std::isfinite(spec.scale)) {
      fail(ErrorKind::kInvalidArgument, "adapter", "scale of {}: expected a number, got {}",
           printable(spec.path), spec.scale);
    }
    files_.push_back(read_adapter(spec.path));
  }
  for (const AdapterFile& file : files_)
    add_replacements(file);
  for (size_t i = 0; i < files_.size(); ++i)
    add_deltas(files_[i], adapters[i].scale);
}

void AdapterMerge::replace(const ModuleId& id, const std::string& path) {
  const auto [before, is_new] = replaced_by_.emplace(id, path);
  if (is_new) return;
  fail(ErrorKind::kInvalidArgument, "adapter",
       "module {}: expected one adapter at most to replace it (modules_to_save), got {} and {}",
       hf_name(id), printable(before->second), printable(path));
}

void AdapterMerge::add_replacements(const AdapterFile& file) {
  for (const Replacement& replacement : file.replacements) {
    replace(replacement.id, file.path);
    check_adapter_shape(hf_name(replacement.id), replacement.weight, config_.vocab, config_.hidden,
                        file.path);
    check_finite(replacement.weight, hf_name(replacement.id), file.path);
    Change& change = modules_[replacement.id];
    change.replacement = replacement.weight;
    change.add_path(file.path);
  }
  for (const NormReplacement& norm : file.norms) {
    replace(norm.id, file.path);
    if (norm.id.layer >= config_.n_layers || std::ssize(norm.weight) != config_.hidden) {
      fail(ErrorKind::kCorrupt, "adapter",
           "module {}: expected a norm of {} values in a layer below {}, got {} values ({})",
           hf_name(norm.id), config_.hidden, config_.n_layers, norm.weight.size(),
           printable(file.path));
    }
    norms_[norm.id] = norm.weight;
  }
}

void AdapterMerge::add_deltas(const AdapterFile& file, double scale) {
  for (const EmbeddingDelta& delta : file.embedding_deltas) {
    const int64_t rank = delta.b.k;
    check_adapter_shape("embed_tokens", delta.a, delta.a_rows_are_tokens ? config_.vocab : rank,
                        delta.a_rows_are_tokens ? rank : config_.vocab, file.path);
    check_adapter_shape("embed_tokens", delta.b, config_.hidden, rank, file.path);
    check_finite(delta.a, "embed_tokens", file.path);
    check_finite(delta.b, "embed_tokens", file.path);
    Change& change = modules_[{Slot::kEmbedding}];
    change.embedding_deltas.emplace_back(&delta, scale);
    change.add_path(file.path);
  }
  for (const LowRankDelta& delta : file.deltas) {
    const auto base = base_.find(delta.id);
    if (base == base_.end()) {
      fail(ErrorKind::kCorrupt, "adapter",
           "module {}: expected a linear layer of this model, got a name it has not ({})",
           printable(delta.name), printable(file.path));
    }
    check_adapter_shape(delta.name, delta.a, delta.a.n, base->second->k, file.path);
    check_adapter_shape(delta.name, delta.b, base->second->n, delta.a.n, file.path);
    check_finite(delta.a, delta.name, file.path);
    check_finite(delta.b, delta.name, file.path);
    check_finite(delta.magnitude, delta.name, file.path);
    Change& change = modules_[delta.id];
    change.deltas.emplace_back(&delta, scale);
    change.add_path(file.path);
  }
}

bool AdapterMerge::changes(const ModuleId& id) const {
  return modules_.count(id) != 0 || norms_.count(id) != 0;
}

bool AdapterMerge::unties() const {
  return modules_.count({Slot::kEmbedding}) != 0 || modules_.count({Slot::kLmHead}) != 0;
}

const std::vector<float>* AdapterMerge::norm(const ModuleId& id) const {
  const auto found = norms_.find(id);
  return found == norms_.end() ? nullptr : &found->second;
}

RowDecoder AdapterMerge::rows(const ModuleId& id, const LinearSource& base) const {
  LinearSource source = base;
  const auto found = modules_.find(id);
  if (found != modules_.end()) {
    const Change& change = found->second;
    if (change.replacement) source = *change.replacement;
    if (!change.embedding_deltas.empty()) {
      auto table = std::make_shared<std::vector<float>>(static_cast<size_t>(source.n * source.k));
      source.decode_rows(0, source.n, table->data());
      for (const auto& [delta, scale] : change.embedding_deltas)
        add_embedding_delta(*table, source.n, source.k, *delta, delta->scaling * scale);
      source = LinearSource::of_floats(base.name, source.n, source.k, std::move(table));
    }
  }
  auto changed = std::make_shared<ChangedRows>(std::move(source),
                                               found != modules_.end() ? found->second.paths : "");
  if (found != modules_.end()) {
    for (const auto& [delta, scale] : found->second.deltas)
      changed->add(*delta, delta->scaling * scale);
  }
  return [changed = std::move(changed)](int64_t begin, int64_t n, float* out) {
    changed->decode(begin, n, out);
  };
}

}  // namespace qw
