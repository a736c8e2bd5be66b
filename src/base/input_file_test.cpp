#include "base/input_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

class InputFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qw-input-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

ErrorKind kind_of(const std::string& path) {
  try {
    read_input_file(path, nullptr);
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::kInternal;
}

TEST_F(InputFile, ReadsARegularFile) {
  const std::string path = (folder_ / "a").string();
  std::ofstream(path) << "text";
  EXPECT_EQ(read_input_file(path, nullptr), "text");
}

TEST_F(InputFile, ReadsAPipeToItsEnd) {
  const std::string path = (folder_ / "pipe").string();
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const std::string text(300'000, 'x');  // more than a pipe holds at a time
  std::thread writer([&] { std::ofstream(path) << text; });
  EXPECT_EQ(read_input_file(path, nullptr), text);
  writer.join();
}

TEST_F(InputFile, RefusesWhatCannotBeRead) {
  EXPECT_EQ(kind_of((folder_ / "absent").string()), ErrorKind::kNotFound);
  EXPECT_EQ(kind_of(folder_.string()), ErrorKind::kIo);
}

TEST_F(InputFile, AStreamHasACap) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  ASSERT_EQ(::write(ends[1], "12345", 5), 5);
  ::close(ends[1]);
  try {
    read_stream(ends[0], "pipe", nullptr, 4);
    ADD_FAILURE() << "5 bytes were accepted where 4 are the limit";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
  }
  ::close(ends[0]);
}

}  // namespace
}  // namespace qw
