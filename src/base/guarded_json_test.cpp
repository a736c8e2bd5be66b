#include "base/guarded_json.h"

#include <gtest/gtest.h>

#include "base/repeated_keys.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;

Json read(const std::string& text, const JsonLimits& limits = {}) {
  JsonLimitGuard guard(limits, ErrorKind::kInvalidArgument, "text");
  return parse_guarded<Json>(text, guard);
}

TEST(GuardedJson, ReadsWhatTheLibraryReads) {
  for (const std::string text :
       {R"({"a": [1, -2, 3.5, 1e300, true, null, "x\u00e9"], "b": {}, "c": [[], [{}]]})", "7",
        R"("s")", "[]", "18446744073709551615", R"({"k": 1, "k": 2})"})
    EXPECT_EQ(read(text), Json::parse(text)) << text;
  for (const std::string text : {"", "{", "[1,]", R"({"a" 1})", "[1] 2", "\"\xFF\""})
    EXPECT_THROW(read(text), Json::parse_error) << text;
  EXPECT_THROW(read("1e999"), Json::out_of_range);
}

TEST(GuardedJson, KeepsTheLimits) {
  JsonLimits limits;
  limits.max_depth = 3;
  limits.max_object_keys = 2;
  EXPECT_NO_THROW(read("[[[1]]]", limits));
  EXPECT_THROW(read("[[[[1]]]]", limits), Error);
  EXPECT_NO_THROW(read(R"([{"a": 1, "b": 2}, {"a": 1}])", limits));
  EXPECT_THROW(read(R"({"a": 1, "b": 2, "c": 3})", limits), Error);
}

TEST(GuardedJson, TellsWhereKeysComeTwice) {
  const JsonLimits limits;
  JsonLimitGuard guard(limits, ErrorKind::kInvalidArgument, "text");
  RepeatedKeys<Json> repeated;
  const std::string text = R"({"a": [0, {"b": 1, "b": [{}, {}]}, [{"c": 1, "c": 2}]], "d": {},
                               "a": 1})";
  parse_guarded<Json>(text, guard, [&](auto event, const Json& parsed) {
    repeated.see(event, parsed);
  });
  EXPECT_EQ(repeated.found(), (std::vector<std::string>{"a[1].b", "a[2][0].c", "a"}));
  EXPECT_EQ(repeated.n_found(), 3u);
}

// With the library's callback this would take hours.
TEST(GuardedJson, TakesTimeInProportion) {
  std::string text = "[{}";
  for (int i = 0; i < 3'000'000; ++i)
    text += ",{}";
  EXPECT_EQ(read(text + "]").size(), 3'000'001u);
}

}  // namespace
}  // namespace qw
