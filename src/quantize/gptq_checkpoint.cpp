#include "quantize/gptq_checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/checked.h"
#include "quant/gptq.h"
#include "quantize/gptq_rules.h"

namespace qw::quantize {

namespace {

using Json = nlohmann::ordered_json;

/// Those of q, k and v are kept as they are.
bool has_own_bias(const ModuleId& id) {
  return id.slot == Slot::kQ || id.slot == Slot::kK || id.slot == Slot::kV;
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
  Json out = {{"bits", options.bits},
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
  if (!request.bits.empty()) out["dynamic"] = gptq_rules(request.bits);
  return out;
}

std::string job_of(const GptqRequest& request) {
  constexpr int kVersion = 2;  // raised when the same request gives other bits
  const Json job = {{"version", kVersion},
                    {"quantization", quantization_config(request)},
                    {"mode", static_cast<int>(request.gptq.mode)},
                    {"late_grids", request.gptq.late_grids}};
  return job.dump();
}

}  // namespace

GptqOptions GptqRequest::options_of(const ModuleId& id) const {
  GptqOptions out = gptq;
  if (bits.empty()) return out;
  const auto found = bits.find(hf_name(id));
  if (found != bits.end()) out.bits = found->second;
  return out;
}

int64_t gptq_bytes(const ModuleId& id, int64_t n, int64_t k, const GptqOptions& options) {
  const int64_t group = options.group_size == -1 ? k : std::min(options.group_size, k);
  const int64_t n_groups = ceil_div(k, group);
  return n * k * options.bits / 8 + n_groups * n * options.bits / 8 + n_groups * n * 2 + k * 4 +
         (has_own_bias(id) ? 0 : n * 2);
}

void add_gptq_tensors(const QuantisedModule& module, bool v2_zeros, std::vector<RawTensor>& out) {
  struct Owner {
    GptqFile file;
    std::vector<uint16_t> zeros;
  };
  const std::string name = hf_name(module.id);
  const auto owner = std::make_shared<Owner>();
  owner->file = publish_gptq(*module.matrix, v2_zeros, name);
  const GptqFile::Views views = owner->file.views(name);
  for (const RawTensor* tensor : {&views.qweight, &views.qzeros, &views.scales, &views.g_idx}) {
    out.push_back(*tensor);
    out.back().owner = owner;
  }
  if (has_own_bias(module.id)) return;
  owner->zeros.resize(static_cast<size_t>(module.matrix->n));
  RawTensor& bias = out.emplace_back();
  bias.name = name + ".bias";
  bias.dtype = DType::kF16;
  bias.shape = {module.matrix->n};
  bias.bytes = std::as_bytes(std::span(owner->zeros));
  bias.owner = owner;
}

LayerPlan plan_gptq(const LayerSource& source, const TokenizerSpec* tokenizer,
                    const GptqRequest& request) {
  check_options(request.gptq);
  for (const auto& [module, bits] : request.bits) {
    GptqOptions own = request.gptq;
    own.bits = bits;
    check_options(own);
  }
  const Json quantization = quantization_config(request);
  const int64_t group_size = request.gptq.group_size;
  std::string uneven;
  LayerPlan plan = plan_layers(source, tokenizer, request, quantization.dump(),
                               [&](const ModuleId& id, const LinearSource& matrix) {
                                 const GptqOptions own = request.options_of(id);
                                 check_sizes(matrix, own);
                                 if (group_size > 0 && matrix.k % std::min(group_size, matrix.k))
                                   uneven = matrix.name;
                                 return gptq_bytes(id, matrix.n, matrix.k, own);
                               });
  plan.kept.texts.emplace_back("quantize_config.json", quantization.dump(2) + "\n");
  if (!uneven.empty()) {
    plan.warnings.insert(
        plan.warnings.begin(),
        fmt::format("inputs are no multiple of the group size {} (such as those of {}): some "
                    "programs refuse that",
                    group_size, printable(uneven)));
  }
  return plan;
}

std::string gptq_job(const LayerSource& source, const CalibrationSet& calibration,
                     const Backend& backend, const GptqRequest& request) {
  return job_text(source.checkpoint, calibration, backend, job_of(request));
}

void write_gptq(const LayerSource& source, const LayerPlan& plan, const CalibrationSet& calibration,
                Backend& backend, ThreadPool& pool, const GptqRequest& request) {
  GptqLayerOptions options;
  options.gptq = request.gptq;
  options.true_sequential = request.true_sequential;
  options.on_done = request.on_quantised;
  if (!request.bits.empty())
    options.bits_of = [&](const ModuleId& id) { return request.options_of(id).bits; };
  const auto quantise = [&](const LayerSources& layer, const MatrixTeam& team, LayerPass& pass) {
    QuantisedLayer out;
    out.modules = gptq_layer(layer, source.config, options, backend, team, pass);
    for (const QuantisedModule& module : out.modules)
      add_gptq_tensors(module, request.gptq.zero_from_0, out.tensors);
    return out;
  };
  write_layers(source, plan, calibration, backend, pool, request, {job_of(request), quantise});
}

}  // namespace qw::quantize
