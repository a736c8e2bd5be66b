#include "checkpoint/zip.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string_view>
#include <unordered_set>

#include "base/error.h"

namespace qw {

namespace {

// Signatures and sizes of the fixed parts of the records.
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56,
                   kLocator64Bytes = 20;
constexpr uint64_t kMaxCommentBytes = 65535;
constexpr uint64_t kMaxEntries = uint64_t{1} << 20;
constexpr uint16_t kZip64Extra = 1;
constexpr uint32_t kIn64 = 0xFFFFFFFF;  // "see the zip64 field"

class Archive {
 public:
  explicit Archive(const MappedFile& file)
      : bytes_(file.bytes()), path_(printable(file.path(), 4096)) {}

  std::vector<ZipEntry> entries() const {
    const Directory directory = find_directory();
    if (directory.n_entries > kMaxEntries ||
        directory.n_entries > directory.n_bytes / kCentralBytes) {
      corrupt("entries", directory.n_bytes / kCentralBytes, directory.n_entries);
    }
    std::vector<ZipEntry> out;
    std::unordered_set<std::string> names;
    uint64_t at = directory.begin;
    for (uint64_t i = 0; i < directory.n_entries; ++i) {
      ZipEntry entry = read_entry(at, directory.begin + directory.n_bytes);
      if (!names.insert(entry.name).second) {
        fail(ErrorKind::kCorrupt, "zip", "entry {}: expected it once, got it twice ({})",
             printable(entry.name), path_);
      }
      if (!entry.name.ends_with('/')) out.push_back(std::move(entry));
    }
    check_apart(out);
    return out;
  }

 private:
  struct Directory {
    uint64_t n_entries = 0;
    uint64_t begin = 0;
    uint64_t n_bytes = 0;
  };

  [[noreturn]] void corrupt(std::string_view what, uint64_t expected, uint64_t got) const {
    fail(ErrorKind::kCorrupt, "zip", "{}: expected at most {}, got {} ({})", what, expected, got,
         path_);
  }

  void expect_inside(uint64_t begin, uint64_t n_bytes, std::string_view what) const {
    if (n_bytes > bytes_.size() || begin > bytes_.size() - n_bytes) {
      fail(ErrorKind::kCorrupt, "zip",
           "{}: expected {} bytes at {} of the archive, got only {} in all; cut short ({})", what,
           n_bytes, begin, bytes_.size(), path_);
    }
  }

  template <typename T>
  T at(uint64_t offset) const {
    expect_inside(offset, sizeof(T), "number");
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof(T));
    return value;
  }

  std::string_view text(uint64_t begin, uint64_t n_bytes, std::string_view what) const {
    expect_inside(begin, n_bytes, what);
    return {reinterpret_cast<const char*>(bytes_.data()) + begin, n_bytes};
  }

  // The end record lies at the end, before a comment of its stated length.
  uint64_t find_end() const {
    const uint64_t size = bytes_.size();
    for (uint64_t back = kEndBytes; back <= std::min(size, kEndBytes + kMaxCommentBytes); ++back) {
      const uint64_t begin = size - back;
      if (at<uint32_t>(begin) == kEndSignature && at<uint16_t>(begin + 20) == back - kEndBytes)
        return begin;
    }
    fail(ErrorKind::kCorrupt, "zip",
         "end of archive: expected its record, got none; cut short ({})", path_);
  }

  Directory find_directory() const {
    const uint64_t end = find_end();
    if (at<uint16_t>(end + 4) != 0 || at<uint16_t>(end + 6) != 0) {
      if (at<uint16_t>(end + 4) != 0xFFFF) {
        fail(ErrorKind::kUnsupported, "zip",
             "archive: expected one file, got a part of several ({})", path_);
      }
    }
    Directory out{at<uint16_t>(end + 10), at<uint32_t>(end + 16), at<uint32_t>(end + 12)};
    const bool has_locator =
        end >= kLocator64Bytes && at<uint32_t>(end - kLocator64Bytes) == kLocator64Signature;
    if (has_locator) {
      const auto end64 = at<uint64_t>(end - kLocator64Bytes + 8);
      expect_inside(end64, kEnd64Bytes, "zip64 end of archive");
      if (at<uint32_t>(end64) != kEnd64Signature) {
        fail(ErrorKind::kCorrupt, "zip",
             "zip64 end of archive: expected its record, got other bytes ({})", path_);
      }
      out = {at<uint64_t>(end64 + 32), at<uint64_t>(end64 + 48), at<uint64_t>(end64 + 40)};
    }
    expect_inside(out.begin, out.n_bytes, "central directory");
    return out;
  }

