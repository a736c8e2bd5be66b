#include "base/atomic_directory.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

class AtomicDirectories : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directory(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  const fs::path folder_ = fs::temp_directory_path() / fmt::format("qw_directory_{}", ::getpid());
};

TEST_F(AtomicDirectories, AreThereWhenTheyAreWhole) {
  const std::string path = (folder_ / "made").string();
  AtomicDirectory directory(path + "/");
  std::ofstream(directory.file("a")) << "text";
  EXPECT_FALSE(fs::exists(path));
  EXPECT_TRUE(fs::exists(path + ".partial/a"));
  directory.commit();
  EXPECT_TRUE(fs::exists(path + "/a"));
  EXPECT_FALSE(fs::exists(path + ".partial"));
}

TEST_F(AtomicDirectories, LeaveNothingBehindAndReplaceWhatOthersLeft) {
  const std::string path = (folder_ / "made").string();
  fs::create_directory(path + ".partial");
  std::ofstream(path + ".partial/old") << "of a process that was killed";
  {
    const AtomicDirectory directory(path);
    EXPECT_FALSE(fs::exists(directory.file("old")));
    std::ofstream(directory.file("new")) << "text";
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(AtomicDirectories, NeverReplaceAnother) {
  const std::string path = (folder_ / "made").string();
  fs::create_directory(path);
  try {
    const AtomicDirectory directory(path);
    FAIL() << "expected a refusal";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    EXPECT_THAT(error.message(), ::testing::HasSubstr("expected one that is not there yet"));
  }
  EXPECT_TRUE(fs::is_directory(path));
}

}  // namespace
}  // namespace qw
