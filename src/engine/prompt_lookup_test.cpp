// Prompt lookup: what it guesses.
#include "engine/prompt_lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qw {
namespace {

using testing::ElementsAre;
using Ids = std::vector<int32_t>;

TEST(LookUp, TakesTheLongestEndAndTheLatestOfEquals) {
  const Ids history = {1, 2, 3, 9, 2, 3, 8, 3, 7, 1, 2, 3};
  EXPECT_THAT(look_up(history, 8, 2), ElementsAre(9, 2)) << "1 2 3 stood at the start";
  EXPECT_THAT(look_up(history, 2, 2), ElementsAre(8, 3)) << "2 3 stood there last";
  EXPECT_THAT(look_up(history, 1, 3), ElementsAre(7, 1, 2));
  EXPECT_THAT(look_up(Ids{1, 2, 3}, 8, 4), ElementsAre());
  EXPECT_THAT(look_up(Ids{5}, 8, 4), ElementsAre());
  EXPECT_THAT(look_up(history, 8, 0), ElementsAre());
}

TEST(LookUp, GoesOnWithAPeriod) {
  EXPECT_THAT(look_up(Ids{4, 5, 6, 5, 6}, 8, 5), ElementsAre(5, 6, 5, 6, 5));
  EXPECT_THAT(look_up(Ids{3, 7, 7}, 8, 3), ElementsAre(7, 7, 7));
}

TEST(LookupDrafter, GuessesAsManyAsAreWantedForEveryAnswer) {
  GenerationConfig config;
  config.prompt_lookup_num_tokens = 9;
  config.max_matching_ngram_size = 2;
  const Ids one = {1, 2, 3, 1, 2}, two = {5, 6}, three = {4, 5, 6, 7, 4};
  std::vector<DraftQuery> queries;
  for (const Ids* tokens : {&one, &two, &three})
    queries.push_back({.tokens = *tokens, .config = &config, .n = 2});
  queries[2].n = 1;
  LookupDrafter drafter;
  EXPECT_EQ(drafter.limit(config), 9);
  drafter.propose(queries);
  EXPECT_THAT(queries[0].guess, ElementsAre(3, 1));
  EXPECT_THAT(queries[1].guess, ElementsAre());
  EXPECT_THAT(queries[2].guess, ElementsAre(5));
}

}  // namespace
}  // namespace qw
