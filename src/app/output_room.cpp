#include "app/output_room.h"

#include <filesystem>

#include "base/error.h"

namespace qw::app {

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

void check_room(std::string_view component, const std::string& output, int64_t n_bytes) {
  namespace fs = std::filesystem;
  const fs::path path(directory_name(output));
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) {
    fail(ErrorKind::kNotFound, component, "--output: expected a directory for it, got none ({})",
         printable(folder.string(), 4096));
  }
  if (space.available < static_cast<uintmax_t>(n_bytes)) {
    fail(ErrorKind::kIo, component, "--output: expected {} MB free, got {} MB ({})",
         n_bytes / 1'000'000, space.available / 1'000'000, printable(folder.string(), 4096));
  }
}

}  // namespace qw::app
