// The penalty "don't repeat yourself" against values worked out by hand.
#include "engine/dry_penalty.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "engine/fake_model.h"

namespace qw {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using Penalties = std::map<int, float>;

/// What is taken from each token's zero, the history being `ids`.
Penalties taken(const DryOptions& options, const std::vector<int32_t>& ids,
                const std::shared_ptr<const Tokenizer>& tokenizer = nullptr) {
  std::vector<float> values(64, 0.0f);
  LogitsRow row(values);
  DryPenalty(options, tokenizer).process({ids, 1}, row);
  Penalties out;
  for (int id = 0; id < ssize(values); ++id) {
    if (values[static_cast<size_t>(id)] != 0) out[id] = -values[static_cast<size_t>(id)];
  }
  return out;
}

constexpr int32_t kA = 1, kB = 2, kC = 3, kX = 24, kY = 25;

TEST(Dry, GrowsWithTheRepetition) {
  const DryOptions options{1, 2, 2, -1, {}};
  // "a b c c b c y a b c": c follows an earlier "a b c", y follows "b c", b follows "c".
  EXPECT_THAT(taken(options, {kA, kB, kC, kC, kB, kC, kY, kA, kB, kC}),
              ElementsAre(Pair(kC, 2.0f), Pair(kY, 1.0f)));
  EXPECT_THAT(taken({3, 2, 1, -1, {}}, {kA, kB, kC, kC, kB, kC, kY, kA, kB, kC}),
              ElementsAre(Pair(kB, 3.0f), Pair(kC, 12.0f), Pair(kY, 6.0f)));
  EXPECT_THAT(taken(options, {kA, kB, kC}), ElementsAre());
  EXPECT_THAT(taken(options, {kA}), ElementsAre());
  // A token over and over: after five of them four were followed by another.
  EXPECT_THAT(taken(options, {kX, kX, kX, kX, kX}), ElementsAre(Pair(kX, 4.0f)));
}

TEST(Dry, LooksAtTheLastTokensOnly) {
  const std::vector<int32_t> ids = {kA, kB, kX, kY, kY, kA, kB};
  EXPECT_THAT(taken({1, 2, 2, -1, {}}, ids), ElementsAre(Pair(kX, 1.0f)));
  EXPECT_THAT(taken({1, 2, 2, 7, {}}, ids), ElementsAre(Pair(kX, 1.0f)));
  EXPECT_THAT(taken({1, 2, 2, 6, {}}, ids), ElementsAre()) << "the first a is out of sight";
}

TEST(Dry, StopsAtTheLargestFloat) {
  const std::vector<int32_t> ids(2000, kX);
  EXPECT_THAT(taken({1, 1000, 0, -1, {}}, ids),
              ElementsAre(Pair(kX, std::numeric_limits<float>::max())));
}

TEST(Dry, AgreesWithComparingEveryEnd) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(1 + random() % 60);
    for (int32_t& id : ids)
      id = static_cast<int32_t>(random() % (2 + static_cast<unsigned>(round) % 3));
    Penalties want;
    for (size_t end = 0; end + 1 < ids.size(); ++end) {
      size_t n = 0;
      while (n <= end && ids[end - n] == ids[ids.size() - 1 - n])
        ++n;
      if (n < 1) continue;
      float& most = want[ids[end + 1]];
      most = std::max(most, static_cast<float>(std::pow(1.5, static_cast<double>(n) - 1)));
    }
    EXPECT_EQ(taken({1, 1.5, 1, -1, {}}, ids), want);
  }
}

TEST(Dry, NothingReachesOverABreaker) {
  std::vector<std::string> texts;
  for (int id = 0; id < 64; ++id)
    texts.push_back(fmt::format("<{:02}>", id));
  const auto tokenizer = fake_tokenizer(texts);
  const auto text_of = [&](int32_t id) { return std::string(tokenizer->token_bytes(id)); };
  const std::vector<int32_t> ids = {kA, kB, kC, kY, kA, kB, kC};
  EXPECT_THAT(taken({1, 2, 1, -1, {}}, ids, tokenizer), ElementsAre(Pair(kY, 4.0f)));
  EXPECT_THAT(taken({1, 2, 1, -1, {text_of(kA)}}, ids, tokenizer), ElementsAre(Pair(kY, 2.0f)));
  EXPECT_THAT(taken({1, 2, 1, -1, {text_of(kB)}}, ids, tokenizer), ElementsAre(Pair(kY, 1.0f)));
  EXPECT_THAT(taken({1, 2, 1, -1, {text_of(kC)}}, ids, tokenizer), ElementsAre());
  // A breaker may go over several tokens: it ends with the last of them.
  EXPECT_THAT(taken({1, 2, 1, -1, {text_of(kA) + text_of(kB)}}, ids, tokenizer),
              ElementsAre(Pair(kY, 1.0f)));
  // And is itself never penalised.
  EXPECT_THAT(taken({1, 2, 1, -1, {text_of(kY)}}, ids, tokenizer), ElementsAre());
}

}  // namespace
}  // namespace qw
