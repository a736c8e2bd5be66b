#include "checkpoint/torch_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/checked.h"
#include "checkpoint/byte_order.h"
#include "checkpoint/pickle.h"
#include "checkpoint/zip.h"

namespace qw {

namespace {

using Kind = PickleNode::Kind;

constexpr size_t kMaxPickleBytes = size_t{64} << 20;
constexpr uint64_t kMaxCopyFactor = 4;  // of the file's size
constexpr int kMaxWrappers = 3;
constexpr std::string_view kLegacyMagic =
    "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";  // 0x1950a86a20f9469cfc6c
constexpr int64_t kLegacyProtocol = 1001;

struct TorchType {
  std::string_view storage;  // torch.FloatStorage
  std::string_view name;     // torch.float32
  DType dtype;
};
constexpr std::array kTypes = {
    TorchType{"FloatStorage", "float32", DType::kF32},
    TorchType{"HalfStorage", "float16", DType::kF16},
    TorchType{"BFloat16Storage", "bfloat16", DType::kBF16},
    TorchType{"DoubleStorage", "float64", DType::kF64},
    TorchType{"CharStorage", "int8", DType::kI8},
    TorchType{"ShortStorage", "int16", DType::kI16},
    TorchType{"IntStorage", "int32", DType::kI32},
    TorchType{"LongStorage", "int64", DType::kI64},
    TorchType{"ByteStorage", "uint8", DType::kU8},
    TorchType{"BoolStorage", "bool", DType::kBool},
    TorchType{"", "uint16", DType::kU16},
    TorchType{"", "uint32", DType::kU32},
    TorchType{"", "uint64", DType::kU64},
};

// Every global that a state dict of tensors may name. Anything else is refused by name.
constexpr auto kIsAllowed = [](std::string_view module, std::string_view name) {
  if (module == "collections") return name == "OrderedDict";
  if (module == "torch._utils") {
    return name == "_rebuild_tensor" || name == "_rebuild_tensor_v2" ||
           name == "_rebuild_tensor_v3" || name == "_rebuild_parameter";
  }
  if (module == "torch.storage")
    return name == "UntypedStorage" || name == "TypedStorage" || name == "_LegacyStorage";
  if (module == "torch.nn.parameter") return name == "Parameter";
  if (module == "torch" && (name == "Size" || name == "device" || name == "Tensor")) return true;
  if (module == "torch" || module == "torch.cuda") {
    return std::ranges::any_of(kTypes, [&](const TorchType& type) {
      return (!type.storage.empty() && name == type.storage) ||
             (module == "torch" && name == type.name);
    });
  }
  return false;
};

// A storage as the pickle names it. dtype empty: untyped bytes.
struct StorageId {
  std::string key;
  std::optional<DType> dtype;
  int64_t n_elems = 0;
};

struct Storage {
  std::span<const std::byte> bytes;
  uint64_t offset_bytes = 0;  // in the file
};

// Turns the nodes of a state dict into tensors; where the bytes of a storage lie is known later
// (in the legacy form they follow the pickle).
class StateDict {
 public:
  explicit StateDict(const std::shared_ptr<const MappedFile>& file)
      : file_(file),
        path_(printable(file->path(), 4096)),
        copy_budget_(kMaxCopyFactor * file->bytes().size()) {}

  // Reads names, types, shapes, strides and storage ids.
  void read(const PickleNode& root) {
    const PickleNode& dict = unwrap(root);
    for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
      const PickleNode& key = *dict.items[i];
      if (!key.is(Kind::kText)) refuse("key of the state dict", "a string", key);
      name_ = printable(key.text);
      View view = read_tensor(*dict.items[i + 1], 0);
      view.name = key.text;
      views_.push_back(std::move(view));
    }
  }

  // The storages in use, by key. Errors: corrupt when one has two types or sizes.
  std::map<std::string, StorageId> storages() const {
    std::map<std::string, StorageId> out;
    for (const View& view : views_) {
      const auto [entry, is_new] = out.try_emplace(view.storage.key, view.storage);
      if (!is_new && (entry->second.dtype != view.storage.dtype ||
                      entry->second.n_elems != view.storage.n_elems)) {
        fail(ErrorKind::kCorrupt, "torch", "storage {}: expected one type and size, got two ({})",
             printable(view.storage.key), path_);
      }
    }
    return out;
  }

