// What a checkpoint is, in the words that clients of other systems know.
//
// Level 7 (server). Read from headers; no weights are loaded.
#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"

namespace qw::server {

struct ModelFacts {
  ModelConfig config;
  std::string family;          // "qwen2", "qwen2_moe"
  std::string format;          // "gguf", "safetensors"
  std::string parameter_size;  // "6.7M", "1.8B"
  /// What a GGUF file calls its mixture ("Q4_K_M"); else the type of most bytes ("BF16"), or the
  /// method ("GPTQ 4 bits").
  std::string quantization;
  int64_t file_bytes = 0;
  int64_t modified = 0;  // seconds since 1970
  /// SHA-256 of the names, sizes and times of the weight files, and of an adapter's: tells versions
  /// apart without reading them.
  std::string digest;
};

/// adapter_path: of the adapter that the model has; "": none. Errors: those of Checkpoint::open and
/// ModelConfig::from_checkpoint.
ModelFacts read_model_facts(const std::string& path, const std::string& adapter_path = "");

}  // namespace qw::server
