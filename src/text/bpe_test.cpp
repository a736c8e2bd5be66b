// Merging: short and long algorithm against the rule written down naively.
#include "text/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace qw {
namespace {

using Symbols = std::vector<uint32_t>;
using Rules = std::map<std::pair<uint32_t, uint32_t>, Merge>;

/// The rule itself: again and again the pair of lowest rank, the leftmost of equals.
Symbols merge_naively(const Rules& rules, Symbols symbols) {
  for (;;) {
    size_t best = symbols.size();
    Merge best_merge;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = rules.find({symbols[i], symbols[i + 1]});
      if (it != rules.end() && it->second.rank < best_merge.rank) {
        best = i;
        best_merge = it->second;
      }
    }
    if (!best_merge.exists()) return symbols;
    symbols[best] = best_merge.id;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, EqualsTheNaiveRule) {
  std::mt19937 generator(3);
  const auto draw = [&](uint32_t n) { return static_cast<uint32_t>(generator() % n); };
  BpeScratch scratch;
  for (int round = 0; round < 60; ++round) {
    // Half of the tables rank a pair before the pairs its parts come from, which no trained
    // vocabulary does but any file may.
    const bool disordered = round % 2 == 1;
    const uint32_t n_rules = 40, n_letters = 3;
    std::vector<uint32_t> ranks(n_rules);
    for (uint32_t i = 0; i < n_rules; ++i)
      ranks[i] = i;
    if (disordered) std::shuffle(ranks.begin(), ranks.end(), generator);
    Rules rules;
    MergeTable table(n_rules);
    for (uint32_t i = 0; i < n_rules; ++i) {
      const uint32_t id = n_letters + i;
      const std::pair<uint32_t, uint32_t> pair{draw(id), draw(id)};
      if (!rules.try_emplace(pair, Merge{ranks[i], id}).second) continue;
      table.insert(pair.first, pair.second, {ranks[i], id});
    }
    // Around the blocks that short pieces are searched by, and some lengths of sentences.
    for (const size_t length : {0u, 1u, 2u, 3u, 17u, 31u, 32u, 33u, 64u, 65u, 100u, 300u, 700u}) {
      Symbols symbols(length);
      for (auto& s : symbols)
        s = draw(n_letters);
      const Symbols expected = merge_naively(rules, symbols);
      for (const size_t longest_short : {kShortPiece, size_t{0}}) {
        Symbols merged = symbols;
        bpe_merge(table, merged, scratch, longest_short);
        EXPECT_EQ(merged, expected) << round << " " << length << " " << longest_short;
      }
    }
  }
}

TEST(Bpe, BothWaysAgreeOnEitherSideOfTheBorder) {
  std::mt19937 generator(5);
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(generator() % n); };
  MergeTable table(300);
  for (uint32_t i = 0; i < 300; ++i) {
    const uint32_t left = below(3 + i), right = below(3 + i);
    table.insert(left, right, {i, 3 + i});
  }
  BpeScratch scratch;
  for (const size_t length : {kShortPiece, kShortPiece + 1}) {
    Symbols by_search(length);
    for (auto& s : by_search)
      s = below(3);
    Symbols by_queues = by_search, by_default = by_search;
    bpe_merge(table, by_search, scratch, length);
    bpe_merge(table, by_queues, scratch, 0);
    bpe_merge(table, by_default, scratch);
    EXPECT_LT(by_search.size(), length);
    EXPECT_EQ(by_search, by_queues);
    EXPECT_EQ(by_search, by_default);
  }
}

// Ids on either side of what the square table holds, and enough pairs for collisions in the hash
// table and in its bitmap.
TEST(Bpe, TableFindsWhatItWasGivenAndNothingElse) {
  std::mt19937 generator(7);
  constexpr uint32_t kIds = 600, kMerges = 30'000;
  Rules rules;
  MergeTable table(kMerges);
  for (uint32_t rank = 0; rank < kMerges; ++rank) {
    const std::pair<uint32_t, uint32_t> pair{generator() % kIds, generator() % kIds};
    rules[pair] = {rank, rank + kIds};
    table.insert(pair.first, pair.second, {rank, rank + kIds});
  }
  for (uint32_t left = 0; left < kIds; ++left) {
    for (uint32_t right = 0; right < kIds; ++right) {
      const auto it = rules.find({left, right});
      const Merge expected = it == rules.end() ? Merge{} : it->second;
      const Merge found = table.find(left, right);
      ASSERT_EQ(found.rank, expected.rank) << left << " " << right;
      ASSERT_EQ(found.id, expected.id) << left << " " << right;
    }
  }
}

TEST(Bpe, LaterRuleForAPairWins) {
  MergeTable table(2);
  table.insert(0, 1, {0, 5});
  table.insert(0, 1, {1, 6});
  EXPECT_EQ(table.find(0, 1).id, 6u);
  EXPECT_FALSE(table.find(1, 0).exists());
}

}  // namespace
}  // namespace qw
