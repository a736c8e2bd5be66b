// Files that appear under their name only when they are whole.
//
// Level 0 (base). Written to a temporary file beside the path, synced, renamed over it: after a
// crash either the old file or the whole new one is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qw {

/// A file written piece by piece, for what should never lie in memory as a whole.
class AtomicFile {
 public:
  /// Creates a temporary file beside `path`; mode: who may use it, as in open(2). Errors: io,
  /// not_found (no such directory).
  explicit AtomicFile(std::string path, unsigned mode = 0644);
  /// Goes on behind the first `n_bytes` of `temporary`, which is made where it is not there, and
  /// which stays when commit() is not reached. It must be on the file system of `path`. Errors: as
  /// above; corrupt, where there are fewer bytes.
  AtomicFile(std::string path, std::string temporary, int64_t n_bytes);
  /// Removes the temporary file if commit() was not reached, unless it is the caller's.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);  // buffered. Errors: io
  /// What was written is on the disk. Errors: io
  void sync();
  /// Flushes, syncs and closes; commit() then only renames. Of several files that belong together
  /// all are sealed before the first appears, so that a full disk leaves none. Errors: io
  void seal();
  /// Flushes, syncs, renames over the path and syncs the directory. Errors: io
  void commit();
  /// The same, but a file that is under the path by then stays: of several writers one wins, and
  /// all find its bytes there. Where the file system knows no links,
  /// the last may win.
  void commit_unless_exists();

  /// Renames over the path without syncing anything: once the machine (not the process) has crashed
  /// the file may be cut or hold zeros. For what is checked when it is read, and can be lost.
  void commit_unsynced();

  const std::string& path() const noexcept { return path_; }

 private:
  void check_target();
  void flush();
  void finish(bool renamed);
  void close_renamed(bool renamed);
  void write_through(std::span<const std::byte> bytes);
  void sync_directory() const;
  [[noreturn]] void fail_errno(const char* action) const;

  std::string path_, temporary_;
  int fd_ = -1;  // -1: committed; -2: sealed
  bool is_kept_ = false;
  std::vector<std::byte> buffer_;
};

/// Renames a file or directory whose content is synced, over a file that may be there, and syncs
/// the directory that it goes to. Errors: io.
void rename_synced(const std::string& from, const std::string& to);

/// Writes `bytes` as the whole of the file. Errors: as AtomicFile.
void write_file_atomically(const std::string& path, std::span<const std::byte> bytes);

/// Removes the temporary files of processes that were killed while they wrote a file of `directory`
/// for whose name is_of(name) holds: nobody has such a file open, and the process is no more.
void remove_dead_temporaries(const std::string& directory,
                             const std::function<bool(const std::string&)>& is_of);

/// Removes what processes left in a directory that ended while they wrote files whose names end in
/// `suffix`: temporary files that are an hour old.
void remove_abandoned_files(const std::string& directory, std::string_view suffix);

}  // namespace qw
