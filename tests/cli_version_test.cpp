// The commit that --version prints: what cmake/git_hash.cmake writes at every build.
#include "support/cli_fixture.h"
#include "support/process.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
using test::Ran;

class CliVersion : public test::CliTest {
 protected:
  void SetUp() override {
    test::CliTest::SetUp();
    if (shell("git --version && cmake --version").code != 0) GTEST_SKIP() << "needs git and cmake";
  }
  /// Runs in the test's folder, which is no one's checkout to git.
  Ran shell(const std::string& command) const {
    return test::run_program(
        "/bin/sh", {"-c", "cd " + folder_.string() + " && " + command},
        {.environment = {"GIT_CEILING_DIRECTORIES=" + folder_.parent_path().string()}});
  }
  std::string hash_of(const std::string& source) const {
    const Ran ran =
        shell("cmake -D SOURCE_DIR=" + (folder_ / source).string() + " -D OUTPUT=" + output() +
              " -P " + QIANWEN_SOURCE_DIR + "/cmake/git_hash.cmake");
    EXPECT_EQ(ran.code, 0) << ran.err;
    std::ifstream in(output());
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const size_t begin = text.find('"') + 1;
    return text.substr(begin, text.find('"', begin) - begin);
  }
  std::string output() const { return (folder_ / "generated/git_hash.cpp").string(); }
};

TEST_F(CliVersion, FollowsTheCheckoutAndMarksEdits) {
  const std::string git = "git -C tree -c user.name=a -c user.email=a@b ";
  write("tree/file", "1");
  ASSERT_EQ(shell("git init -q tree && " + git + "add file && " + git + "commit -q -m 1").code, 0);
  const auto head = [&] { return shell(git + "rev-parse --short=12 HEAD").out.substr(0, 12); };
  const std::string first = hash_of("tree");
  EXPECT_EQ(first, head());
  const auto written = fs::last_write_time(output()) - std::chrono::hours(1);
  fs::last_write_time(output(), written);
  EXPECT_EQ(hash_of("tree"), first);
  EXPECT_EQ(fs::last_write_time(output()), written) << "nothing changed, nothing is compiled";
  write("tree/file", "22");
  EXPECT_EQ(hash_of("tree"), first + "-dirty");
  ASSERT_EQ(shell(git + "commit -q -a -m 2").code, 0);
  EXPECT_EQ(hash_of("tree"), head());
  EXPECT_NE(head(), first);
  // An archive unpacked inside somebody's checkout is not that checkout.
  write("tree/archive/file", "1");
  EXPECT_EQ(hash_of("tree/archive"), "unknown");
}

TEST_F(CliVersion, IsUnknownWithoutACheckout) {
  write("archive/file", "1");
  EXPECT_EQ(hash_of("archive"), "unknown");
  write("broken/.git", "gitdir: /no/such/folder");
  EXPECT_EQ(hash_of("broken"), "unknown");
}

}  // namespace
}  // namespace qw