  // Replaces sizes and offset that did not fit 32 bits: the zip64 field holds, in this order,
  // those that are marked.
  void read_zip64(uint64_t extra, uint64_t n_bytes, uint64_t& size, uint64_t& packed_size,
                  uint64_t& local) const {
    if (size != kIn64 && packed_size != kIn64 && local != kIn64) return;
    for (const uint64_t end = extra + n_bytes; extra + 4 <= end;) {
      const auto tag = at<uint16_t>(extra);
      uint64_t left = at<uint16_t>(extra + 2);
      uint64_t field = extra + 4;
      extra = field + left;
      if (tag != kZip64Extra || extra > end) continue;
      for (uint64_t* value : {&size, &packed_size, &local}) {
        if (*value != kIn64 || left < 8) continue;
        *value = at<uint64_t>(field);
        field += 8;
        left -= 8;
      }
      return;
    }
  }

  // Reads the directory record at `at` and moves it to the next one.
  ZipEntry read_entry(uint64_t& record, uint64_t directory_end) const {
    if (record + kCentralBytes > directory_end || at<uint32_t>(record) != kCentralSignature) {
      fail(ErrorKind::kCorrupt, "zip",
           "central directory: expected a record at byte {}, got other bytes ({})", record, path_);
    }
    const auto flags = at<uint16_t>(record + 8);
    const auto method = at<uint16_t>(record + 10);
    uint64_t packed_size = at<uint32_t>(record + 20);
    uint64_t size = at<uint32_t>(record + 24);
    const uint64_t name_bytes = at<uint16_t>(record + 28);
    const uint64_t extra_bytes = at<uint16_t>(record + 30);
    const uint64_t comment_bytes = at<uint16_t>(record + 32);
    uint64_t local = at<uint32_t>(record + 42);
    ZipEntry entry;
    entry.name = text(record + kCentralBytes, name_bytes, "entry name");
    entry.crc32 = at<uint32_t>(record + 16);
    read_zip64(record + kCentralBytes + name_bytes, extra_bytes, size, packed_size, local);
    record += kCentralBytes + name_bytes + extra_bytes + comment_bytes;

    constexpr uint16_t kEncrypted = 1;
    if (method != 0 || (flags & kEncrypted) != 0 || size != packed_size) {
      fail(ErrorKind::kUnsupported, "zip", "entry {}: expected it stored, got {} ({})",
           printable(entry.name),
           (flags & kEncrypted) != 0 ? "encrypted" : fmt::format("compression method {}", method),
           path_);
    }
    // The local header repeats the name; its own extra field may have another length (padding).
    expect_inside(local, kLocalBytes, "local header");
    if (at<uint32_t>(local) != kLocalSignature ||
        text(local + kLocalBytes, at<uint16_t>(local + 26), "entry name") != entry.name) {
      fail(ErrorKind::kCorrupt, "zip",
           "entry {}: expected its local header at byte {}, got other bytes ({})",
           printable(entry.name), local, path_);
    }
    entry.offset_bytes = local + kLocalBytes + name_bytes + at<uint16_t>(local + 28);
    expect_inside(entry.offset_bytes, size, printable(entry.name));
    entry.bytes = bytes_.subspan(entry.offset_bytes, size);
    return entry;
  }

  void check_apart(const std::vector<ZipEntry>& entries) const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    ranges.reserve(entries.size());
    for (const ZipEntry& entry : entries)
      ranges.emplace_back(entry.offset_bytes, entry.offset_bytes + entry.bytes.size());
    std::ranges::sort(ranges);
    for (size_t i = 1; i < ranges.size(); ++i) {
      if (ranges[i].first < ranges[i - 1].second) {
        fail(ErrorKind::kCorrupt, "zip",
             "entries: expected them apart, got two that hold byte {} ({})", ranges[i].first,
             path_);
      }
    }
  }

  std::span<const std::byte> bytes_;
  std::string path_;
};

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit)
      value = (value >> 1) ^ ((value & 1) != 0 ? 0xEDB88320u : 0u);
    table[i] = value;
  }
  return table;
}
constexpr auto kCrcTable = make_crc_table();

}  // namespace

std::vector<ZipEntry> read_zip(const MappedFile& file) {
  return Archive(file).entries();
}

void check_crc(const ZipEntry& entry, const std::string& file) {
  uint32_t crc = ~0u;
  for (const std::byte byte : entry.bytes)
    crc = kCrcTable[(crc ^ std::to_integer<uint32_t>(byte)) & 0xFF] ^ (crc >> 8);
  if (~crc != entry.crc32) {
    fail(ErrorKind::kCorrupt, "zip", "CRC of {}: expected {:08x}, got {:08x} ({})",
         printable(entry.name), entry.crc32, ~crc, printable(file, 4096));
  }
}

}  // namespace qw
