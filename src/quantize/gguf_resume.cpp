#include "quantize/gguf_resume.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/sha256.h"
#include "quantize/layer_checkpoint.h"
#include "quantize/work_directory.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// Metadata, names, types and shapes are in the header; what else the bytes depend on are the
/// weights and their importances.
std::string job_of(const Checkpoint& checkpoint, const GgufPlan& plan,
                   const GgufSplitLimits& split) {
  constexpr int kVersion = 1;  // raised when the same plan gives other bytes
  Sha256 header, importances;
  header.update(gguf_header(plan.content()));
  for (const GgufTensor& tensor : plan.tensors) {
    for (const std::vector<float>& weights : tensor.importance)
      importances.update(std::as_bytes(std::span(weights)));
  }
  const Json job = {{"version", kVersion},
                    {"header", to_hex(header.finish())},
                    {"importances", to_hex(importances.finish())},
                    {"split", {split.max_bytes, split.max_tensors}}};
  return job_text(checkpoint, job.dump());
}

/// Beside the file that a link names, where the output will be.
std::string work_path(const std::string& output) {
  std::error_code error;
  if (!fs::is_symlink(fs::symlink_status(output, error))) return output + ".work";
  const fs::path target = fs::weakly_canonical(output, error);
  return (error ? output : target.string()) + ".work";
}

}  // namespace

void write_gguf_resumably(const Checkpoint& checkpoint, const GgufPlan& plan, ThreadPool& pool,
                          const GgufWriteRequest& request) {
  check_importances(plan);
  WorkDirectory work(work_path(request.output), job_of(checkpoint, plan, request.split));
  GgufStage stage;
  stage.directory = work.path();
  stage.n_written = std::min(static_cast<size_t>(work.n_noted()), plan.tensors.size());
  stage.note = [&](size_t n_tensors) { work.note(static_cast<int64_t>(n_tensors)); };
  stage.pace = request.pace;
  int64_t n_bytes = 0;
  for (size_t i = 0; i < stage.n_written; ++i)
    n_bytes += plan.tensors[i].bytes();
  if (request.on_resumed) request.on_resumed(n_bytes);
  const auto done = [&](int64_t bytes) {
    if (request.on_written) request.on_written(bytes);
  };
  try {
    write_gguf_plan(plan, request.output, pool, done, request.cancel, request.split, &stage);
  } catch (const Error& error) {
    if (work.n_noted() == 0) {
      work.remove();
    } else if (error.kind() == ErrorKind::kCancelled) {
      work.fail_interrupted();
    }
    throw;
  }
  work.remove();
}

}  // namespace qw::quantize