  std::vector<RawTensor> place(const std::unordered_map<std::string, Storage>& storages,
                               bool big_endian) {
    std::vector<RawTensor> out;
    for (View& view : views_) {
      const auto found = storages.find(view.storage.key);
      if (found == storages.end()) {
        fail(ErrorKind::kCorrupt, "torch", "{}: expected storage {}, got no such entry ({})",
             printable(view.name), printable(view.storage.key), path_);
      }
      out.push_back(place_one(view, found->second, big_endian));
    }
    return out;
  }

 private:
  struct View {
    std::string name;
    StorageId storage;
    DType dtype = DType::kF32;
    int64_t offset_elems = 0;
    Shape shape;
    std::vector<int64_t> strides;  // in elements
  };

  [[noreturn]] void refuse(std::string_view what, std::string_view expected,
                           const PickleNode& got) const {
    fail(ErrorKind::kUnsupported, "torch", "{}: expected {}, got {} ({})", what, expected,
         name_of(got.kind), path_);
  }
  [[noreturn]] void malformed(std::string_view what) const {
    fail(ErrorKind::kCorrupt, "torch", "{}: expected {}, got something else ({})", name_, what,
         path_);
  }

  static bool is_tensor(const PickleNode& node) { return node.is(Kind::kCall); }

  const PickleNode& unwrap(const PickleNode& root) const {
    const PickleNode* node = &root;
    for (int level = 0; level < kMaxWrappers; ++level) {
      if (!node->is(Kind::kDict)) refuse("file", "a dict of tensors", *node);
      const PickleNode* inner = nullptr;
      for (size_t i = 0; i + 1 < node->items.size(); i += 2) {
        const PickleNode& key = *node->items[i];
        const PickleNode& value = *node->items[i + 1];
        if (is_tensor(value)) return *node;
        const bool is_wrapper =
            key.is(Kind::kText) &&
            (key.text == "state_dict" || key.text == "model" || key.text == "module");
        if (is_wrapper && value.is(Kind::kDict)) inner = &value;
      }
      if (inner == nullptr) return *node;
      node = inner;
    }
    return *node;
  }

  int64_t integer(const PickleNode& node, std::string_view what) const {
    if (!node.is(Kind::kInt) || node.integer < 0) malformed(what);
    return node.integer;
  }

  // A tuple of sizes, or torch.Size(tuple).
  std::vector<int64_t> integers(const PickleNode& node, std::string_view what) const {
    if (node.is(Kind::kCall) && node.items[0]->is_global("torch", "Size")) {
      const PickleNode& arguments = *node.items[1];
      if (arguments.items.size() != 1 || !arguments.items[0]->is(Kind::kTuple)) malformed(what);
      return integers(*arguments.items[0], what);
    }
    if (!node.is(Kind::kTuple)) malformed(what);
    std::vector<int64_t> out;
    for (const PickleNode* item : node.items)
      out.push_back(integer(*item, what));
    return out;
  }

  // ('storage', type, key, location, number of elements [, view])
  StorageId read_storage(const PickleNode& node) const {
    if (!node.is(Kind::kPersistent) || !node.items[0]->is(Kind::kTuple)) malformed("a storage");
    const auto& id = node.items[0]->items;
    if (id.size() < 5 || !id[0]->is(Kind::kText) || id[0]->text != "storage" ||
        !id[1]->is(Kind::kGlobal) || !id[2]->is(Kind::kText)) {
      malformed("a storage id of five values");
    }
    if (id.size() > 5 && !id[5]->is(Kind::kNone))
      refuse(name_, "a whole storage (PyTorch 0.4 or later)", *id[5]);
    StorageId out{
        .key = std::string(id[2]->text), .dtype = {}, .n_elems = integer(*id[4], "a storage size")};
    if (id[1]->text == "torch.storage") return out;
    const auto type = std::ranges::find(kTypes, id[1]->name, &TorchType::storage);
    if (type == kTypes.end()) malformed("a storage type");
    out.dtype = type->dtype;
    return out;
  }

