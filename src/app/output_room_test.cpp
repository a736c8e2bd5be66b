#include "app/output_room.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"

namespace qw::app {
namespace {

TEST(OutputRoom, KnowsADirectoryByEitherName) {
  EXPECT_EQ(directory_name("a/b/"), "a/b");
  EXPECT_EQ(directory_name("a/b"), "a/b");
  EXPECT_EQ(directory_name("./a//"), "a");
  EXPECT_EQ(directory_name(""), "");
  const std::string there = std::filesystem::temp_directory_path().string();
  EXPECT_NO_THROW(check_room("test", there + "/qw_no_such/", 1));
  EXPECT_THROW(check_room("test", there + "/qw_no_such/name/", 1), Error);
}

}  // namespace
}  // namespace qw::app
