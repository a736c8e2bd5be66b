#include "engine/kv_snapshot.h"

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace qw {

int64_t write_snapshot(const std::string& path, const KvSnapshot& snapshot, const KeyedHash& hash) {
  const uint64_t n_pages = snapshot.page_bytes == 0
                               ? 0
                               : snapshot.pages.size() / static_cast<uint64_t>(snapshot.page_bytes);
  const std::vector<std::byte> front = kv_file_front(
      snapshot.root, snapshot.tokens, static_cast<uint64_t>(snapshot.page_bytes), n_pages);
  const KeyedHash::Digest seal = kv_file_seal(hash, front, snapshot.pages);
  AtomicFile file(path, 0600);
  file.write(front);
  file.write(snapshot.pages);
  file.write(std::as_bytes(std::span(seal)));
  file.commit();
  return static_cast<int64_t>(front.size() + snapshot.pages.size() + seal.size());
}

KvSnapshot read_snapshot(const std::string& path, const KeyedHash& hash) {
  const auto file = MappedFile::open(path);
  // Copied before it is checked: what the file becomes meanwhile does not matter then.
  const std::vector<std::byte> bytes(file->bytes().begin(), file->bytes().end());
  file->check_readable();
  try {
    KvFileView view = read_kv_file(bytes, hash);
    return {view.head.name,
            std::move(view.tokens),
            static_cast<int64_t>(view.head.page_bytes),
            {view.pages.begin(), view.pages.end()}};
  } catch (const Error& error) {
    fail(error.kind(), "slot", "file: {} ({})", sentence_of(error), printable(path, 4096));
  }
}

}  // namespace qw
