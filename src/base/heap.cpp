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

}  // namespace qw
