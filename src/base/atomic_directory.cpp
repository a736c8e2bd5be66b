#include "base/atomic_directory.h"

#include "base/atomic_file.h"
#include "base/error.h"

namespace qw {

namespace fs = std::filesystem;

OwnDirectory::OwnDirectory(fs::path path) : path_(std::move(path)) {
  std::error_code error;
  const bool is_there = fs::exists(fs::symlink_status(path_, error));
  const bool is_free = fs::is_directory(path_, error) && fs::is_empty(path_, error);
  if (is_there && !is_free && !fs::exists(path_ / kOwnMark, error)) {
    fail(ErrorKind::kInvalidArgument, "output",
         "directory: expected none, or one that an interrupted run left, got another (remove {}, "
         "or give another --output)",
         printable(path_.string(), 4096));
  }
  fs::remove_all(path_, error);
  if (!fs::create_directories(path_, error)) {
    fail(ErrorKind::kIo, "output", "directory: expected to make {}, got: {}",
         printable(path_.string(), 4096), error.message());
  }
  write_file_atomically((path_ / kOwnMark).string(), {});
}

OwnDirectory::~OwnDirectory() {
  std::error_code ignored;
  if (!is_released_) fs::remove_all(path_, ignored);
}

void OwnDirectory::release(const fs::path& path) {
  std::error_code error;
  if (!fs::remove(path_ / kOwnMark, error)) {
    fail(ErrorKind::kIo, "output", "directory: expected to remove a mark from {}, got: {}",
         printable(path_.string(), 4096), error.message());
  }
  rename_synced(path_.string(), path.string());
  is_released_ = true;
}

AtomicDirectory::AtomicDirectory(const std::string& path) {
  // "name/" is "name": the partial one lies beside it, not within.
  path_ = fs::path(path).lexically_normal();
  if (!path_.has_filename()) path_ = path_.parent_path();
  std::error_code error;
  if (fs::exists(path_, error)) {
    fail(ErrorKind::kInvalidArgument, "output",
         "directory: expected one that is not there yet, got {}", printable(path, 4096));
  }
  fs::path partial = path_;
  partial += ".partial";
  partial_.emplace(std::move(partial));
}

void AtomicDirectory::commit() {
  partial_->release(path_);
}

}  // namespace qw
