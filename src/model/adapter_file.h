// Adapters as published: peft directories and GGUF LoRA files, read into one form.
//
// Level 5 (model). Sources: peft's LoraConfig and save_and_load.py; llama.cpp's
// convert_lora_to_gguf.py and llama-adapter.cpp. Nothing is applied here.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "model/tensor_names.h"
#include "quant/linear_source.h"

namespace qw {

/// W' = W + scaling * B A, for DoRA scaled by rows to the lengths `magnitude`.
struct LowRankDelta {
  ModuleId id;
  std::string name;  // of the module, as the file calls it
  LinearSource a;    // [r, k]
  LinearSource b;    // [n, r]
  double scaling = 1;
  std::vector<float> magnitude;  // [n]; empty: plain LoRA
};

/// A low-rank change of the embedding table: E'[t] = E[t] + scaling * B A[:, t].
struct EmbeddingDelta {
  LinearSource a;                  // [r, vocab], or
  bool a_rows_are_tokens = false;  // [vocab, r]
  LinearSource b;                  // [hidden, r]
  double scaling = 1;
};

/// A matrix that takes the place of the base's (peft's modules_to_save): embed_tokens or lm_head.
/// Like in peft, the adapter's scale does not apply to it.
struct Replacement {
  ModuleId id;
  LinearSource weight;
};

/// The same of a norm.
struct NormReplacement {
  ModuleId id;
  std::vector<float> weight;
};

struct AdapterFile {
  std::string path;
  std::shared_ptr<const MappedFile> mapping;  // of the weights: what the sources below read
  std::string config;                         // adapter_config.json; "" for GGUF
  std::vector<LowRankDelta> deltas;
  std::vector<EmbeddingDelta> embedding_deltas;
  std::vector<Replacement> replacements;
  std::vector<NormReplacement> norms;
};

/// path: a directory with adapter_config.json and adapter_model.safetensors or .bin, the weights
/// file itself, or a GGUF adapter. Shapes are checked for consistency within the adapter only.
/// Errors: not_found, corrupt, unsupported (an adapter type or option whose effect we would
/// otherwise ignore); each names the adapter.
AdapterFile read_adapter(const std::string& path);

}  // namespace qw
