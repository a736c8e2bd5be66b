#include "checkpoint/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "base/checked.h"
#include "checkpoint/byte_order.h"
#include "checkpoint/weight_files.h"

namespace qw {

namespace {

// Caps far above any published file, so that a hostile one cannot make us allocate much.
constexpr uint64_t kMaxEntries = uint64_t{1} << 16;
constexpr uint64_t kMaxTensors = uint64_t{1} << 20;
constexpr uint64_t kMaxKeyBytes = 65535;  // of the specification
constexpr uint64_t kMaxNameBytes = 4096;
constexpr uint64_t kMaxArrayElems = uint64_t{1} << 24;
constexpr int64_t kMaxAlignment = int64_t{1} << 24;
constexpr std::string_view kMagic = "GGUF";

int64_t size_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

// Reads numbers and strings in the file's byte order and width, never past its end.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file)
      : bytes_(file.bytes()), path_(printable(file.path(), 4096)) {}

  size_t offset() const noexcept { return at_; }
  uint64_t remaining() const noexcept { return bytes_.size() - at_; }
  const std::string& path() const noexcept { return path_; }
  bool big_endian() const noexcept { return big_endian_; }
  uint32_t version() const noexcept { return version_; }

  // Magic and version; the version's byte order is that of the file.
  void read_prefix() {
    const auto magic = take(kMagic.size(), "magic");
    if (std::memcmp(magic.data(), kMagic.data(), kMagic.size()) != 0) {
      fail(ErrorKind::kCorrupt, "gguf", "magic: expected GGUF, got '{}' ({})",
           printable({reinterpret_cast<const char*>(magic.data()), magic.size()}), path_);
    }
    version_ = number<uint32_t>("version");
    if ((version_ & 0xFFFFu) == 0 && version_ != 0) {
      big_endian_ = true;
      version_ = __builtin_bswap32(version_);
    }
    if (version_ < 1 || version_ > 3) {
      fail(ErrorKind::kUnsupported, "gguf", "version: expected 1, 2 or 3, got {} ({})", version_,
           path_);
    }
  }

  template <typename T>
  T number(std::string_view what) {
    std::array<std::byte, sizeof(T)> raw;
    std::ranges::copy(take(sizeof(T), what), raw.begin());
    if (big_endian_) std::ranges::reverse(raw);
    return std::bit_cast<T>(raw);
  }

  // A count, length or size: 32 bits in version 1, 64 since.
  uint64_t count(std::string_view what) {
    return version_ == 1 ? number<uint32_t>(what) : number<uint64_t>(what);
  }
  uint64_t count_bytes() const noexcept { return version_ == 1 ? 4 : 8; }

  // A count of things that take at least `min_bytes` each: the rest of the file must hold them.
  uint64_t count_of(uint64_t min_bytes, uint64_t limit, std::string_view what) {
    const uint64_t n = count(what);
    if (n > limit)
      fail(ErrorKind::kCorrupt, "gguf", "{}: expected at most {}, got {} ({})", what, limit, n,
           path_);
    if (n > remaining() / min_bytes) cut_short(what, n * min_bytes);
    return n;
  }

