// A LoRA adapter that turns one checkpoint into another.
//
// Level 6 (quantize). Of every linear layer the difference D = W_tuned - W_base is approximated by
// B A of a given rank; norms that differ go along whole (modules_to_save). What an adapter cannot
// say is told.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "model/config.h"
#include "model/sources.h"

namespace qw {

struct ExtractionOptions {
  int64_t rank = 16;
  DType dtype = DType::kF32;  // of the file: f32, f16 or bf16
  bool embeddings = false;    // embedding and output matrix, where they differ, go along whole
  std::string base_name;      // base_model_name_or_path
};

struct ExtractedModule {
  std::string name;   // "model.layers.0.self_attn.q_proj"
  double change = 0;  // ||D|| / ||W_base||
  double kept = 0;    // 1 - ||D - B A||^2 / ||D||^2
};

struct Extraction {
  std::vector<ExtractedModule> modules;  // those that differ
  int64_t n_unchanged = 0;               // linear layers that are the same
  int64_t n_whole = 0;                   // norms and matrices that go along whole
  double kept = 0;                       // over all modules, weighted by ||D||^2
  std::vector<std::string> warnings;     // what the adapter leaves out
};

/// Writes a peft directory, which appears under `path` when it is whole. `done(n)` is told of n
/// weights looked at. Memory: a matrix in f32, and the factors. Errors: invalid_argument
/// (checkpoints of different shapes, naming the field; two that are the same; the directory is
/// there), corrupt (values that are not finite), io, cancelled.
Extraction extract_adapter(const ModelConfig& base_config, const NetworkSources& base,
                           const ModelConfig& tuned_config, const NetworkSources& tuned,
                           const ExtractionOptions& options, const std::string& path,
                           ThreadPool& pool, const std::function<void(int64_t)>& done,
                           const CancelFlag* cancel);

}  // namespace qw
