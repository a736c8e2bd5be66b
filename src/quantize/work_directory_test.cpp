// Directories of work on the way: whose they are, who uses them, what is taken over.
#include "quantize/work_directory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/test_support.h"

namespace qw::quantize {
namespace {

namespace fs = std::filesystem;

TEST(WorkDirectory, OneRunUsesIt) {
  TempDir folder;
  const std::string path = folder / "a.work";
  {
    WorkDirectory first(path, "{}");
    first.note(1);
    expect_error(ErrorKind::kInvalidArgument, {"[imatrix]", "another run", "a.work"},
                 [&] { const WorkDirectory second(path, "{}", "imatrix"); });
    expect_error(ErrorKind::kInvalidArgument, {"another run"},
                 [&] { const WorkDirectory other(path, "{1}"); });
    EXPECT_EQ(read_text_file(first.file("job.json")), "{}");
  }
  WorkDirectory next(path, "{}");
  EXPECT_EQ(next.n_noted(), 1);
  next.remove();
  EXPECT_FALSE(fs::exists(path));
  // Its lock is of a directory that is no more.
  const WorkDirectory anew(path, "{}");
  EXPECT_EQ(anew.n_noted(), 0);
}

TEST(WorkDirectory, IsTakenOverWhenNothingIsFinished) {
  TempDir folder;
  const std::string path = folder / "a.work";
  { const WorkDirectory first(path, "first"); }
  { WorkDirectory second(path, "second"); }
  EXPECT_EQ(read_text_file(path + "/job.json"), "second");
  { WorkDirectory(path, "second").finish_layer({}, {}); }
  expect_error(ErrorKind::kInvalidArgument, {"another's", "a.work"},
               [&] { const WorkDirectory third(path, "third"); });
  EXPECT_EQ(WorkDirectory(path, "second").n_finished(), 1);
  const std::string noted = folder / "b.work";
  WorkDirectory(noted, "first").note(3);
  expect_error(ErrorKind::kInvalidArgument, {"another's"},
               [&] { const WorkDirectory second(noted, "second"); });
  EXPECT_EQ(WorkDirectory(noted, "first").n_noted(), 3);
}

TEST(WorkDirectory, IsNeverSomebodyElses) {
  TempDir folder;
  const std::string path = folder / "a.work";
  fs::create_directory(path);
  std::ofstream(path + "/thesis") << "text";
  expect_error(ErrorKind::kInvalidArgument, {"got another"},
               [&] { const WorkDirectory work(path, "{}"); });
  EXPECT_EQ(std::distance(fs::directory_iterator(path), {}), 1) << "nothing is left in it";
  // What is left of a run that was killed at its very beginning.
  fs::remove(path + "/thesis");
  std::ofstream(path + "/lock") << "";
  std::ofstream(path + "/job.json.tmp-1-1") << "{";
  EXPECT_EQ(WorkDirectory(path, "{}").n_finished(), 0);
}

}  // namespace
}  // namespace qw::quantize
