// Directories that appear under their name only when they are whole.
//
// Level 0 (base). Files go into `path`.partial, which is renamed at the end. What a killed process
// leaves is replaced by the next.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace qw {

/// In directories that are on the way: who finds it knows that they may be removed.
inline constexpr const char* kOwnMark = ".qianwen-partial";

/// A directory for a while.
class OwnDirectory {
 public:
  /// Makes it, empty but for kOwnMark, in the place of one that a killed process left. Errors:
  /// invalid_argument (what is there is neither ours nor empty), io.
  explicit OwnDirectory(std::filesystem::path path);
  /// Removes it with all that is in it, unless it was released.
  ~OwnDirectory();
  OwnDirectory(const OwnDirectory&) = delete;
  OwnDirectory& operator=(const OwnDirectory&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }
  /// Where a file of that name is to be written.
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  /// Renames it to `path`, without the mark. Errors: io.
  void release(const std::filesystem::path& path);

 private:
  std::filesystem::path path_;
  bool is_released_ = false;
};

class AtomicDirectory {
 public:
  /// Makes `path`.partial, empty. Errors: invalid_argument (`path` is there already), those of
  /// OwnDirectory.
  explicit AtomicDirectory(const std::string& path);

  /// Where a file of that name is to be written.
  std::string file(const std::string& name) const { return partial_->file(name); }
  /// Renames, and syncs the directory above; the files are the caller's to sync (AtomicFile does).
  /// Errors: io.
  void commit();

 private:
  std::filesystem::path path_;
  std::optional<OwnDirectory> partial_;  // removed with what was written if commit() is not reached
};

}  // namespace qw
