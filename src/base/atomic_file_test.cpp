// Tests of files that appear only when whole: replacing, failing, names left by others, threads.
#include "base/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/descriptor.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("qw-atomic-" + std::to_string(::getpid()));
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string path(const std::string& name) const { return (directory_ / name).string(); }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(directory_))
      out.push_back(entry.path().filename().string());
    return out;
  }
  static void write(const std::string& path, const std::string& text) {
    write_file_atomically(path, std::as_bytes(std::span(text)));
  }
  fs::path directory_;
};

TEST_F(AtomicFileTest, ReplacesOrKeeps) {
  write(path("old"), "old");
  write(path("old"), "new bytes");
  EXPECT_EQ(read_text_file(path("old")), "new bytes");
  EXPECT_THROW(write(path("no/such"), "x"), Error);
  { AtomicFile abandoned(path("old")); }
  EXPECT_EQ(read_text_file(path("old")), "new bytes");
  EXPECT_EQ(names(), std::vector<std::string>{"old"}) << "a temporary file was left behind";
}

TEST_F(AtomicFileTest, RenamesOverWhatIsThere) {
  write(path("new"), "new");
  write(path("old"), "old");
  rename_synced(path("new"), path("old"));
  EXPECT_EQ(read_text_file(path("old")), "new");
  EXPECT_EQ(names(), std::vector<std::string>{"old"});
  EXPECT_THROW(rename_synced(path("new"), path("old")), Error);
}

TEST_F(AtomicFileTest, TheFirstOfSeveralStays) {
  const auto write_unless = [&](const std::string& text) {
    AtomicFile file(path("secret"), 0600);
    file.write(std::as_bytes(std::span(text)));
    file.commit_unless_exists();
  };
  write_unless("first");
  write_unless("second");
  EXPECT_EQ(read_text_file(path("secret")), "first");
  EXPECT_EQ(names(), std::vector<std::string>{"secret"}) << "a temporary file was left behind";
  EXPECT_EQ(fs::status(path("secret")).permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(AtomicFileTest, TemporaryFilesOfOthersAreLeftAlone) {
  // What a killed process of our own number would have left, for the numbers that come next.
  unsigned next = 0;
  {
    const AtomicFile probe(path("x"));
    const std::string name = names().at(0);
    next = static_cast<unsigned>(std::stoul(name.substr(name.rfind('-') + 1))) + 1;
  }
  for (unsigned i = next; i < next + 3; ++i) {
    std::ofstream(path("x.tmp-" + std::to_string(::getpid()) + "-" + std::to_string(i))) << "left";
  }
  write(path("x"), "text");
  EXPECT_EQ(read_text_file(path("x")), "text");
  EXPECT_EQ(names().size(), 4u) << "the file and three that are not ours";
}

TEST_F(AtomicFileTest, ThreadsThatWriteOnePathDoNotMix) {
  std::vector<std::thread> writers;
  for (const char letter : {'a', 'b', 'c', 'd'}) {
    writers.emplace_back([&, letter] {
      for (int i = 0; i < 20; ++i)
        write(path("shared"), std::string(5000, letter));
    });
  }
  for (auto& writer : writers)
    writer.join();
  const std::string text = read_text_file(path("shared"));
  EXPECT_EQ(text, std::string(5000, text.empty() ? '?' : text[0]));
  EXPECT_EQ(names().size(), 1u);
}

TEST_F(AtomicFileTest, WhatNeedNotBeSyncedIsWholeAllTheSame) {
  {
    AtomicFile file(path("x"));
    file.write(std::as_bytes(std::span(std::string_view("text"))));
    file.commit_unsynced();
  }
  EXPECT_EQ(read_text_file(path("x")), "text");
  EXPECT_EQ(names().size(), 1u);
}

TEST_F(AtomicFileTest, GoesOnWithWhatIsKept) {
  const auto add = [](AtomicFile& file, std::string_view text) {
    file.write(std::as_bytes(std::span(text)));
  };
  {
    AtomicFile file(path("x"), path("kept"), 0);
    add(file, "first");
    file.sync();
    add(file, " lost");
  }
  EXPECT_EQ(names(), std::vector<std::string>{"kept"});
  std::ofstream(path("kept"), std::ios::app) << " and cut";
  {
    AtomicFile file(path("x"), path("kept"), 5);
    add(file, " second");
    file.seal();
  }
  EXPECT_EQ(names(), std::vector<std::string>{"kept"});
  {
    AtomicFile file(path("x"), path("kept"), 12);
    file.commit();
  }
  EXPECT_EQ(read_text_file(path("x")), "first second");
  EXPECT_EQ(names(), std::vector<std::string>{"x"});
  EXPECT_THROW(AtomicFile(path("x"), path("kept"), 1), Error) << "there is less";
}

/// The number of a process that has ended.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST_F(AtomicFileTest, OnlyDeadProcessesTemporaryFilesGo) {
  const std::string dead = std::to_string(dead_process());
  const auto make = [&](const std::string& name) { std::ofstream(path(name)) << "x"; };
  const std::vector<std::string> stay = {"a.tmp-1-1",
                                         "b.tmp-" + dead + "-1",
                                         "a.tmp-" + dead,
                                         "a.tmp-" + dead + "-1x",
                                         "a.tmp--" + dead + "-1",
                                         "a"};
  for (const std::string& name : stay)
    make(name);
  make("a.tmp-" + dead + "-1");
  make("a.tmp-" + dead + "-22");
  // Of a process of this number elsewhere.
  make("a.tmp-" + dead + "-3");
  const Descriptor held(::open(path("a.tmp-" + dead + "-3").c_str(), O_RDONLY));
  ASSERT_EQ(::flock(held.get(), LOCK_EX), 0);
  const AtomicFile own(path("a"));
  remove_dead_temporaries(directory_.string(), [](const std::string& name) { return name == "a"; });
  for (const std::string& name : stay)
    EXPECT_TRUE(fs::exists(path(name))) << name;
  EXPECT_TRUE(fs::exists(path("a.tmp-" + dead + "-3")));
  EXPECT_EQ(names().size(), stay.size() + 2) << "and our own";
}

TEST_F(AtomicFileTest, AFileOnItsWayIsLocked) {
  const AtomicFile file(path("a"));
  const Descriptor other(::open(path(names().at(0)).c_str(), O_RDONLY));
  EXPECT_NE(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
}

TEST_F(AtomicFileTest, OnlyOldTemporaryFilesOfTheKindAreAbandoned) {
  for (const char* name : {"a.kv.tmp-1-1", "b.kv.tmp-1-2", "c.other.tmp-1-3", "d.kv"})
    std::ofstream(path(name)) << "x";
  for (const char* name : {"a.kv.tmp-1-1", "c.other.tmp-1-3", "d.kv"})
    fs::last_write_time(path(name), fs::file_time_type::clock::now() - std::chrono::hours(2));
  remove_abandoned_files(fs::path(path("a")).parent_path().string(), ".kv");
  EXPECT_FALSE(fs::exists(path("a.kv.tmp-1-1")));
  EXPECT_EQ(names().size(), 3u);
}

}  // namespace
}  // namespace qw
