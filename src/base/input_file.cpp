#include "base/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/descriptor.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace qw {

namespace {

/// After a system call failed: returns to try again after a signal, throws otherwise.
void retry_or_fail(std::string_view name, std::string_view action, const CancelFlag* cancel) {
  const int error = errno;
  if (error == EINTR) {
    if (cancel != nullptr) cancel->check("input");
    return;
  }
  fail(error == ENOENT || error == ENOTDIR ? ErrorKind::kNotFound : ErrorKind::kIo, "input",
       "file: expected to {} it, got: {} ({})", action, std::strerror(error),
       printable(name, 4096));
}

[[noreturn]] void fail_too_large(std::string_view name, size_t max_bytes) {
  fail(ErrorKind::kInvalidArgument, "input", "size: expected at most {} bytes, got more ({})",
       max_bytes, printable(name, 4096));
}

}  // namespace

std::string read_stream(int descriptor, std::string_view name, const CancelFlag* cancel,
                        size_t max_bytes) {
  std::string text;
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t n = ::read(descriptor, buffer.data(), buffer.size());
    if (n == 0) return text;
    if (n < 0) {
      retry_or_fail(name, "read", cancel);
      continue;
    }
    if (static_cast<size_t>(n) > max_bytes - text.size()) {
      fail_too_large(name, max_bytes);
    }
    text.append(buffer.data(), static_cast<size_t>(n));
  }
}

std::string read_input_file(const std::string& path, const CancelFlag* cancel, size_t max_bytes) {
  int fd = -1;
  while ((fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) < 0)
    retry_or_fail(path, "open", cancel);
  const Descriptor file(fd);
  struct stat status {};
  if (fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode)) {
    if (static_cast<uint64_t>(status.st_size) > max_bytes) fail_too_large(path, max_bytes);
    return read_text_file(path, max_bytes);
  }
  return read_stream(file.get(), path, cancel, std::min(max_bytes, kMaxStreamBytes));
}

}  // namespace qw
