#include "checkpoint/gguf_split.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <limits>
#include <utility>

#include "base/atomic_file.h"
#include "base/checked.h"
#include "base/error.h"
#include "checkpoint/weight_files.h"

namespace qw {

namespace {

/// split.count holds no more (five digits of a name would).
constexpr size_t kMaxFiles = std::numeric_limits<uint16_t>::max();

int64_t padded_bytes(const GgufWriter::Tensor& tensor) {
  const int64_t bytes = checked_mul(row_bytes(tensor.dtype, tensor.shape.cols(), tensor.name),
                                    tensor.shape.rows(), printable(tensor.name));
  // The padding of a default file, as gguf-split counts whatever the alignment is.
  return round_up<int64_t>(bytes, 32);
}

}  // namespace

std::vector<size_t> split_gguf(std::span<const GgufWriter::Tensor> tensors,
                               const GgufSplitLimits& limits) {
  std::vector<size_t> counts{0};
  int64_t n_bytes = 0;
  for (const GgufWriter::Tensor& tensor : tensors) {
    const int64_t bytes = padded_bytes(tensor);
    const bool is_full =
        counts.back() > 0 &&
        ((limits.max_bytes > 0 && n_bytes + bytes > limits.max_bytes) ||
         (limits.max_tensors > 0 && std::cmp_greater_equal(counts.back(), limits.max_tensors)));
    if (is_full) {
      counts.push_back(0);
      n_bytes = 0;
    }
    ++counts.back();
    n_bytes = checked_add(n_bytes, bytes, "bytes of a file");
  }
  return counts;
}

std::vector<std::string> gguf_split_paths(const std::string& path, size_t count) {
  if (count <= 1) return {path};
  if (count > kMaxFiles) {
    fail(ErrorKind::kInvalidArgument, "gguf", "files: expected at most {}, got {} ({})", kMaxFiles,
         count, printable(path, 4096));
  }
  const std::filesystem::path full(path);
  const bool is_gguf = full.extension() == ".gguf";
  std::vector<std::string> paths;
  ShardName name{.stem = (is_gguf ? full.stem() : full.filename()).string(),
                 .number = 0,
                 .count = static_cast<int>(count),
                 .extension = ".gguf"};
  for (name.number = 1; name.number <= name.count; ++name.number)
    paths.push_back((full.parent_path() / format_shard_name(name)).string());
  return paths;
}

namespace {

/// File `index` of several, with the next `n_tensors` tensors from the `first` on.
GgufWriter part_of(const GgufWriter& content, size_t index, size_t n_files, size_t first,
                   size_t n_tensors) {
  if (n_files == 1) return content;
  GgufWriter part;
  part.alignment = content.alignment;
  if (index == 0) part.entries = content.entries;
  part.entries.emplace_back("split.no", GgufValue::u16(static_cast<uint16_t>(index)));
  part.entries.emplace_back("split.tensors.count",
                            GgufValue::i32(static_cast<int32_t>(content.tensors.size())));
  part.entries.emplace_back("split.count", GgufValue::u16(static_cast<uint16_t>(n_files)));
  const auto begin = content.tensors.begin() + static_cast<std::ptrdiff_t>(first);
  part.tensors.assign(begin, begin + static_cast<std::ptrdiff_t>(n_tensors));
  return part;
}

/// Notes what is on the disk, now and then.
class Notes {
 public:
  explicit Notes(const GgufStage* stage) : stage_(stage) {}

  /// `n` tensors of the model are written, the last of them into `file`.
  void tell(size_t n, AtomicFile& file) {
    if (stage_ == nullptr || std::chrono::steady_clock::now() - noted_ < stage_->pace) return;
    file.sync();
    stage_->note(n);
    noted_ = std::chrono::steady_clock::now();
  }

 private:
  const GgufStage* stage_;
  std::chrono::steady_clock::time_point noted_ = std::chrono::steady_clock::now();
};

}  // namespace

void write_split_gguf(const std::string& path, const GgufWriter& content,
                      const GgufSplitLimits& limits, FunctionRef<void(size_t, GgufSink)> produce,
                      const GgufStage* stage) {
  const std::vector<size_t> counts = split_gguf(content.tensors, limits);
  const std::vector<std::string> paths = gguf_split_paths(path, counts.size());
  std::deque<AtomicFile> files;
  Notes notes(stage);
  size_t first = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const GgufWriter part = part_of(content, i, counts.size(), first, counts[i]);
    size_t n_written = 0;
    if (stage != nullptr) {
      n_written = std::min(stage->n_written - std::min(stage->n_written, first), counts[i]);
      files.emplace_back(
          paths[i], stage->directory + "/" + std::filesystem::path(paths[i]).filename().string(),
          gguf_file_bytes(part, n_written));
    } else {
      files.emplace_back(paths[i]);
    }
    AtomicFile& file = files.back();
    write_gguf(
        file, part, [&](size_t tensor, GgufSink sink) { produce(first + tensor, sink); }, n_written,
        [&](size_t n) { notes.tell(first + n, file); });
    file.seal();
    first += counts[i];
  }
  // Without its first file a model cannot be opened: what is there of another model goes before
  // the rest is replaced, so that a crash never leaves files of two that look like one.
  if (stage != nullptr) stage->note(0);  // from here on files leave the stage
  std::error_code ignored;
  if (files.size() > 1) std::filesystem::remove(files.front().path(), ignored);
  while (!files.empty()) {
    files.back().commit();
    files.pop_back();
  }
}

}  // namespace qw
