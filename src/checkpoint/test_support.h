// What the tests of this folder share: temporary folders, damaged copies, expected errors.
//
// Level 3 (checkpoint), tests only.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "checkpoint/memory_file.h"

namespace qw {

/// An empty folder that goes with its owner.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "qw-test-XXXXXX").string();
    QW_CHECK(::mkdtemp(pattern.data()) != nullptr, "mkdtemp");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  void write(std::string_view name, std::string_view text) const {
    write_file_atomically(*this / name, std::as_bytes(std::span(text)));
  }

 private:
  std::string path_;
};

inline std::shared_ptr<const MappedFile> map_text(std::string_view text) {
  return map_bytes(std::as_bytes(std::span(text)));
}

/// Runs `action` and expects an Error of `kind` whose message holds every one of `parts`.
inline void expect_error(ErrorKind kind, const std::vector<std::string>& parts,
                         const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.message();
    for (const std::string& part : parts) {
      EXPECT_NE(error.message().find(part), std::string::npos)
          << part << " is not in: " << error.message();
    }
    EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.message();
    return;
  }
  ADD_FAILURE() << "expected an error of kind " << name_of(kind);
}

/// `text` cut at many places and with many single bits turned: each must be read or be refused as
/// corrupt or unsupported. Returns how many were refused.
inline int expect_damage_is_survived(const std::string& text, size_t step, const auto& read) {
  int n_refused = 0;
  const auto attempt = [&](const std::string& damaged, size_t at) {
    try {
      read(map_text(damaged));
    } catch (const Error& error) {
      ++n_refused;
      EXPECT_TRUE(error.kind() == ErrorKind::kCorrupt || error.kind() == ErrorKind::kUnsupported)
          << at << ": " << error.message();
    }
  };
  for (size_t at = 0; at < text.size(); at += step) {
    attempt(text.substr(0, at), at);
    std::string flipped = text;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (at / step % 8)));
    attempt(flipped, at);
  }
  return n_refused;
}

/// A number's bytes as they lie in memory.
template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

}  // namespace qw