  std::string string(std::string_view what, uint64_t limit = UINT64_MAX) {
    const uint64_t n_bytes = count(what);
    if (n_bytes > limit) {
      fail(ErrorKind::kCorrupt, "gguf", "{}: expected at most {} bytes, got {} (byte {} of {})",
           what, limit, n_bytes, at_, path_);
    }
    const auto bytes = take(n_bytes, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> take(uint64_t n_bytes, std::string_view what) {
    if (n_bytes > remaining()) cut_short(what, n_bytes);
    const auto out = bytes_.subspan(at_, n_bytes);
    at_ += n_bytes;
    return out;
  }

  [[noreturn]] void cut_short(std::string_view what, uint64_t n_bytes) const {
    fail(ErrorKind::kCorrupt, "gguf",
         "{}: expected {} more bytes, got {}; cut short (byte {} of {})", printable(what), n_bytes,
         remaining(), at_, path_);
  }

  std::span<const std::byte> bytes_;
  std::string path_;
  size_t at_ = 0;
  uint32_t version_ = 0;
  bool big_endian_ = false;
};

GgufType read_type(Cursor& in, std::string_view key) {
  const auto id = in.number<uint32_t>("value type");
  if (id > static_cast<uint32_t>(GgufType::kF64)) {
    fail(ErrorKind::kCorrupt, "gguf", "type of {}: expected a value type from 0 to 12, got {} ({})",
         printable(key), id, in.path());
  }
  return static_cast<GgufType>(id);
}

bool read_bool(Cursor& in, std::string_view key) {
  const auto byte = in.number<uint8_t>(key);
  if (byte > 1) {
    fail(ErrorKind::kCorrupt, "gguf", "{}: expected a bool of 0 or 1, got {} ({})", printable(key),
         byte, in.path());
  }
  return byte == 1;
}

int64_t read_signed(Cursor& in, GgufType type, std::string_view key) {
  switch (type) {
    case GgufType::kI8:
      return in.number<int8_t>(key);
    case GgufType::kI16:
      return in.number<int16_t>(key);
    case GgufType::kI32:
      return in.number<int32_t>(key);
    default:
      return in.number<int64_t>(key);
  }
}

uint64_t read_unsigned(Cursor& in, GgufType type, std::string_view key) {
  switch (type) {
    case GgufType::kU8:
      return in.number<uint8_t>(key);
    case GgufType::kU16:
      return in.number<uint16_t>(key);
    case GgufType::kU32:
      return in.number<uint32_t>(key);
    default:
      return in.number<uint64_t>(key);
  }
}

double read_real(Cursor& in, GgufType type, std::string_view key) {
  return type == GgufType::kF32 ? double{in.number<float>(key)} : in.number<double>(key);
}

bool is_signed(GgufType type) {
  return type == GgufType::kI8 || type == GgufType::kI16 || type == GgufType::kI32 ||
         type == GgufType::kI64;
}
bool is_real(GgufType type) {
  return type == GgufType::kF32 || type == GgufType::kF64;
}

// `budget`: array elements that the whole file may still hold.
GgufValue read_array(Cursor& in, std::string_view key, uint64_t& budget) {
  const GgufType element = read_type(in, key);
  if (element == GgufType::kArray) {
    fail(ErrorKind::kUnsupported, "gguf",
         "{}: expected an array of plain values, got nested arrays ({})", printable(key),
         in.path());
  }
  const bool is_string = element == GgufType::kString;
  const uint64_t n = in.count_of(
      is_string ? in.count_bytes() : static_cast<uint64_t>(size_bytes(element)), budget, key);
  budget -= n;
  GgufValue out{GgufType::kArray, element, {}};
  if (is_string) {
    std::vector<std::string> values;
    values.reserve(n);
    for (uint64_t i = 0; i < n; ++i)
      values.push_back(in.string(key));
    out.value = std::move(values);
  } else if (is_real(element)) {
    std::vector<double> values(n);
    for (double& value : values)
      value = read_real(in, element, key);
    out.value = std::move(values);
  } else {
    std::vector<int64_t> values(n);
    for (int64_t& value : values) {
      value = is_signed(element) ? read_signed(in, element, key)
              : element == GgufType::kBool
                  ? int64_t{read_bool(in, key)}
                  : checked_cast<int64_t>(read_unsigned(in, element, key), key, in.path());
    }
    out.value = std::move(values);
  }
  return out;
}

GgufValue read_value(Cursor& in, std::string_view key, uint64_t& budget) {
  const GgufType type = read_type(in, key);
  GgufValue out{type, {}, {}};
  if (type == GgufType::kArray) return read_array(in, key, budget);
  if (type == GgufType::kString) {
    out.value = in.string(key);
  } else if (type == GgufType::kBool) {
    out.value = read_bool(in, key);
  } else if (is_real(type)) {
    out.value = read_real(in, type, key);
  } else if (is_signed(type)) {
    out.value = read_signed(in, type, key);
  } else {
    out.value = read_unsigned(in, type, key);
  }
  return out;
}

void read_entries(Cursor& in, uint64_t n_entries, GgufMetadata& out) {
  std::unordered_set<std::string> keys;
  uint64_t budget = kMaxArrayElems;
  for (uint64_t i = 0; i < n_entries; ++i) {
    std::string key = in.string("metadata key", kMaxKeyBytes);
    if (!keys.insert(key).second) {
      fail(ErrorKind::kCorrupt, "gguf", "metadata key {}: expected it once, got it twice ({})",
           printable(key), in.path());
    }
    GgufValue value = read_value(in, key, budget);
    out.entries.emplace_back(std::move(key), std::move(value));
  }
  const int64_t alignment = out.integer_or("general.alignment", out.alignment);
  if (alignment < 1 || alignment > kMaxAlignment) {
    fail(ErrorKind::kCorrupt, "gguf", "general.alignment: expected 1 to {} bytes, got {} ({})",
         kMaxAlignment, alignment, in.path());
  }
  out.alignment = static_cast<uint32_t>(alignment);
}

// One row of the tensor directory; bytes are filled in when the start of the data is known.
RawTensor read_tensor_entry(Cursor& in) {
  RawTensor tensor;
  tensor.name = in.string("tensor name", kMaxNameBytes);
  const std::string name = printable(tensor.name);
  const auto rank = in.number<uint32_t>("tensor rank");
  if (rank > static_cast<uint32_t>(Shape::kMaxRank)) {
    fail(ErrorKind::kCorrupt, "gguf", "rank of {}: expected at most {}, got {} ({})", name,
         Shape::kMaxRank, rank, in.path());
  }
  std::vector<int64_t> sizes(rank);
  for (int64_t& size : sizes)
    size = checked_cast<int64_t>(in.count("tensor size"), name, in.path());
  std::ranges::reverse(sizes);  // the file has the contiguous axis first
  tensor.shape = Shape(sizes, name, in.path());
  const auto id = in.number<uint32_t>("tensor type");
  const auto dtype = dtype_from_ggml_id(id);
  if (!dtype) {
    fail(ErrorKind::kUnsupported, "gguf",
         "type of {}: expected a known tensor type, got id {} (4, 5, 31-33 and 36-38 were removed "
         "from the format) ({})",
         name, id, in.path());
  }
  tensor.dtype = *dtype;
  tensor.offset_bytes = in.number<uint64_t>("tensor offset");
  return tensor;
}

uint64_t tensor_bytes(const RawTensor& tensor) {
  const std::string name = printable(tensor.name);
  const int64_t row = row_bytes(tensor.dtype, tensor.shape.cols(), name, tensor.file);
  return static_cast<uint64_t>(checked_mul(row, tensor.shape.rows(), name, tensor.file));
}

// Gives every tensor its bytes, once all of them are known to lie apart and inside the data.
void place_tensors(std::vector<RawTensor>& tensors, const std::shared_ptr<const MappedFile>& file,
                   uint64_t data_begin, uint32_t alignment) {
  const std::string path = printable(file->path(), 4096);
  const uint64_t file_bytes = file->bytes().size();
  const uint64_t data_bytes = file_bytes > data_begin ? file_bytes - data_begin : 0;
  std::vector<std::pair<uint64_t, RawTensor*>> order;  // by offset
  for (RawTensor& tensor : tensors) {
    const std::string name = printable(tensor.name);
    const uint64_t n_bytes = tensor_bytes(tensor);
    if (tensor.offset_bytes % alignment != 0) {
      fail(ErrorKind::kCorrupt, "gguf", "offset of {}: expected a multiple of {}, got {} ({})",
           name, alignment, tensor.offset_bytes, path);
    }
    if (n_bytes > data_bytes || tensor.offset_bytes > data_bytes - n_bytes) {
      fail(ErrorKind::kCorrupt, "gguf",
           "data of {}: expected {} bytes from {} on, got only {} in all; cut short ({})", name,
           n_bytes, tensor.offset_bytes, data_bytes, path);
    }
    tensor.file = file->path();
    tensor.owner = file;
    if (n_bytes > 0) {
      order.emplace_back(tensor.offset_bytes, &tensor);
      tensor.bytes = file->bytes().subspan(data_begin + tensor.offset_bytes, n_bytes);
    }
    tensor.offset_bytes += data_begin;
  }
  std::ranges::sort(order);
  for (size_t i = 1; i < order.size(); ++i) {
    const RawTensor& before = *order[i - 1].second;
    const RawTensor& after = *order[i].second;
    if (before.offset_bytes + before.bytes.size() > after.offset_bytes) {
      fail(ErrorKind::kCorrupt, "gguf",
           "data of {}: expected it after that of {}, got an overlap ({})", printable(after.name),
           printable(before.name), path);
    }
  }
}

void swap_tensors(std::vector<RawTensor>& tensors) {
  for (RawTensor& tensor : tensors) {
    auto copy = std::make_shared<std::vector<std::byte>>(tensor.bytes.begin(), tensor.bytes.end());
    swap_byte_order(tensor.dtype, *copy, printable(tensor.name));
    tensor.bytes = *copy;
    tensor.owner = std::move(copy);
  }
}

int64_t split_count(const GgufMetadata& metadata) {
  return metadata.integer_or("split.count", 0);
}

}  // namespace

GgufFile read_gguf(const std::shared_ptr<const MappedFile>& file) {
  Cursor in(*file);
  in.read_prefix();
  auto metadata = std::make_shared<GgufMetadata>();
  metadata->version = in.version();
  metadata->big_endian = in.big_endian();
  metadata->file = file->path();

  // The least that a tensor (name length, rank, type, offset) and an entry (key length, type,
  // value) take.
  const uint64_t n_tensors = in.count_of(in.count_bytes() + 16, kMaxTensors, "tensor count");
  const uint64_t n_entries = in.count_of(in.count_bytes() + 5, kMaxEntries, "metadata count");
  read_entries(in, n_entries, *metadata);

  GgufFile out{.metadata = metadata, .tensors = {}, .mapping = file};
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < n_tensors; ++i) {
    out.tensors.push_back(read_tensor_entry(in));
    if (!names.insert(out.tensors.back().name).second) {
      fail(ErrorKind::kCorrupt, "gguf", "tensor {}: expected it once, got it twice ({})",
           printable(out.tensors.back().name), in.path());
    }
  }
  place_tensors(out.tensors, file, round_up<uint64_t>(in.offset(), metadata->alignment),
                metadata->alignment);
  if (metadata->big_endian) swap_tensors(out.tensors);
  file->check_readable();
  return out;
}

std::vector<GgufFile> read_gguf_model(
    const std::string& path,
    FunctionRef<std::shared_ptr<const MappedFile>(const std::string&)> open) {
  namespace fs = std::filesystem;
  std::vector<GgufFile> parts;
  parts.push_back(read_gguf(open(path)));
  const int64_t n_parts = split_count(*parts.front().metadata);
  if (n_parts <= 1) return parts;

  const std::string where = printable(path, 4096);
  auto name = parse_shard_name(fs::path(path).filename().string());
  if (!name || name->count != n_parts) {
    fail(ErrorKind::kNotFound, "gguf",
         "file name of a part: expected NAME-00001-of-{:05}.gguf or alike, got {} ({})", n_parts,
         printable(fs::path(path).filename().string()), where);
  }
  const int64_t n_tensors = parts.front().metadata->integer("split.tensors.count");
  const int given = name->number;
  GgufFile given_part = std::move(parts.front());
  parts.clear();
  int64_t n_found = 0;
  for (name->number = 1; name->number <= name->count; ++name->number) {
    const fs::path part_path = fs::path(path).parent_path() / format_shard_name(*name);
    if (!path_exists(part_path.string())) {
      fail(ErrorKind::kNotFound, "gguf", "part {} of {}: expected {}, got no such file ({})",
           name->number, n_parts, printable(part_path.filename().string()), where);
    }
    GgufFile part =
        name->number == given ? std::exchange(given_part, {}) : read_gguf(open(part_path.string()));
    const int64_t number = part.metadata->integer("split.no");
    const int64_t count = split_count(*part.metadata);
    const int64_t total = part.metadata->integer("split.tensors.count");
    if (number != name->number - 1 || count != n_parts || total != n_tensors) {
      fail(ErrorKind::kCorrupt, "gguf",
           "split: expected part {} of {} with {} tensors in all, got part {} of {} with {} ({})",
           name->number - 1, n_parts, n_tensors, number, count, total,
           printable(part_path.string(), 4096));
    }
    n_found += static_cast<int64_t>(part.tensors.size());
    parts.push_back(std::move(part));
  }
  if (n_found != n_tensors) {
    fail(ErrorKind::kCorrupt, "gguf",
         "split.tensors.count: expected {} tensors in all parts, got {} ({})", n_tensors, n_found,
         where);
  }
  return parts;
}

}  // namespace qw
