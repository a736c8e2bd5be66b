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
  EXPECT_EQ(std::distance(fs::directory_iterator(path), {}), 1) << "and no mark";
  EXPECT_FALSE(fs::exists(path + ".partial"));
}

TEST_F(AtomicDirectories, LeaveNothingBehindAndReplaceWhatOthersLeft) {
  const std::string path = (folder_ / "made").string();
  fs::create_directory(path + ".partial");  // of a process that was killed at once
  {
    const AtomicDirectory killed(path);
    std::ofstream(killed.file("old")) << "of a process that was killed";
    fs::copy(path + ".partial", path + ".kept");
  }
  fs::rename(path + ".kept", path + ".partial");
  {
    const AtomicDirectory directory(path);
    EXPECT_FALSE(fs::exists(directory.file("old")));
    std::ofstream(directory.file("new")) << "text";
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

/// A user's own of the name that ours would have.
TEST_F(AtomicDirectories, NeverRemoveWhatIsNotTheirs) {
  const std::string path = (folder_ / "made").string();
  const auto refused = [&] {
    try {
      const AtomicDirectory directory(path);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kInvalidArgument &&
             std::string(error.message()).find("remove " + path + ".partial") != std::string::npos;
    }
    return false;
  };
  fs::create_directory(path + ".partial");
  std::ofstream(path + ".partial/thesis") << "text";
  EXPECT_TRUE(refused());
  EXPECT_TRUE(fs::exists(path + ".partial/thesis"));
  fs::remove_all(path + ".partial");
  std::ofstream(path + ".partial") << "a file";
  EXPECT_TRUE(refused());
  EXPECT_TRUE(fs::exists(path + ".partial"));
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
