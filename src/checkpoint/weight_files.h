// Which files of a directory hold the weights, in what container, and what an index says of them.
//
// Level 3 (checkpoint). The names are those that Transformers, AutoGPTQ and llama.cpp write.
// Looks at names and index files only; no weight file is opened here.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qw {

struct WeightFiles {
  enum class Format { kNone, kSafetensors, kTorch, kGguf };
  Format format = Format::kNone;
  std::vector<std::string> paths;  // every file to read, in order of shard number or name
  std::string index_path;          // of the `*.index.json` that named them, or empty
  std::vector<std::pair<std::string, std::string>> weight_map;  // of the index: tensor, path
};

/// "model-00002-of-00004.safetensors" = {"model", 2, 4, ".safetensors"}.
struct ShardName {
  std::string stem;
  int number = 0;  // from 1
  int count = 0;
  std::string extension;
};
std::optional<ShardName> parse_shard_name(std::string_view file_name);
/// The inverse, with five digits each.
std::string format_shard_name(const ShardName& shard);

/// The weights of a directory, in this order of preference: model.safetensors, a safetensors index,
/// any other *.safetensors (one file, one complete set of shards, or one gptq_model*),
/// pytorch_model.bin, its index, gptq_model*.bin, *.gguf (one file or one split set).
/// Format::kNone when there is none of them.
/// Errors: not_found (a shard that the index or the other shards name), corrupt (the index),
/// unsupported (several candidates and no rule to choose, listing them), io.
WeightFiles find_weight_files(const std::string& directory);

/// The weights that a single file stands for: the file itself or, for one shard of a set
/// (safetensors or GGUF), the whole set. Format by extension, or by the first bytes of the file.
/// Errors: as above; unsupported for a file of another kind.
WeightFiles weight_files_of(const std::string& path);

/// The names of the regular files in a directory, sorted. Errors: not_found, io.
std::vector<std::string> list_files(const std::string& directory);

}  // namespace qw
