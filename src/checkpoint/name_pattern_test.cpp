// Patterns of names: what Python's re.match says, in little time for any pattern.
#include "checkpoint/name_pattern.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"
#include "checkpoint/test_support.h"

namespace qw {
namespace {

bool matches(std::string_view pattern, std::string_view name) {
  return NamePattern(pattern, "config.json").matches_start(name);
}

/// Answers are those of Python 3.11's re.match.
TEST(NamePattern, MatchesAsPythonDoes) {
  const std::string name = "model.layers.12.mlp.down_proj";
  for (const char* pattern : {"",
                              "model",
                              R"(.*\.12\..*)",
                              R"(.*down)",
                              R"(^model\.layers\.(3|12)\.mlp\.down_proj$)",
                              R"(model\.layers\.\d{2}\.)",
                              R"(model\.layers\.[0-9]+\.mlp)",
                              R"(model.layers.1[0-35].mlp)",
                              R"((?:.*\.)?mlp\.(gate|up|down)_proj\Z)",
                              R"(\Amodel(\.\w+)*$)",
                              R"([^.]*\.layers)",
                              R"(model\.layers\.1{0,1}2?\.)",
                              R"(x*model)",
                              R"(model(x|)\.)",
                              R"(mode[\]l-])",
                              R"(model\.(?P<kind>layers)\.)",
                              R"(\w{5}\W)",
                              R"(model.{,30}proj)",
                              R"(.*?proj)",
                              R"([a-z]+\.[]a-z]+)"}) {
    EXPECT_TRUE(matches(pattern, name)) << pattern;
  }
  for (const char* pattern :
       {"layers", "^layers", R"(model\.layers\.1\.)", R"(model$)", R"(.*\.1[^2])", R"(modelx+)",
        R"(model\.layers\.\d{3})", R"(.*gate)", R"(model\.layers\.[02-9]+\.)", "MODEL",
        R"(model\.layers\.(3|13)\.mlp)", R"(\s)", R"(model{2})",
        R"(model\.layers\.12\.mlp\.down\Z)", R"(model{,x}\.)"}) {
    EXPECT_FALSE(matches(pattern, name)) << pattern;
  }
  EXPECT_TRUE(matches("a.b",
                      "a\xc3"
                      "b"));  // a byte beyond ASCII
  EXPECT_FALSE(matches(R"(a\wb)",
                       "a\xc3"
                       "b"));
  EXPECT_TRUE(matches("a{b", "a{b"));
}

TEST(NamePattern, RefusesWhatItWouldGetWrong) {
  const auto refuses = [](ErrorKind kind, std::string_view pattern, const char* at) {
    expect_error(kind, {"pattern of names", at, "config.json"},
                 [&] { NamePattern(pattern, "config.json"); });
  };
  refuses(ErrorKind::kCorrupt, "(a", "byte 2");
  refuses(ErrorKind::kCorrupt, "a)", "byte 1");
  refuses(ErrorKind::kCorrupt, "[a", "byte 2");
  refuses(ErrorKind::kCorrupt, "*a", "byte 0");
  refuses(ErrorKind::kCorrupt, "a**", "byte 3");
  refuses(ErrorKind::kCorrupt, "a{3,2}", "byte 6");
  refuses(ErrorKind::kCorrupt, "[b-a]", "byte 4");
  refuses(ErrorKind::kCorrupt, "a\\", "byte 2");
  refuses(ErrorKind::kUnsupported, "(?!a)b", "byte 2");
  refuses(ErrorKind::kUnsupported, "(?i)b", "byte 2");
  refuses(ErrorKind::kUnsupported, "(a)\\1", "byte 4");
  refuses(ErrorKind::kUnsupported, "\\ba", "byte 1");
  refuses(ErrorKind::kUnsupported, "a*+", "byte 2");
  refuses(ErrorKind::kUnsupported, "a\xc3\xa4", "byte 1");
  refuses(ErrorKind::kUnsupported, "((a{200}){200})", "steps");
  refuses(ErrorKind::kUnsupported, std::string(100, '('), "deep");
  refuses(ErrorKind::kUnsupported, std::string(9000, 'a'), "bytes");
}

/// What takes a backtracking matcher longer than anyone waits.
TEST(NamePattern, NoPatternRunsForLong) {
  const std::string name(4000, 'a');
  EXPECT_FALSE(matches("(a*)*b", name));
  EXPECT_FALSE(matches("((a|a)*(a|aa)+)*[^a]", name));
  EXPECT_FALSE(matches("(?:a?){60}(?:a*a*){20}b", name));
}

}  // namespace
}  // namespace qw
