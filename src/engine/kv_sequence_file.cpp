#include "engine/kv_sequence_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace qw {

namespace {

/// Read at a time while a file is checked.
constexpr uint64_t kReadBytes = uint64_t{1} << 20;

}  // namespace

int64_t pages_per_piece(int64_t page_bytes, int64_t piece_bytes) {
  return page_bytes <= 0 ? 1 : std::max<int64_t>(piece_bytes / page_bytes, 1);
}

// ---- writing -----------------------------------------------------------------------------------

KvSequenceWriter::KvSequenceWriter(const std::string& path, const KvSequence& sequence,
                                   const KeyedHash& hash)
    : hash_(hash), file_(path, 0600), pages_hash_(hash) {
  const std::vector<std::byte> front =
      kv_file_front(sequence.root, sequence.tokens, static_cast<uint64_t>(sequence.page_bytes),
                    static_cast<uint64_t>(sequence.n_pages));
  front_hash_ = hash.of(front);
  n_bytes_ = std::ssize(front);
  n_left_ = sequence.page_bytes * sequence.n_pages;
  file_.write(front);
}

void KvSequenceWriter::write(std::span<const std::byte> pages) {
  n_bytes_ += std::ssize(pages);
  n_left_ -= std::ssize(pages);
  QW_CHECK(n_left_ >= 0, "{} bytes more than pages have", -n_left_);
  pages_hash_.update(pages);
  file_.write(pages);
}

int64_t KvSequenceWriter::commit() {
  QW_CHECK(n_left_ == 0, "{} bytes of pages are missing", n_left_);
  const KeyedHash::Digest seal = kv_file_seal(hash_, front_hash_, pages_hash_.digest());
  file_.write(std::as_bytes(std::span(seal)));
  file_.commit();
  return n_bytes_ + static_cast<int64_t>(seal.size());
}

// ---- reading -----------------------------------------------------------------------------------

KvSequenceReader::KvSequenceReader(const std::string& path, const KeyedHash& hash,
                                   int64_t piece_bytes)
    : path_(path),
      hash_(hash),
      file_(open(path)),
      piece_bytes_(piece_bytes),
      front_hash_(hash),
      pages_hash_(hash),
      piece_hash_(hash) {
  named([&] { read_head(); });
}

Descriptor KvSequenceReader::open(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() >= 0) return file;
  const int error = errno;
  fail(error == ENOENT || error == ENOTDIR ? ErrorKind::kNotFound : ErrorKind::kIo, "slot",
       "file: expected to open it, got: {} ({})", std::strerror(error), printable(path, 4096));
}

/// Runs `action`; its errors name the file.
void KvSequenceReader::named(FunctionRef<void()> action) const {
  try {
    action();
  } catch (const Error& error) {
    fail(error.kind(), "slot", "file: {} ({})", sentence_of(error), printable(path_, 4096));
  }
}

void KvSequenceReader::read_head() {
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0 || !S_ISREG(status.st_mode))
    fail(ErrorKind::kCorrupt, "kv file", "expected a regular file, got something else");
  const auto size = static_cast<uint64_t>(status.st_size);
  std::vector<std::byte> bytes(std::min<uint64_t>(size, KvFileHead::kBytes));
  read(0, bytes);
  head_ = read_kv_head(bytes);
  if (size != head_.file_bytes()) {
    fail(ErrorKind::kCorrupt, "kv file", "size: expected {} bytes, got {}", head_.file_bytes(),
         size);
  }
  const auto page_bytes = static_cast<int64_t>(head_.page_bytes);
  pages_per_piece_ = pages_per_piece(page_bytes, piece_bytes_);
  piece_end_ = head_.front_bytes() + static_cast<uint64_t>(pages_per_piece_ * page_bytes);
}

bool KvSequenceReader::check_more() {
  const uint64_t pages_end = head_.front_bytes() + head_.pages_bytes();
  named([&] {
    check_until(std::min(checked_ + kPartBytes, pages_end));
    if (checked_ == pages_end) finish_check();
  });
  return !is_checked_;
}

/// Remembers the hash of every part that is read again: whoever changes the file from here on is
/// found out. Nothing that the file says of itself is believed, and no memory taken by it, before
/// the hash of all has proved right.
void KvSequenceReader::check_until(uint64_t end) {
  const uint64_t front_end = head_.front_bytes();
  const uint64_t pages_end = front_end + head_.pages_bytes();
  std::vector<std::byte> buffer(std::min(kReadBytes, end - checked_));
  while (checked_ < end) {
    const bool in_front = checked_ < front_end;
    const uint64_t hash_end = in_front ? front_end : std::min(piece_end_, pages_end);
    const auto part = std::span(buffer).first(
        std::min<uint64_t>(buffer.size(), std::min(end, hash_end) - checked_));
    read(checked_, part);
    checked_ += part.size();
    (in_front ? front_hash_ : pages_hash_).update(part);
    if (in_front) continue;
    piece_hash_.update(part);
    if (checked_ < hash_end) continue;
    pieces_.push_back(std::exchange(piece_hash_, KeyedHash::Stream(hash_)).digest());
    piece_end_ += static_cast<uint64_t>(pages_per_piece_) * head_.page_bytes;
  }
}

void KvSequenceReader::finish_check() {
  KeyedHash::Digest seal{};
  read(checked_, std::as_writable_bytes(std::span(seal)));
  const KeyedHash::Digest front = front_hash_.digest();
  if (seal != kv_file_seal(hash_, front, pages_hash_.digest()))
    fail(ErrorKind::kCorrupt, "kv file", "hash: expected that of its bytes, got another");
  std::vector<std::byte> bytes(head_.front_bytes());
  read(0, bytes);
  if (hash_.of(bytes) != front || read_kv_head(bytes) != head_)
    fail(ErrorKind::kCorrupt, "kv file", "expected it to stay as it is, got one that was changed");
  sequence_ = {head_.name, tokens_of_front(bytes), static_cast<int64_t>(head_.page_bytes),
               static_cast<int64_t>(head_.n_pages)};
  is_checked_ = true;
}

std::span<const std::byte> KvSequenceReader::read_piece(int64_t piece) {
  QW_CHECK(is_checked_);
  const auto size = static_cast<uint64_t>(pages_per_piece_) * head_.page_bytes;
  const uint64_t begin = static_cast<uint64_t>(piece) * size;
  const KeyedHash::Digest& expected = pieces_.at(static_cast<size_t>(piece));
  piece_.resize(std::min(size, head_.pages_bytes() - begin));
  named([&] {
    read(head_.front_bytes() + begin, piece_);
    if (hash_.of(piece_) == expected) return;
    fail(ErrorKind::kCorrupt, "kv file", "expected it to stay as it is, got one that was changed");
  });
  return piece_;
}

void KvSequenceReader::read(uint64_t at, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t n = ::pread(file_.get(), out.data(), out.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      fail(ErrorKind::kIo, "kv file", "expected to read it, got: {}", std::strerror(errno));
    if (n == 0)
      fail(ErrorKind::kCorrupt, "kv file", "expected it to stay as long as it was, got its end");
    out = out.subspan(static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
}

}  // namespace qw
