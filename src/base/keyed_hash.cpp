#include "base/keyed_hash.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <filesystem>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace qw {

namespace {

/// A thread hashes so much at a time.
constexpr size_t kPieceBytes = size_t{512} << 10;

KeyedHash::Digest digest_of(const XXH128_hash_t& hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  KeyedHash::Digest out;
  std::copy_n(canonical.digest, out.size(), out.begin());
  return out;
}

XXH128_hash_t hash_of(const void* bytes, size_t n, std::span<const std::byte> secret) {
  return XXH3_128bits_withSecret(bytes, n, secret.data(), secret.size());
}

std::string secret_path(const std::string& directory) {
  return directory + "/secret";
}

/// Processes that start together get the same one.
void save_secret(const std::string& path, std::span<const std::byte> secret) {
  AtomicFile out(path, 0600);
  out.write(secret);
  out.commit_unless_exists();
}

std::vector<std::byte> load_secret(const std::string& path, std::string_view component) {
  constexpr size_t kBytes = KeyedHash::kSecretBytes;
  if (!path_exists(path)) {
    std::vector<std::byte> secret(kBytes);
    if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size()))
      fail(ErrorKind::kIo, component, "random bytes: expected {} from the system, got fewer",
           kBytes);
    save_secret(path, secret);
  }
  const auto file = MappedFile::open(path);
  if (file->bytes().size() != kBytes) {
    fail(ErrorKind::kCorrupt, component, "secret: expected {} bytes, got {} ({})", kBytes,
         file->bytes().size(), printable(path, 4096));
  }
  std::vector<std::byte> secret(file->bytes().begin(), file->bytes().end());
  file->check_readable();
  return secret;
}

}  // namespace

KeyedHash::KeyedHash(const std::string& directory, std::string_view component) {
  try {
    secret_ = load_secret(secret_path(directory), component);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kCorrupt) throw;
    fail(ErrorKind::kIo, component, "secret {}", sentence_of(error));
  }
}

void KeyedHash::save(const std::string& directory) const {
  save_secret(secret_path(directory), secret_);
}

KeyedHash::Digest KeyedHash::of(Bytes bytes) const {
  return digest_of(hash_of(bytes.data(), bytes.size(), secret_));
}

struct KeyedHash::Stream::State {
  XXH3_state_t xxh3;
};

KeyedHash::Stream::Stream(const KeyedHash& hash) : state_(std::make_unique<State>()) {
  QW_CHECK(XXH3_128bits_reset_withSecret(&state_->xxh3, hash.secret_.data(), hash.secret_.size()) ==
           XXH_OK);
}
KeyedHash::Stream::~Stream() = default;
KeyedHash::Stream::Stream(Stream&&) noexcept = default;
KeyedHash::Stream& KeyedHash::Stream::operator=(Stream&&) noexcept = default;

void KeyedHash::Stream::update(Bytes bytes) {
  if (!bytes.empty()) XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

KeyedHash::Digest KeyedHash::Stream::digest() const {
  return digest_of(XXH3_128bits_digest(&state_->xxh3));
}

KeyedHash::Digest KeyedHash::of_pieces(std::span<const Bytes> pieces, ForEach for_each) const {
  std::vector<XXH128_hash_t> hashes(pieces.size());
  for_each(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const Bytes piece = pieces[static_cast<size_t>(i)];
    hashes[static_cast<size_t>(i)] = hash_of(piece.data(), piece.size(), secret_);
  });
  return of(std::as_bytes(std::span(hashes)));
}

void KeyedHash::add_pieces(Bytes bytes, std::vector<Bytes>& out) {
  for (size_t at = 0; at < bytes.size(); at += kPieceBytes)
    out.push_back(bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at)));
}

std::string to_hex(const KeyedHash::Digest& digest) {
  std::string out;
  for (const uint8_t byte : digest)
    fmt::format_to(std::back_inserter(out), "{:02x}", byte);
  return out;
}

void make_cache_directory(const std::string& directory, std::string_view component) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error || !std::filesystem::is_directory(directory)) {
    fail(ErrorKind::kIo, component, "directory: expected to make or use it, got {} ({})",
         error ? error.message() : "something else of that name", printable(directory, 4096));
  }
}

}  // namespace qw
