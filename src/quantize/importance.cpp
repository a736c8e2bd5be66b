#include "quantize/importance.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/atomic_file.h"
#include "base/checked.h"
#include "checkpoint/gguf.h"

namespace qw::quantize {

namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr const char* kTypeKey = "general.type";

void check_values(const std::string& path, const std::string& name,
                  const std::vector<float>& values) {
  for (const float value : values) {
    if (std::isfinite(value) && value >= 0) continue;
    fail(ErrorKind::kCorrupt, "imatrix", "{}: expected finite values from 0 on, got {} ({})",
         printable(name), value, printable(path, 4096));
  }
}

std::vector<float> floats_of(const RawTensor& tensor, const std::string& path) {
  if (tensor.dtype != DType::kF32) {
    fail(ErrorKind::kCorrupt, "imatrix", "{}: expected f32, got {} ({})", printable(tensor.name),
         name_of(tensor.dtype), printable(path, 4096));
  }
  std::vector<float> out(static_cast<size_t>(tensor.shape.n_elems()));
  std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
  check_values(path, tensor.name, out);
  return out;
}

ImportanceMatrix read_gguf_form(const std::shared_ptr<const MappedFile>& mapping) {
  const GgufFile file = read_gguf(mapping);
  const std::string& path = mapping->path();
  const std::string type = file.metadata->string_or(kTypeKey, "");
  if (type != "imatrix") {
    fail(ErrorKind::kCorrupt, "imatrix", "{}: expected imatrix, got '{}' ({})", kTypeKey,
         printable(type), printable(path, 4096));
  }
  ImportanceMatrix out;
  if (const auto* datasets = file.metadata->strings("imatrix.datasets")) out.datasets = *datasets;
  out.n_chunks = file.metadata->integer_or("imatrix.chunk_count", 0);
  out.chunk_tokens = file.metadata->integer_or("imatrix.chunk_size", 0);
  for (const RawTensor& tensor : file.tensors) {
    const std::string_view name = tensor.name;
    if (name.ends_with(kSums)) {
      out.entries[std::string(name.substr(0, name.size() - kSums.size()))].sums =
          floats_of(tensor, path);
    } else if (name.ends_with(kCounts)) {
      out.entries[std::string(name.substr(0, name.size() - kCounts.size()))].counts =
          floats_of(tensor, path);
    }
  }
  return out;
}

/// Reads a .dat piece by piece.
class DatReader {
 public:
  explicit DatReader(const MappedFile& file) : path_(file.path()), rest_(file.bytes()) {}

