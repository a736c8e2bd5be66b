// Keys and values of one sequence as a file of their own, which people keep and bring back by name.
//
// Level 6 (engine). The form is engine/kv_file.h's; the name in it says which weights, adapter,
// cache type and program the bytes are of. They may be many gigabytes, so they are written and read
// piece by piece: nothing here holds more of them than a piece.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/descriptor.h"
#include "base/function_ref.h"
#include "engine/engine.h"
#include "engine/kv_file.h"

namespace qw {

/// What the pages of a sequence are of, without their bytes.
struct KvSequence {
  KvName root{};                // of what the bits depend on besides tokens
  std::vector<int32_t> tokens;  // those whose keys and values are in the pages
  int64_t page_bytes = 0, n_pages = 0;
};

/// What Engine::hold() gives.
struct Engine::Held {
  int64_t id = 0;  // for read_held() and let_go()
  KvSequence sequence;
};

/// Pages of a piece: as many as `piece_bytes` has room for, one at least.
int64_t pages_per_piece(int64_t page_bytes, int64_t piece_bytes);

/// Writes a file whole or not at all.
class KvSequenceWriter {
 public:
  /// `hash` must outlive it. Errors: io, not_found, naming the file.
  KvSequenceWriter(const std::string& path, const KvSequence& sequence, const KeyedHash& hash);
  /// The next pages. Errors: io.
  void write(std::span<const std::byte> pages);
  /// The file is there once all pages have been written. Returns its bytes. Errors: io.
  int64_t commit();

 private:
  const KeyedHash& hash_;
  AtomicFile file_;
  KeyedHash::Digest front_hash_{};
  KeyedHash::Stream pages_hash_;
  int64_t n_bytes_ = 0, n_left_ = 0;  // of the file so far; of pages that have yet to come
};

/// Reads a file that is right from its first to its last byte, whatever becomes of it meanwhile.
class KvSequenceReader {
 public:
  /// Opens it. `hash` must outlive it. Errors, each naming the file: not_found, io, corrupt.
  KvSequenceReader(const std::string& path, const KeyedHash& hash, int64_t piece_bytes);
  /// Checks a further part, at most kPartBytes. False: the whole file has been checked, and what
  /// follows may be called. Errors: io, corrupt (among them: made by another machine's server, or
  /// changed).
  bool check_more();
  static constexpr uint64_t kPartBytes = uint64_t{16} << 20;

  const KvSequence& sequence() const { return sequence_; }
  int64_t n_pieces() const { return static_cast<int64_t>(pieces_.size()); }
  /// The first page of a piece.
  int64_t first_page(int64_t piece) const { return piece * pages_per_piece_; }
  /// The pages of a piece, until the next is read; the very bytes that were checked. Errors: io,
  /// corrupt (they were changed since).
  std::span<const std::byte> read_piece(int64_t piece);

 private:
  static Descriptor open(const std::string& path);
  void named(FunctionRef<void()> action) const;
  void read_head();
  void check_until(uint64_t end);
  void finish_check();
  void read(uint64_t at, std::span<std::byte> out) const;

  std::string path_;
  const KeyedHash& hash_;
  Descriptor file_;
  int64_t piece_bytes_, pages_per_piece_ = 0;
  KvFileHead head_;
  // The check: all before it was read, and is in these hashes; the piece under way ends there.
  uint64_t checked_ = 0, piece_end_ = 0;
  KeyedHash::Stream front_hash_, pages_hash_, piece_hash_;
  bool is_checked_ = false;

  std::vector<KeyedHash::Digest> pieces_;  // of each, as it was when the file was checked
  KvSequence sequence_;
  std::vector<std::byte> piece_;
};

}  // namespace qw
