#include "server/classifier.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "checkpoint/hf_config.h"
#include "quant/linear_source.h"

namespace qw::server {

namespace {

constexpr std::string_view kArchitecture = "Qwen2ForSequenceClassification";

/// "LABEL_0", ... where config.json has none, as Transformers names them.
std::vector<std::string> read_labels(const Checkpoint& checkpoint, size_t n_classes) {
  std::vector<std::string> labels;
  const auto json = parse_json_object(*checkpoint.config_json, "config.json");
  const auto table = json.find("id2label");
  const bool has_table = table != json.end() && !table->is_null();
  for (size_t i = 0; i < n_classes; ++i) {
    const std::string id = std::to_string(i);
    if (!has_table) {
      labels.push_back("LABEL_" + id);
      continue;
    }
    if (!table->is_object() || table->size() != n_classes || !table->contains(id) ||
        !(*table)[id].is_string()) {
      fail(ErrorKind::kCorrupt, "config",
           "id2label: expected a name for each of {} classes (the rows of score.weight), got {} "
           "(config.json)",
           n_classes, describe_json(*table));
    }
    labels.push_back((*table)[id].get<std::string>());
  }
  return labels;
}

}  // namespace

std::optional<Classifier> Classifier::read(const Checkpoint& checkpoint,
                                           const ModelConfig& config) {
  if (config.architecture != kArchitecture) return std::nullopt;
  const RawTensor& tensor = checkpoint.tensors.at("score.weight");
  if (tensor.shape.rank() != 2 || tensor.shape.cols() != config.hidden || tensor.shape[0] < 1) {
    fail(ErrorKind::kCorrupt, "model",
         "tensor score.weight: expected [classes, {}] with at least one class, got {} ({})",
         config.hidden, tensor.shape.str(), printable(tensor.file));
  }
  const LinearSource source = LinearSource::of_matrix(tensor);
  Classifier out;
  out.weight_.resize(static_cast<size_t>(source.n * source.k));
  source.decode_rows(0, source.n, out.weight_.data());
  checkpoint.check_readable();
  if (!std::ranges::all_of(out.weight_, [](float value) { return std::isfinite(value); })) {
    fail(ErrorKind::kCorrupt, "model",
         "tensor score.weight: expected finite numbers, got infinity or NaN ({})",
         printable(tensor.file));
  }
  out.labels_ = read_labels(checkpoint, static_cast<size_t>(source.n));
  return out;
}

std::vector<double> Classifier::probabilities(std::span<const float> hidden) const {
  std::vector<double> values;
  for (size_t row = 0; row < labels_.size(); ++row) {
    double sum = 0;
    for (size_t k = 0; k < hidden.size(); ++k)
      sum += static_cast<double>(weight_[row * hidden.size() + k]) * static_cast<double>(hidden[k]);
    values.push_back(sum);
  }
  const double largest = *std::ranges::max_element(values);
  for (double& value : values)
    value = std::exp(value - largest);
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  for (double& value : values)
    value /= total;
  return values;
}

}  // namespace qw::server
