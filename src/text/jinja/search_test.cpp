// Tests of text search: the same places as std::string's, and linear time where that has none.
#include "text/jinja/search.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "base/rng.h"

namespace qw::jinja {
namespace {

// Two letters and short periods, so that nearly-matches are common.
std::string text_of(uint64_t seed, size_t n_letters) {
  std::string out;
  const uint64_t period = 1 + random_bits(seed, 0, 0) % 24;
  for (uint64_t i = 0; i < n_letters; ++i) {
    const bool odd = random_bits(seed, 2, i) % 37 == 0;
    out += random_bits(seed, 1, odd ? i : i % period) % 2 == 0 ? 'a' : 'b';
  }
  return out;
}

TEST(Search, FindsWhatTheNaiveSearchFinds) {
  size_t n_found = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    const std::string text = text_of(seed, random_bits(seed, 3, 0) % 300);
    std::string wanted = text_of(seed, random_bits(seed, 3, 1) % 60);
    if (!text.empty() && seed % 3 != 0) {
      wanted = text.substr(random_bits(seed, 3, 2) % text.size(), random_bits(seed, 3, 1) % 60);
    }
    const size_t at = random_bits(seed, 3, 4) % 310;
    ASSERT_EQ(find_first(text, wanted), text.find(wanted)) << text << " " << wanted;
    ASSERT_EQ(find_first(text, wanted, at), text.find(wanted, at)) << text << " " << wanted;
    ASSERT_EQ(find_last(text, wanted), text.rfind(wanted)) << text << " " << wanted;
    ASSERT_EQ(find_last(text, wanted, at), text.rfind(wanted, at)) << text << " " << wanted;
    n_found += text.rfind(wanted) != std::string::npos ? 1 : 0;
  }
  EXPECT_GT(n_found, 1000u);
  EXPECT_EQ(find_first("", ""), 0u);
  EXPECT_EQ(find_last("", ""), 0u);
  EXPECT_EQ(find_last("ab", std::string(20, 'a')), std::string::npos);
}

TEST(Search, TakesLinearTimeOnSelfSimilarTexts) {
  const std::string text(2'000'000, 'a'), half(1'000'000, 'a');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(find_first(text, half + "b"), std::string::npos);
  EXPECT_EQ(find_last(text, "b" + half), std::string::npos);
  EXPECT_EQ(find_last(text, half), 1'000'000u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

}  // namespace
}  // namespace qw::jinja
