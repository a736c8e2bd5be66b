#include "checkpoint/lfs_pointer.h"

#include <charconv>

#include "base/error.h"

namespace qw {

void refuse_lfs_pointer(std::string_view text, std::string_view what, std::string_view path) {
  constexpr size_t kMaxPointerBytes = 1024;  // by the specification a pointer is smaller
  constexpr std::string_view kStart = "version https://git-lfs.github.com/spec/v1";
  constexpr std::string_view kSizeLine = "\nsize ";
  if (text.size() > kMaxPointerBytes || !text.starts_with(kStart)) return;
  uint64_t real_bytes = 0;
  if (const size_t at = text.find(kSizeLine); at != std::string_view::npos) {
    std::from_chars(text.data() + at + kSizeLine.size(), text.data() + text.size(), real_bytes);
  }
  fail(ErrorKind::kCorrupt, "checkpoint",
       "{}: expected a file of {} bytes, got its Git LFS pointer of {}; fetch it with `git lfs "
       "pull` ({})",
       what, real_bytes, text.size(), printable(path, 4096));
}

}  // namespace qw
