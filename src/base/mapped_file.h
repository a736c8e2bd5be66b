// Read-only files in memory: mapped, never copied whole, and safe when the disk vanishes.
//
// Level 0 (base). A page that cannot be read any more raises SIGBUS; our handler puts zero pages
// under the mapping and marks it, and check_readable() turns the mark into Error{kIo}. The handler
// is installed with the first mapping; faults elsewhere go on to the handler that was there before.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/descriptor.h"

namespace qw {

class MappedFile {
 public:
  /// Maps the whole file. Errors: not_found, io (permission, directory, not a regular file).
  /// An empty file gives an empty span.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  /// The same without keeping the file open, for files by the thousand: a process may have only so
  /// many open. check_readable() then misses a cut within the last page, which must show in the
  /// bytes themselves.
  static std::shared_ptr<const MappedFile> open_and_close(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const noexcept { return path_; }
  std::span<const std::byte> bytes() const noexcept { return {data_, size_bytes_}; }
  std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(data_), size_bytes_};
  }

  /// Throws Error{kIo} if any page of this file could not be read since it was mapped, or the file
  /// is shorter now: what lies behind a cut in its last page reads as zeros without a signal.
  /// To be called after bytes of the file were used, before anything made of them is. Costs a
  /// system call.
  void check_readable() const;

  /// Tells the kernel that these bytes will be wanted soon / are not wanted any more.
  /// Neither changes what the bytes are.
  void will_need(std::span<const std::byte> part) const noexcept;
  void drop(std::span<const std::byte> part) const noexcept;

 private:
  MappedFile(std::string path, Descriptor file, const std::byte* data, size_t size_bytes);
  static std::shared_ptr<MappedFile> map(const std::string& path);

  std::string path_;
  Descriptor file_;  // kept open: the path may lead to another file by now. -1: it was closed
  const std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  int slot_ = -1;  // in the table that the SIGBUS handler reads
};

/// Whether something has this path (a broken link has not). Errors: io when the system cannot say,
/// as in a directory that may not be searched.
bool path_exists(const std::string& path);

/// The whole of a small text file. Errors as MappedFile::open, and corrupt when it is larger than
/// `max_bytes`.
std::string read_text_file(const std::string& path, size_t max_bytes = size_t{1} << 30);

}  // namespace qw
