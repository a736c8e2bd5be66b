// Keys and values of one sequence as a file of their own, which people keep and bring back by name.
//
// Level 6 (engine). The form is engine/kv_file.h's; the name in it says which weights, adapter,
// cache type and program the bytes are of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/kv_file.h"

namespace qw {

struct KvSnapshot {
  KvName root{};                // of what the bits depend on besides tokens
  std::vector<int32_t> tokens;  // those whose keys and values are in `pages`
  int64_t page_bytes = 0;
  std::vector<std::byte> pages;
};

/// Writes it whole or not at all. Returns the file's bytes. Errors: io, naming the file.
int64_t write_snapshot(const std::string& path, const KvSnapshot& snapshot, const KeyedHash& hash);
/// Errors: not_found, io, corrupt (among them: made by another machine's server, or changed); each
/// names the file.
KvSnapshot read_snapshot(const std::string& path, const KeyedHash& hash);

}  // namespace qw