  View read_tensor(const PickleNode& node, int depth) const {
    if (!is_tensor(node) || depth > kMaxWrappers) refuse(name_, "a tensor", node);
    const PickleNode& function = *node.items[0];
    const auto& arguments = node.items[1]->items;
    if (function.is_global("torch._utils", "_rebuild_parameter") && !arguments.empty()) {
      return read_tensor(*arguments[0], depth + 1);
    }
    if (function.text != "torch._utils" || arguments.size() < 4)
      malformed("a call that rebuilds a tensor");
    View view;
    view.storage = read_storage(*arguments[0]);
    view.offset_elems = integer(*arguments[1], "a storage offset");
    const std::vector<int64_t> sizes = integers(*arguments[2], "a tuple of sizes");
    view.strides = integers(*arguments[3], "a tuple of strides");
    if (view.strides.size() != sizes.size()) malformed("as many strides as sizes");
    if (sizes.size() > static_cast<size_t>(Shape::kMaxRank)) {
      fail(ErrorKind::kUnsupported, "torch",
           "shape of {}: expected at most {} dimensions, got {} ({})", name_, Shape::kMaxRank,
           sizes.size(), path_);
    }
    view.shape = Shape(sizes, name_, path_);
    if (function.name == "_rebuild_tensor_v3") {
      if (arguments.size() < 7 || !arguments[6]->is(Kind::kGlobal)) malformed("a dtype");
      const auto type = std::ranges::find(kTypes, arguments[6]->name, &TorchType::name);
      if (type == kTypes.end()) malformed("a dtype");
      view.dtype = type->dtype;
    } else {
      if (!view.storage.dtype) malformed("a typed storage");
      view.dtype = *view.storage.dtype;
    }
    return view;
  }

  static bool is_contiguous(const View& view) {
    int64_t expected = 1;
    for (int axis = view.shape.rank(); axis-- > 0;) {
      if (view.shape[axis] == 1) continue;
      if (view.strides[static_cast<size_t>(axis)] != expected) return false;
      expected *= view.shape[axis];
    }
    return true;
  }

  // Elements of the storage from its begin to the last one that the view touches.
  int64_t extent(const View& view) const {
    int64_t last = view.offset_elems;
    for (int axis = 0; axis < view.shape.rank(); ++axis) {
      if (view.shape[axis] == 0) return 0;
      last = checked_add(last,
                         checked_mul(view.shape[axis] - 1, view.strides[static_cast<size_t>(axis)],
                                     printable(view.name)),
                         printable(view.name));
    }
    return checked_add<int64_t>(last, 1, printable(view.name));
  }

  RawTensor place_one(View& view, const Storage& storage, bool big_endian) {
    const int64_t elem_bytes = info(view.dtype).block_bytes;
    const std::string name = printable(view.name);
    if (static_cast<uint64_t>(checked_mul(extent(view), elem_bytes, name)) > storage.bytes.size()) {
      fail(ErrorKind::kCorrupt, "torch",
           "{}: expected {} elements in storage {}, got only {} bytes ({})", name, extent(view),
           printable(view.storage.key), storage.bytes.size(), path_);
    }
    RawTensor out;
    out.name = std::move(view.name);
    out.dtype = view.dtype;
    out.shape = view.shape;
    out.file = file_->path();
    out.owner = file_;
    if (view.shape.n_elems() == 0) return out;
    const uint64_t begin = static_cast<uint64_t>(view.offset_elems * elem_bytes);
    out.offset_bytes = storage.offset_bytes + begin;
    const bool contiguous = is_contiguous(view);
    if (contiguous)
      out.bytes =
          storage.bytes.subspan(begin, static_cast<uint64_t>(view.shape.n_elems() * elem_bytes));
    if (contiguous && !big_endian) return out;

    auto copy = std::make_shared<std::vector<std::byte>>(
        charge(checked_mul(view.shape.n_elems(), elem_bytes, name), name));
    gather(view, storage.bytes.subspan(begin), static_cast<size_t>(elem_bytes), *copy);
    if (big_endian) swap_byte_order(view.dtype, *copy, name);
    out.bytes = *copy;
    out.owner = std::move(copy);
    return out;
  }

