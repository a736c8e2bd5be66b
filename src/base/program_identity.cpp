#include "base/program_identity.h"

#include <fmt/format.h>
#include <link.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__GLIBC__)
#include <gnu/libc-version.h>
#endif

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace qw {

namespace {

/// The part of an object that the loader mapped as it is in the file: not writable.
struct Segments {
  std::vector<std::pair<const void*, size_t>> constant;
  bool is_ours = false;
};

int find_ours(dl_phdr_info* object, size_t, void* data) {
  auto& out = *static_cast<Segments*>(data);
  const auto here = reinterpret_cast<uintptr_t>(&find_ours);
  Segments found;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = object->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || (part.p_flags & PF_W) != 0) continue;
    const uintptr_t begin = object->dlpi_addr + part.p_vaddr;
    found.constant.emplace_back(reinterpret_cast<const void*>(begin), part.p_filesz);
    found.is_ours = found.is_ours || (begin <= here && here < begin + part.p_filesz);
  }
  if (!found.is_ours) return 0;
  out = std::move(found);
  return 1;  // no further
}

#if defined(__SANITIZE_ADDRESS__)
/// Between constants AddressSanitizer lays gaps that nobody may read. Of a segment all is read, so
/// it is copied where that is not looked at; volatile, or it would become a call that is.
__attribute__((no_sanitize("address"))) std::vector<unsigned char> readable(const void* bytes,
                                                                            size_t size) {
  std::vector<unsigned char> out(size);
  unsigned char* to = out.data();
  const auto* from = static_cast<const volatile unsigned char*>(bytes);
  for (size_t i = 0; i < size; ++i)
    to[i] = from[i];
  return out;
}
#endif

XXH128_hash_t hash_of(const void* bytes, size_t size, XXH64_hash_t seed) {
#if defined(__SANITIZE_ADDRESS__)
  const std::vector<unsigned char> copy = readable(bytes, size);
  bytes = copy.data();
#endif
  return XXH3_128bits_withSeed(bytes, size, seed);
}

std::string compute() {
  Segments segments;
  dl_iterate_phdr(find_ours, &segments);
  XXH64_hash_t high = 0, low = 0;
  for (const auto& [bytes, size] : segments.constant) {
    const XXH128_hash_t hash = hash_of(bytes, size, high ^ low);
    high = high * 31 + hash.high64;
    low = low * 31 + hash.low64;
  }
#if defined(__GLIBC__)
  const char* library = gnu_get_libc_version();
#else
  const char* library = "unknown";
#endif
  return fmt::format("{:016x}{:016x}, C library {}", high, low, library);
}

}  // namespace

std::string program_identity() {
  static const std::string identity = compute();  // of one process: never changes
  return identity;
}

}  // namespace qw
