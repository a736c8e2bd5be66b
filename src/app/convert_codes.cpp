#include "app/convert_codes.h"

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/open.h"
#include "app/output_room.h"
#include "app/weight_report.h"
#include "base/atomic_directory.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "model/gguf_tokenizer.h"
#include "quantize/transcode_directory.h"

namespace qw::app {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Format = quantize::TranscodeRequest::Format;

void check_output(const std::string& output) {
  std::error_code error;
  if (!fs::exists(output, error)) return;
  fail(ErrorKind::kInvalidArgument, "convert",
       "--output: expected a directory that is not there yet, got {}", printable(output, 4096));
}

/// Writes under another name, which becomes `output` when the weights are proved.
WeightDifferences write_proved(const quantize::LayerSource& source, const quantize::LayerPlan& plan,
                               quantize::TranscodeRequest request, double max_error,
                               ThreadPool& pool) {
  const std::string output = request.output;
  check_output(output);
  check_room("convert", output, plan.quantised_bytes + plan.bytes());
  const OwnDirectory folder(output + ".unproven");
  request.output = folder.file("directory");
  request.work = output + ".work";
  quantize::write_transcoded(source, plan, pool, request);
  WeightDifferences weights = read_back(request.output, source.sources, pool);
  check_errors(weights, max_error);
  rename_synced(request.output, output);
  return weights;
}

}  // namespace

void convert_codes(const CommonOptions& options, const CodesRequest& asked) {
  init_logging(options.log_level);
  const auto start = std::chrono::steady_clock::now();
  const ModelFiles files = open_for_reading(options, true);
  const Checkpoint& checkpoint = *files.checkpoint;
  const ModelConfig config = ModelConfig::from_checkpoint(checkpoint);
  const NetworkSources sources = open_network(checkpoint, config);
  std::optional<TokenizerSpec> tokenizer;
  if (checkpoint.gguf) tokenizer = gguf_tokenizer_spec(*checkpoint.gguf);
  quantize::TranscodeRequest request;
  request.output = directory_name(asked.output);
  request.component = "convert";
  request.shard_bytes = asked.shard_bytes;
  request.eos_ids = files.generation.eos_token_id;
  request.cancel = &interrupted();
  request.format = asked.to == "awq" ? Format::kAwq : Format::kGptq;
  request.zero_from_0 = asked.v2;
  for (const AwqVersion version : {AwqVersion::kGemm, AwqVersion::kGemv, AwqVersion::kGemvFast}) {
    if (asked.version == name_of(version)) request.version = version;
  }
  const quantize::LayerSource source{checkpoint, config, sources};
  const quantize::LayerPlan plan =
      plan_transcode(source, tokenizer ? &*tokenizer : nullptr, request);
  for (const std::string& warning : plan.warnings)
    logger().warn("{}", warning);
  WeightDifferences weights;
  if (!asked.dry_run) {
    ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
    weights = write_proved(source, plan, request, asked.max_error, pool);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (options.json) {
    ordered_json json = {{"output", asked.dry_run ? ordered_json() : ordered_json(asked.output)},
                         {"bytes", plan.bytes()},
                         {"bits_per_weight", plan.bits_per_weight()},
                         {"matrices", plan.n_matrices}};
    if (!asked.dry_run) {
      json["weights"] = weights_json(weights);
      json["seconds"] = seconds.count();
    }
    json["warnings"] = plan.warnings;
    return print_json(json);
  }
  print_result(fmt::format(
      "{}{} matrices, {:.2f} bits per weight; {:.1f} MB in all; {}\n",
      asked.dry_run ? "" : tensor_lines(weights), plan.n_matrices, plan.bits_per_weight(),
      static_cast<double>(plan.bytes()) / 1e6,
      asked.dry_run ? "nothing was written"
                    : fmt::format("{} written in {:.1f} s", asked.output, seconds.count())));
}

}  // namespace qw::app
