#include "checkpoint/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "base/checked.h"

namespace qw {

namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are used as they lie");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's cap
constexpr size_t kPrefixBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

struct TypeName {
  std::string_view name;
  DType dtype;
};
constexpr std::array kTypes = {
    TypeName{"F32", DType::kF32},   TypeName{"F16", DType::kF16}, TypeName{"BF16", DType::kBF16},
    TypeName{"F64", DType::kF64},   TypeName{"I8", DType::kI8},   TypeName{"I16", DType::kI16},
    TypeName{"I32", DType::kI32},   TypeName{"I64", DType::kI64}, TypeName{"U8", DType::kU8},
    TypeName{"U16", DType::kU16},   TypeName{"U32", DType::kU32}, TypeName{"U64", DType::kU64},
    TypeName{"BOOL", DType::kBool},
};

// One entry as the header states it, before it is checked against the data.
struct Entry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Receives the header's JSON events. The header has one fixed form, so this is a small state
// machine; unlike a parsed tree it sees repeated names, and takes linear time and memory.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(SafetensorsFile& out, std::vector<Entry>& entries, const std::string& path)
      : out_(out), entries_(entries), path_(path) {}

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_float(double, const std::string&) override { return unexpected("a fraction"); }
  bool binary(nlohmann::json::binary_t&) override { return unexpected("binary"); }
  bool number_integer(int64_t) override { return unexpected("a negative number"); }

  bool number_unsigned(uint64_t value) override {
    if (state_ != State::kShape && state_ != State::kOffsets) return unexpected("a number");
    if (value > uint64_t{INT64_MAX}) return unexpected("a number beyond 63 bits");
    auto& list = state_ == State::kShape ? entries_.back().shape : entries_.back().offsets;
    if (list.size() == kMaxListLength) return unexpected("a longer list");
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& value) override {
    if (state_ == State::kMetadata) {
      out_.metadata.back().second = std::move(value);
    } else if (state_ == State::kEntry && key_ == "dtype") {
      entries_.back().dtype = std::move(value);
      entries_.back().has_dtype = true;
    } else {
      return unexpected("a string");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (state_ == State::kStart) {
      state_ = State::kTop;
    } else if (state_ == State::kTop) {
      state_ = key_ == kMetadataKey ? State::kMetadata : State::kEntry;
      if (state_ == State::kEntry) entries_.emplace_back().name = std::move(key_);
    } else {
      return unexpected("an object");
    }
    key_.clear();
    return true;
  }

  bool key(std::string& value) override {
    key_ = std::move(value);
    if (state_ == State::kTop) {
      if (!names_.insert(key_).second) {
        fail(ErrorKind::kCorrupt, "safetensors", "names: expected each once, got '{}' twice ({})",
             printable(key_), printable(path_, 4096));
      }
    } else if (state_ == State::kMetadata) {
      out_.metadata.emplace_back(key_, "");
    }
    return true;
  }

  bool end_object() override {
    if (state_ == State::kEntry) {
      const Entry& entry = entries_.back();
      if (!entry.has_dtype || !entry.has_shape || !entry.has_offsets) {
        fail(ErrorKind::kCorrupt, "safetensors",
             "{}: expected dtype, shape and data_offsets, got no {} ({})", printable(entry.name),
             !entry.has_dtype   ? "dtype"
             : !entry.has_shape ? "shape"
                                : "data_offsets",
             printable(path_, 4096));
      }
    }
    state_ = state_ == State::kTop ? State::kStart : State::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ == State::kEntry && key_ == "shape" && !entries_.back().has_shape) {
      state_ = State::kShape;
      entries_.back().has_shape = true;
    } else if (state_ == State::kEntry && key_ == "data_offsets" && !entries_.back().has_offsets) {
      state_ = State::kOffsets;
      entries_.back().has_offsets = true;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    state_ = State::kEntry;
    return true;
  }

  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception&) override {
    fail(ErrorKind::kCorrupt, "safetensors",
         "header: expected JSON, got an error at byte {} of it ({})", byte, printable(path_, 4096));
  }

 private:
  static constexpr size_t kMaxListLength = 64;
  enum class State { kStart, kTop, kMetadata, kEntry, kShape, kOffsets };

