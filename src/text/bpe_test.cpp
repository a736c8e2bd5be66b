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
    for (const size_t length : {0u, 1u, 2u, 3u, 17u, 100u, 199u, 200u, 201u, 202u, 300u, 700u}) {
      Symbols symbols(length);
      for (auto& s : symbols)
        s = draw(n_letters);
      const Symbols expected = merge_naively(rules, symbols);
      bpe_merge(table, symbols, scratch);
      EXPECT_EQ(symbols, expected) << round << " " << length;
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
