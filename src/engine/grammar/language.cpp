#include "engine/grammar/language.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/utf8.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

using Kind = Expression::Kind;

[[noreturn]] void too_large() {
  fail(ErrorKind::kUnsupported, "grammar",
       "pattern: expected an automaton of at most {} states, got more; use smaller bounds of "
       "lengths and repetitions",
       Language::kMaxStates);
}

class Lowering {
 public:
  explicit Lowering(const Node& node) {
    nfa_.start = nfa_.add_state();
    const uint32_t end = nfa_.add_state();
    nfa_.states[end].accepting = true;
    lower(node, nfa_.start, end);
  }
  const Nfa& nfa() const { return nfa_; }

 private:
  uint32_t new_state() {
    if (nfa_.states.size() > 4 * Language::kMaxStates) too_large();
    return nfa_.add_state();
  }
  void add_empty(uint32_t from, uint32_t to) { nfa_.states[from].empty_moves.push_back(to); }

  void lower(const Node& node, uint32_t from, uint32_t to) {
    CompileWork::charge(1);
    switch (node->kind) {
      case Kind::kNever:
        return;
      case Kind::kLiteral:
        return literal(node->text, from, to);
      case Kind::kChars:
        for (const CodePointRange& range : node->chars.ranges())
          nfa_.states[from].edges.push_back({range.first, range.last, to});
        return;
      case Kind::kRule:
        QW_CHECK(false, "a rule within a pattern");
        return;
      case Kind::kRepeat:
        return repeat(*node, from, to);
      case Kind::kAlternation:
        for (const Node& item : node->items)
          lower(item, from, to);
        return;
      case Kind::kSequence:
        for (size_t i = 0; i < node->items.size(); ++i) {
          const uint32_t next = i + 1 == node->items.size() ? to : new_state();
          lower(node->items[i], from, next);
          from = next;
        }
        return;
      case Kind::kGraph:
        return graph(node->graph, from, to);
    }
  }

  void literal(std::string_view text, uint32_t from, uint32_t to) {
    while (!text.empty()) {
      const Utf8Step step = decode_utf8(text);
      text.remove_prefix(step.length);
      const uint32_t next = new_state();
      nfa_.states[from].edges.push_back({step.code_point, step.code_point, next});
      from = next;
    }
    add_empty(from, to);
  }

  void repeat(const Expression& node, uint32_t from, uint32_t to) {
    const Node& item = node.items[0];
    for (uint32_t i = 0; i < node.min; ++i) {
      const uint32_t next = new_state();
      lower(item, from, next);
      from = next;
    }
    if (node.max == kUnbounded) {
      const uint32_t loop = new_state();
      add_empty(from, loop);
      lower(item, loop, loop);
      return add_empty(loop, to);
    }
    for (uint32_t i = node.min; i < node.max; ++i) {
      add_empty(from, to);
      const uint32_t next = new_state();
      lower(item, from, next);
      from = next;
    }
    add_empty(from, to);
  }

  void graph(const Graph& graph, uint32_t from, uint32_t to) {
    std::vector<uint32_t> ids(graph.accepting.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = new_state();
      if (graph.accepting[i]) add_empty(ids[i], to);
    }
    add_empty(from, ids[graph.start]);
    for (const Graph::Edge& edge : graph.edges) {
      if (edge.label) {
        lower(edge.label, ids[edge.from], ids[edge.to]);
      } else {
        add_empty(ids[edge.from], ids[edge.to]);
      }
    }
  }

  Nfa nfa_;
};

Dfa checked(std::optional<Dfa> dfa) {
  if (!dfa) too_large();
  return std::move(*dfa);
}

}  // namespace

Language Language::any() {
  return of(any_text());
}

Language Language::of(const Node& node) {
  return Language(minimised(trimmed(checked(determinise(Lowering(node).nfa(), kMaxStates)))));
}

Language Language::of_length(uint64_t min, uint64_t max) {
  const bool endless = max >= kUnbounded;
  const uint64_t last = endless ? min : max;
  if (last >= kMaxStates) too_large();
  if (min > max) return Language(Dfa{});
  const Node any = chars(CodePointSet::all());
  return of(
      repeat(any, static_cast<uint32_t>(min), endless ? kUnbounded : static_cast<uint32_t>(max)));
}

Language Language::both(const Language& other) const {
  return Language(minimised(checked(combined(dfa_, other.dfa_, Combination::kBoth, kMaxStates))));
}

Language Language::without(const Language& other) const {
  return Language(
      minimised(checked(combined(dfa_, other.dfa_, Combination::kFirstOnly, kMaxStates))));
}

bool Language::contains(std::string_view text) const {
  if (empty()) return false;
  uint32_t at = dfa_.start;
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    text.remove_prefix(step.length);
    const auto& edges = dfa_.states[at].edges;
    const auto it = std::ranges::find_if(edges, [&](const SymbolEdge& edge) {
      return edge.first <= step.code_point && step.code_point <= edge.last;
    });
    if (it == edges.end()) return false;
    at = it->target;
  }
  return dfa_.states[at].accepting;
}

uint64_t Language::shortest() const {
  std::vector<bool> reached(dfa_.states.size(), false);
  std::vector<uint32_t> layer{dfa_.start};
  reached[dfa_.start] = true;
  for (uint64_t length = 0;; ++length) {
    QW_CHECK(!layer.empty());
    std::vector<uint32_t> next;
    for (const uint32_t id : layer) {
      if (dfa_.states[id].accepting) return length;
      for (const SymbolEdge& edge : dfa_.states[id].edges) {
        if (reached[edge.target]) continue;
        reached[edge.target] = true;
        next.push_back(edge.target);
      }
    }
    layer = std::move(next);
  }
}

std::optional<uint64_t> Language::longest() const {
  // Every state leads to an end: a cycle means that there is no longest text. Kahn's order.
  const size_t n = dfa_.states.size();
  std::vector<size_t> incoming(n, 0);
  for (const Dfa::State& state : dfa_.states)
    for (const SymbolEdge& edge : state.edges)
      ++incoming[edge.target];
  std::vector<uint64_t> length(n, 0);
  std::vector<uint32_t> work;
  if (incoming[dfa_.start] == 0) work.push_back(dfa_.start);
  uint64_t best = 0;
  size_t n_done = 0;
  while (!work.empty()) {
    const uint32_t id = work.back();
    work.pop_back();
    ++n_done;
    if (dfa_.states[id].accepting) best = std::max(best, length[id]);
    for (const SymbolEdge& edge : dfa_.states[id].edges) {
      length[edge.target] = std::max(length[edge.target], length[id] + 1);
      if (--incoming[edge.target] == 0) work.push_back(edge.target);
    }
  }
  if (n_done < n) return std::nullopt;
  return best;
}

Node Language::node() const {
  if (empty()) return never();
  Graph out;
  out.start = dfa_.start;
  for (const Dfa::State& state : dfa_.states)
    out.add_state(state.accepting);
  for (uint32_t i = 0; i < dfa_.states.size(); ++i) {
    CompileWork::charge(1 + dfa_.states[i].edges.size());
    std::map<uint32_t, CodePointSet> targets;
    for (const SymbolEdge& edge : dfa_.states[i].edges)
      targets[edge.target].add(edge.first, edge.last);
    for (auto& [target, set] : targets)
      out.add_edge(i, target, chars(std::move(set)));
  }
  return graph(std::move(out));
}

}  // namespace qw::grammar