  bool at_end() const { return rest_.empty(); }
  int32_t number(const char* what, int32_t least, int32_t most) {
    int32_t value = 0;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    if (value >= least && value <= most) return value;
    fail(ErrorKind::kCorrupt, "imatrix", "{}: expected {} to {}, got {} ({})", what, least, most,
         value, printable(path_, 4096));
  }
  std::string text(const char* what) {
    const auto bytes = take(static_cast<size_t>(number(what, 0, 1 << 16)), what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  std::vector<float> floats(const std::string& name, int32_t n) {
    const auto bytes = take(static_cast<size_t>(n) * sizeof(float), "values");
    std::vector<float> out(static_cast<size_t>(n));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    check_values(path_, name, out);
    return out;
  }

 private:
  std::span<const std::byte> take(size_t n, const char* what) {
    if (n > rest_.size()) {
      fail(ErrorKind::kCorrupt, "imatrix", "{}: expected {} more bytes, got {} ({})", what, n,
           rest_.size(), printable(path_, 4096));
    }
    const auto out = rest_.first(n);
    rest_ = rest_.subspan(n);
    return out;
  }

  const std::string& path_;
  std::span<const std::byte> rest_;
};

/// Numbers are 32 bits, little-endian: entries; of each its name, calls, values; then, since 2024,
/// chunks and the dataset. A value is the mean square times the calls.
ImportanceMatrix read_dat_form(const MappedFile& file) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  DatReader in(file);
  ImportanceMatrix out;
  const int32_t n_entries = in.number("number of entries", 1, 1 << 20);
  for (int32_t i = 0; i < n_entries; ++i) {
    const std::string name = in.text("name");
    ImportanceEntry& entry = out.entries[name];
    const int32_t n_calls = in.number("calls", 0, kMost);
    entry.sums = in.floats(name, in.number("number of values", 1, 1 << 28));
    entry.counts = {static_cast<float>(n_calls)};
  }
  if (in.at_end()) return out;
  out.n_chunks = in.number("chunks", 0, kMost);
  out.datasets = {in.text("dataset")};
  return out;
}

void append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}
void append_number(std::vector<std::byte>& to, int64_t value) {
  const auto number = static_cast<int32_t>(value);
  append(to, std::as_bytes(std::span(&number, 1)));
}
void append_text(std::vector<std::byte>& to, const std::string& text) {
  append_number(to, std::ssize(text));
  append(to, std::as_bytes(std::span(text)));
}

void write_dat(const ImportanceMatrix& matrix, const std::string& path) {
  std::vector<std::byte> bytes;
  append_number(bytes, std::ssize(matrix.entries));
  for (const auto& [name, entry] : matrix.entries) {
    append_text(bytes, name);
    const float most = *std::ranges::max_element(entry.counts);
    const float per_chunk = matrix.chunk_tokens > 0 ? static_cast<float>(matrix.chunk_tokens) : 1;
    const float n_calls = std::max(1.0F, std::ceil(most / per_chunk));
    append_number(bytes, static_cast<int64_t>(n_calls));
    const int64_t n_matrices = std::ssize(entry.counts);
    const int64_t k = std::ssize(entry.sums) / n_matrices;
    std::vector<float> values;
    for (int64_t m = 0; m < n_matrices; ++m) {
      for (const float mean : matrix.weights(name, m, n_matrices, k))
        values.push_back(mean * n_calls);
    }
    append_number(bytes, std::ssize(values));
    append(bytes, std::as_bytes(std::span(values)));
  }
  append_number(bytes, matrix.n_chunks);
  append_text(bytes, matrix.datasets.empty() ? "" : matrix.datasets.front());
  write_file_atomically(path, bytes);
}

void write_gguf_form(const ImportanceMatrix& matrix, const std::string& path) {
  GgufWriter writer;
  writer.entries = {
      {kTypeKey, GgufValue::string("imatrix")},
      {"imatrix.datasets", GgufValue::strings(matrix.datasets)},
      {"imatrix.chunk_count", GgufValue::u32(static_cast<uint32_t>(matrix.n_chunks))},
      {"imatrix.chunk_size", GgufValue::u32(static_cast<uint32_t>(matrix.chunk_tokens))}};
  std::vector<std::span<const float>> values;
  for (const auto& [name, entry] : matrix.entries) {
    const int64_t n_matrices = std::ssize(entry.counts);
    writer.tensors.push_back({name + std::string(kSums),
                              DType::kF32,
                              {n_matrices, std::ssize(entry.sums) / n_matrices}});
    values.emplace_back(entry.sums);
    writer.tensors.push_back({name + std::string(kCounts), DType::kF32, {n_matrices, 1}});
    values.emplace_back(entry.counts);
  }
  write_gguf(path, writer, [&](size_t i, GgufSink sink) { sink(std::as_bytes(values[i])); });
}

}  // namespace

std::vector<float> ImportanceMatrix::weights(const std::string& tensor, int64_t index,
                                             int64_t n_matrices, int64_t k) const {
  const auto found = entries.find(tensor);
  if (found == entries.end()) return {};
  const ImportanceEntry& entry = found->second;
  if (std::ssize(entry.sums) != n_matrices * k) {
    fail(ErrorKind::kInvalidArgument, "imatrix",
         "{}: expected {} values for {} matrices, got {} ({})", printable(tensor), n_matrices * k,
         n_matrices, entry.sums.size(), printable(file, 4096));
  }
  const float count = entry.counts[entry.counts.size() == 1 ? 0 : static_cast<size_t>(index)];
  const auto begin = entry.sums.begin() + index * k;
  std::vector<float> out(begin, begin + k);
  for (float& value : out)
    value = count > 0 ? value / count : 1.0F;
  return out;
}

ImportanceMatrix read_importance(const std::string& path) {
  return read_importance(MappedFile::open(path));
}

ImportanceMatrix read_importance(const std::shared_ptr<const MappedFile>& mapping) {
  const std::string& path = mapping->path();
  ImportanceMatrix out =
      mapping->text().starts_with("GGUF") ? read_gguf_form(mapping) : read_dat_form(*mapping);
  mapping->check_readable();
  out.file = path;
  if (out.entries.empty()) {
    fail(ErrorKind::kCorrupt, "imatrix", "entries: expected some, got none ({})",
         printable(path, 4096));
  }
  for (const auto& [name, entry] : out.entries) {
    if (!entry.sums.empty() && !entry.counts.empty() &&
        entry.sums.size() % entry.counts.size() == 0)
      continue;
    fail(ErrorKind::kCorrupt, "imatrix",
         "{}: expected as many values for each of its counts, got {} values, {} counts ({})",
         printable(name), entry.sums.size(), entry.counts.size(), printable(path, 4096));
  }
  return out;
}

void write_importance(const ImportanceMatrix& matrix, const std::string& path) {
  path.ends_with(".dat") ? write_dat(matrix, path) : write_gguf_form(matrix, path);
}

}  // namespace qw::quantize
