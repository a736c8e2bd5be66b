#include "quantize/work_directory.h"

#include <cstring>
#include <filesystem>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;

std::string hidden_name(int layer) {
  return fmt::format("behind_layer.{}", layer);
}

void write_tensors(const std::string& path, const std::vector<WorkDirectory::Tensor>& tensors) {
  std::vector<SafetensorsEntry> entries;
  entries.reserve(tensors.size());
  for (const WorkDirectory::Tensor& tensor : tensors)
    entries.push_back(tensor.entry);
  SafetensorsWriter out(path, entries);
  for (const WorkDirectory::Tensor& tensor : tensors)
    out.write(tensor.bytes);
  out.finish();
}

}  // namespace

WorkDirectory::WorkDirectory(std::string path, const std::string& job) : path_(std::move(path)) {
  const fs::path job_path = fs::path(path_) / "job.json";
  std::error_code error;
  if (fs::exists(path_, error) && !fs::is_empty(path_, error)) {
    if (!fs::exists(job_path, error)) {
      fail(ErrorKind::kInvalidArgument, "quantize",
           "work directory: expected one that an interrupted run left, got another ({})",
           printable(path_));
    }
    const std::string found = read_text_file(job_path.string());
    if (found != job) {
      fail(ErrorKind::kInvalidArgument, "quantize",
           "work directory: expected one of this model, calibration and options to go on with, got "
           "another's (remove {}, or give another --output)",
           printable(path_));
    }
    const std::string hidden = (fs::path(path_) / "hidden.safetensors").string();
    if (!fs::exists(hidden, error)) return;
    const SafetensorsFile file = read_safetensors(MappedFile::open(hidden));
    int layer = 0;
    while (fs::exists(layer_path(layer), error))
      ++layer;
    // The last layer's file may be newer than the hidden states.
    for (; layer > 0; --layer) {
      if (file.tensors.front().name == hidden_name(layer - 1)) break;
    }
    n_finished_ = layer;
    return;
  }
  fs::create_directory(path_, error);
  if (error) {
    fail(ErrorKind::kIo, "quantize", "work directory: expected to make it, got {} ({})",
         error.message(), printable(path_));
  }
  write_file_atomically(job_path.string(), std::as_bytes(std::span(job)));
}

std::string WorkDirectory::layer_path(int layer) const {
  return (fs::path(path_) / fmt::format("layer-{:05}.safetensors", layer)).string();
}

std::vector<float> WorkDirectory::read_hidden(int64_t n) const {
  const auto mapping = MappedFile::open((fs::path(path_) / "hidden.safetensors").string());
  const SafetensorsFile file = read_safetensors(mapping);
  const RawTensor& tensor = file.tensors.front();
  if (tensor.dtype != DType::kF32 || tensor.shape.n_elems() != n) {
    fail(ErrorKind::kCorrupt, "quantize",
         "hidden states of the calibration: expected {} floats, got {} {} (remove {})", n,
         tensor.shape.n_elems(), name_of(tensor.dtype), printable(path_));
  }
  std::vector<float> out(static_cast<size_t>(n));
  std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
  mapping->check_readable();
  return out;
}

void WorkDirectory::finish_layer(const std::vector<Tensor>& tensors,
                                 const std::vector<float>& hidden) {
  write_tensors(layer_path(n_finished_), tensors);
  write_tensors((fs::path(path_) / "hidden.safetensors").string(),
                {{{hidden_name(n_finished_), DType::kF32, {std::ssize(hidden)}},
                  std::as_bytes(std::span(hidden))}});
  ++n_finished_;
}

void WorkDirectory::remove() {
  std::error_code error;
  fs::remove_all(path_, error);
  if (error) {
    fail(ErrorKind::kIo, "quantize", "work directory: expected to remove it, got {} ({})",
         error.message(), printable(path_));
  }
}

}  // namespace qw::quantize
