// Directories that appear under their name only when they are whole.
//
// Level 0 (base). Files go into `path`.partial, which is renamed at the end. What a killed process
// leaves is replaced by the next.
#pragma once

#include <filesystem>
#include <string>

namespace qw {

class AtomicDirectory {
 public:
  /// Makes `path`.partial, empty. Errors: invalid_argument (`path` is there already), io.
  explicit AtomicDirectory(const std::string& path);
  /// Removes what was written if commit() was not reached.
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where a file of that name is to be written.
  std::string file(const std::string& name) const { return (partial_ / name).string(); }
  /// Renames, and syncs the directory above; the files are the caller's to sync (AtomicFile does).
  /// Errors: io.
  void commit();

 private:
  std::filesystem::path path_, partial_;
  bool is_whole_ = false;
};

}  // namespace qw
