#include "base/atomic_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/descriptor.h"
#include "base/error.h"

namespace qw {

namespace fs = std::filesystem;

AtomicDirectory::AtomicDirectory(const std::string& path) {
  // "name/" is "name": the partial one lies beside it, not within.
  path_ = fs::path(path).lexically_normal();
  if (!path_.has_filename()) path_ = path_.parent_path();
  partial_ = path_;
  partial_ += ".partial";
  std::error_code error;
  if (fs::exists(path_, error)) {
    fail(ErrorKind::kInvalidArgument, "output",
         "directory: expected one that is not there yet, got {}", printable(path, 4096));
  }
  fs::remove_all(partial_, error);
  if (!fs::create_directories(partial_, error)) {
    fail(ErrorKind::kIo, "output", "directory: expected to make {}, got: {}",
         printable(partial_.string(), 4096), error.message());
  }
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;
  if (!is_whole_) fs::remove_all(partial_, ignored);
}

void AtomicDirectory::commit() {
  std::error_code error;
  fs::rename(partial_, path_, error);
  if (error) {
    fail(ErrorKind::kIo, "output", "directory: expected to rename {} to {}, got: {}",
         printable(partial_.string(), 4096), printable(path_.string(), 4096), error.message());
  }
  is_whole_ = true;
  const fs::path above = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
  const Descriptor directory(::open(above.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
}

}  // namespace qw
