// Tests of mapped files: errors, and what happens when the bytes vanish under a mapping.
#include "base/mapped_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
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

TEST_F(MappedFileTest, ACutWithinAPageIsNoticed) {
  const std::string path = write("cut", std::string(100, 'x'));
  const auto file = MappedFile::open(path);
  fs::resize_file(path, 50);
  EXPECT_EQ(file->text()[99], '\0') << "zeros, and no signal";
  EXPECT_THROW(file->check_readable(), Error);
  // A file of the same name is another file: ours is unlinked, and whole.
  const std::string other = write("whole", "hello");
  const auto whole = MappedFile::open(other);
  fs::remove(other);
  write("whole", "h");
  EXPECT_NO_THROW(whole->check_readable());
}

TEST_F(MappedFileTest, ClosedFilesStayMapped) {
  const auto n_open = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const std::string path = write("many", std::string(5000, 'x'));
  const auto before = n_open();
  std::vector<std::shared_ptr<const MappedFile>> files;
  for (int i = 0; i < 5000; ++i)
    files.push_back(MappedFile::open_and_close(path));
  EXPECT_EQ(n_open(), before);
  EXPECT_NO_THROW(files.back()->check_readable());
  fs::resize_file(path, 0);
  for (const size_t i : {size_t{0}, files.size() - 1}) {
    EXPECT_EQ(files[i]->text()[4999], '\0');
    EXPECT_THROW(files[i]->check_readable(), Error);
  }
}

int g_plain_calls = 0;
jmp_buf g_before_fault;
void plain_handler(int /*signal*/) {
  ++g_plain_calls;
  siglongjmp(g_before_fault, 1);
}

bool faults(const volatile char* bytes) {
  if (sigsetjmp(g_before_fault, 1) != 0) return true;
  static_cast<void>(bytes[0]);
  return false;
}

/// In a process of its own: handlers are installed once per process.
void fault_twice_elsewhere(const std::string& path, const std::string& cut) {
  struct sigaction action {};
  action.sa_handler = plain_handler;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &action, nullptr);
  const auto file = MappedFile::open(path);  // installs ours
  // A mapping that is not ours, cut.
  const Descriptor other(::open(cut.c_str(), O_RDONLY));
  const long page = sysconf(_SC_PAGESIZE);
  const auto* bytes = static_cast<const volatile char*>(
      mmap(nullptr, static_cast<size_t>(page), PROT_READ, MAP_PRIVATE, other.get(), 0));
  if (!faults(bytes) || !faults(bytes)) std::_Exit(3);
  // Ours is still there.
  fs::resize_file(path, 0);
  const int seen = *reinterpret_cast<const volatile char*>(file->bytes().data());
  try {
    file->check_readable();
  } catch (const Error&) {
    std::_Exit(g_plain_calls == 2 && seen == 0 ? 0 : 5);
  }
  std::_Exit(6);
}

TEST_F(MappedFileTest, APlainHandlerOfTheProgramKeepsItsFaults) {
  const std::string path = write("ours", std::string(10, 'x')), cut = write("theirs", "");
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(fault_twice_elsewhere(path, cut), testing::ExitedWithCode(0), "");
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
