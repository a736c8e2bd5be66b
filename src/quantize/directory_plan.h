// A checkpoint as the Hugging Face directory that will be made of it: dense weights in safetensors,
// configuration, tokenizer.
//
// Level 6 (quantize). Any published form goes in. What already is of the type that is wanted is
// copied, byte by byte; the rest is decoded and rounded once. Adapters can be merged on the way.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cancel.h"
#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/sources.h"
#include "quantize/adapter_merge.h"
#include "text/tokenizer_spec.h"

namespace qw {

struct DirectoryChoices {
  DType dtype = DType::kBF16;                             // of all weights: f32, f16 or bf16
  int64_t shard_bytes = int64_t{5} * 1000 * 1000 * 1000;  // of weights in a file, at most
  /// End tokens of answers, for the generation_config.json of what was a GGUF file, whose metadata
  /// has room for one; empty: that one.
  std::vector<int32_t> eos_ids;
  const AdapterMerge* merge = nullptr;  // null: the weights as they are
};

struct DirectoryTensor {
  std::string name;  // "model.layers.0.self_attn.q_proj.weight"
  DType dtype = DType::kF32;
  Shape shape;
  RowDecoder rows;                   // of what is decoded: rows of [rows, last dimension]
  std::span<const std::byte> bytes;  // of what is copied
  RowDecoder base;                   // of what adapters change: the rows before

  int64_t n_bytes() const;
};

struct DirectoryPlan {
  std::vector<DirectoryTensor> tensors;                    // in the order of the files
  std::vector<std::pair<std::string, std::string>> texts;  // files by name: config.json, ...
  std::vector<std::string> companions;                     // paths of files that are copied
  int64_t shard_bytes = 0;
  /// What a user should know, a sentence each.
  std::vector<std::string> warnings;

  int64_t n_bytes() const;  // of all tensors
};

/// `sources` and `choices.merge` must outlive the plan's use. `tokenizer`: of a GGUF file, whose
/// directory has no tokenizer's files; null: none. Errors: invalid_argument (a type that is no
/// float), unsupported (a tokenizer that Qwen2's files cannot hold).
DirectoryPlan plan_directory(const Checkpoint& checkpoint, const ModelConfig& config,
                             const NetworkSources& sources, const TokenizerSpec* tokenizer,
                             const DirectoryChoices& choices);

/// How much of what adapters add came through the rounding to the file's type.
struct MergeFigures {
  double change = 0;  // sum of (W' - W)^2 over what was changed
  double lost = 0;    // sum of (round(W') - W')^2 over the same
};

/// Files beside the weights of a checkpoint's directory that a copy of it should have, too, but for
/// its configuration: tokenizer, template, licence.
std::vector<std::string> companions_of(const Checkpoint& checkpoint);

/// Pushes a tensor's bytes as they will lie in the file, decoded and rounded where it has rows.
/// Errors: as write_directory.
MergeFigures write_tensor(const DirectoryTensor& tensor, ThreadPool& pool,
                          FunctionRef<void(std::span<const std::byte>)> push);

/// Writes the directory, which appears under `path` when it is whole: until then it is
/// `path`.partial. `done(bytes)` is told as weights are written. Errors: io, cancelled,
/// invalid_argument (the directory is there; values that the type cannot hold, by tensor).
MergeFigures write_directory(const DirectoryPlan& plan, const std::string& path, ThreadPool& pool,
                             const std::function<void(int64_t)>& done, const CancelFlag* cancel);

}  // namespace qw