  size_t charge(int64_t n_bytes, std::string_view name) {
    if (static_cast<uint64_t>(n_bytes) > copy_budget_) {
      fail(ErrorKind::kOutOfMemory, "torch",
           "copy of {}: expected copies of at most {} times the file, got {} bytes more ({})", name,
           kMaxCopyFactor, n_bytes, path_);
    }
    copy_budget_ -= static_cast<uint64_t>(n_bytes);
    return static_cast<size_t>(n_bytes);
  }

  // Copies the elements of a strided view, in row-major order.
  static void gather(const View& view, std::span<const std::byte> from, size_t elem_bytes,
                     std::vector<std::byte>& to) {
    std::array<int64_t, Shape::kMaxRank> index{};
    const int rank = view.shape.rank();
    for (size_t out = 0; out < to.size(); out += elem_bytes) {
      int64_t source = 0;
      for (int axis = 0; axis < rank; ++axis) {
        source += index[static_cast<size_t>(axis)] * view.strides[static_cast<size_t>(axis)];
      }
      std::memcpy(to.data() + out, from.data() + static_cast<size_t>(source) * elem_bytes,
                  elem_bytes);
      for (int axis = rank; axis-- > 0;) {
        if (++index[static_cast<size_t>(axis)] < view.shape[axis]) break;
        index[static_cast<size_t>(axis)] = 0;
      }
    }
  }

