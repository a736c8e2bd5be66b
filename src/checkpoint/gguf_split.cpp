#include "checkpoint/gguf_split.h"

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

void write_split_gguf(const std::string& path, const GgufWriter& content,
                      const GgufSplitLimits& limits, FunctionRef<void(size_t, GgufSink)> produce) {
  const std::vector<size_t> counts = split_gguf(content.tensors, limits);
  if (counts.size() == 1) return write_gguf(path, content, produce);
  const std::vector<std::string> paths = gguf_split_paths(path, counts.size());
  std::deque<AtomicFile> files;
  size_t first = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    GgufWriter part;
    part.alignment = content.alignment;
    if (i == 0) part.entries = content.entries;
    part.entries.emplace_back("split.no", GgufValue::u16(static_cast<uint16_t>(i)));
    part.entries.emplace_back("split.tensors.count",
                              GgufValue::i32(static_cast<int32_t>(content.tensors.size())));
    part.entries.emplace_back("split.count", GgufValue::u16(static_cast<uint16_t>(counts.size())));
    const auto begin = content.tensors.begin() + static_cast<std::ptrdiff_t>(first);
    part.tensors.assign(begin, begin + static_cast<std::ptrdiff_t>(counts[i]));
    write_gguf(files.emplace_back(paths[i]), part,
               [&](size_t tensor, GgufSink sink) { produce(first + tensor, sink); });
    files.back().seal();
    first += counts[i];
  }
  // Without its first file a model cannot be opened: what is there of another model goes before
  // the rest is replaced, so that a crash never leaves files of two that look like one.
  std::error_code ignored;
  std::filesystem::remove(files.front().path(), ignored);
  while (!files.empty()) {
    files.back().commit();
    files.pop_back();
  }
}

}  // namespace qw
