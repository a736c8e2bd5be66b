#include "quantize/gptq_checkpoint.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "base/atomic_file.h"
#include "base/checked.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/safetensors.h"
#include "kernels/isa.h"
#include "quant/gptq.h"
#include "quantize/gptq_work.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// Of each layer's sources, those that are quantised.
template <typename Visit>
void for_each_quantised(const LayerSources& layer, const Visit& visit) {
  const auto call = [&](const LinearParts& parts) {
    if (!parts.parts.empty()) visit(parts);
  };
  for (const LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down,
                                   &layer.moe.shared_gate_up, &layer.moe.shared_down})
    call(*parts);
  for (const auto* experts : {&layer.moe.gate_up, &layer.moe.down}) {
    for (const LinearParts& parts : *experts)
      call(parts);
  }
}

int64_t bytes_of(int64_t n, int64_t k, const GptqOptions& options) {
  const int64_t group = options.group_size == -1 ? k : std::min(options.group_size, k);
  const int64_t n_groups = ceil_div(k, group);
  return n * k * options.bits / 8 + n_groups * n * options.bits / 8 + n_groups * n * 2 + k * 4 +
         n * 2;
}

void check_sizes(const LinearSource& source, const GptqOptions& options) {
  // AutoGPTQ's layout holds more, but its kernels and those of vLLM and ExLlama do not.
  constexpr int64_t kUnit = 32;
  if (source.n % kUnit == 0 && source.k % kUnit == 0) return;
  fail(ErrorKind::kUnsupported, "quantize",
       "{}: expected outputs and inputs that are multiples of {} for gptq-int{}, got {} x {} (GGUF "
       "types such as q8_0 or q4_0 hold any number of outputs)",
       printable(source.name), kUnit, options.bits, source.n, source.k);
}

Json quantization_config(const GptqRequest& request) {
  const GptqOptions& options = request.gptq;
  return {{"bits", options.bits},
          {"group_size", options.group_size},
          {"damp_percent", options.damp},
          {"desc_act", options.desc_act},
          {"static_groups", options.static_groups},
          {"sym", options.sym},
          {"true_sequential", request.true_sequential},
          {"model_name_or_path", nullptr},
          {"model_file_base_name", "model"},
          {"quant_method", "gptq"},
          {"checkpoint_format", options.zero_from_0 ? "gptq_v2" : "gptq"}};
}

/// All that the bits of the result depend on.
std::string job_text(const Checkpoint& checkpoint, const GptqRequest& request,
                     const CalibrationSet& calibration, const Backend& backend) {
  constexpr int kVersion = 1;  // raised when the same request gives other bits
  Json files = Json::array();
  for (const std::string& path : checkpoint.weight_files) {
    std::error_code error;
    const auto time = fs::last_write_time(path, error).time_since_epoch().count();
    files.push_back({fs::path(path).filename().string(), fs::file_size(path, error), time});
  }
  const Json job = {{"version", kVersion},
                    {"config", checkpoint.config_json.value_or("")},
                    {"files", std::move(files)},
                    {"quantization", quantization_config(request)},
                    {"mode", static_cast<int>(request.gptq.mode)},
                    {"late_grids", request.gptq.late_grids},
                    {"calibration", calibration_name(calibration)},
                    {"numerics", backend.numerics()}};
  return job.dump(1) + "\n";
}

/// A finished layer's tensors. Matrices without a bias have one of zeros, as AutoGPTQ writes it.
class LayerTensors {
 public:
  explicit LayerTensors(bool v2_zeros) : v2_zeros_(v2_zeros) {}

  void add(const GptqModule& module) {
    const std::string name = hf_name(module.id);
    const GptqFile& file = files_.emplace_back(publish_gptq(*module.matrix, v2_zeros_, name));
    const GptqFile::Views views = file.views(name);
    for (const RawTensor* tensor : {&views.qweight, &views.qzeros, &views.scales, &views.g_idx})
      tensors_.push_back({{tensor->name, tensor->dtype, tensor->shape}, tensor->bytes});
    const Slot slot = module.id.slot;
    if (slot == Slot::kQ || slot == Slot::kK || slot == Slot::kV) return;  // theirs is kept
    const auto& zeros = zeros_.emplace_back(static_cast<size_t>(module.matrix->n));
    tensors_.push_back(
        {{name + ".bias", DType::kF16, {module.matrix->n}}, std::as_bytes(std::span(zeros))});
  }
  const std::vector<WorkDirectory::Tensor>& all() const { return tensors_; }

 private:
  bool v2_zeros_;
  std::deque<GptqFile> files_;  // whose bytes are viewed
  std::deque<std::vector<uint16_t>> zeros_;
  std::vector<WorkDirectory::Tensor> tensors_;
};