  bool unexpected(std::string_view got) const {
    const bool in_entry =
        state_ == State::kEntry || state_ == State::kShape || state_ == State::kOffsets;
    fail(ErrorKind::kCorrupt, "safetensors",
         "header: expected {{name: {{dtype, shape, data_offsets}}}}, got {} at {}{}{} ({})", got,
         in_entry ? printable(entries_.back().name) : "the top", key_.empty() ? "" : ": ",
         printable(key_), printable(path_, 4096));
  }

  SafetensorsFile& out_;
  std::vector<Entry>& entries_;
  const std::string& path_;
  State state_ = State::kStart;
  std::string key_;
  std::unordered_set<std::string> names_;
};

std::optional<DType> dtype_of(std::string_view name) {
  for (const TypeName& type : kTypes) {
    if (type.name == name) return type.dtype;
  }
  return std::nullopt;
}

std::string_view format_name(DType dtype) {
  for (const TypeName& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  return {};
}

// The header's text, after the length in front of it was checked.
std::string_view header_of(const MappedFile& file) {
  const auto bytes = file.bytes();
  const std::string path = printable(file.path(), 4096);
  if (bytes.size() < kPrefixBytes) {
    fail(ErrorKind::kCorrupt, "safetensors", "size: expected at least {} bytes, got {} ({})",
         kPrefixBytes, bytes.size(), path);
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes) {
    fail(ErrorKind::kCorrupt, "safetensors",
         "header length: expected at most {} bytes, got {} ({})", kMaxHeaderBytes, header_bytes,
         path);
  }
  if (header_bytes > bytes.size() - kPrefixBytes) {
    fail(ErrorKind::kCorrupt, "safetensors",
         "header: expected {} bytes after the length, got {}; cut short ({})", header_bytes,
         bytes.size() - kPrefixBytes, path);
  }
  return {reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes,
          static_cast<size_t>(header_bytes)};
}

RawTensor checked_tensor(Entry&& entry, const MappedFile& file) {
  const std::string path = printable(file.path(), 4096);
  const std::string name = printable(entry.name);
  const auto dtype = dtype_of(entry.dtype);
  if (!dtype) {
    fail(ErrorKind::kUnsupported, "safetensors",
         "dtype of {}: expected a float, integer or BOOL type, got {} ({})", name,
         printable(entry.dtype), path);
  }
  if (entry.shape.size() > static_cast<size_t>(Shape::kMaxRank)) {
    fail(ErrorKind::kUnsupported, "safetensors",
         "shape of {}: expected at most {} dimensions, got {} ({})", name, Shape::kMaxRank,
         entry.shape.size(), path);
  }
  if (entry.offsets.size() != 2 || entry.offsets[0] > entry.offsets[1]) {
    fail(ErrorKind::kCorrupt, "safetensors",
         "data_offsets of {}: expected [begin, end], got [{}] ({})", name,
         fmt::join(entry.offsets, ", "), path);
  }
  const Shape shape(entry.shape, name, path);
  const int64_t n_bytes =
      checked_mul<int64_t>(shape.n_elems(), info(*dtype).block_bytes, name, path);
  if (n_bytes != entry.offsets[1] - entry.offsets[0]) {
    fail(ErrorKind::kCorrupt, "safetensors", "bytes of {}: expected {} for {} {}, got {} ({})",
         name, n_bytes, entry.dtype, shape.str(), entry.offsets[1] - entry.offsets[0], path);
  }
  RawTensor tensor;
  tensor.name = std::move(entry.name);
  tensor.dtype = *dtype;
  tensor.shape = shape;
  tensor.file = file.path();
  tensor.offset_bytes = static_cast<uint64_t>(entry.offsets[0]);  // of the data part, for now
  return tensor;
}

}  // namespace

