#include <algorithm>
#include <bit>
#include <unordered_set>
#include <utility>

#include "base/atomic_file.h"
#include "base/checked.h"
#include "checkpoint/gguf_split.h"

namespace qw {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF" as the bytes lie in the file
constexpr uint32_t kVersion = 3;
constexpr uint32_t kDefaultAlignment = 32;
constexpr std::string_view kAlignmentKey = "general.alignment";

class HeaderBytes {
 public:
  template <typename T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void string(std::string_view text) {
    number(uint64_t{text.size()});
    bytes_ += text;
  }
  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(bytes_)); }
  void pad_to(size_t alignment) { bytes_.resize(round_up(bytes_.size(), alignment)); }

 private:
  std::string bytes_;
};

template <typename T>
void put_integer(HeaderBytes& out, auto value, std::string_view key) {
  if (!std::in_range<T>(value)) {
    fail(ErrorKind::kInvalidArgument, "gguf", "{}: expected a value that fits {} bits, got {}",
         printable(key), sizeof(T) * 8, value);
  }
  out.number(static_cast<T>(value));
}

void put_integer_as(HeaderBytes& out, GgufType type, auto value, std::string_view key) {
  switch (type) {
    case GgufType::kU8:
      return put_integer<uint8_t>(out, value, key);
    case GgufType::kI8:
      return put_integer<int8_t>(out, value, key);
    case GgufType::kU16:
      return put_integer<uint16_t>(out, value, key);
    case GgufType::kI16:
      return put_integer<int16_t>(out, value, key);
    case GgufType::kU32:
      return put_integer<uint32_t>(out, value, key);
    case GgufType::kI32:
      return put_integer<int32_t>(out, value, key);
    case GgufType::kU64:
      return put_integer<uint64_t>(out, value, key);
    case GgufType::kI64:
      return put_integer<int64_t>(out, value, key);
    case GgufType::kBool:
      return put_integer<uint8_t>(out, value, key);
    default:
      break;
  }
  fail(ErrorKind::kInvalidArgument, "gguf", "{}: expected an integer type, got {}", printable(key),
       name_of(type));
}

void put_real_as(HeaderBytes& out, GgufType type, double value, std::string_view key) {
  if (type == GgufType::kF32) {
    out.number(static_cast<float>(value));
  } else if (type == GgufType::kF64) {
    out.number(value);
  } else {
    fail(ErrorKind::kInvalidArgument, "gguf", "{}: expected a float type, got {}", printable(key),
         name_of(type));
  }
}

// Writes one alternative of the variant under the type that the entry states.
struct ValueWriter {
  HeaderBytes& out;
  const GgufValue& entry;
  std::string_view key;

  void operator()(int64_t value) const { put_integer_as(out, entry.type, value, key); }
  void operator()(uint64_t value) const { put_integer_as(out, entry.type, value, key); }
  void operator()(double value) const { put_real_as(out, entry.type, value, key); }
  void operator()(bool value) const {
    expect(entry.type, GgufType::kBool);
    out.number(uint8_t{value});
  }
  void operator()(const std::string& value) const {
    expect(entry.type, GgufType::kString);
    out.string(value);
  }
  void operator()(const std::vector<int64_t>& values) const {
    begin_array(values.size());
    for (const int64_t value : values)
      put_integer_as(out, entry.element, value, key);
  }
  void operator()(const std::vector<double>& values) const {
    begin_array(values.size());
    for (const double value : values)
      put_real_as(out, entry.element, value, key);
  }
  void operator()(const std::vector<std::string>& values) const {
    expect(entry.element, GgufType::kString);
    begin_array(values.size());
    for (const std::string& value : values)
      out.string(value);
  }

  void begin_array(size_t n_elems) const {
    expect(entry.type, GgufType::kArray);
    out.number(static_cast<uint32_t>(entry.element));
    out.number(uint64_t{n_elems});
  }
  void expect(GgufType stated, GgufType held) const {
    if (stated == held) return;
    fail(ErrorKind::kInvalidArgument, "gguf", "{}: expected a value of type {}, got {}",
         printable(key), name_of(stated), name_of(held));
  }
};

void put_entry(HeaderBytes& out, std::string_view key, const GgufValue& value) {
  out.string(key);
  out.number(static_cast<uint32_t>(value.type));
  std::visit(ValueWriter{out, value, key}, value.value);
}

