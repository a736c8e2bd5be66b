// The bounds of compiling: steps, who may end it, and what long lists cost.
#include "engine/grammar/work.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "engine/grammar/grammar_cache.h"

namespace qw {
namespace {

using grammar::CompileWork;
using nlohmann::ordered_json;
using ::testing::HasSubstr;

std::string optional_properties(int n) {
  ordered_json schema = {{"type", "object"}, {"properties", ordered_json::object()}};
  for (int i = 0; i < n; ++i)
    schema["properties"][fmt::format("property_{}", i)] = {{"type", "integer"}};
  return schema.dump();
}

Error error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "expected an error";
  return {ErrorKind::kInternal, ""};
}

TEST(CompileWork, EndsAtItsLimitWhichIsNamed) {
  for (const std::string& pattern :
       {std::string("(a|b|c|d){1,200}x?"), std::string("^[^\\u4e00]{0,40}(ab|ac|ad)*$")}) {
    const Error error = error_of([&] {
      const CompileWork work(nullptr, 20);
      Grammar::from_regex(pattern);
    });
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.message(), HasSubstr("in at most 20 steps, got more"));
  }
  const Error error = error_of([] {
    const CompileWork work(nullptr, 10'000);
    Grammar::from_json_schema(optional_properties(300));
  });
  EXPECT_THAT(error.message(), HasSubstr("in at most 10000 steps"));
}

TEST(CompileWork, IsTheSameEveryTimeAndFarFromTheLimitInEverydayUse) {
  const auto steps_of = [](const std::string& schema) {
    const CompileWork work;
    Grammar::from_json_schema(schema);
    return work.steps();
  };
  const std::string schema = optional_properties(30);
  steps_of(schema);  // makes what all grammars share
  EXPECT_EQ(steps_of(schema), steps_of(schema));
  EXPECT_GT(steps_of(schema), 1000u);
  EXPECT_LT(steps_of(schema), CompileWork::kMaxSteps / 100);
  // What one work has spent is no other's affair.
  const CompileWork outer(nullptr, 10);
  EXPECT_EQ(steps_of(schema), steps_of(schema));
  EXPECT_EQ(outer.steps(), 0u);
}

TEST(CompileWork, EndsWhenItIsToldTo) {
  CancelFlag cancel;
  cancel.cancel();
  const std::string schemas[] = {optional_properties(300), R"({"type": "string"})"};
  for (const std::string& schema : schemas) {
    const Error error = error_of([&] {
      const CompileWork work(&cancel);
      Grammar::from_json_schema(schema);
    });
    EXPECT_EQ(error.kind(), ErrorKind::kCancelled);
  }
}

std::shared_ptr<const GrammarVocabulary> bytes() {
  std::vector<std::string> all;
  for (int byte = 0; byte < 256; ++byte)
    all.push_back(std::string(1, static_cast<char>(byte)));
  return std::make_shared<const GrammarVocabulary>(all);
}

GrammarSource regex(std::string pattern) {
  return {.kind = GrammarSource::Kind::kRegex, .text = std::move(pattern)};
}

// One whose client has gone does not take the grammar away from another who waits for it.
TEST(GrammarCache, WhoWaitsGoesOnWhenTheOtherIsCancelled) {
  GrammarCache cache(bytes());
  CancelFlag cancel, never;
  std::atomic<bool> begun = false;
  std::atomic<int> n_made = 0;
  const GrammarCache::Make make = [&] {
    ++n_made;
    begun = true;
    while (n_made == 1) {  // the first one stands still until it is cancelled
      CompileWork::charge(1);
      std::this_thread::yield();
    }
    return Grammar::from_regex("ab*");
  };
  std::thread first([&] {
    EXPECT_EQ(error_of([&] { cache.get("key", make, &cancel); }).kind(), ErrorKind::kCancelled);
  });
  while (!begun)
    std::this_thread::yield();
  EXPECT_EQ(cache.find("key"), nullptr) << "it is under way";
  std::shared_ptr<GrammarMatcher> got;
  std::thread second([&] { got = cache.get("key", make, &never); });
  std::thread third([&] {
    CancelFlag own;
    own.cancel();
    EXPECT_EQ(error_of([&] { cache.get("key", make, &own); }).kind(), ErrorKind::kCancelled);
  });
  third.join();
  cancel.cancel();
  first.join();
  second.join();
  ASSERT_NE(got, nullptr);
  EXPECT_TRUE(got->grammar().accepts("abb"));
  EXPECT_EQ(n_made, 2);
  EXPECT_EQ(cache.find("key"), got);
}

TEST(GrammarCache, HoldsSoManyBytes) {
  constexpr size_t kBytes = 400'000;
  GrammarCache cache(bytes(), 64, kBytes);
  const auto large = [](int i) {  // some hundred kilobytes each
    std::string pattern = fmt::format("{}(", i);
    for (int k = 0; k < 4000; ++k)
      pattern += static_cast<char>('a' + (k * k + i) % 26);
    return regex(pattern + ")");
  };
  const auto one = cache.get(large(0));
  EXPECT_GT(one->bytes(), 100'000u);
  for (int i = 1; i < 20; ++i)
    cache.get(large(i));
  EXPECT_LE(cache.held().bytes, kBytes);
  EXPECT_GE(cache.held().n, 2u);
  EXPECT_LE(cache.held().n, kBytes / one->bytes() + 1);
  EXPECT_EQ(cache.find(large(0).key()), nullptr) << "the oldest goes first";
  // Sources count, too: one that says little at length.
  GrammarCache small(bytes(), 64, kBytes);
  for (int i = 0; i < 8; ++i)
    small.get({.kind = GrammarSource::Kind::kGbnf,
               .text = "root ::= \"a\"\n#" + std::string(100'000, static_cast<char>('a' + i))});
  EXPECT_LE(small.held().n, 4u);
}

TEST(GrammarMatcher, TellsWhatItHasFoundOut) {
  GrammarMatcher matcher(Grammar::json_value(), bytes());
  const size_t before = matcher.bytes();
  EXPECT_GT(before, matcher.grammar().fsm().bytes_held());
  {
    GrammarMatcher::Session session(matcher);
    session.mask(session.advance(session.start(), "{\"a\": [1, "));
  }
  EXPECT_GT(matcher.bytes(), before);
}

}  // namespace
}  // namespace qw
