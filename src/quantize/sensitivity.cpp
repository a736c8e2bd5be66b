#include "quantize/sensitivity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "kernels/scale_search.h"
#include "quant/ggml_blocks.h"
#include "quant/step_rows.h"

namespace qw::quantize {

namespace {

/// Types for weights that were not trained in them; which of them can be written is asked.
constexpr std::array kTypes = {DType::kIQ1_S, DType::kIQ1_M,  DType::kIQ2_XXS, DType::kIQ2_XS,
                               DType::kIQ2_S, DType::kQ2_K,   DType::kIQ3_XXS, DType::kIQ3_S,
                               DType::kQ3_K,  DType::kIQ4_XS, DType::kQ4_0,    DType::kIQ4_NL,
                               DType::kQ4_K,  DType::kQ4_1,   DType::kQ5_0,    DType::kQ5_K,
                               DType::kQ5_1,  DType::kQ6_K,   DType::kQ8_0};

/// Rows of a matrix that its errors are estimated from, evenly chosen: an embedding has 150,000.
constexpr int64_t kSampleRows = 512;
/// And of each of many experts.
constexpr int64_t kLeastSampleRows = 16;

int64_t bytes_in_file(const GgufTensor& tensor) {
  return round_up<int64_t>(tensor.bytes(), 32);
}

double bits_of(DType dtype) {
  return 8.0 * info(dtype).block_bytes / info(dtype).block_elems;
}

/// Whether its rows are whole blocks.
bool fits(const GgufTensor& tensor) {
  return tensor.shape.cols() % info(tensor.dtype).block_elems == 0;
}

/// sum_i h_i (w_i - q_i)^2 / sum_i h_i w_i^2 over rows of all parts, evenly chosen; NaN: the type
/// cannot hold some value.
double relative_error(const GgufTensor& tensor, ThreadPool& pool) {
  const auto n_parts = static_cast<int64_t>(tensor.parts.size());
  const int64_t wanted = std::max(kLeastSampleRows, kSampleRows / n_parts);
  const ScaleSearchOps& ops = kernels::scale_search_ops(kernels::choose_isa(""));
  double lost = 0, all = 0;
  for (size_t part = 0; part < tensor.parts.size(); ++part) {
    const LinearSource& source = tensor.parts[part];
    const int64_t n = std::min(wanted, source.n), k = source.k;
    const float* h = tensor.importance.empty() ? nullptr : tensor.importance[part].data();
    std::vector<double> sums(static_cast<size_t>(2 * n));
    std::vector<char> holds(static_cast<size_t>(n), 1);
    pool.parallel_for(n, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> w(static_cast<size_t>(k)), q(static_cast<size_t>(k));
      std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(tensor.dtype, k, tensor.name)));
      for (int64_t r = begin; r < end; ++r) {
        try {
          encode_rows(source, r * source.n / n, 1, tensor.dtype, h, w.data(), bytes.data(), ops);
        } catch (const Error&) {
          holds[static_cast<size_t>(r)] = 0;
          continue;
        }
        decode_row(tensor.dtype, bytes.data(), k, q.data());
        double difference = 0, size = 0;
        for (int64_t i = 0; i < k; ++i) {
          const auto at = static_cast<size_t>(i);
          const double weight = h == nullptr ? 1 : static_cast<double>(h[i]);
          const double d = static_cast<double>(w[at]) - static_cast<double>(q[at]);
          difference += weight * d * d;
          size += weight * static_cast<double>(w[at]) * static_cast<double>(w[at]);
        }
        sums[static_cast<size_t>(2 * r)] = difference;
        sums[static_cast<size_t>(2 * r + 1)] = size;
      }
    });
    if (std::ranges::find(holds, 0) != holds.end()) return std::numeric_limits<double>::quiet_NaN();
    for (size_t i = 0; i < sums.size(); i += 2) {
      lost += sums[i];
      all += sums[i + 1];
    }
  }
  return all > 0 ? lost / all : 0;
}

/// Types to measure, the matrix's own last unless it is among the others.
std::vector<DType> types_of(const GgufTensor& tensor) {
  std::vector<DType> out;
  GgufTensor as = tensor;
  for (const DType dtype : kTypes) {
    as.dtype = dtype;
    if (!fits(as)) continue;
    // Without importances (an expert that no token reached) these are worth little.
    if (is_grid_type(dtype) && tensor.importance.empty() && !as.is_copied()) continue;
    if (can_encode(dtype) || as.is_copied()) out.push_back(dtype);
  }
  if (std::ranges::find(out, tensor.dtype) == out.end()) out.push_back(tensor.dtype);
  return out;
}

