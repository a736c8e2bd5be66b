#include "engine/grammar/fsm.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <optional>
#include <string_view>
#include <tuple>
#include <unordered_set>

#include "base/error.h"
#include "engine/grammar/automaton.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

using Kind = Expression::Kind;

/// Symbols of a rule's automaton: bytes, then calls.
constexpr uint32_t kFirstCall = 256;
/// Repetitions that come to more states than this count instead of being written out.
constexpr uint64_t kWrittenOut = 16;
/// A body that may say nothing cannot be counted; it is written out, up to so many states.
constexpr uint64_t kNullableWrittenOut = 4096;
constexpr size_t kMaxStatesOfGrammar = 300'000;
/// Above this many states of a rule it stays nondeterministic.
constexpr size_t kMaxDeterministicStates = 20'000;
/// Alternatives that are texts, from so many on, are made into an automaton by themselves.
constexpr size_t kManyWords = 32;
/// Rules up to this size share their masks with other grammars.
constexpr size_t kMaxStatesOfKey = 64;

class Compiler {
 public:
  explicit Compiler(const std::vector<NamedRule>& rules) {
    for (const NamedRule& rule : rules) {
      if (!rule.body) {
        fail(ErrorKind::kInvalidArgument, "grammar", "rule {}: expected a definition, got none",
             printable(rule.name));
      }
      rules_.push_back({rule.body, false, 1, 1, rule.name, {}});
    }
    remove_direct_left_recursion();
    find_nullable();
    for (uint32_t i = 0; i < rules_.size(); ++i)  // grows: repetitions become rules
      build(i);
  }

  Fsm finish(uint32_t root) {
    drop_unproductive(root);
    refuse_left_recursion();
    Fsm out;
    out.root = root;
    flatten(out);
    out.bytes.shrink_to_fit();
    out.calls.shrink_to_fit();
    classify(out);
    return out;
  }

 private:
  struct Rule {
    Node body;
    bool repeats = false;
    uint32_t min = 1, max = 1;
    std::string name;
    Dfa dfa;
  };

  bool nullable(const Node& node) const {
    CompileWork::charge(1);
    switch (node->kind) {
      case Kind::kNever:
      case Kind::kChars:
        return false;
      case Kind::kLiteral:
        return node->text.empty();
      case Kind::kRule:
        return nullable_[node->rule];
      case Kind::kRepeat:
        return node->min == 0 || nullable(node->items[0]);
      case Kind::kSequence:
        return std::ranges::all_of(node->items, [&](const Node& n) { return nullable(n); });
      case Kind::kAlternation:
        return std::ranges::any_of(node->items, [&](const Node& n) { return nullable(n); });
      case Kind::kGraph:
        return graph_nullable(node->graph);
    }
    return false;
  }

  bool graph_nullable(const Graph& graph) const {
    std::vector<bool> reached(graph.accepting.size(), false);
    reached[graph.start] = true;
    for (bool changed = true; changed;) {
      changed = false;
      CompileWork::charge(graph.edges.size());
      for (const Graph::Edge& edge : graph.edges) {
        if (!reached[edge.from] || reached[edge.to] || (edge.label && !nullable(edge.label)))
          continue;
        reached[edge.to] = changed = true;
      }
    }
    for (size_t i = 0; i < reached.size(); ++i)
      if (reached[i] && graph.accepting[i]) return true;
    return false;
  }

  /// Fills `found` with the rules for which `holds` is true, where that may follow from its being
  /// true for rules that they call: each is looked at again when one of those was found. `callers`:
  /// of each rule.
  template <typename Holds>
  static void least_fixpoint(const std::vector<std::vector<uint32_t>>& callers,
                             std::vector<bool>& found, const Holds& holds) {
    found.assign(callers.size(), false);
    std::vector<bool> waits(callers.size(), true);
    std::vector<uint32_t> work(callers.size());
    std::iota(work.begin(), work.end(), 0u);  // taken from the end: called rules mostly come later
    while (!work.empty()) {
      const uint32_t rule = work.back();
      work.pop_back();
      waits[rule] = false;
      if (found[rule] || !holds(rule)) continue;
      found[rule] = true;
      for (const uint32_t caller : callers[rule]) {
        if (found[caller] || waits[caller]) continue;
        waits[caller] = true;
        work.push_back(caller);
      }
    }
  }

