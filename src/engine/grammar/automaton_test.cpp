#include "engine/grammar/automaton.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/rng.h"

namespace qw::grammar {
namespace {

constexpr uint32_t kNowhere = UINT32_MAX;

uint32_t next(const Dfa& dfa, uint32_t state, uint32_t symbol) {
  if (state == kNowhere) return kNowhere;
  for (const SymbolEdge& edge : dfa.states[state].edges) {
    if (edge.first <= symbol && symbol <= edge.last) return edge.target;
  }
  return kNowhere;
}

/// Random edges over few symbols, so that many states do the same.
Dfa random_dfa(uint64_t seed, uint32_t n, uint32_t n_symbols) {
  uint64_t draw = 0;
  const auto below = [&](uint32_t bound) {
    return static_cast<uint32_t>(random_uniform(seed, 0, draw++) * bound);
  };
  Dfa dfa;
  dfa.states.resize(n);
  for (Dfa::State& state : dfa.states) {
    state.accepting = below(4) == 0;
    for (uint32_t symbol = 0; symbol < n_symbols; ++symbol) {
      if (below(3) == 0) continue;
      const uint32_t last = std::min(symbol + below(3), n_symbols - 1);
      state.edges.push_back({symbol, last, below(n)});
      symbol = last;
    }
  }
  return dfa;
}

/// How many states of a trimmed automaton some string tells apart: pairs, marked until none is new.
size_t n_distinct(const Dfa& dfa, uint32_t n_symbols) {
  const auto n = static_cast<uint32_t>(dfa.states.size());
  std::set<std::pair<uint32_t, uint32_t>> apart;
  const auto are_apart = [&](uint32_t a, uint32_t b) {
    if (a == b) return false;
    // All states lead to an accepting one: to have no edge is to be another.
    return a == kNowhere || b == kNowhere || apart.contains({a, b});
  };
  for (bool grows = true; grows;) {
    grows = false;
    for (uint32_t a = 0; a < n; ++a) {
      for (uint32_t b = 0; b < n; ++b) {
        if (a == b || apart.contains({a, b})) continue;
        bool differ = dfa.states[a].accepting != dfa.states[b].accepting;
        for (uint32_t symbol = 0; symbol < n_symbols && !differ; ++symbol)
          differ = are_apart(next(dfa, a, symbol), next(dfa, b, symbol));
        if (differ) grows = apart.insert({a, b}).second || grows;
      }
    }
  }
  size_t distinct = 0;
  for (uint32_t a = 0; a < n; ++a) {
    bool is_new = true;
    for (uint32_t b = 0; b < a; ++b)
      is_new = is_new && apart.contains({a, b});
    distinct += is_new ? 1 : 0;
  }
  return distinct;
}

TEST(Automaton, TheSmallestOneOfALanguage) {
  constexpr uint32_t kSymbols = 3;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Dfa dfa = trimmed(random_dfa(seed, 2 + static_cast<uint32_t>(seed % 20), kSymbols));
    const Dfa least = minimised(dfa);
    if (dfa.empty()) {
      EXPECT_TRUE(least.empty());
      continue;
    }
    EXPECT_EQ(least.states.size(), n_distinct(dfa, kSymbols)) << seed;
    // The same language: nothing is in one and not in the other.
    const auto extra = combined(dfa, least, Combination::kFirstOnly, 10'000);
    const auto missing = combined(least, dfa, Combination::kFirstOnly, 10'000);
    EXPECT_TRUE(extra && extra->empty()) << seed;
    EXPECT_TRUE(missing && missing->empty()) << seed;
  }
}

TEST(Automaton, LongChainsTakeNoLongerThanTheyAre) {
  // A state a symbol: by rounds over all states this would take hours.
  constexpr uint32_t kLength = 200'000;
  Dfa chain;
  chain.states.resize(kLength + 1);
  for (uint32_t i = 0; i < kLength; ++i)
    chain.states[i].edges.push_back({'x', 'x', i + 1});
  chain.states.back().accepting = true;
  EXPECT_EQ(minimised(chain).states.size(), kLength + 1);
}

// State by state what the general way gives.
TEST(Automaton, OfWordsIsTheSmallest) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    uint64_t draw = 0;
    const auto below = [&](uint32_t bound) {
      return static_cast<uint32_t>(random_uniform(seed, 0, draw++) * bound);
    };
    std::vector<std::string> texts(1 + below(40));
    for (std::string& text : texts) {
      for (uint32_t n = below(6); n > 0; --n)
        text.push_back("abc\xC3\xFF"[below(5)]);
    }
    Nfa nfa;
    nfa.start = nfa.add_state();
    for (const std::string& text : texts) {
      uint32_t at = nfa.start;
      for (const char c : text) {
        const uint32_t to = nfa.add_state();
        const auto byte = static_cast<uint8_t>(c);
        nfa.states[at].edges.push_back({byte, byte, to});
        at = to;
      }
      nfa.states[at].accepting = true;
    }
    const Dfa expected = minimised(trimmed(*determinise(nfa, 10'000)));
    const std::vector<std::string_view> words(texts.begin(), texts.end());
    const Dfa got = of_words(words, 1000).value();
    ASSERT_EQ(got.states.size(), expected.states.size()) << seed;
    EXPECT_EQ(got.start, expected.start);
    for (size_t i = 0; i < got.states.size(); ++i) {
      EXPECT_EQ(got.states[i].edges, expected.states[i].edges) << seed << " " << i;
      EXPECT_EQ(got.states[i].accepting, expected.states[i].accepting) << seed << " " << i;
    }
  }
  EXPECT_TRUE(of_words({}, 10)->empty());
  EXPECT_EQ(of_words({"abcdef", "abcdeg"}, 8)->states.size(), 7u);
  EXPECT_FALSE(of_words({"abcdef", "abcdeg"}, 6));
}

}  // namespace
}  // namespace qw::grammar
