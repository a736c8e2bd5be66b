// Fuzz target: a file of keys and values as anybody could have left it. What is not exactly what
// was written is refused with an error; what is read is what was written.
//
// The first byte chooses: any bytes, or a whole file with some of its bytes changed.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/kv_file.h"

namespace {

using namespace qw;  // NOLINT(google-build-using-namespace): one program

const std::vector<int32_t> kTokens = {1, 2, 3, 4, 5};
const std::vector<std::byte> kPages(96, std::byte{7});

void expect(bool holds) {
  if (!holds) std::abort();
}

std::vector<std::byte> whole_file(const KeyedHash& hash) {
  std::vector<std::byte> out = kv_file_front(kv_root_name("fuzz"), kTokens, 48, 2);
  const KeyedHash::Digest seal = kv_file_seal(hash, out, kPages);
  out.insert(out.end(), kPages.begin(), kPages.end());
  const auto end = std::as_bytes(std::span(seal));
  out.insert(out.end(), end.begin(), end.end());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static const KeyedHash hash(std::vector<std::byte>(KeyedHash::kSecretBytes, std::byte{9}));
  static const std::vector<std::byte> whole = whole_file(hash);
  std::vector<std::byte> bytes;
  const auto given = std::as_bytes(std::span(data, size)).subspan(1);
  if (data[0] % 2 == 0) {
    bytes.assign(given.begin(), given.end());
  } else {
    bytes = whole;
    for (size_t i = 0; i + 1 < given.size(); i += 2)
      bytes[std::to_integer<size_t>(given[i]) % bytes.size()] ^= given[i + 1];
    if (given.size() % 2 == 1) bytes.resize(std::to_integer<size_t>(given.back()) * 2);
  }
  // The sizes in a head never lead beyond the bytes that are there, whatever the hash says.
  try {
    const KvFileHead head = read_kv_head(bytes);
    expect(head.file_bytes() >= KvFileHead::kBytes);
  } catch (const Error& error) {
    expect(error.kind() == ErrorKind::kCorrupt);
  }
  try {
    const KvFileView view = read_kv_file(bytes, hash);
    expect(bytes == whole && view.tokens == kTokens && view.head.n_pages == 2);
    expect(view.pages.size() == kPages.size() &&
           std::memcmp(view.pages.data(), kPages.data(), kPages.size()) == 0);
  } catch (const Error& error) {
    expect(error.kind() == ErrorKind::kCorrupt && bytes != whole);
  }
  return 0;
}
