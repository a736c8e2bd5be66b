#include "engine/kv_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"

namespace qw {

namespace {

static_assert(std::endian::native == std::endian::little, "files are written as memory is");

/// With the version of the form: another is another magic.
constexpr std::string_view kMagic = "qianwen kv 1\n";
constexpr size_t kMagicBytes = 16;
/// No machine has more; sizes below it cannot overflow.
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 46;

/// Copies `bytes` to the start of `place`; what is left of it.
std::span<std::byte> put(std::span<std::byte> place, std::span<const std::byte> bytes) {
  std::ranges::copy(bytes, place.begin());
  return place.subspan(bytes.size());
}

[[noreturn]] void refuse(std::string_view what, const std::string& expected,
                         const std::string& got) {
  fail(ErrorKind::kCorrupt, "kv file", "{}: expected {}, got {}", what, expected, got);
}

}  // namespace

KvName kv_root_name(const std::string& facts) {
  Sha256 hash;
  hash.update(std::as_bytes(std::span(kMagic)));
  hash.update(std::as_bytes(std::span(facts)));
  return hash.finish();
}

KvName kv_block_name(const KvName& before, std::span<const int32_t> tokens) {
  Sha256 hash;
  hash.update(std::as_bytes(std::span(before)));
  hash.update(std::as_bytes(tokens));
  return hash.finish();
}

uint64_t KvFileHead::file_bytes() const {
  uint64_t pages = 0;
  if (n_tokens > kMaxFileBytes / sizeof(int32_t) ||
      __builtin_mul_overflow(page_bytes, n_pages, &pages) || pages > kMaxFileBytes) {
    refuse("sizes", fmt::format("up to {} bytes", kMaxFileBytes),
           fmt::format("{} tokens, {} pages of {} bytes", n_tokens, n_pages, page_bytes));
  }
  return front_bytes() + pages + kSealBytes;
}

std::vector<std::byte> kv_file_front(const KvName& name, std::span<const int32_t> tokens,
                                     uint64_t page_bytes, uint64_t n_pages) {
  std::vector<std::byte> out(KvFileHead::kBytes + tokens.size_bytes());
  const std::array<uint64_t, 3> sizes = {tokens.size(), page_bytes, n_pages};
  std::ranges::copy(std::as_bytes(std::span(kMagic)), out.begin());
  std::span<std::byte> place = std::span(out).subspan(kMagicBytes);
  place = put(place, std::as_bytes(std::span(sizes)));
  place = put(place, std::as_bytes(std::span(name)));
  place = put(place, std::as_bytes(tokens));
  QW_CHECK(place.empty());
  return out;
}

KeyedHash::Digest kv_file_seal(const KeyedHash& hash, std::span<const std::byte> front,
                               std::span<const std::byte> pages) {
  return kv_file_seal(hash, hash.of(front), hash.of(pages));
}

KeyedHash::Digest kv_file_seal(const KeyedHash& hash, const KeyedHash::Digest& front,
                               const KeyedHash::Digest& pages) {
  const std::array<KeyedHash::Digest, 2> parts = {front, pages};
  return hash.of(std::as_bytes(std::span(parts)));
}

KvFileHead read_kv_head(std::span<const std::byte> bytes) {
  if (bytes.size() < KvFileHead::kBytes)
    refuse("head", fmt::format("{} bytes", KvFileHead::kBytes), fmt::format("{}", bytes.size()));
  std::array<char, kMagicBytes> magic{};
  std::copy(kMagic.begin(), kMagic.end(), magic.begin());
  if (std::memcmp(bytes.data(), magic.data(), kMagicBytes) != 0)
    refuse("magic", "that of this version", "another");
  KvFileHead head;
  bytes = bytes.subspan(kMagicBytes);
  for (uint64_t* number : {&head.n_tokens, &head.page_bytes, &head.n_pages}) {
    std::memcpy(number, bytes.data(), sizeof(*number));
    bytes = bytes.subspan(sizeof(*number));
  }
  std::memcpy(head.name.data(), bytes.data(), head.name.size());
  return head;
}

std::vector<int32_t> tokens_of_front(std::span<const std::byte> front) {
  front = front.subspan(KvFileHead::kBytes);
  std::vector<int32_t> tokens(front.size() / sizeof(int32_t));
  if (!tokens.empty()) std::memcpy(tokens.data(), front.data(), front.size());
  return tokens;
}

KvFileView read_kv_file(std::span<const std::byte> bytes, const KeyedHash& hash) {
  KvFileView view;
  view.head = read_kv_head(bytes);
  const uint64_t size = view.head.file_bytes();
  if (bytes.size() != size)
    refuse("size", fmt::format("{} bytes", size), fmt::format("{}", bytes.size()));
  const size_t front = view.head.front_bytes();
  view.pages = bytes.subspan(front, view.head.pages_bytes());
  const KeyedHash::Digest seal = kv_file_seal(hash, bytes.first(front), view.pages);
  if (std::memcmp(seal.data(), bytes.last(seal.size()).data(), seal.size()) != 0)
    refuse("hash", "that of its bytes", "another");
  view.tokens = tokens_of_front(bytes.first(front));
  return view;
}

}  // namespace qw