SafetensorsFile read_safetensors(const std::shared_ptr<const MappedFile>& file) {
  const std::string_view header = header_of(*file);
  const auto data = file->bytes().subspan(kPrefixBytes + header.size());
  SafetensorsFile out;
  std::vector<Entry> entries;
  HeaderHandler handler(out, entries, file->path());
  nlohmann::json::sax_parse(header.begin(), header.end(), &handler);

  // By begin, then by end: an empty tensor may share its place with the one that follows.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  out.tensors.reserve(entries.size());
  uint64_t end = 0;
  for (Entry& entry : entries) {
    const int64_t entry_end = entry.offsets.size() == 2 ? entry.offsets[1] : 0;
    RawTensor tensor = checked_tensor(std::move(entry), *file);
    if (tensor.offset_bytes != end) {
      fail(ErrorKind::kCorrupt, "safetensors",
           "data of {}: expected to begin at byte {}, got {}; {} ({})", printable(tensor.name), end,
           tensor.offset_bytes,
           tensor.offset_bytes < end ? "tensors overlap" : "a gap between tensors",
           printable(file->path(), 4096));
    }
    end = static_cast<uint64_t>(entry_end);
    if (end > data.size()) {
      fail(ErrorKind::kCorrupt, "safetensors",
           "data of {}: expected bytes up to {}, got {}; cut short ({})", printable(tensor.name),
           end, data.size(), printable(file->path(), 4096));
    }
    tensor.bytes = data.subspan(tensor.offset_bytes, end - tensor.offset_bytes);
    tensor.offset_bytes += kPrefixBytes + header.size();
    tensor.owner = file;
    out.tensors.push_back(std::move(tensor));
  }
  if (end != data.size()) {
    fail(ErrorKind::kCorrupt, "safetensors",
         "data: expected {} bytes as the header lists, got {} ({})", end, data.size(),
         printable(file->path(), 4096));
  }
  file->check_readable();
  return out;
}

SafetensorsWriter::SafetensorsWriter(
    const std::string& path, const std::vector<SafetensorsEntry>& entries,
    const std::vector<std::pair<std::string, std::string>>& metadata)
    : file_(path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  // Pushed, not assigned: ordered_json looks keys up by linear search.
  auto& members = header.get_ref<nlohmann::ordered_json::object_t&>();
  if (!metadata.empty()) {
    nlohmann::ordered_json object = nlohmann::ordered_json::object();
    for (const auto& [key, value] : metadata)
      object[key] = value;
    members.push_back({std::string(kMetadataKey), std::move(object)});
  }
  std::unordered_set<std::string_view> names;
  for (const SafetensorsEntry& entry : entries) {
    const std::string_view type = format_name(entry.dtype);
    if (type.empty()) {
      fail(ErrorKind::kInvalidArgument, "safetensors",
           "dtype of {}: expected a plain type, got {} ({})", printable(entry.name),
           name_of(entry.dtype), printable(path, 4096));
    }
    if (!names.insert(entry.name).second || entry.name == kMetadataKey) {
      fail(ErrorKind::kInvalidArgument, "safetensors",
           "names: expected each once, got '{}' again ({})", printable(entry.name),
           printable(path, 4096));
    }
    const auto begin = expected_bytes_;
    const auto n_bytes = checked_mul<int64_t>(entry.shape.n_elems(), info(entry.dtype).block_bytes,
                                              entry.name, path);
    expected_bytes_ = checked_add(begin, static_cast<uint64_t>(n_bytes), entry.name, path);
    members.push_back(
        {entry.name,
         {{"dtype", type},
          {"shape", std::vector<int64_t>(entry.shape.sizes().begin(), entry.shape.sizes().end())},
          {"data_offsets", {begin, expected_bytes_}}}});
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::kInvalidArgument, "safetensors",
         "names and metadata: expected UTF-8, got other bytes ({})", printable(path, 4096));
  }
  text.resize(round_up(text.size(), kPrefixBytes), ' ');  // tensors begin at a multiple of 8
  const uint64_t header_bytes = text.size();
  file_.write(std::as_bytes(std::span(&header_bytes, 1)));
  file_.write(std::as_bytes(std::span(text)));
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  if (bytes.size() > expected_bytes_ - written_bytes_) {
    fail(ErrorKind::kInvalidArgument, "safetensors",
         "tensor bytes: expected {} in all, got more ({})", expected_bytes_,
         printable(file_.path(), 4096));
  }
  file_.write(bytes);
  written_bytes_ += bytes.size();
}

void SafetensorsWriter::finish() {
  if (written_bytes_ != expected_bytes_) {
    fail(ErrorKind::kInvalidArgument, "safetensors",
         "tensor bytes: expected {} in all, got {} ({})", expected_bytes_, written_bytes_,
         printable(file_.path(), 4096));
  }
  file_.commit();
}

}  // namespace qw
