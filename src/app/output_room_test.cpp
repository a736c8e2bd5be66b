#include "app/output_room.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace qw::app {
namespace {

namespace fs = std::filesystem;

TEST(OutputName, KnowsADirectoryByEitherName) {
  EXPECT_EQ(directory_name("a/b/"), "a/b");
  EXPECT_EQ(directory_name("a/b"), "a/b");
  EXPECT_EQ(directory_name("./a//"), "a");
  EXPECT_EQ(directory_name(""), "");
  const std::string there = std::filesystem::temp_directory_path().string();
  EXPECT_NO_THROW(check_room("test", there + "/qw_no_such/", 1));
  EXPECT_THROW(check_room("test", there + "/qw_no_such/name/", 1), Error);
}

class OutputRoom : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directory(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  std::string make(const std::string& name) const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << "12345";
    return (folder_ / name).string();
  }
  const fs::path folder_ = fs::temp_directory_path() / fmt::format("qw_room_{}", ::getpid());
};

TEST_F(OutputRoom, GoesWithWhatKilledRunsLeft) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  const std::string mark = fmt::format(".tmp-{}-0", child);
  const std::string stays[] = {make("other.gguf" + mark), make("m-x-00001-of-00002.gguf" + mark),
                               make("m.gguf")};
  const std::string go[] = {make("m.gguf" + mark), make("m-00001-of-00003.gguf" + mark),
                            make("m-00002-of-00003.gguf" + mark)};
  check_room("test", (folder_ / "m.gguf").string(), 1);
  for (const std::string& path : stays)
    EXPECT_TRUE(fs::exists(path)) << path;
  for (const std::string& path : go)
    EXPECT_FALSE(fs::exists(path)) << path;
}

TEST_F(OutputRoom, CountsWhatIsThereToGoOnWith) {
  const std::string output = (folder_ / "m").string();
  const auto free = static_cast<int64_t>(fs::space(folder_).available);
  const int64_t more = free + (int64_t{1} << 40);
  EXPECT_THROW(check_room("test", output, more, true), Error);
  const std::string large = make("m.work/imatrix/layer");
  fs::resize_file(large, static_cast<uintmax_t>(more - free / 2));  // of nothing, on the disk
  EXPECT_NO_THROW(check_room("test", output, more, true));
  EXPECT_THROW(check_room("test", output, more), Error);
}

TEST_F(OutputRoom, KnowsNamesOfFiles) {
  EXPECT_NO_THROW(check_file_name("test", "--output", (folder_ / "m.gguf").string()));
  EXPECT_THROW(check_file_name("test", "--output", folder_.string()), Error);
  EXPECT_THROW(check_file_name("test", "--output", (folder_ / "m.gguf/").string()), Error);
}

}  // namespace
}  // namespace qw::app
