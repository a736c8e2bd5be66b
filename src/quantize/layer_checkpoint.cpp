#include "quantize/layer_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "base/atomic_file.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/safetensors.h"
#include "kernels/isa.h"
#include "quantize/work_directory.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// The weight files by name, size and time.
Json files_of(const Checkpoint& checkpoint) {
  Json files = Json::array();
  for (const std::string& path : checkpoint.weight_files) {
    std::error_code error;
    const auto time = fs::last_write_time(path, error).time_since_epoch().count();
    files.push_back({fs::path(path).filename().string(), fs::file_size(path, error), time});
  }
  return files;
}

/// The tensors of finished layers, which are views of files that this keeps mapped.
class FinishedLayers {
 public:
  explicit FinishedLayers(const WorkDirectory& work) {
    for (int layer = 0; layer < work.n_finished(); ++layer) {
      files_.push_back(MappedFile::open(work.layer_path(layer)));
      for (RawTensor& tensor : read_safetensors(files_.back()).tensors)
        tensors.push_back(std::move(tensor));
    }
  }
  void check_readable() const {
    for (const auto& file : files_)
      file->check_readable();
  }

  std::vector<RawTensor> tensors;

 private:
  std::vector<std::shared_ptr<const MappedFile>> files_;
};

void write_output(const LayerPlan& plan, const LayerRequest& request, ThreadPool& pool,
                  std::span<const RawTensor> made) {
  DirectoryPlan directory = plan.kept;
  std::unordered_set<std::string> names;
  for (const RawTensor& tensor : made)
    names.insert(tensor.name);
  std::erase_if(directory.tensors,
                [&](const DirectoryTensor& tensor) { return names.contains(tensor.name); });
  for (const RawTensor& tensor : made) {
    DirectoryTensor& to = directory.tensors.emplace_back();
    to.name = tensor.name;
    to.dtype = tensor.dtype;
    to.shape = tensor.shape;
    to.bytes = tensor.bytes;
  }
  const auto on_written = [&](int64_t bytes) {
    if (request.on_written) request.on_written(bytes);
  };
  write_directory(directory, request.output, pool, on_written, request.cancel);
}

/// Writes what the layers' files are for, and removes them.
void finish_output(const Checkpoint& checkpoint, const LayerRequest& request, WorkDirectory& work,
                   const std::function<void(std::span<const RawTensor>)>& finish) {
  {
    const FinishedLayers layers(work);
    finish(layers.tensors);
    layers.check_readable();
  }
  if (!request.keeps_work) work.remove();
  checkpoint.check_readable();
}

void check_new(const LayerRequest& request) {
  std::error_code error;
  if (request.replaces || !fs::exists(request.output, error)) return;
  fail(ErrorKind::kInvalidArgument, request.component,
       "--output: expected one that is not there yet, got {}", printable(request.output, 4096));
}

/// Errors: those of WorkDirectory; invalid_argument, where something is under the output's name.
WorkDirectory open_work(const LayerRequest& request, const std::string& job) {
  check_new(request);
  WorkDirectory work(request.work.empty() ? request.output + ".work" : request.work, job,
                     request.component);
  // Another run may have ended meanwhile.
  std::error_code error;
  if (work.n_finished() == 0 && !request.replaces && fs::exists(request.output, error))
    work.remove();
  check_new(request);
  return work;
}

void finish_layer(const Checkpoint& checkpoint, const LayerSources& layer,
                  const std::vector<RawTensor>& made, const std::vector<float>& hidden,
                  WorkDirectory& work) {
  std::vector<WorkDirectory::Tensor> tensors;
  for (const RawTensor& tensor : made)
    tensors.push_back({{tensor.name, tensor.dtype, tensor.shape}, tensor.bytes});
  work.finish_layer(tensors, hidden);
  for_each_quantised(layer, [&](const LinearParts& parts) { drop_pages(checkpoint, parts); });
}

/// What body() does can be gone on with.
void run_resumably(const WorkDirectory& work, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kCancelled) work.fail_interrupted();
    throw;
  }
}

}  // namespace

std::string job_text(const Checkpoint& checkpoint, const std::string& method) {
  const Json job = {{"config", checkpoint.config_json.value_or("")},
                    {"files", files_of(checkpoint)},
                    {"method", parse_json_object(method, "job")}};
  return job.dump(1) + "\n";
}

std::string job_text(const Checkpoint& checkpoint, const CalibrationSet& calibration,
                     const Backend& backend, const std::string& method) {
  const Json job = {{"config", checkpoint.config_json.value_or("")},
                    {"files", files_of(checkpoint)},
                    {"method", parse_json_object(method, "job")},
                    {"calibration", calibration_name(calibration)},
                    {"numerics", backend.numerics()}};
  return job.dump(1) + "\n";
}

double LayerPlan::bits_per_weight() const {
  return n_weights == 0 ? 0
                        : 8 * static_cast<double>(quantised_bytes) / static_cast<double>(n_weights);
}