void put_entries(HeaderBytes& out, const GgufWriter& content) {
  const auto stated = std::ranges::find(content.entries, kAlignmentKey,
                                        [](const auto& e) { return std::string_view(e.first); });
  const bool add_alignment =
      stated == content.entries.end() && content.alignment != kDefaultAlignment;
  out.number(uint64_t{content.entries.size() + (add_alignment ? 1 : 0)});
  std::unordered_set<std::string_view> keys;
  for (const auto& [key, value] : content.entries) {
    if (!keys.insert(key).second) {
      fail(ErrorKind::kInvalidArgument, "gguf", "metadata key {}: expected it once, got it twice",
           printable(key));
    }
    if (key == kAlignmentKey && value.value != GgufValue::u32(content.alignment).value) {
      fail(ErrorKind::kInvalidArgument, "gguf",
           "{}: expected u32 {} as the file is laid out, got another value", key,
           content.alignment);
    }
    put_entry(out, key, value);
  }
  if (add_alignment) put_entry(out, kAlignmentKey, GgufValue::u32(content.alignment));
}

// The tensor directory; returns the size of every tensor.
std::vector<uint64_t> put_directory(HeaderBytes& out, const GgufWriter& content) {
  std::vector<uint64_t> sizes;
  std::unordered_set<std::string_view> names;
  uint64_t offset = 0;
  for (const GgufWriter::Tensor& tensor : content.tensors) {
    const std::string name = printable(tensor.name);
    const DTypeInfo& type = info(tensor.dtype);
    if (type.ggml_id < 0 || !names.insert(tensor.name).second ||
        tensor.shape.cols() % type.block_elems != 0) {
      fail(ErrorKind::kInvalidArgument, "gguf",
           "tensor {}: expected a new name and whole blocks of a GGUF type, got {} {}", name,
           type.name, tensor.shape.str());
    }
    out.string(tensor.name);
    out.number(static_cast<uint32_t>(tensor.shape.rank()));
    for (int axis = tensor.shape.rank(); axis-- > 0;)
      out.number(static_cast<uint64_t>(tensor.shape[axis]));
    out.number(static_cast<uint32_t>(type.ggml_id));
    out.number(offset);
    const int64_t row = row_bytes(tensor.dtype, tensor.shape.cols(), name);
    sizes.push_back(static_cast<uint64_t>(checked_mul(row, tensor.shape.rows(), name)));
    offset = round_up<uint64_t>(checked_add(offset, sizes.back(), name), content.alignment);
  }
  return sizes;
}

struct Layout {
  HeaderBytes header;
  std::vector<uint64_t> sizes;  // of the tensors
};

Layout lay_out(const GgufWriter& content) {
  if (!std::has_single_bit(content.alignment)) {
    fail(ErrorKind::kInvalidArgument, "gguf", "alignment: expected a power of two, got {}",
         content.alignment);
  }
  Layout out;
  out.header.number(kMagic);
  out.header.number(kVersion);
  out.header.number(uint64_t{content.tensors.size()});
  put_entries(out.header, content);
  out.sizes = put_directory(out.header, content);
  out.header.pad_to(content.alignment);
  return out;
}

}  // namespace

void write_gguf(const std::string& path, const GgufWriter& content,
                FunctionRef<void(size_t, GgufSink)> produce) {
  AtomicFile file(path);
  write_gguf(file, content, produce);
  file.commit();
}

void write_gguf(AtomicFile& file, const GgufWriter& content,
                FunctionRef<void(size_t, GgufSink)> produce, size_t n_written,
                const std::function<void(size_t)>& on_tensor) {
  const auto [header, sizes] = lay_out(content);
  if (n_written == 0) file.write(header.bytes());
  const std::vector<std::byte> zeros(content.alignment);
  for (size_t i = n_written; i < sizes.size(); ++i) {
    const uint64_t size = sizes[i];
    uint64_t n_produced = 0;
    const auto sink = [&](std::span<const std::byte> bytes) {
      n_produced += bytes.size();
      if (n_produced <= size) file.write(bytes);
    };
    produce(i, sink);
    if (n_produced != size) {
      fail(ErrorKind::kInvalidArgument, "gguf", "bytes of {}: expected {}, got {}",
           printable(content.tensors[i].name), size, n_produced);
    }
    file.write(std::span(zeros).first(round_up<uint64_t>(size, content.alignment) - size));
    if (on_tensor) on_tensor(i + 1);
  }
}

std::vector<std::byte> gguf_header(const GgufWriter& content) {
  const Layout layout = lay_out(content);
  return {layout.header.bytes().begin(), layout.header.bytes().end()};
}

int64_t gguf_file_bytes(const GgufWriter& content, size_t n_tensors) {
  if (n_tensors == 0) return 0;
  const Layout layout = lay_out(content);
  auto bytes = static_cast<int64_t>(layout.header.bytes().size());
  for (const uint64_t size : std::span(layout.sizes).first(n_tensors))
    bytes += static_cast<int64_t>(round_up<uint64_t>(size, content.alignment));
  return bytes;
}

int64_t gguf_file_bytes(const GgufWriter& content) {
  const auto header = static_cast<int64_t>(lay_out(content).header.bytes().size());
  return content.tensors.empty() ? header : gguf_file_bytes(content, content.tensors.size());
}

}  // namespace qw