  void find_nullable() {
    std::vector<std::vector<uint32_t>> callers(rules_.size());
    for (uint32_t i = 0; i < rules_.size(); ++i) {
      std::unordered_set<const Expression*> seen;
      for_each_call(rules_[i].body, seen, [&](uint32_t called) { callers[called].push_back(i); });
    }
    least_fixpoint(callers, nullable_, [&](uint32_t rule) { return nullable(rules_[rule].body); });
  }

  /// a ::= a x | y becomes a ::= y x*.
  void remove_direct_left_recursion() {
    for (uint32_t i = 0; i < rules_.size(); ++i) {
      const Node body = rules_[i].body;
      if (body->kind != Kind::kAlternation) continue;
      std::vector<Node> bases, tails;
      for (const Node& item : body->items) {
        const bool recurses = item->kind == Kind::kSequence &&
                              item->items[0]->kind == Kind::kRule && item->items[0]->rule == i;
        if (recurses) {
          tails.push_back(sequence({item->items.begin() + 1, item->items.end()}));
        } else {
          bases.push_back(item);
        }
      }
      if (tails.empty()) continue;
      rules_[i].body =
          sequence({alternation(std::move(bases)), any_number_of(alternation(std::move(tails)))});
    }
  }

  void build(uint32_t index) {
    nfa_ = Nfa{};
    rule_ = index;
    nfa_.start = nfa_.add_state();
    const uint32_t end = nfa_.add_state();
    nfa_.states[end].accepting = true;
    const Node body = rules_[index].body;
    if (const std::vector<std::string_view> words = words_of(*body);
        !words.empty() && words.size() == body->items.size()) {
      rules_[index].dfa = automaton_of(words);
      return;
    }
    lower(body, nfa_.start, end);
    std::optional<Dfa> dfa =
        determinise(nfa_, std::max(kMaxDeterministicStates / 10, 4 * nfa_.states.size()));
    rules_[index].dfa = dfa ? minimised(trimmed(*dfa)) : without_empty_moves(nfa_);
  }

  uint32_t new_state() {
    if (++n_states_ > kMaxStatesOfGrammar) too_large();
    return nfa_.add_state();
  }
  [[noreturn]] void too_large() const {
    fail(ErrorKind::kUnsupported, "grammar",
         "grammar: expected at most {} states, got more (rule {})", kMaxStatesOfGrammar,
         printable(rules_[rule_].name));
  }

  /// The alternatives that are texts, if there are many.
  static std::vector<std::string_view> words_of(const Expression& node) {
    std::vector<std::string_view> words;
    if (node.kind != Kind::kAlternation) return words;
    for (const Node& item : node.items)
      if (item->kind == Kind::kLiteral) words.push_back(item->text);
    if (words.size() < kManyWords) words.clear();
    return words;
  }
  Dfa automaton_of(const std::vector<std::string_view>& words) {
    std::optional<Dfa> dfa = of_words(words, kMaxStatesOfGrammar - n_states_);
    if (!dfa) too_large();
    n_states_ += dfa->states.size();
    return std::move(*dfa);
  }
  void add_empty(uint32_t from, uint32_t to) { nfa_.states[from].empty_moves.push_back(to); }
  void add_edge(uint32_t from, uint32_t first, uint32_t last, uint32_t to) {
    nfa_.states[from].edges.push_back({first, last, to});
  }

  void lower(const Node& node, uint32_t from, uint32_t to) {
    CompileWork::charge(1);
    switch (node->kind) {
      case Kind::kNever:
        return;
      case Kind::kLiteral:
        return lower_literal(node->text, from, to);
      case Kind::kChars:
        return lower_chars(node->chars, from, to);
      case Kind::kRule:
        return add_edge(from, kFirstCall + node->rule, kFirstCall + node->rule, to);
      case Kind::kRepeat:
        return lower_repeat(node, from, to);
      case Kind::kAlternation:
        return lower_alternation(*node, from, to);
      case Kind::kSequence:
        for (size_t i = 0; i < node->items.size(); ++i) {
          const uint32_t next = i + 1 == node->items.size() ? to : new_state();
          lower(node->items[i], from, next);
          from = next;
        }
        return;
      case Kind::kGraph:
        return lower_graph(node->graph, from, to);
    }
  }

