#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/mapped_file.h"
#include "checkpoint/lfs_pointer.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_file.h"
#include "checkpoint/weight_files.h"

namespace qw {

namespace {

namespace fs = std::filesystem;
using Format = WeightFiles::Format;

constexpr size_t kMaxConfigBytes = size_t{64} << 20;

std::shared_ptr<const MappedFile> open_weights(const std::string& path) {
  auto file = MappedFile::open(path);
  refuse_lfs_pointer(file->text(), "weights", path);
  if (file->bytes().empty()) {
    fail(ErrorKind::kCorrupt, "checkpoint", "weights: expected a header, got an empty file ({})",
         printable(path, 4096));
  }
  return file;
}

std::optional<std::string> read_if_there(const std::string& directory, std::string_view name) {
  const std::string path = (fs::path(directory) / name).string();
  if (!path_exists(path)) return std::nullopt;
  std::string text = read_text_file(path, kMaxConfigBytes);
  refuse_lfs_pointer(text, name, path);
  return text;
}

void read_companions(Checkpoint& out) {
  out.config_json = read_if_there(out.directory, "config.json");
  out.generation_config_json = read_if_there(out.directory, "generation_config.json");
  out.quantize_config_json = read_if_there(out.directory, "quantize_config.json");
  if (!out.quantize_config_json)
    out.quantize_config_json = read_if_there(out.directory, "quant_config.json");
}

void add_safetensors(Checkpoint& out, const std::string& path) {
  const auto file = open_weights(path);
  SafetensorsFile content = read_safetensors(file);
  for (RawTensor& tensor : content.tensors)
    out.tensors.add(std::move(tensor));
  for (auto& entry : content.metadata)
    out.safetensors_metadata.push_back(std::move(entry));
  out.mappings.push_back(file);
  out.weight_files.push_back(path);
}

void add_torch(Checkpoint& out, const std::string& path) {
  const auto file = open_weights(path);
  for (RawTensor& tensor : read_torch_file(file))
    out.tensors.add(std::move(tensor));
  out.mappings.push_back(file);
  out.weight_files.push_back(path);
}

void add_gguf(Checkpoint& out, const WeightFiles& files) {
  std::vector<GgufFile> parts = read_gguf_model(
      files.paths.front(), [](const std::string& path) { return open_weights(path); });
  if (parts.size() < files.paths.size()) {
    fail(ErrorKind::kCorrupt, "checkpoint",
         "parts: expected split.count {} as the file names say, got {} ({})", files.paths.size(),
         parts.size(), printable(files.paths.front(), 4096));
  }
  for (GgufFile& part : parts) {
    for (RawTensor& tensor : part.tensors)
      out.tensors.add(std::move(tensor));
    out.mappings.push_back(part.mapping);
    out.weight_files.push_back(part.mapping->path());
  }
  out.kind = Checkpoint::Kind::kGguf;
  out.gguf = parts.front().metadata;
}

void add_weights(Checkpoint& out, const WeightFiles& files) {
  switch (files.format) {
    case Format::kNone:
      return;
    case Format::kGguf:
      return add_gguf(out, files);
    case Format::kSafetensors:
      for (const std::string& path : files.paths)
        add_safetensors(out, path);
      return;
    case Format::kTorch:
      for (const std::string& path : files.paths)
        add_torch(out, path);
      return;
  }
}

// Every tensor that the index promises must be in the file it names. One that the index does not
// mention is fine, as it is to Transformers.
void check_index(const TensorStore& tensors, const WeightFiles& files) {
  for (const auto& [name, path] : files.weight_map) {
    const RawTensor* tensor = tensors.find(name);
    if (tensor != nullptr && tensor->file == path) continue;
    fail(ErrorKind::kCorrupt, "checkpoint", "index entry of {}: expected it in {}, got {} ({})",
         printable(name), printable(fs::path(path).filename().string()),
         tensor == nullptr ? "no such tensor"
                           : printable(fs::path(tensor->file).filename().string()),
         printable(files.index_path, 4096));
  }
}

[[noreturn]] void fail_no_weights(const std::string& directory) {
  const auto names = list_files(directory);
  const bool adapter = std::ranges::find(names, "adapter_config.json") != names.end();
  fail(ErrorKind::kNotFound, "checkpoint",
       "weights: expected model.safetensors, model.safetensors.index.json, *.safetensors, "
       "pytorch_model.bin, "
       "pytorch_model.bin.index.json or *.gguf, got {} ({})",
       adapter ? "only a LoRA adapter (adapter_config.json)" : "none of them",
       printable(directory, 4096));
}

}  // namespace

void TensorStore::add(RawTensor tensor) {
  const auto [entry, is_new] = index_.try_emplace(tensor.name, tensors_.size());
  if (!is_new) {
    fail(ErrorKind::kCorrupt, "checkpoint", "tensor {}: expected it once, got it in {} and in {}",
         printable(tensor.name), printable(tensors_[entry->second].file, 4096),
         printable(tensor.file, 4096));
  }
  tensors_.push_back(std::move(tensor));
}

const RawTensor* TensorStore::find(std::string_view name) const {
  const auto entry = index_.find(std::string(name));
  return entry == index_.end() ? nullptr : &tensors_[entry->second];
}

const RawTensor& TensorStore::at(std::string_view name) const {
  if (const RawTensor* tensor = find(name)) return *tensor;
  fail(ErrorKind::kCorrupt, "checkpoint",
       "tensor {}: expected it among the {} tensors, got none ({})", printable(name),
       tensors_.size(), printable(origin_, 4096));
}

std::shared_ptr<const Checkpoint> Checkpoint::open(const std::string& path, bool tensors_required) {
  auto out = std::make_shared<Checkpoint>();
  out->path = path;
  out->tensors.set_origin(path);
  if (!path_exists(path)) {
    fail(ErrorKind::kNotFound, "checkpoint",
         "model: expected a directory or a weight file, got no such path ({})",
         printable(path, 4096));
  }
  std::error_code ignored;
  const bool is_directory = fs::is_directory(path, ignored);
  const std::string parent = fs::path(path).parent_path().string();
  out->directory = is_directory ? path : parent.empty() ? "." : parent;
  const WeightFiles files = is_directory ? find_weight_files(path) : weight_files_of(path);
  if (files.format == Format::kNone && tensors_required) fail_no_weights(path);
  read_companions(*out);
  add_weights(*out, files);
  check_index(out->tensors, files);
  out->check_readable();
  return out;
}

void Checkpoint::check_readable() const {
  for (const auto& file : mappings)
    file->check_readable();
}

int64_t Checkpoint::tensor_bytes() const {
  int64_t total = 0;
  for (const RawTensor& tensor : tensors.all())
    total += static_cast<int64_t>(tensor.bytes.size());
  return total;
}

int64_t Checkpoint::file_bytes() const {
  int64_t total = 0;
  for (const auto& file : mappings)
    total += static_cast<int64_t>(file->bytes().size());
  return total;
}

}  // namespace qw
