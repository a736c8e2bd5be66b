// Zip archives of stored (uncompressed) entries, as views of a mapped file.
//
// Level 3 (checkpoint). Source: PKWARE APPNOTE 6.3, sections 4.3 and 4.5.3 (zip64). Our own
// reader, because tensors must stay in the mapping: libraries hand out copies, and PyTorch stores
// its entries uncompressed and aligned for this very purpose.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"

namespace qw {

struct ZipEntry {
  std::string name;
  std::span<const std::byte> bytes;
  uint64_t offset_bytes = 0;  // of the first byte in the archive
  uint32_t crc32 = 0;         // as the directory states it
};

/// The entries in the order of the central directory, folders left out. Entries lie inside the
/// file, do not overlap, and have unique names. Contents are not read, so their CRC is not checked
/// here. Errors: corrupt; unsupported for compressed, encrypted or multi-disk archives.
std::vector<ZipEntry> read_zip(const MappedFile& file);

/// Compares an entry with its CRC. Errors: corrupt.
void check_crc(const ZipEntry& entry, const std::string& file);

}  // namespace qw
