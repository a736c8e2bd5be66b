// Bytes in memory as a MappedFile, for fuzz targets and tests: the readers take nothing else.
//
// Level 3 (checkpoint), tests only.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"
#include "base/mapped_file.h"

namespace qw {

inline std::shared_ptr<const MappedFile> map_bytes(std::span<const std::byte> bytes) {
  const int fd = ::memfd_create("qianwen-test", MFD_CLOEXEC);
  QW_CHECK(fd >= 0, "memfd_create");
  const ssize_t written = ::write(fd, bytes.data(), bytes.size());
  QW_CHECK(written == static_cast<ssize_t>(bytes.size()), "write to memory");
  auto file = MappedFile::open("/proc/self/fd/" + std::to_string(fd));
  ::close(fd);
  return file;
}

}  // namespace qw