  void lower_alternation(const Expression& node, uint32_t from, uint32_t to) {
    const std::vector<std::string_view> words = words_of(node);
    for (const Node& item : node.items)
      if (words.empty() || item->kind != Kind::kLiteral) lower(item, from, to);
    if (words.empty()) return;
    const Dfa dfa = automaton_of(words);
    std::vector<uint32_t> ids(dfa.states.size());
    for (uint32_t i = 0; i < ids.size(); ++i) {
      const Dfa::State& state = dfa.states[i];
      const bool is_end = state.accepting && state.edges.empty();
      ids[i] = i == dfa.start ? from : is_end ? to : nfa_.add_state();
      if (state.accepting && ids[i] != to) add_empty(ids[i], to);
    }
    for (uint32_t i = 0; i < ids.size(); ++i)
      for (const SymbolEdge& edge : dfa.states[i].edges)
        add_edge(ids[i], edge.first, edge.last, ids[edge.target]);
  }

  void lower_literal(const std::string& text, uint32_t from, uint32_t to) {
    if (text.empty()) return add_empty(from, to);
    for (size_t i = 0; i < text.size(); ++i) {
      const uint32_t next = i + 1 == text.size() ? to : new_state();
      const auto byte = static_cast<uint8_t>(text[i]);
      add_edge(from, byte, byte, next);
      from = next;
    }
  }

  void lower_chars(const CodePointSet& set, uint32_t from, uint32_t to) {
    std::vector<Utf8Sequence> sequences;
    for (const CodePointRange& range : set.ranges())
      append_utf8_sequences(range.first, range.last, sequences);
    for (const Utf8Sequence& s : sequences) {
      uint32_t at = from;
      for (int i = 0; i < s.length; ++i) {
        const uint32_t next = i + 1 == s.length ? to : new_state();
        const ByteRange range = s.bytes[static_cast<size_t>(i)];
        add_edge(at, range.first, range.last, next);
        at = next;
      }
    }
  }

  /// The same texts but the empty one; null where that takes more than leaving it out.
  Node without_empty(const Node& node) const {
    CompileWork::charge(1);
    if (!nullable(node)) return node;
    if (node->kind == Kind::kLiteral) return never();
    if (node->kind == Kind::kRepeat) {
      Node item = without_empty(node->items[0]);
      return item ? repeat(std::move(item), 1, node->max) : nullptr;
    }
    if (node->kind != Kind::kAlternation) return nullptr;
    std::vector<Node> items;
    for (const Node& item : node->items) {
      items.push_back(without_empty(item));
      if (!items.back()) return nullptr;
    }
    return alternation(std::move(items));
  }

  void lower_repeat(const Node& node, uint32_t from, uint32_t to) {
    const Node& item = node->items[0];
    const bool is_nullable = nullable(item);
    if (is_nullable) {
      const Node filled = without_empty(item);
      if (filled) return lower(repeat(filled, 0, node->max), from, to);
    }
    const uint32_t min = is_nullable ? 0 : node->min;  // the missing ones may say nothing
    const bool endless = node->max == kUnbounded;
    const uint64_t copies = endless ? min : node->max;
    if (copies > 1 && copies * item->weight > kWrittenOut) {
      if (!is_nullable) return lower_counted(item, min, node->max, from, to);
      if (!endless && copies * item->weight > kNullableWrittenOut) {
        fail(ErrorKind::kUnsupported, "grammar",
             "repetition {{{},{}}} of something that may be empty: expected at most {} states, got "
             "{} (rule {})",
             node->min, node->max, kNullableWrittenOut, copies * item->weight,
             printable(rules_[rule_].name));
      }
    }
    const uint32_t n_copies = endless && min > 0 ? min - 1 : min;
    for (uint32_t i = 0; i < n_copies; ++i) {
      const uint32_t next = new_state();
      lower(item, from, next);
      from = next;
    }
    if (endless) {
      const uint32_t begin = new_state(), end = new_state();
      add_empty(from, begin);
      lower(item, begin, end);
      add_empty(end, begin);
      if (min == 0) add_empty(begin, to);
      return add_empty(end, to);
    }
    for (uint32_t i = min; i < node->max; ++i) {
      add_empty(from, to);
      const uint32_t next = new_state();
      lower(item, from, next);
      from = next;
    }
    add_empty(from, to);
  }

  void lower_counted(const Node& item, uint32_t min, uint32_t max, uint32_t from, uint32_t to) {
    const auto key = std::make_tuple(item.get(), min, max);
    auto it = counted_.find(key);
    if (it == counted_.end()) {
      const auto id = static_cast<uint32_t>(rules_.size());
      rules_.push_back({item, true, min, max, rules_[rule_].name, {}});
      it = counted_.emplace(key, id).first;
    }
    add_edge(from, kFirstCall + it->second, kFirstCall + it->second, to);
  }