std::vector<double> errors_of(const GgufTensor& tensor, const std::vector<DType>& types,
                              ThreadPool& pool) {
  std::vector<double> out;
  GgufTensor as = tensor;
  for (const DType dtype : types) {
    as.dtype = dtype;
    out.push_back(as.is_copied() ? 0 : relative_error(as, pool));
  }
  return out;
}

MatrixChoices choices_of(const GgufTensor& tensor, ThreadPool& pool, MeasurementJournal* journal) {
  const std::vector<DType> types = types_of(tensor);
  const std::string name = "errors of " + tensor.name;
  std::optional<std::vector<double>> errors;
  if (journal != nullptr) errors = journal->find(name);
  if (!errors) {
    errors = errors_of(tensor, types, pool);
    if (journal != nullptr) journal->add(name, *errors);
  }
  if (errors->size() != types.size()) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "measurements: expected {} errors of {}, got {} (remove {})", types.size(),
         printable(tensor.name), errors->size(), printable(journal->directory(), 4096));
  }
  MatrixChoices out;
  out.name = tensor.name;
  GgufTensor as = tensor;
  for (size_t i = 0; i < types.size(); ++i) {
    as.dtype = types[i];
    if (!std::isnan((*errors)[i]))
      out.choices.push_back({types[i], bytes_in_file(as), (*errors)[i], 0});
  }
  return out;
}

/// The choice whose bits are nearest, of those that lose something; -1: none does.
int probe_of(const MatrixChoices& choices, double bits) {
  int best = -1;
  for (size_t i = 0; i < choices.choices.size(); ++i) {
    const MatrixChoice& choice = choices.choices[i];
    if (choice.error <= 0) continue;
    if (best < 0 || std::abs(bits_of(choice.dtype) - bits) <
                        std::abs(bits_of(choices.choices[static_cast<size_t>(best)].dtype) - bits))
      best = static_cast<int>(i);
  }
  return best;
}

/// Matrices that are measured together.
std::vector<std::vector<size_t>> groups_of(const std::vector<GgufTensor>& tensors, int n_layers,
                                           int64_t max_probes) {
  std::map<std::pair<Slot, int>, std::vector<size_t>> groups;
  int bands = std::max(n_layers, 1);
  do {
    groups.clear();
    for (size_t i = 0; i < tensors.size(); ++i) {
      const ModuleId& id = tensors[i].id;
      const int band = id.layer < 0 ? -1 : id.layer * bands / std::max(n_layers, 1);
      groups[{id.slot, band}].push_back(i);
    }
  } while (std::ssize(groups) > max_probes && --bands > 0);
  std::vector<std::vector<size_t>> out;
  for (auto& [key, members] : groups)
    out.push_back(std::move(members));
  return out;
}

}  // namespace

int64_t smallest_bytes(const GgufTensor& tensor) {
  GgufTensor as = tensor;
  int64_t least = bytes_in_file(tensor);
  for (const DType dtype : kTypes) {
    as.dtype = dtype;
    if (fits(as) && (can_encode(dtype) || as.is_copied()))
      least = std::min(least, bytes_in_file(as));
  }
  return least;
}

std::vector<MatrixChoices> measure_choices(const std::vector<GgufTensor>& tensors, int n_layers,
                                           const MeasureKl& kl, ThreadPool& pool,
                                           const SensitivityOptions& options) {
  std::vector<MatrixChoices> out;
  const auto groups = groups_of(tensors, n_layers, options.max_probes);
  const int64_t total = std::ssize(tensors) + std::ssize(groups);
  int64_t done = 0;
  const auto tell = [&] {
    if (options.cancel != nullptr) options.cancel->check("measuring sensitivity");
    ++done;
    if (options.on_progress) options.on_progress(done, total);
  };
  for (const GgufTensor& tensor : tensors) {
    out.push_back(choices_of(tensor, pool, options.journal));
    tell();
  }
  for (const std::vector<size_t>& group : groups) {
    std::vector<GgufTensor> changed;
    double sum = 0;
    for (const size_t i : group) {
      const int choice = probe_of(out[i], options.probe_bits);
      if (choice < 0) continue;
      changed.push_back(tensors[i]);
      changed.back().dtype = out[i].choices[static_cast<size_t>(choice)].dtype;
      sum += out[i].choices[static_cast<size_t>(choice)].error;
    }
    std::vector<const GgufTensor*> pointers;
    for (const GgufTensor& tensor : changed)
      pointers.push_back(&tensor);
    const double per_error = changed.empty() ? 0 : kl(pointers) / sum;
    for (const size_t i : group) {
      for (MatrixChoice& choice : out[i].choices)
        choice.damage = per_error * choice.error;
    }
    tell();
  }
  return out;
}

}  // namespace qw::quantize