void for_each_quantised(const LayerSources& layer,
                        const std::function<void(const LinearParts&)>& visit) {
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

std::vector<std::string> unquantised_modules(const NetworkSources& sources) {
  std::vector<std::string> out;
  for (const LayerSources& layer : sources.layers) {
    for (const LinearParts* parts : {&layer.moe.router, &layer.moe.shared_gate}) {
      for (const ModuleId& id : parts->modules)
        out.push_back(hf_name(id));
    }
  }
  return out;
}

LayerPlan plan_layers(
    const LayerSource& source, const TokenizerSpec* tokenizer, const LayerRequest& request,
    const std::string& quantization_config,
    const std::function<int64_t(const ModuleId&, const LinearSource&)>& bytes_of) {
  DirectoryChoices choices;
  choices.dtype = request.kept_dtype;
  choices.shard_bytes = request.shard_bytes;
  choices.eos_ids = request.eos_ids;
  LayerPlan plan;
  plan.kept = plan_directory(source.checkpoint, source.config, source.sources, tokenizer, choices);
  for (auto& [name, text] : plan.kept.texts) {
    if (name != "config.json") continue;
    Json json = parse_json_object(text, name);
    json["quantization_config"] = parse_json_object(quantization_config, name);
    text = json.dump(2) + "\n";
  }
  std::unordered_set<std::string> replaced;
  for (const LayerSources& layer : source.sources.layers) {
    for_each_quantised(layer, [&](const LinearParts& parts) {
      for (const ModuleId& id : parts.modules)
        replaced.insert(hf_name(id) + ".weight");
      for (size_t i = 0; i < parts.parts.size(); ++i) {
        const LinearSource& matrix = parts.parts[i];
        plan.quantised_bytes += bytes_of(parts.modules[i], matrix);
        ++plan.n_matrices;
        plan.n_weights += matrix.n * matrix.k;
        plan.source_bytes += matrix.published_bytes();
      }
    });
  }
  std::erase_if(plan.kept.tensors,
                [&](const DirectoryTensor& tensor) { return replaced.contains(tensor.name); });
  const LinearParts& o = source.sources.layers.front().o;
  if (!std::holds_alternative<DenseRows>(o.parts.front().data)) {
    plan.warnings.push_back(
        fmt::format("{} is quantised already (such as {}): it is rounded a second time",
                    printable(source.checkpoint.path), o.format()));
  }
  return plan;
}

void make_layers(const LayerSource& source, const CalibrationSet& calibration, Backend& backend,
                 ThreadPool& pool, const LayerRequest& request, const LayerMethod& method,
                 const std::function<void(std::span<const RawTensor>)>& finish) {
  const Checkpoint& checkpoint = source.checkpoint;
  const ModelConfig& config = source.config;
  const NetworkSources& sources = source.sources;
  WorkDirectory work = open_work(request, job_text(checkpoint, calibration, backend, method.job));
  run_resumably(work, [&] {
    if (method.prepare) method.prepare(work.path());
    if (request.on_resumed) request.on_resumed(work.n_finished());
    LayerPass pass(backend, config, calibration.sequences, request.cancel);
    if (work.n_finished() > 0) {
      pass.set_hidden(work.read_hidden(pass.n_tokens() * config.hidden), work.n_finished());
    } else if (!calibration.sequences.empty()) {
      pass.embed(*backend.pack_embedding(sources.embedding.parts.front()));
    }
    for (int layer = 0; layer < work.n_finished() && request.on_layer; ++layer)
      request.on_layer(layer, {});
    const MatrixTeam team{&pool, &kernels::matrix_ops(kernels::choose_isa(request.isa))};
    for (int l = work.n_finished(); l < config.n_layers; ++l) {
      const LayerSources& layer = sources.layers[static_cast<size_t>(l)];
      const QuantisedLayer quantised = method.quantise(layer, team, pass);
      checkpoint.check_readable();
      finish_layer(checkpoint, layer, quantised.tensors, pass.hidden(), work);
      if (request.on_layer) request.on_layer(l, quantised.modules);
    }
    finish_output(checkpoint, request, work, finish);
  });
}

void write_layers(const LayerSource& source, const LayerPlan& plan,
                  const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                  const LayerRequest& request, const LayerMethod& method) {
  make_layers(source, calibration, backend, pool, request, method,
              [&](std::span<const RawTensor> made) { write_output(plan, request, pool, made); });
}

void write_made_layers(const LayerSource& source, const LayerPlan& plan, ThreadPool& pool,
                       const LayerRequest& request,
                       const std::function<std::vector<RawTensor>(const LayerSources&)>& make) {
  Json job = {{"files", files_of(source.checkpoint)}};
  for (const auto& [name, text] : plan.kept.texts) {
    if (name == "config.json") job["made"] = text;
  }
  WorkDirectory work = open_work(request, job.dump(1) + "\n");
  run_resumably(work, [&] {
    for (size_t l = static_cast<size_t>(work.n_finished()); l < source.sources.layers.size(); ++l) {
      if (request.cancel != nullptr) request.cancel->check("writing " + request.output);
      const LayerSources& layer = source.sources.layers[l];
      const std::vector<RawTensor> tensors = make(layer);
      source.checkpoint.check_readable();
      finish_layer(source.checkpoint, layer, tensors, {}, work);
    }
    finish_output(source.checkpoint, request, work, [&](std::span<const RawTensor> made) {
      write_output(plan, request, pool, made);
    });
  });
}

}  // namespace qw::quantize
