// Tests of mapped files: errors, and what happens when the bytes vanish under a mapping.
#include "base/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

class MappedFileTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("qw-mapped-" + std::to_string(::getpid()));
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string write(const std::string& name, const std::string& text) {
    const fs::path path = directory_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }
  fs::path directory_;
};

ErrorKind kind_of(const std::string& path) {
  try {
    MappedFile::open(path);
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::kInternal;
}

TEST_F(MappedFileTest, ReadsWhatWasWritten) {
  const auto file = MappedFile::open(write("a", "hello"));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()),
            "hello");
  EXPECT_NO_THROW(file->check_readable());
  EXPECT_TRUE(MappedFile::open(write("empty", ""))->bytes().empty());
}

TEST_F(MappedFileTest, NamesWhatIsWrong) {
  EXPECT_EQ(kind_of((directory_ / "absent").string()), ErrorKind::kNotFound);
  EXPECT_EQ(kind_of(directory_.string()), ErrorKind::kIo);
  EXPECT_THROW(read_text_file(write("big", "0123456789"), 5), Error);
  const std::string pipe = (directory_ / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(kind_of(pipe), ErrorKind::kIo) << "and not a wait for somebody to write";
}

TEST_F(MappedFileTest, AbsentIsNotTheSameAsUnknown) {
  EXPECT_TRUE(path_exists(write("there", "")));
  EXPECT_TRUE(path_exists(directory_.string()));
  EXPECT_FALSE(path_exists((directory_ / "absent").string()));
  EXPECT_FALSE(path_exists((directory_ / "there" / "below").string()));
  const fs::path loop = directory_ / "loop";
  fs::create_symlink(loop, loop);
  EXPECT_THROW(path_exists(loop.string()), Error);
  fs::create_directory(directory_ / "closed");
  fs::permissions(directory_ / "closed", fs::perms::none);
  if (::geteuid() != 0) {  // root may search everywhere
    EXPECT_THROW(path_exists((directory_ / "closed" / "x").string()), Error);
  }
}

TEST_F(MappedFileTest, VanishedBytesBecomeAnIoError) {
  const std::string path = write("cut", std::string(1 << 16, 'x'));
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  fs::resize_file(path, 100);
  // Touching the lost pages raises SIGBUS; the handler puts zeros there and remembers.
  int sum = 0;
  for (size_t i = 0; i < bytes.size(); i += 512)
    sum += std::to_integer<int>(*const_cast<const volatile std::byte*>(&bytes[i]));
  EXPECT_GE(sum, 0);
  try {
    file->check_readable();
    FAIL() << "the loss went unnoticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_NE(error.message().find(path), std::string::npos);
  }
}

TEST_F(MappedFileTest, WritingFollowsLinksAndSparesDevices) {
  const std::string path = write("real", "old"), link = (directory_ / "link").string();
  fs::create_symlink(path, link);
  const std::string text = "new";
  write_file_atomically(link, std::as_bytes(std::span(text)));
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(read_text_file(path), "new");
  EXPECT_THROW(write_file_atomically("/dev/null", std::as_bytes(std::span(text))), Error);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_THROW(write_file_atomically(directory_.string(), std::as_bytes(std::span(text))), Error);
}

}  // namespace
}  // namespace qw
