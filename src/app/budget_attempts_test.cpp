#include "app/budget_attempts.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace qw::app {
namespace {

class BudgetAttempt : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  const std::string path_ =
      (std::filesystem::temp_directory_path() / fmt::format("qw_attempts_{}", ::getpid())).string();
};

TEST_F(BudgetAttempt, IsKnownToTheNextRun) {
  const double kl = 0.1 + 0.2;  // all its digits
  {
    BudgetAttempts first(path_, "job \"a\"");
    EXPECT_FALSE(first.is_resumed());
    EXPECT_FALSE(first.measured({4, 3}));
    first.begin({4, 3});
    EXPECT_FALSE(first.measured({4, 3}));
    EXPECT_TRUE(first.is_begun({4, 3}));
    first.finish(kl);
    EXPECT_FALSE(first.is_begun({4, 3}));
    first.begin({8, 3});
  }
  BudgetAttempts next(path_, "job \"a\"");
  EXPECT_TRUE(next.is_resumed());
  ASSERT_TRUE(next.measured({4, 3}));
  EXPECT_EQ(*next.measured({4, 3}), kl);
  EXPECT_FALSE(next.measured({8, 3}));
  EXPECT_FALSE(next.measured({4}));
  EXPECT_TRUE(next.is_begun({8, 3}));
  EXPECT_FALSE(next.is_begun({4, 3}));
  next.remove();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(BudgetAttempt, OfAnotherJobIsRefused) {
  BudgetAttempts(path_, "a").begin({4});
  const auto refused = [&] {
    try {
      const BudgetAttempts other(path_, "b");
      return std::string();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return std::string(error.message());
    }
  };
  EXPECT_THAT(refused(), ::testing::HasSubstr("another's (remove " + path_));
  for (const char* text : {"", "[]", "{}", R"({"job":"b","measured":[{"bits":4}],"begun":[]})"}) {
    std::ofstream(path_) << text;
    EXPECT_THAT(refused(), ::testing::HasSubstr("another's (remove " + path_)) << text;
  }
}

}  // namespace
}  // namespace qw::app