  std::shared_ptr<const MappedFile> file_;
  std::string path_;
  std::string name_;  // of the tensor being read, for messages
  uint64_t copy_budget_;
  std::vector<View> views_;
};

int64_t storage_bytes(const StorageId& id, std::string_view path) {
  return checked_mul<int64_t>(id.n_elems, id.dtype ? info(*id.dtype).block_bytes : 1, "storage",
                              path);
}

std::vector<RawTensor> read_zip_form(const std::shared_ptr<const MappedFile>& file) {
  const std::string path = printable(file->path(), 4096);
  const std::vector<ZipEntry> entries = read_zip(*file);
  std::unordered_map<std::string_view, const ZipEntry*> by_name;
  std::string root;  // the archive's one folder, with its slash
  for (const ZipEntry& entry : entries) {
    by_name[entry.name] = &entry;
    const size_t slash = entry.name.find('/');
    if (slash != std::string::npos && entry.name.substr(slash) == "/data.pkl")
      root = entry.name.substr(0, slash + 1);
  }
  const auto pickle_entry = by_name.find(root + "data.pkl");
  if (pickle_entry == by_name.end()) {
    const bool is_script = by_name.contains(root + "constants.pkl");
    fail(ErrorKind::kUnsupported, "torch", "archive: expected data.pkl of torch.save, got {} ({})",
         is_script ? "a TorchScript program" : "none", path);
  }
  const ZipEntry& pickle_data = *pickle_entry->second;
  if (pickle_data.bytes.size() > kMaxPickleBytes) {
    fail(ErrorKind::kUnsupported, "torch", "data.pkl: expected at most {} bytes, got {} ({})",
         kMaxPickleBytes, pickle_data.bytes.size(), path);
  }
  check_crc(pickle_data, file->path());

  bool big_endian = false;
  if (const auto marker = by_name.find(root + "byteorder"); marker != by_name.end()) {
    const auto& bytes = marker->second->bytes;
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (text != "little" && text != "big") {
      fail(ErrorKind::kCorrupt, "torch", "byteorder: expected little or big, got '{}' ({})",
           printable(text), path);
    }
    big_endian = text == "big";
  }

  size_t offset = 0;
  const Pickle pickle(pickle_data.bytes, offset, kIsAllowed, file->path());
  StateDict dict(file);
  dict.read(pickle.root());
  std::unordered_map<std::string, Storage> storages;
  const std::string folder = root + "data/";
  for (const auto& [key, id] : dict.storages()) {
    const auto entry = by_name.find(folder + key);
    if (entry == by_name.end()) continue;  // reported with the tensor's name
    const ZipEntry& data = *entry->second;
    if (data.bytes.size() != static_cast<uint64_t>(storage_bytes(id, path))) {
      fail(ErrorKind::kCorrupt, "torch", "storage {}: expected {} bytes, got {} ({})",
           printable(key), storage_bytes(id, path), data.bytes.size(), path);
    }
    storages[key] = {data.bytes, data.offset_bytes};
  }
  return dict.place(storages, big_endian);
}

// Magic, protocol, system info, the pickle, the storage keys in file order, then for each key its
// number of elements (int64) and its bytes. Both are little-endian on every machine.
std::vector<RawTensor> read_legacy_form(const std::shared_ptr<const MappedFile>& file) {
  const std::string path = printable(file->path(), 4096);
  const auto bytes = file->bytes();
  size_t offset = 0;
  const auto next_pickle = [&] {
    return Pickle(bytes.first(std::min(bytes.size(), offset + kMaxPickleBytes)), offset, kIsAllowed,
                  file->path());
  };
  const Pickle magic = next_pickle();
  if (!magic.root().is(Kind::kBigInt) || magic.root().text != kLegacyMagic) {
    fail(ErrorKind::kUnsupported, "torch",
         "file: expected the magic number of torch.save, got another pickle ({})", path);
  }
  const Pickle protocol = next_pickle();
  if (!protocol.root().is(Kind::kInt) || protocol.root().integer != kLegacyProtocol) {
    fail(ErrorKind::kUnsupported, "torch", "protocol: expected {}, got another ({})",
         kLegacyProtocol, path);
  }
  const Pickle system = next_pickle();
  const Pickle content = next_pickle();
  const Pickle keys = next_pickle();
  StateDict dict(file);
  dict.read(content.root());
  if (!keys.root().is(Kind::kList)) {
    fail(ErrorKind::kCorrupt, "torch", "storage keys: expected a list, got {} ({})",
         name_of(keys.root().kind), path);
  }
  const auto ids = dict.storages();
  std::unordered_map<std::string, Storage> storages;
  for (const PickleNode* key : keys.root().items) {
    const auto id = key->is(Kind::kText) ? ids.find(std::string(key->text)) : ids.end();
    if (id == ids.end()) {
      // Its element type, and so its length, is said by no tensor.
      fail(ErrorKind::kUnsupported, "torch",
           "storage {}: expected a tensor that uses it, got none ({})", printable(key->text), path);
    }
    int64_t n_elems = 0;
    if (bytes.size() - offset < sizeof n_elems) {
      fail(ErrorKind::kCorrupt, "torch",
           "storage {}: expected its size, got the end of the file; cut short ({})",
           printable(key->text), path);
    }
    std::memcpy(&n_elems, bytes.data() + offset, sizeof n_elems);
    offset += sizeof n_elems;
    const auto n_bytes = static_cast<uint64_t>(storage_bytes(id->second, path));
    if (n_elems != id->second.n_elems || n_bytes > bytes.size() - offset) {
      fail(ErrorKind::kCorrupt, "torch",
           "storage {}: expected {} elements ({} bytes), got {} and {} bytes left ({})",
           printable(key->text), id->second.n_elems, n_bytes, n_elems, bytes.size() - offset, path);
    }
    storages[id->first] = {bytes.subspan(offset, n_bytes), offset};
    offset += n_bytes;
  }
  return dict.place(storages, /*big_endian=*/false);
}

}  // namespace

std::vector<RawTensor> read_torch_file(const std::shared_ptr<const MappedFile>& file) {
  const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()),
                              file->bytes().size());
  std::vector<RawTensor> out;
  if (text.starts_with("PK\x03\x04")) {
    out = read_zip_form(file);
  } else if (text.starts_with('\x80')) {
    out = read_legacy_form(file);
  } else {
    fail(ErrorKind::kUnsupported, "torch",
         "file: expected a zip archive or a pickle of torch.save, got other bytes ({})",
         printable(file->path(), 4096));
  }
  file->check_readable();
  return out;
}

}  // namespace qw
