#include "quantize/gguf_feedback.h"

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "base/sha256.h"
#include "quant/code_grid.h"
#include "quantize/gptq_layer.h"

namespace qw::quantize {

namespace {

using Json = nlohmann::ordered_json;

/// Whether it is a matrix of a layer that becomes blocks: of the others nothing is made here.
bool is_made(const GgufTensor& tensor) {
  return tensor.id.layer >= 0 && !tensor.parts.empty() && is_block(tensor.dtype) &&
         !tensor.is_copied();
}

/// Where a module lies in a plan.
class Places {
 public:
  explicit Places(const GgufPlan& plan) : plan_(plan) {
    for (size_t i = 0; i < plan.tensors.size(); ++i) {
      const GgufTensor& tensor = plan.tensors[i];
      if (is_made(tensor)) by_module_[{tensor.id.slot, tensor.id.layer}] = i;
    }
  }
  /// nullptr: nothing is made of it.
  const GgufTensor* tensor(const ModuleId& id) const {
    const auto found = by_module_.find({id.slot, id.layer});
    return found == by_module_.end() ? nullptr : &plan_.tensors[found->second];
  }

 private:
  const GgufPlan& plan_;
  std::map<std::pair<Slot, int>, size_t> by_module_;  // experts are stacked
};

/// One layer on its way.
class LayerEncoder {
 public:
  LayerEncoder(const LayerSource& source, Places places, const GgufFeedbackRequest& request,
               Backend& backend, ThreadPool& pool, const MatrixTeam& team)
      : source_(source),
        places_(std::move(places)),
        request_(request),
        backend_(backend),
        pool_(pool),
        team_(team) {}

  QuantisedLayer run(const LayerSources& layer, LayerPass& pass) {
    walk_layer(layer, source_.config, backend_, pass,
               [&](const LinearParts& from, LinearParts& to, auto inputs,
                   std::optional<int64_t> n_routed) -> const LinearParts& {
                 encode(from, to, inputs, n_routed);
                 return to;
               });
    for (const auto& [name, bytes] : made_) {
      RawTensor& tensor = out_.tensors.emplace_back();
      tensor.name = name;
      tensor.dtype = DType::kU8;  // as bytes: a file of layers need not know of blocks
      tensor.shape = Shape{std::ssize(*bytes)};
      tensor.bytes = *bytes;
      tensor.owner = bytes;
    }
    return std::move(out_);
  }

 private:
  void encode(const LinearParts& from, LinearParts& to, FunctionRef<void(LayerPass::Take)> inputs,
              std::optional<int64_t> n_routed) {
    std::vector<LinearSource> encoded(from.parts.size());
    bool has_grid = false;
    for (size_t i = 0; i < from.parts.size(); ++i) {
      const GgufTensor* tensor = places_.tensor(from.modules[i]);
      if (tensor == nullptr) continue;
      encoded[i] = tensor->encoded_part(index_of(from.modules[i]), pool_);
      has_grid = has_grid || grid_levels(encoded[i]).has_value();
      to.bytes.clear();
    }
    std::optional<Hessian> hessian;
    if (has_grid) hessian.emplace(from.name, from.parts.front().k, team_);
    inputs([&](const float* x, int64_t n_tokens) {
      if (hessian) hessian->add(x, n_tokens, hessian->k());
    });
    std::optional<GptqFactor> factor;
    if (has_grid) factor.emplace(*hessian, recode_options(request_.damp), team_);
    for (size_t i = 0; i < from.parts.size(); ++i) {
      if (encoded[i].n == 0) continue;
      const LinearSource& part = from.parts[i];
      QuantisedModule& module = out_.modules.emplace_back();
      module.id = from.modules[i];
      if (grid_levels(encoded[i])) {
        RecodedMatrix made = gptq_recode(part, encoded[i], *factor, team_);
        module.loss = made.loss;
        tell_inputs(*hessian, *factor, is_cold(n_routed, source_.config), module);
        module.recoding = Recoding{encoded[i].format_name(), made.kept_loss, made.nearest_loss,
                                   part.n * part.k,          made.n_changed, made.n_beyond};
        encoded[i] = std::move(made.source);
      }
      keep(*places_.tensor(module.id), index_of(module.id), encoded[i]);
      to.parts[i] = std::move(encoded[i]);
      if (request_.on_quantised) request_.on_quantised(part.published_bytes());
    }
  }

  static size_t index_of(const ModuleId& id) { return static_cast<size_t>(std::max(id.expert, 0)); }

  void keep(const GgufTensor& tensor, size_t index, const LinearSource& matrix) {
    auto& bytes = made_[tensor.name];
    if (bytes == nullptr)
      bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(tensor.bytes()));
    const auto& blocks = std::get<BlockRows>(matrix.data);
    const auto n = static_cast<size_t>(matrix.n * blocks.row_bytes);
    QW_CHECK((index + 1) * n <= bytes->size(), "{}: part {} of {} bytes", tensor.name, index, n);
    std::copy_n(blocks.data, n, bytes->begin() + static_cast<std::ptrdiff_t>(index * n));
  }

