#include "backend/packed_store.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"

namespace qw {

namespace {

/// What stands before the panels: a line of text that the file must begin with, padded with zeros
/// to a page, so that panels begin on one.
constexpr size_t kHeaderBytes = 4096;
/// What stands behind them, so that a cut shows in the bytes.
constexpr std::string_view kEnd = "end of weights.\n";
constexpr size_t kSecretBytes = 192;
/// What is this old and was never finished, nobody is writing any more.
constexpr std::chrono::hours kAbandoned(1);
/// A thread hashes so much at a time; the name is the hash of these hashes.
constexpr int64_t kHashBytes = int64_t{512} << 10;

std::string header_of(const std::string& name, int64_t n_bytes) {
  std::string header = fmt::format("qianwen packed weights 2\nname {}\nbytes {}\n", name, n_bytes);
  header.resize(kHeaderBytes);
  return header;
}

/// The published bytes of a source, piece by piece.
std::vector<std::span<const std::byte>> pieces_of(const LinearSource& source) {
  std::vector<std::span<const std::byte>> out;
  const auto add = [&](std::span<const std::byte> bytes) {
    for (size_t at = 0; at < bytes.size(); at += size_t{kHashBytes})
      out.push_back(bytes.subspan(at, std::min(size_t{kHashBytes}, bytes.size() - at)));
  };
  if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
    for (const std::span<const std::byte> tensor : (*groups)->published)
      add(tensor);
    add(std::as_bytes(std::span((*groups)->group_of)));
  } else if (const auto* blocks = std::get_if<BlockRows>(&source.data)) {
    add({blocks->data, static_cast<size_t>(source.n * blocks->row_bytes)});
  } else {
    const auto& dense = std::get<DenseRows>(source.data);
    add({dense.data, static_cast<size_t>(source.n * dense.row_bytes)});
  }
  return out;
}

std::vector<std::byte> secret_of(const std::string& directory) {
  const std::string path = directory + "/secret";
  if (!path_exists(path)) {
    std::vector<std::byte> secret(kSecretBytes);
    if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size()))
      fail(ErrorKind::kIo, "packed cache",
           "secret: expected random bytes from the system, got none");
    // Processes that start together get the same one.
    AtomicFile out(path, 0600);
    out.write(secret);
    out.commit_unless_exists();
  }
  const auto file = MappedFile::open(path);
  if (file->bytes().size() != kSecretBytes) {
    fail(ErrorKind::kCorrupt, "packed cache", "secret: expected {} bytes, got {} ({})",
         kSecretBytes, file->bytes().size(), printable(path, 4096));
  }
  std::vector<std::byte> secret(file->bytes().begin(), file->bytes().end());
  file->check_readable();
  return secret;
}

/// Removes what processes left that ended while they wrote.
void remove_abandoned(const std::string& directory) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto now = fs::file_time_type::clock::now();
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().filename().string().find(".packed.tmp-") == std::string::npos) continue;
    std::error_code unknown;
    const auto written = fs::last_write_time(entry->path(), unknown);
    if (!unknown && now - written > kAbandoned) fs::remove(entry->path(), unknown);
  }
}

}  // namespace

PackedStore::PackedStore(const std::string& directory) : directory_(directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error || !std::filesystem::is_directory(directory)) {
    fail(ErrorKind::kIo, "packed cache", "directory: expected to make or use it, got {} ({})",
         error ? error.message() : "something else of that name", printable(directory, 4096));
  }
  secret_ = secret_of(directory);
  remove_abandoned(directory);
}

bool PackedStore::can_name(const LinearSource& source) {
  const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data);
  return groups == nullptr || !(*groups)->published.empty();
}

std::string PackedStore::path_of(const std::string& name) const {
  return fmt::format("{}/{}.packed", directory_, name);
}

std::string PackedStore::name_of(const LinearSource& source, const kernels::PackPlan& plan,
                                 std::span<const uint8_t> first_panel, ThreadPool& pool) const {
  const auto hash = [&](const void* bytes, size_t n) {
    return XXH3_128bits_withSecret(bytes, n, secret_.data(), secret_.size());
  };
  const std::vector<std::span<const std::byte>> pieces = pieces_of(source);
  std::vector<XXH128_hash_t> hashes(pieces.size() + 2);
  pool.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      hashes[i] = hash(pieces[i].data(), pieces[i].size());
  });
  const std::array<int64_t, 7> shape = {source.n,
                                        source.k,
                                        source.row_begin,
                                        static_cast<int64_t>(plan.layout),
                                        plan.matrix.panel_bytes,
                                        plan.matrix.n_panels,
                                        plan.matrix.unit_bytes};
  hashes[pieces.size()] = hash(shape.data(), sizeof shape);
  hashes[pieces.size() + 1] = hash(first_panel.data(), first_panel.size());
  const XXH128_hash_t all = hash(hashes.data(), hashes.size() * sizeof(XXH128_hash_t));
  return fmt::format("{:016x}{:016x}", all.high64, all.low64);
}

const uint8_t* PackedStore::panels_of(const MappedFile& file) {
  return reinterpret_cast<const uint8_t*>(file.bytes().data()) + kHeaderBytes;
}

/// Null where there is none, or none that can be opened.
std::shared_ptr<const MappedFile> PackedStore::open(const std::string& path) {
  try {
    return path_exists(path) ? MappedFile::open_and_close(path) : nullptr;
  } catch (const Error& error) {
    if (std::exchange(can_read_, false))
      logger().warn("packed cache: {}; packing what cannot be read", error.message());
    return nullptr;
  }
}

std::shared_ptr<const MappedFile> PackedStore::find(const std::string& name, int64_t n_bytes) {
  const std::string path = path_of(name);
  const std::shared_ptr<const MappedFile> file = open(path);
  if (file == nullptr) return nullptr;
  const std::string header = header_of(name, n_bytes);
  if (file->bytes().size() != header.size() + static_cast<size_t>(n_bytes) + kEnd.size() ||
      !file->text().starts_with(header) || !file->text().ends_with(kEnd)) {
    logger().warn("packed cache: {} is not what its name says; packing again",
                  printable(path, 4096));
    return nullptr;
  }
  file->will_need(file->bytes());
  std::erase_if(in_use_, [](const auto& each) { return each.expired(); });
  in_use_.push_back(file);
  return file;
}

void PackedStore::put(const std::string& name, std::span<const uint8_t> panels) {
  if (!can_write_) return;
  try {
    AtomicFile file(path_of(name));
    const std::string header = header_of(name, static_cast<int64_t>(panels.size()));
    file.write(std::as_bytes(std::span(header)));
    file.write(std::as_bytes(panels));
    file.write(std::as_bytes(std::span(kEnd)));
    file.commit();
  } catch (const Error& error) {
    can_write_ = false;
    logger().warn("packed cache: {}; going on without keeping more", error.message());
  }
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
