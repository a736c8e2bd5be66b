#include "base/atomic_directory.h"

#include "base/atomic_file.h"
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
  rename_synced(partial_.string(), path_.string());
  is_whole_ = true;
}

}  // namespace qw