  void lower_graph(const Graph& graph, uint32_t from, uint32_t to) {
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

  static bool is_call(const SymbolEdge& edge) { return edge.first >= kFirstCall; }

  /// Which rules lead to an end at all, and away with the calls of those that do not.
  void drop_unproductive(uint32_t root) {
    std::vector<std::vector<uint32_t>> callers(rules_.size());
    for (uint32_t i = 0; i < rules_.size(); ++i) {
      for (const Dfa::State& state : rules_[i].dfa.states) {
        for (const SymbolEdge& edge : state.edges) {
          if (!is_call(edge)) continue;
          for (uint32_t s = edge.first; s <= edge.last; ++s)
            callers[s - kFirstCall].push_back(i);
        }
      }
    }
    std::vector<bool> productive;
    least_fixpoint(callers, productive, [&](uint32_t rule) {
      return (rules_[rule].repeats && rules_[rule].min == 0) ||
             reaches_end(rules_[rule].dfa, productive);
    });
    if (!productive[root]) {
      fail(ErrorKind::kInvalidArgument, "grammar",
           "{}: expected that some text fits, got rules that no text can fit",
           printable(rules_[root].name));
    }
    for (Rule& rule : rules_) {
      for (Dfa::State& state : rule.dfa.states) {
        std::vector<SymbolEdge> kept;
        for (const SymbolEdge& edge : state.edges) {
          if (!is_call(edge)) {
            kept.push_back(edge);
            continue;
          }
          for (uint32_t s = edge.first; s <= edge.last; ++s)
            if (productive[s - kFirstCall]) kept.push_back({s, s, edge.target});
        }
        state.edges = std::move(kept);
      }
      rule.dfa = trimmed(rule.dfa);
      if (rule.dfa.empty() && rule.repeats && rule.min == 0) {  // nothing to repeat, and no need to
        rule.repeats = false;
        rule.dfa.states.push_back({{}, true});
      }
    }
    for (size_t i = nullable_.size(); i < rules_.size(); ++i)
      nullable_.push_back(rules_[i].min == 0);
  }

  static bool reaches_end(const Dfa& dfa, const std::vector<bool>& productive) {
    if (dfa.empty()) return false;
    std::vector<bool> seen(dfa.states.size(), false);
    std::vector<uint32_t> work{dfa.start};
    seen[dfa.start] = true;
    while (!work.empty()) {
      const Dfa::State& state = dfa.states[work.back()];
      work.pop_back();
      if (state.accepting) return true;
      CompileWork::charge(1 + state.edges.size());
      for (const SymbolEdge& edge : state.edges) {
        if (seen[edge.target]) continue;
        bool passable = !is_call(edge);
        for (uint32_t s = edge.first; !passable && s <= edge.last; ++s)
          passable = productive[s - kFirstCall];
        if (!passable) continue;
        seen[edge.target] = true;
        work.push_back(edge.target);
      }
    }
    return false;
  }

  /// The rules that `id` may call before it has said a byte.
  std::vector<uint32_t> first_calls(uint32_t id) const {
    const Dfa& dfa = rules_[id].dfa;
    std::vector<uint32_t> out;
    if (dfa.empty()) return out;
    std::vector<bool> seen(dfa.states.size(), false);
    std::vector<uint32_t> work{dfa.start};
    seen[dfa.start] = true;
    while (!work.empty()) {
      const uint32_t at = work.back();
      work.pop_back();
      CompileWork::charge(1 + dfa.states[at].edges.size());
      for (const SymbolEdge& edge : dfa.states[at].edges) {
        if (!is_call(edge)) continue;
        out.push_back(edge.first - kFirstCall);
        if (!nullable_[out.back()] || seen[edge.target]) continue;
        seen[edge.target] = true;
        work.push_back(edge.target);
      }
    }
    return out;
  }

  void refuse_left_recursion() const {
    enum : uint8_t { kNew, kOpen, kDone };
    std::vector<uint8_t> state(rules_.size(), kNew);
    for (uint32_t root = 0; root < rules_.size(); ++root) {
      if (state[root] != kNew) continue;
      struct Visit {
        uint32_t rule;
        std::vector<uint32_t> calls;
        size_t next = 0;
      };
      std::vector<Visit> path{{root, first_calls(root)}};
      state[root] = kOpen;
      while (!path.empty()) {
        Visit& top = path.back();
        if (top.next == top.calls.size()) {
          state[top.rule] = kDone;
          path.pop_back();
          continue;
        }
        const uint32_t next = top.calls[top.next++];
        if (state[next] == kNew) {
          state[next] = kOpen;
          path.push_back({next, first_calls(next)});
        } else if (state[next] == kOpen) {
          std::vector<std::string> names;
          for (const Visit& visit : path) {
            if (visit.rule == next || !names.empty())
              names.push_back(printable(rules_[visit.rule].name));
          }
          fail(ErrorKind::kUnsupported, "grammar",
               "rule {}: expected something said before it calls itself, got left recursion (by "
               "way of {}); write it as a repetition",
               names[0], fmt::join(names, ", "));
        }
      }
    }
  }

  void flatten(Fsm& out) const {
    std::vector<uint32_t> first_state(rules_.size());
    uint32_t n = 0;
    for (size_t i = 0; i < rules_.size(); ++i) {
      first_state[i] = n;
      n += static_cast<uint32_t>(rules_[i].dfa.states.size());
    }
    out.states.reserve(n);
    for (uint32_t i = 0; i < rules_.size(); ++i) {
      const Rule& rule = rules_[i];
      out.rules.push_back({first_state[i] + rule.dfa.start, rule.repeats, rule.min, rule.max,
                           rule.name, first_state[i], key_of(rule)});
      for (const Dfa::State& from : rule.dfa.states) {
        CompileWork::charge(1 + from.edges.size());
        Fsm::State state;
        state.rule = i;
        state.accepting = from.accepting;
        state.is_end = is_end(rule, from);
        state.bytes_begin = static_cast<uint32_t>(out.bytes.size());
        state.calls_begin = static_cast<uint32_t>(out.calls.size());
        for (const SymbolEdge& edge : from.edges) {
          const uint32_t target = first_state[i] + edge.target;
          if (is_call(edge)) {
            out.calls.push_back(
                {edge.first - kFirstCall, target, is_end(rule, rule.dfa.states[edge.target])});
          } else {
            out.bytes.push_back(
                {static_cast<uint8_t>(edge.first), static_cast<uint8_t>(edge.last), target});
          }
        }
        state.bytes_end = static_cast<uint32_t>(out.bytes.size());
        state.calls_end = static_cast<uint32_t>(out.calls.size());
        out.states.push_back(state);
      }
    }
  }

  static std::string key_of(const Rule& rule) {
    if (rule.dfa.states.size() > kMaxStatesOfKey) return {};
    std::string out = rule.repeats ? "repeats" : "";
    for (const Dfa::State& state : rule.dfa.states) {
      out += state.accepting ? ";!" : ";";
      for (const SymbolEdge& edge : state.edges) {
        if (is_call(edge)) return {};
        out += fmt::format("{:x}-{:x}:{:x} ", edge.first, edge.last, edge.target);
      }
    }
    return out;
  }

  static bool is_end(const Rule& rule, const Dfa::State& state) {
    return !rule.repeats && state.accepting && state.edges.empty();
  }

  static void classify(Fsm& out) {
    std::array<bool, 257> cut{};
    for (const ByteEdge& edge : out.bytes)
      cut[edge.first] = cut[edge.last + 1u] = true;
    uint8_t current = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      if (byte > 0 && cut[byte]) ++current;
      if (byte == 0 || cut[byte]) out.byte_of_class[current] = static_cast<uint8_t>(byte);
      out.class_of[byte] = current;
    }
    out.n_classes = current + 1u;
  }

  std::vector<Rule> rules_;
  std::vector<bool> nullable_;
  std::map<std::tuple<const Expression*, uint32_t, uint32_t>, uint32_t> counted_;
  Nfa nfa_;
  uint32_t rule_ = 0;
  size_t n_states_ = 0;
};

}  // namespace

Fsm compile(const std::vector<NamedRule>& rules, uint32_t root) {
  // The root gets a rule of its own, so that it neither repeats nor is called.
  std::vector<NamedRule> all = rules;
  all.push_back({rules[root].name, rule(root)});
  return Compiler(all).finish(static_cast<uint32_t>(rules.size()));
}

}  // namespace qw::grammar
