#include "base/heap.h"

#include <cstdlib>  // which says whether this is glibc
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace qw {

void give_back_freed_memory() noexcept {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

void keep_little_freed_memory() noexcept {
#ifdef __GLIBC__
  // Setting either ends that they are adapted.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 2 << 20);
#endif
}

}  // namespace qw
