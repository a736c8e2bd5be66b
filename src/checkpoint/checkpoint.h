// A published checkpoint as it lies on disk: named raw tensors, and its configuration files.
//
// Level 3 (checkpoint). Knows containers (safetensors, PyTorch pickles, GGUF), not models: names
// are as in the file, nothing is renamed, widened or decoded. Files are mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "checkpoint/gguf.h"
#include "tensor/raw_tensor.h"

namespace qw {

/// Tensors by name, in file order. Names are unique (Error{kCorrupt} otherwise).
class TensorStore {
 public:
  void add(RawTensor tensor);
  const RawTensor* find(std::string_view name) const;  // null: not there
  const RawTensor& at(std::string_view name) const;    // Errors: corrupt, naming the file set
  std::span<const RawTensor> all() const noexcept { return tensors_; }
  void set_origin(std::string origin) { origin_ = std::move(origin); }

 private:
  std::vector<RawTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::string origin_;
};

class Checkpoint {
 public:
  enum class Kind { kDirectory, kGguf };

  /// path: a Hugging Face style directory (safetensors or pytorch_model*.bin, single or sharded),
  /// a single .safetensors file with its config.json beside it, or a .gguf file (any part of a
  /// split one). Reads headers only; tensor bytes stay in the mapping. Errors: not_found, corrupt,
  /// unsupported, io; each names the file, and what else was looked for.
  /// tensors_required false: a directory without weights is fine (tokenizer files only).
  static std::shared_ptr<const Checkpoint> open(const std::string& path,
                                                bool tensors_required = true);
  virtual ~Checkpoint() = default;

  Kind kind = Kind::kDirectory;
  std::string path;       // as given
  std::string directory;  // where companion files lie
  std::vector<std::string> weight_files;
  TensorStore tensors;
  std::shared_ptr<const GgufMetadata> gguf;  // of the first part; null for directories

  /// JSON files of a directory, as text, null when absent: config.json, generation_config.json,
  /// quantize_config.json or quant_config.json. (tokenizer files are text/'s to read.)
  std::optional<std::string> config_json, generation_config_json, quantize_config_json;
  /// model.safetensors `__metadata__`, key and value.
  std::vector<std::pair<std::string, std::string>> safetensors_metadata;

  /// Throws Error{kIo} if any mapped byte could not be read (see MappedFile).
  void check_readable() const;
  /// Total bytes of all tensors, and of all weight files.
  int64_t tensor_bytes() const;
  int64_t file_bytes() const;

  std::vector<std::shared_ptr<const MappedFile>> mappings;
};

}  // namespace qw