void write_output(const GptqPlan& plan, const GptqRequest& request, ThreadPool& pool,
                  WorkDirectory& work) {
  DirectoryPlan directory = plan.kept;
  std::vector<std::shared_ptr<const MappedFile>> files;
  for (int layer = 0; layer < work.n_finished(); ++layer) {
    files.push_back(MappedFile::open(work.layer_path(layer)));
    for (const RawTensor& tensor : read_safetensors(files.back()).tensors) {
      DirectoryTensor& to = directory.tensors.emplace_back();
      to.name = tensor.name;
      to.dtype = tensor.dtype;
      to.shape = tensor.shape;
      to.bytes = tensor.bytes;
    }
  }
  const auto on_written = [&](int64_t bytes) {
    if (request.on_written) request.on_written(bytes);
  };
  write_directory(directory, request.output, pool, on_written, request.cancel);
  for (const auto& file : files)
    file->check_readable();
  work.remove();
}

}  // namespace

double GptqPlan::bits_per_weight() const {
  return n_weights == 0 ? 0
                        : 8 * static_cast<double>(quantised_bytes) / static_cast<double>(n_weights);
}

GptqPlan plan_gptq(const Checkpoint& checkpoint, const ModelConfig& config,
                   const NetworkSources& sources, const TokenizerSpec* tokenizer,
                   const GptqRequest& request) {
  check_options(request.gptq);
  DirectoryChoices choices;
  choices.dtype = DType::kF16;
  choices.shard_bytes = request.shard_bytes;
  choices.eos_ids = request.eos_ids;
  GptqPlan plan;
  plan.kept = plan_directory(checkpoint, config, sources, tokenizer, choices);
  const Json quantization = quantization_config(request);
  for (auto& [name, text] : plan.kept.texts) {
    if (name != "config.json") continue;
    Json json = parse_json_object(text, name);
    json["quantization_config"] = quantization;
    text = json.dump(2) + "\n";
  }
  plan.kept.texts.emplace_back("quantize_config.json", quantization.dump(2) + "\n");
  std::unordered_set<std::string> replaced;
  std::string uneven;
  for (const LayerSources& layer : sources.layers) {
    for_each_quantised(layer, [&](const LinearParts& parts) {
      for (const ModuleId& id : parts.modules)
        replaced.insert(hf_name(id) + ".weight");
      for (const LinearSource& source : parts.parts) {
        check_sizes(source, request.gptq);
        ++plan.n_matrices;
        plan.n_weights += source.n * source.k;
        plan.source_bytes += source.published_bytes();
        plan.quantised_bytes += bytes_of(source.n, source.k, request.gptq);
        if (request.gptq.group_size > 0 && source.k % std::min(request.gptq.group_size, source.k))
          uneven = source.name;
      }
    });
  }
  std::erase_if(plan.kept.tensors,
                [&](const DirectoryTensor& tensor) { return replaced.contains(tensor.name); });
  if (!uneven.empty()) {
    plan.warnings.push_back(fmt::format(
        "inputs are no multiple of the group size {} (such as those of {}): some programs refuse "
        "that",
        request.gptq.group_size, printable(uneven)));
  }
  const std::string format = sources.layers.front().o.format();
  if (!std::holds_alternative<DenseRows>(sources.layers.front().o.parts.front().data)) {
    plan.warnings.push_back(
        fmt::format("{} is quantised already (such as {}): it is rounded a second time",
                    printable(checkpoint.path), format));
  }
  return plan;
}

void write_gptq(const Checkpoint& checkpoint, const ModelConfig& config,
                const NetworkSources& sources, const GptqPlan& plan,
                const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                const GptqRequest& request) {
  std::error_code error;
  if (fs::exists(request.output, error)) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--output: expected a directory that is not there yet, got {}",
         printable(request.output, 4096));
  }
  WorkDirectory work(request.output + ".work", job_text(checkpoint, request, calibration, backend));
  LayerPass pass(backend, config, calibration.sequences, request.cancel);
  if (work.n_finished() > 0) {
    pass.set_hidden(work.read_hidden(pass.n_tokens() * config.hidden), work.n_finished());
  } else {
    pass.embed(*backend.pack_embedding(sources.embedding.parts.front()));
  }
  for (int layer = 0; layer < work.n_finished() && request.on_layer; ++layer)
    request.on_layer(layer, {});
  const MatrixTeam team{&pool, &kernels::matrix_ops(kernels::choose_isa(request.isa))};
  for (int l = work.n_finished(); l < config.n_layers; ++l) {
    const LayerSources& layer = sources.layers[static_cast<size_t>(l)];
    const std::vector<GptqModule> modules =
        gptq_layer(layer, config, {request.gptq, request.true_sequential, request.on_quantised},
                   backend, team, pass);
    checkpoint.check_readable();
    LayerTensors tensors(request.gptq.zero_from_0);
    for (const GptqModule& module : modules)
      tensors.add(module);
    work.finish_layer(tensors.all(), pass.hidden());
    for_each_quantised(layer, [&](const LinearParts& parts) { drop_pages(checkpoint, parts); });
    if (request.on_layer) request.on_layer(l, modules);
  }
  write_output(plan, request, pool, work);
  checkpoint.check_readable();
}

}  // namespace qw::quantize
