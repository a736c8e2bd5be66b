// A file written piece by piece that appears under its name only when it is whole.
//
// Level 3 (checkpoint). The streaming brother of base's write_file_atomically, for files that
// should never lie in memory as a whole.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace qw {

class AtomicFile {
 public:
  /// Creates a temporary file beside `path`. Errors: io, not_found (no such directory).
  explicit AtomicFile(std::string path);
  /// Removes the temporary file if commit() was not reached.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);  // buffered. Errors: io
  /// Flushes, syncs and renames over the path. Errors: io
  void commit();

  const std::string& path() const noexcept { return path_; }

 private:
  void flush();
  void write_through(std::span<const std::byte> bytes);
  [[noreturn]] void fail_errno(const char* action) const;

  std::string path_, temporary_;
  int fd_ = -1;
  std::vector<std::byte> buffer_;
};

}  // namespace qw
