#include "backend/packed_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"

namespace qw {

namespace {

/// What stands before the panels: a line of text that the file must begin with, padded with zeros
/// to a page, so that panels begin on one.
constexpr size_t kHeaderBytes = 4096;
/// What stands behind them: the hash of all before it, and an end, so that a cut shows in the
/// bytes of a file that is in use.
constexpr std::string_view kHash = "hash ", kEnd = "end of weights.\n";
constexpr size_t kTrailerBytes = kHash.size() + KeyedHash::kDigits + 1 + kEnd.size();

std::string header_of(const std::string& name, size_t n_bytes) {
  std::string header = fmt::format("qianwen packed weights 3\nname {}\nbytes {}\n", name, n_bytes);
  header.resize(kHeaderBytes);
  return header;
}

using Bytes = KeyedHash::Bytes;

/// The published bytes of a source, piece by piece.
std::vector<Bytes> pieces_of(const LinearSource& source) {
  std::vector<Bytes> out;
  const auto add = [&](Bytes bytes) { KeyedHash::add_pieces(bytes, out); };
  if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
    for (const Bytes tensor : (*groups)->published)
      add(tensor);
    add(std::as_bytes(std::span((*groups)->group_of)));
  } else if (const auto* codebook =
                 std::get_if<std::shared_ptr<const CodebookBlocks>>(&source.data)) {
    for (const Bytes tensor : (*codebook)->published)
      add(tensor);
  } else if (const auto* blocks = std::get_if<BlockRows>(&source.data)) {
    add({blocks->data, static_cast<size_t>(source.n * blocks->row_bytes)});
  } else {
    const auto& dense = std::get<DenseRows>(source.data);
    add({dense.data, static_cast<size_t>(source.n * dense.row_bytes)});
  }
  return out;
}

/// The hash of pieces, which all threads compute.
std::string hash_of(std::span<const Bytes> pieces, const KeyedHash& hash, ThreadPool& pool) {
  return to_hex(hash.of_pieces(pieces, [&pool](int64_t n, FunctionRef<void(int64_t)> body) {
    pool.parallel_for(n, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        body(i);
    });
  }));
}

std::string trailer_of(Bytes header, Bytes panels, const KeyedHash& hash, ThreadPool& pool) {
  std::vector<Bytes> pieces = {header};
  KeyedHash::add_pieces(panels, pieces);
  return fmt::format("{}{}\n{}", kHash, hash_of(pieces, hash, pool), kEnd);
}

/// Errors: corrupt or io, when it is not what was stored under the name.
void check_entry(const MappedFile& file, const std::string& name, size_t n_bytes,
                 const KeyedHash& hash, ThreadPool& pool) {
  const auto refuse = [&](std::string_view what, const auto& expected, const auto& got) {
    fail(ErrorKind::kCorrupt, "packed cache", "{}: expected {}, got {} ({})", what, expected, got,
         printable(file.path(), 4096));
  };
  const std::string header = header_of(name, n_bytes);
  if (!file.text().starts_with(header))
    refuse("header", "that of its name and of this version", "another");
  const size_t size = kHeaderBytes + n_bytes + kTrailerBytes;
  if (file.bytes().size() != size) refuse("bytes", size, file.bytes().size());
  file.will_need(file.bytes());
  const std::string trailer = trailer_of(file.bytes().first(kHeaderBytes),
                                         file.bytes().subspan(kHeaderBytes, n_bytes), hash, pool);
  file.check_readable();
  if (!file.text().ends_with(trailer)) refuse("hash", "that of its weights", "another");
}

/// The directory, once it is there.
const std::string& made(const std::string& directory) {
  make_cache_directory(directory, "packed cache");
  return directory;
}

}  // namespace

PackedStore::PackedStore(const std::string& directory, int64_t packer_version)
    : directory_(made(directory)),
      packer_version_(packer_version),
      hash_(directory, "packed cache") {
  remove_abandoned_files(directory, ".packed");
}

bool PackedStore::can_name(const LinearSource& source) {
  if (const auto* codebook = std::get_if<std::shared_ptr<const CodebookBlocks>>(&source.data))
    return !(*codebook)->published.empty();
  const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data);
  return groups == nullptr || !(*groups)->published.empty();
}

std::string PackedStore::path_of(const std::string& name) const {
  return fmt::format("{}/{}.packed", directory_, name);
}

std::string PackedStore::name_of(const LinearSource& source, const kernels::PackPlan& plan,
                                 std::span<const uint8_t> first_panel, ThreadPool& pool) const {
  std::vector<Bytes> pieces = pieces_of(source);
  const std::array<int64_t, 8> shape = {packer_version_,
                                        source.n,
                                        source.k,
                                        source.row_begin,
                                        static_cast<int64_t>(plan.layout),
                                        plan.matrix.panel_bytes,
                                        plan.matrix.n_panels,
                                        plan.matrix.unit_bytes};
  pieces.push_back(std::as_bytes(std::span(shape)));
  pieces.push_back(std::as_bytes(first_panel));
  return hash_of(pieces, hash_, pool);
}

const uint8_t* PackedStore::panels_of(const MappedFile& file) {
  return reinterpret_cast<const uint8_t*>(file.bytes().data()) + kHeaderBytes;
}

std::shared_ptr<const MappedFile> PackedStore::find(const std::string& name, int64_t n_bytes,
                                                    ThreadPool& pool) {
  const std::string path = path_of(name);
  std::shared_ptr<const MappedFile> file;
  try {
    if (!path_exists(path)) return nullptr;
    ++n_met_;
    file = MappedFile::open_and_close(path);
    check_entry(*file, name, static_cast<size_t>(n_bytes), hash_, pool);
  } catch (const Error& error) {
    if (n_refused_++ == 0) first_refusal_ = sentence_of(error);
    return nullptr;
  }
  std::erase_if(in_use_, [](const auto& each) { return each.expired(); });
  in_use_.push_back(file);
  return file;
}

void PackedStore::put(const std::string& name, std::span<const uint8_t> panels, ThreadPool& pool) {
  if (!can_write_) return;
  try {
    AtomicFile file(path_of(name));
    const std::string header = header_of(name, panels.size());
    const auto header_bytes = std::as_bytes(std::span(header)), bytes = std::as_bytes(panels);
    const std::string trailer = trailer_of(header_bytes, bytes, hash_, pool);
    file.write(header_bytes);
    file.write(bytes);
    file.write(std::as_bytes(std::span(trailer)));
    file.commit();
  } catch (const Error& error) {
    can_write_ = false;
    logger().warn("packed cache: {}; going on without keeping more", sentence_of(error));
  }
}

void PackedStore::report() {
  if (n_refused_ > 0) {
    logger().warn(
        "packed cache: {} of {} files could not be used and {} packed again; the first: {}",
        n_refused_, n_met_, n_refused_ == 1 ? "was" : "were", first_refusal_);
  }
  n_met_ = n_refused_ = 0;
}

void PackedStore::check_readable() const {
  for (const auto& each : in_use_) {
    const auto file = each.lock();
    if (file == nullptr) continue;
    const bool is_whole = file->text().ends_with(kEnd);
    file->check_readable();
    if (!is_whole) {
      fail(ErrorKind::kIo, "packed cache",
           "weights: expected {} bytes as when they were mapped, got a cut file ({})",
           file->bytes().size(), printable(file->path(), 4096));
    }
  }
}

}  // namespace qw
