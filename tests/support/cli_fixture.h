// What tests of the command line share: a folder of their own, damaged copies of checkpoints, and
// the check that a failure keeps the contract (docs/errors.md).
//
// Part of the tests; header only.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "support/process.h"

namespace qw::test {

inline const std::string kBundled = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("qw-cli-" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }
  /// A copy of a checkpoint that a case may damage.
  std::string copy_of(const std::string& model, const std::string& name) const {
    namespace fs = std::filesystem;
    fs::copy(model, folder_ / name, fs::copy_options::recursive);
    for (const auto& entry : fs::recursive_directory_iterator(folder_ / name)) {
      fs::permissions(entry.path(), fs::perms::owner_all, fs::perm_options::add);
    }
    return (folder_ / name).string();
  }
  std::filesystem::path folder_;
};

/// The exit code, and a last line "qianwen: error: [component] what: expected X, got Y (where)"
/// that holds `part`.
inline void expect_failure(const Ran& ran, int code, const std::string& part) {
  EXPECT_FALSE(ran.timed_out);
  EXPECT_EQ(ran.code, code) << ran.err;
  EXPECT_THAT(ran.last_error_line(),
              testing::MatchesRegex("qianwen: error: \\[[a-z_ ]+\\] .+: expected .+, got.+"));
  EXPECT_THAT(ran.last_error_line(), testing::HasSubstr(part));
}

}  // namespace qw::test
