#include "app/output_room.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/atomic_file.h"
#include "base/error.h"
#include "checkpoint/weight_files.h"

namespace qw::app {

namespace {

int64_t bytes_in(const std::string& directory) {
  namespace fs = std::filesystem;
  std::error_code error;
  int64_t n_bytes = 0;
  for (fs::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code unknown;
    if (!entry->is_regular_file(unknown)) continue;
    const uintmax_t size = entry->file_size(unknown);
    if (!unknown) n_bytes += static_cast<int64_t>(size);
  }
  return n_bytes;
}

}  // namespace

std::string directory_name(const std::string& output) {
  const std::filesystem::path path = std::filesystem::path(output).lexically_normal();
  return path.has_filename() ? path.string() : path.parent_path().string();
}

void check_file_name(std::string_view component, std::string_view flag, const std::string& path) {
  std::error_code error;
  const bool is_directory = std::filesystem::is_directory(path, error);
  if (!is_directory && !path.ends_with('/')) return;
  fail(ErrorKind::kInvalidArgument, component, "{}: expected a file, got {} ({})", flag,
       is_directory ? "a directory" : "a name that ends as a directory's", printable(path, 4096));
}

void check_room(std::string_view component, const std::string& output, int64_t n_bytes,
                bool goes_on) {
  namespace fs = std::filesystem;
  const fs::path path(directory_name(output));
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  remove_dead_temporaries(folder.string(), [&](const std::string& name) {
    if (name == path.filename()) return true;
    const std::optional<ShardName> shard = parse_shard_name(name);
    return shard && shard->stem == path.stem() && shard->extension == ".gguf";
  });
  const int64_t n_there = goes_on ? bytes_in(path.string() + ".work") : 0;
  const int64_t n_missing = std::max<int64_t>(0, n_bytes - n_there);
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) {
    fail(ErrorKind::kNotFound, component, "--output: expected a directory for it, got none ({})",
         printable(folder.string(), 4096));
  }
  if (space.available < static_cast<uintmax_t>(n_missing)) {
    fail(ErrorKind::kIo, component, "--output: expected {} MB free, got {} MB ({})",
         n_missing / 1'000'000, space.available / 1'000'000, printable(folder.string(), 4096));
  }
}

}  // namespace qw::app
