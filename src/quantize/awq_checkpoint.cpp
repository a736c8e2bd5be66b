#include "quantize/awq_checkpoint.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "quantize/gptq_factor.h"

namespace qw::quantize {

namespace {

using Json = nlohmann::ordered_json;

/// Those who read the directory take a module whose name holds one of these as it is: what of a
/// mixture of experts stays in f16. Names of whole modules, since "gate" is in "gate_proj" too.
Json kept_modules(const NetworkSources& sources) {
  const std::vector<std::string> names = unquantised_modules(sources);
  return names.empty() ? Json() : Json(names);
}

Json quantization_config(const LayerSource& source, const AwqOptions& options) {
  return {{"bits", 4},
          {"group_size", options.group_size},
          {"modules_to_not_convert", kept_modules(source.sources)},
          {"quant_method", "awq"},
          {"version", name_of(options.version)},
          {"zero_point", true}};
}

std::string job_of(const AwqOptions& options) {
  constexpr int kVersion = 2;  // raised when the same request gives other bits
  const Json job = {{"version", kVersion},
                    {"awq", name_of(options.version)},
                    {"group_size", options.group_size},
                    {"mode", static_cast<int>(options.mode)},
                    {"damp", options.damp}};
  return job.dump();
}

int64_t bytes_of(const LinearSource& matrix, const AwqOptions& options) {
  const std::string& name = matrix.name;
  const int64_t n = matrix.n, k = matrix.k;
  check_awq_sizes(n, k, options.group_size, options.version, name);
  const int64_t groups = awq_stored_groups(k, options.group_size, options.version);
  const int64_t zero_bits = options.version == AwqVersion::kGemvFast ? 16 : 4;
  return n * k / 2 + n * groups * (16 + zero_bits) / 8;
}

}  // namespace

LayerPlan plan_awq(const LayerSource& source, const TokenizerSpec* tokenizer,
                   const AwqRequest& request) {
  const AwqOptions& options = request.awq;
  if (options.group_size < -1 || options.group_size == 0) {
    fail(ErrorKind::kInvalidArgument, "awq", "group_size: expected -1 or more than 0, got {}",
         options.group_size);
  }
  check_damp(options.damp);
  return plan_layers(
      source, tokenizer, request, quantization_config(source, options).dump(),
      [&](const ModuleId&, const LinearSource& matrix) { return bytes_of(matrix, options); });
}

void write_awq(const LayerSource& source, const LayerPlan& plan, const CalibrationSet& calibration,
               Backend& backend, ThreadPool& pool, const AwqRequest& request) {
  const AwqLayerOptions options = {request.awq, request.on_quantised};
  const auto quantise = [&](const LayerSources& layer, const MatrixTeam& team, LayerPass& pass) {
    return awq_layer(layer, source.config, options, backend, team, pass);
  };
  write_layers(source, plan, calibration, backend, pool, request, {job_of(request.awq), quantise});
}

}  // namespace qw::quantize
