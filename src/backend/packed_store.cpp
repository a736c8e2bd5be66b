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
/// What stands behind them: the hash of all before it, and an end, so that a cut shows in the
/// bytes of a file that is in use.
constexpr std::string_view kHash = "hash ", kEnd = "end of weights.\n";
constexpr size_t kDigits = 32;  // of a hash
constexpr size_t kTrailerBytes = kHash.size() + kDigits + 1 + kEnd.size();
constexpr size_t kSecretBytes = 192;
/// What is this old and was never finished, nobody is writing any more.
constexpr std::chrono::hours kAbandoned(1);
/// A thread hashes so much at a time.
constexpr size_t kPieceBytes = size_t{512} << 10;

std::string header_of(const std::string& name, size_t n_bytes) {
  std::string header = fmt::format("qianwen packed weights 3\nname {}\nbytes {}\n", name, n_bytes);
  header.resize(kHeaderBytes);
  return header;
}

/// What an error says, without the component: here it is always the packed cache.
std::string_view sentence_of(const Error& error) {
  const std::string_view message = error.message();
  const size_t end = message.find("] ");
  return end == std::string_view::npos ? message : message.substr(end + 2);
}

using Bytes = std::span<const std::byte>;

void add_pieces(Bytes bytes, std::vector<Bytes>& out) {
  for (size_t at = 0; at < bytes.size(); at += kPieceBytes)
    out.push_back(bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at)));
}

/// The published bytes of a source, piece by piece.
std::vector<Bytes> pieces_of(const LinearSource& source) {
  std::vector<Bytes> out;
  const auto add = [&](Bytes bytes) { add_pieces(bytes, out); };
  if (const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data)) {
    for (const Bytes tensor : (*groups)->published)
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

/// The hash of the hashes of pieces, which all threads compute.
std::string hash_of(std::span<const Bytes> pieces, Bytes secret, ThreadPool& pool) {
  const auto hash = [&](const void* bytes, size_t n) {
    return XXH3_128bits_withSecret(bytes, n, secret.data(), secret.size());
  };
  std::vector<XXH128_hash_t> hashes(pieces.size());
  pool.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      hashes[i] = hash(pieces[i].data(), pieces[i].size());
  });
  const XXH128_hash_t all = hash(hashes.data(), hashes.size() * sizeof(XXH128_hash_t));
  return fmt::format("{:016x}{:016x}", all.high64, all.low64);
}

std::string trailer_of(Bytes header, Bytes panels, Bytes secret, ThreadPool& pool) {
  std::vector<Bytes> pieces = {header};
  add_pieces(panels, pieces);
  return fmt::format("{}{}\n{}", kHash, hash_of(pieces, secret, pool), kEnd);
}

/// Errors: corrupt or io, when it is not what was stored under the name.
void check_entry(const MappedFile& file, const std::string& name, size_t n_bytes, Bytes secret,
                 ThreadPool& pool) {
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
                                         file.bytes().subspan(kHeaderBytes, n_bytes), secret, pool);
  file.check_readable();
  if (!file.text().ends_with(trailer)) refuse("hash", "that of its weights", "another");
}

std::vector<std::byte> load_secret(const std::string& path) {
  if (!path_exists(path)) {
    std::vector<std::byte> secret(kSecretBytes);
    if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size()))
      fail(ErrorKind::kIo, "packed cache", "random bytes: expected {} from the system, got fewer",
           kSecretBytes);
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

std::vector<std::byte> secret_of(const std::string& directory) {
  try {
    return load_secret(directory + "/secret");
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kCorrupt) throw;
    fail(ErrorKind::kIo, "packed cache", "secret {}", sentence_of(error));
  }
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

PackedStore::PackedStore(const std::string& directory, int64_t packer_version)
    : directory_(directory), packer_version_(packer_version) {
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
  return hash_of(pieces, secret_, pool);
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
    check_entry(*file, name, static_cast<size_t>(n_bytes), secret_, pool);
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
    const std::string trailer = trailer_of(header_bytes, bytes, secret_, pool);
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
