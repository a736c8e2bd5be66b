// Constrained decoding as users call it: every notation with the bundled model, and its errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>

#include "support/cli_fixture.h"
#include "support/process.h"

namespace qw {
namespace {

using nlohmann::json;
using test::qianwen;
using test::Ran;
using testing::HasSubstr;

using CliConstrained = test::CliTest;

constexpr const char* kSchema =
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":12},)"
    R"("kind":{"enum":["person","animal"]},"age":{"type":"integer","minimum":0,"maximum":120}},)"
    R"("required":["name","kind","age"],"additionalProperties":false})";

TEST_F(CliConstrained, AnswersFitTheSchema) {
  for (const char* seed : {"1", "2", "3"}) {
    const Ran ran = qianwen({"chat", "-p", "My name is Lucy. Who am I?", "--temperature", "1.5",
                             "--seed", seed, "--json-schema", kSchema});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const json answer = json::parse(ran.out);
    EXPECT_EQ(answer.size(), 3u);
    EXPECT_LE(answer["name"].get<std::string>().size(), 48u);
    EXPECT_TRUE(answer["kind"] == "person" || answer["kind"] == "animal");
    EXPECT_LE(answer["age"].get<int>(), 120);
  }
}

TEST_F(CliConstrained, EveryNotation) {
  const Ran choice =
      qianwen({"chat", "-p", "Is the sky blue?", "--choice", "yes", "--choice", "no"});
  EXPECT_THAT(choice.out, testing::AnyOf("yes\n", "no\n")) << choice.err;
  const Ran regex = qianwen({"generate", "-p", "The year is", "--regex", " (19|20)[0-9]{2}"});
  EXPECT_TRUE(std::regex_match(regex.out, std::regex(" (19|20)[0-9]{2}\n"))) << regex.out;
  const Ran object = qianwen({"chat", "-p", "Hi", "--json-object", "-n", "200"});
  EXPECT_THAT(object.out, testing::StartsWith("{")) << object.err;
  const std::string file = write("list.gbnf", "root ::= n (\",\" n){3}\nn ::= [1-9]\n");
  const Ran grammar = qianwen({"generate", "-p", "Count: ", "--grammar", file});
  EXPECT_TRUE(std::regex_match(grammar.out, std::regex("[1-9](,[1-9]){3}\n"))) << grammar.out;
  const Ran several = qianwen({"generate", "-p", "Name:", "--regex", " [A-Z][a-z]{3,8}", "--n", "3",
                               "--do-sample", "true", "--json"});
  std::istringstream lines(several.out);
  int n = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    EXPECT_TRUE(std::regex_match(json::parse(line)["text"].get<std::string>(),
                                 std::regex(" [A-Z][a-z]{3,8}")))
        << line;
  }
  EXPECT_EQ(n, 3) << several.err;
}

TEST_F(CliConstrained, ErrorsComeBeforeTheModel) {
  test::expect_failure(qianwen({"chat", "-p", "Hi", "--json-schema", R"({"not":{}})"}), 5,
                       "not: expected a keyword that is supported");
  test::expect_failure(qianwen({"chat", "-p", "Hi", "--regex", "a(?=b)"}), 5, "look-ahead");
  test::expect_failure(qianwen({"chat", "-p", "Hi", "--grammar", "root ::= a"}), 2,
                       "rule a: expected a definition");
  test::expect_failure(qianwen({"chat", "-p", "Hi", "--json-schema", "no-such-file.json"}), 3,
                       "no-such-file.json");
  test::expect_failure(qianwen({"chat", "-p", "Hi", "--json-object", "--regex", "a"}), 2,
                       "excludes");
}

}  // namespace
}  // namespace qw
