// What a grammar says, as a tree: literals, characters, sequences, alternatives, repetitions,
// rules.
//
// Level 6 (engine/grammar). Every source (regular expressions, GBNF, JSON schemas, code) becomes
// such trees, and fsm.h makes automata of them. Trees are immutable and share their branches.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/function_ref.h"
#include "engine/grammar/code_points.h"

namespace qw::grammar {

class Expression;
using Node = std::shared_ptr<const Expression>;

inline constexpr uint32_t kUnbounded = std::numeric_limits<uint32_t>::max();
/// How deep sources may nest: every walk over a tree is recursive.
inline constexpr int kMaxNesting = 200;

/// A graph whose edges are expressions: from `start` along edges to any accepting state.
struct Graph {
  struct Edge {
    uint32_t from = 0, to = 0;
    Node label;  // null: nothing is said
  };
  std::vector<bool> accepting;  // one per state
  std::vector<Edge> edges;
  uint32_t start = 0;

  uint32_t add_state(bool is_accepting = false) {
    accepting.push_back(is_accepting);
    return static_cast<uint32_t>(accepting.size() - 1);
  }
  void add_edge(uint32_t from, uint32_t to, Node label) {
    edges.push_back({from, to, std::move(label)});
  }
};

class Expression {
 public:
  enum class Kind {
    kNever,     // no text at all
    kLiteral,   // exactly `text`; the empty text too
    kChars,     // one character of `chars`
    kSequence,  // all of `items`, one after the other
    kAlternation,
    kRepeat,  // items[0], min..max times (kUnbounded: no end)
    kRule,    // whatever the rule says
    kGraph,
  };
  Kind kind = Kind::kNever;
  std::string text;
  CodePointSet chars;
  std::vector<Node> items;
  uint32_t min = 0, max = 0;
  uint32_t rule = 0;
  Graph graph;
  /// About how many states it takes, repetitions written out. Saturates.
  uint64_t weight = 1;
};

Node never();
/// `text` is UTF-8.
Node literal(std::string_view text);
Node chars(CodePointSet set);
Node sequence(std::vector<Node> items);
Node alternation(std::vector<Node> items);
Node repeat(Node item, uint32_t min, uint32_t max = kUnbounded);
inline Node nothing() {
  return literal("");
}
inline Node optional(Node item) {
  return repeat(std::move(item), 0, 1);
}
inline Node any_number_of(Node item) {
  return repeat(std::move(item), 0);
}
Node rule(uint32_t id);
Node graph(Graph graph);

inline bool is_never(const Node& node) {
  return node->kind == Expression::Kind::kNever;
}

/// Calls visit(rule) for every rule that an expression names, but for what it shares with those
/// that were `seen`.
void for_each_call(const Node& node, std::unordered_set<const Expression*>& seen,
                   FunctionRef<void(uint32_t)> visit);

/// One way to go on after free text: when `trigger` has been said, `then` follows.
struct Trigger {
  std::string trigger;
  Node then;  // null: the whole ends with the trigger
};
/// What free text begins after: `read` counts as said, so that a trigger may have begun with it,
/// and so it still does after any number of `skipped`. The default: nothing.
struct TextStart {
  std::string read;  // no trigger as a whole
  CodePointSet skipped;
};
/// Free text in which the triggers' texts are found as soon as they are said (an Aho-Corasick
/// automaton over characters). After a trigger and its `then`, free text goes on; where `then` is
/// null the expression ends. may_end: it may also end in free text, at any place. Triggers are
/// UTF-8, not empty, and none is part of another. Errors: invalid_argument.
Node free_text(const std::vector<Trigger>& triggers, bool may_end, const TextStart& start = {});
/// Free text without `literal`, up to and including the first `literal`.
inline Node text_until(std::string_view literal) {
  return free_text({{std::string(literal), nullptr}}, false);
}
/// Any text that does not contain `literal`.
Node text_without(std::string_view literal);
/// Any text at all.
Node any_text();

/// The contents of a JSON string whose value is what `node` says: characters that JSON does not
/// allow as they are become escapes, and so do those of `more`. `node` holds no rules.
Node json_escaped(const Node& node, const CodePointSet& more = {});

}  // namespace qw::grammar