  const LayerSource& source_;
  const Places places_;
  const GgufFeedbackRequest& request_;
  Backend& backend_;
  ThreadPool& pool_;
  const MatrixTeam& team_;
  std::map<std::string, std::shared_ptr<std::vector<std::byte>>> made_;
  QuantisedLayer out_;
};

/// The plan with the matrices that were made, whose bytes `made` holds.
GgufPlan with_made(GgufPlan plan, std::span<const RawTensor> made) {
  std::unordered_map<std::string, const RawTensor*> by_name;
  for (const RawTensor& tensor : made)
    by_name[tensor.name] = &tensor;
  for (GgufTensor& tensor : plan.tensors) {
    if (!is_made(tensor)) continue;
    const auto found = by_name.find(tensor.name);
    if (found == by_name.end() || std::ssize(found->second->bytes) != tensor.bytes()) {
      fail(ErrorKind::kCorrupt, "quantize", "work directory: expected {} bytes of {}, got {}",
           tensor.bytes(), tensor.name,
           found == by_name.end() ? 0 : std::ssize(found->second->bytes));
    }
    const int64_t part_bytes = tensor.bytes() / std::ssize(tensor.parts);
    const std::byte* data = found->second->bytes.data();
    for (LinearSource& part : tensor.parts) {
      part.data = BlockRows{tensor.dtype, data, part_bytes / part.n};
      part.owner = found->second->owner;
      data += part_bytes;
    }
    tensor.importance.clear();
  }
  return plan;
}

std::string job_of(const GgufPlan& plan, const GgufFeedbackRequest& request) {
  constexpr int kVersion = 2;  // raised when the same request gives other bits
  Json types = Json::object();
  Sha256 importances;
  for (const GgufTensor& tensor : plan.tensors) {
    if (!is_made(tensor)) continue;
    types[tensor.name] = name_of(tensor.dtype);
    for (const std::vector<float>& weights : tensor.importance)
      importances.update(std::as_bytes(std::span(weights)));
  }
  const Json job = {{"version", kVersion},
                    {"gguf", std::move(types)},
                    {"importances",
                     request.with_importance ? "of the calibration" : to_hex(importances.finish())},
                    {"damp", request.damp}};
  return job.dump();
}

/// Of the inputs of all matrices; the directory `work` goes with the one that it lies in.
ImportanceMatrix collect(const LayerSource& source, const CalibrationSet& calibration,
                         Backend& backend, ThreadPool& pool, const GgufFeedbackRequest& request,
                         const std::string& work) {
  LayerRequest pass;
  pass.output = pass.work = work;
  pass.replaces = pass.keeps_work = true;
  pass.isa = request.isa;
  pass.cancel = request.cancel;
  int n_resumed = 0;
  pass.on_resumed = [&](int n_layers) {
    n_resumed = n_layers;
    if (request.on_importance_resumed) request.on_importance_resumed(n_layers);
  };
  pass.on_layer = [&](int layer, const auto&) {
    if (layer >= n_resumed && request.on_importance) request.on_importance();
  };
  return resume_importance(source, calibration, backend, pool, pass);
}

}  // namespace

int64_t recodable_matrices(const GgufPlan& plan) {
  int64_t n = 0;
  for (const GgufTensor& tensor : plan.tensors) {
    LinearSource encoded;
    encoded.data = BlockRows{tensor.dtype, nullptr, 0};
    if (is_made(tensor) && grid_levels(encoded)) n += std::ssize(tensor.parts);
  }
  return n;
}

int64_t feedback_bytes(const GgufPlan& plan) {
  int64_t bytes = 0;
  for (const GgufTensor& tensor : plan.tensors) {
    if (!is_made(tensor)) continue;
    for (const LinearSource& part : tensor.parts)
      bytes += part.published_bytes();
  }
  return bytes;
}

void make_gguf_feedback(const LayerSource& source, const GgufPlan& plan,
                        const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                        const GgufFeedbackRequest& request,
                        const std::function<void(const GgufPlan&)>& write) {
  check_damp(request.damp);
  std::optional<GgufPlan> complete;  // with importances
  const auto prepare = [&](const std::string& work) {
    complete = request.with_importance
                   ? request.with_importance(
                         collect(source, calibration, backend, pool, request, work + "/imatrix"))
                   : plan;
  };
  const auto make = [&](const LayerSources& layer, const MatrixTeam& team, LayerPass& pass) {
    if (request.cancel != nullptr) request.cancel->check("quantising");
    return LayerEncoder(source, Places(*complete), request, backend, pool, team).run(layer, pass);
  };
  make_layers(source, calibration, backend, pool, request, {job_of(plan, request), make, prepare},
              [&](std::span<const RawTensor> made) { write(with_made(*complete, made)); });
}

}  // namespace qw::quantize
