// A compiled grammar: the automata of its rules over bytes, which call one another.
//
// Level 6 (engine/grammar). A rule is a small automaton whose edges are bytes or calls of rules; a
// repetition with large bounds is a rule of its own whose body is one repetition and whose frame
// counts, so that {0,100000} costs no more than {0,5}. The idea of rules as byte automata with
// calls: Dong et al., "XGrammar", 2024. Made once, immutable.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/grammar/expression.h"

namespace qw::grammar {

struct ByteEdge {
  uint8_t first = 0, last = 0;
  uint32_t target = 0;
};
struct CallEdge {
  uint32_t rule = 0, target = 0;
  bool is_tail = false;  // nothing can follow in this rule: no need to come back
};

struct Fsm {
  struct State {
    uint32_t bytes_begin = 0, bytes_end = 0, calls_begin = 0, calls_end = 0;
    uint32_t rule = 0;
    bool accepting = false;
    bool is_end = false;  // accepting, nothing else, and the rule does not repeat
  };
  struct Rule {
    uint32_t start = 0;
    /// repeats: the automaton is one repetition, said min..max times; it never says nothing.
    bool repeats = false;
    uint32_t min = 1, max = 1;
    std::string name;
    uint32_t first_state = 0;  // its states are the ones from here on, in order
    /// What the automaton is, for rules that call no others and are small; empty for the rest.
    std::string key;
  };
  std::vector<State> states;
  std::vector<ByteEdge> bytes;
  std::vector<CallEdge> calls;
  std::vector<Rule> rules;
  uint32_t root = 0;  // a rule that does not repeat
  /// Bytes that no edge tells apart have the same class: 0..n_classes-1.
  std::array<uint8_t, 256> class_of{};
  std::array<uint8_t, 256> byte_of_class{};
  uint32_t n_classes = 0;

  /// Of memory, about.
  size_t bytes_held() const {
    size_t sum = states.size() * sizeof(State) + bytes.size() * sizeof(ByteEdge) +
                 calls.size() * sizeof(CallEdge) + rules.size() * sizeof(Rule);
    for (const Rule& rule : rules)
      sum += rule.name.size() + rule.key.size();
    return sum;
  }

  std::span<const ByteEdge> bytes_of(const State& s) const {
    return std::span(bytes).subspan(s.bytes_begin, s.bytes_end - s.bytes_begin);
  }
  std::span<const CallEdge> calls_of(const State& s) const {
    return std::span(calls).subspan(s.calls_begin, s.calls_end - s.calls_begin);
  }
};

struct NamedRule {
  std::string name;
  Node body;  // null: never defined, which is an error
};

/// Automata of `rules`; rule(i) in bodies means rules[i]. Errors: invalid_argument (a rule without
/// body, rules that call themselves before they have said anything, a grammar that no text fits),
/// unsupported (too large).
Fsm compile(const std::vector<NamedRule>& rules, uint32_t root);

}  // namespace qw::grammar
