// Finite automata over ranges of symbols: made deterministic, minimised, combined.
//
// Level 6 (engine/grammar). Two users: the language of a schema's strings, with code points as
// symbols, and the rules of a grammar, with bytes and the calls of other rules as symbols. Sources:
// Thompson's and the subset construction; Moore's minimisation, and of Hopcroft's that the largest
// part of a block is left alone; for lists of words Daciuk et al., "Incremental construction of
// minimal acyclic finite-state automata", 2000.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace qw::grammar {

/// Symbols first..last lead to state `target`.
struct SymbolEdge {
  uint32_t first = 0, last = 0, target = 0;
  bool operator==(const SymbolEdge&) const = default;
};

/// With empty moves; any number of edges per symbol.
struct Nfa {
  struct State {
    std::vector<SymbolEdge> edges;
    std::vector<uint32_t> empty_moves;
    bool accepting = false;
  };
  std::vector<State> states;
  uint32_t start = 0;

  uint32_t add_state() {
    states.emplace_back();
    return static_cast<uint32_t>(states.size() - 1);
  }
};

/// Without empty moves. Edges are sorted by symbol; disjoint too, unless without_empty_moves() made
/// them. A symbol without edge leads nowhere. No states at all: the empty language.
struct Dfa {
  struct State {
    std::vector<SymbolEdge> edges;
    bool accepting = false;
  };
  std::vector<State> states;
  uint32_t start = 0;

  bool empty() const noexcept { return states.empty(); }
};

/// The subset construction; nullopt when more than `max_states` states would be needed, or sets
/// that together are out of proportion to them.
std::optional<Dfa> determinise(const Nfa& nfa, size_t max_states);
/// The same language with as many states as `nfa` has at most, not deterministic.
Dfa without_empty_moves(const Nfa& nfa);
/// Leaves out the states from which no accepting one can be reached, or that cannot be reached.
Dfa trimmed(const Dfa& dfa);
/// The smallest deterministic automaton of the same language, in time m log n for m edges and n
/// states. `dfa` must be deterministic.
Dfa minimised(const Dfa& dfa);

/// The smallest deterministic automaton of these words over their bytes, the same as minimised()
/// gives, in time n log n for n bytes; the words are never in memory as states of their own.
/// nullopt when more than `max_states` states would be needed.
std::optional<Dfa> of_words(std::vector<std::string_view> words, size_t max_states);

enum class Combination { kBoth, kFirstOnly };
/// Strings of both, or of the first that are not in the second. Both must be deterministic. nullopt
/// when more than `max_states` states would be needed. The result is trimmed.
std::optional<Dfa> combined(const Dfa& a, const Dfa& b, Combination how, size_t max_states);

}  // namespace qw::grammar
