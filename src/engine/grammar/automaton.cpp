#include "engine/grammar/automaton.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

using StateSet = std::vector<uint32_t>;
constexpr uint32_t kNowhere = std::numeric_limits<uint32_t>::max();
/// States of all sets of a subset construction: 16 MB.
constexpr size_t kMaxSetElements = 4'000'000;

struct StateSetHash {
  size_t operator()(const StateSet& set) const noexcept {
    uint64_t hash = 0xCBF29CE484222325u;
    for (const uint32_t id : set)
      hash = (hash ^ id) * 0x9E3779B97F4A7C15u + (hash >> 29);
    return static_cast<size_t>(hash);
  }
};

/// Closures under empty moves.
class Closure {
 public:
  explicit Closure(const Nfa& nfa) : nfa_(nfa), seen_(nfa.states.size(), 0) {}

  /// `set` <- everything that it reaches by empty moves, sorted.
  void close(StateSet& set) {
    ++stamp_;
    size_t kept = 0;
    for (const uint32_t id : set) {
      if (seen_[id] == stamp_) continue;
      seen_[id] = stamp_;
      set[kept++] = id;
    }
    set.resize(kept);
    for (size_t i = 0; i < set.size(); ++i) {
      for (const uint32_t next : nfa_.states[set[i]].empty_moves) {
        if (seen_[next] == stamp_) continue;
        seen_[next] = stamp_;
        set.push_back(next);
      }
    }
    std::sort(set.begin(), set.end());
    CompileWork::charge(set.size());
  }

 private:
  const Nfa& nfa_;
  std::vector<uint32_t> seen_;
  uint32_t stamp_ = 0;
};

/// Adds first..last -> target, as one with the edge before it where they touch.
void append_edge(std::vector<SymbolEdge>& edges, uint32_t first, uint32_t last, uint32_t target) {
  if (!edges.empty() && edges.back().target == target && edges.back().last + 1 == first) {
    edges.back().last = last;
  } else {
    edges.push_back({first, last, target});
  }
}

/// Cuts overlapping edges into disjoint ranges and calls f(first, last, targets) for each.
template <typename F>
void for_each_range(std::vector<SymbolEdge>& edges, F&& f) {
  std::sort(edges.begin(), edges.end(),
            [](const SymbolEdge& a, const SymbolEdge& b) { return a.first < b.first; });
  std::vector<uint32_t> cuts;
  for (const SymbolEdge& edge : edges) {
    cuts.push_back(edge.first);
    cuts.push_back(edge.last + 1);
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<SymbolEdge> open;
  size_t next = 0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    std::erase_if(open, [&](const SymbolEdge& edge) { return edge.last < cuts[i]; });
    while (next < edges.size() && edges[next].first == cuts[i])
      open.push_back(edges[next++]);
    if (open.empty()) continue;
    CompileWork::charge(open.size());
    StateSet targets;
    for (const SymbolEdge& edge : open)
      targets.push_back(edge.target);
    f(cuts[i], cuts[i + 1] - 1, targets);
  }
}

}  // namespace

std::optional<Dfa> determinise(const Nfa& nfa, size_t max_states) {
  Closure closure(nfa);
  Dfa out;
  std::unordered_map<StateSet, uint32_t, StateSetHash> ids;
  std::vector<StateSet> sets;
  size_t n_elements = 0;
  const auto id_of = [&](StateSet&& set) {
    const auto [it, is_new] = ids.try_emplace(set, static_cast<uint32_t>(sets.size()));
    if (is_new) {
      n_elements += set.size();
      sets.push_back(std::move(set));
    }
    return it->second;
  };
  StateSet start{nfa.start};
  closure.close(start);
  id_of(std::move(start));
  for (size_t i = 0; i < sets.size(); ++i) {
    if (sets.size() > max_states || n_elements > kMaxSetElements) return std::nullopt;
    out.states.emplace_back();
    std::vector<SymbolEdge> edges;
    for (const uint32_t id : sets[i]) {
      const Nfa::State& state = nfa.states[id];
      out.states[i].accepting = out.states[i].accepting || state.accepting;
      edges.insert(edges.end(), state.edges.begin(), state.edges.end());
    }
    CompileWork::charge(1 + edges.size());
    for_each_range(edges, [&](uint32_t first, uint32_t last, StateSet& targets) {
      closure.close(targets);
      append_edge(out.states[i].edges, first, last, id_of(std::move(targets)));
    });
  }
  return out;
}

Dfa without_empty_moves(const Nfa& nfa) {
  Closure closure(nfa);
  Dfa out;
  out.start = nfa.start;
  out.states.resize(nfa.states.size());
  for (size_t i = 0; i < nfa.states.size(); ++i) {
    StateSet set{static_cast<uint32_t>(i)};
    closure.close(set);
    Dfa::State& state = out.states[i];
    for (const uint32_t id : set) {
      state.accepting = state.accepting || nfa.states[id].accepting;
      state.edges.insert(state.edges.end(), nfa.states[id].edges.begin(),
                         nfa.states[id].edges.end());
    }
    CompileWork::charge(1 + state.edges.size());
    std::sort(state.edges.begin(), state.edges.end(), [](const SymbolEdge& a, const SymbolEdge& b) {
      return std::tie(a.first, a.last, a.target) < std::tie(b.first, b.last, b.target);
    });
    state.edges.erase(std::unique(state.edges.begin(), state.edges.end()), state.edges.end());
  }
  return trimmed(out);
}

Dfa trimmed(const Dfa& dfa) {
  const size_t n = dfa.states.size();
  if (n == 0) return {};
  std::vector<std::vector<uint32_t>> sources(n);
  for (size_t i = 0; i < n; ++i) {
    CompileWork::charge(1 + dfa.states[i].edges.size());
    for (const SymbolEdge& edge : dfa.states[i].edges)
      sources[edge.target].push_back(static_cast<uint32_t>(i));
  }
  std::vector<bool> useful(n, false);
  StateSet work;
  for (size_t i = 0; i < n; ++i) {
    if (!dfa.states[i].accepting) continue;
    useful[i] = true;
    work.push_back(static_cast<uint32_t>(i));
  }
  while (!work.empty()) {
    const uint32_t id = work.back();
    work.pop_back();
    for (const uint32_t source : sources[id]) {
      if (useful[source]) continue;
      useful[source] = true;
      work.push_back(source);
    }
  }
  if (!useful[dfa.start]) return {};
  // Renumbered in the order in which they are reached.
  std::vector<uint32_t> new_id(n, kNowhere);
  StateSet order{dfa.start};
  new_id[dfa.start] = 0;
  Dfa out;
  for (size_t i = 0; i < order.size(); ++i) {
    const Dfa::State& from = dfa.states[order[i]];
    Dfa::State& to = out.states.emplace_back();
    to.accepting = from.accepting;
    for (const SymbolEdge& edge : from.edges) {
      if (!useful[edge.target]) continue;
      if (new_id[edge.target] == kNowhere) {
        new_id[edge.target] = static_cast<uint32_t>(order.size());
        order.push_back(edge.target);
      }
      to.edges.push_back({edge.first, edge.last, new_id[edge.target]});
    }
  }
  return out;
}

namespace {

/// Blocks of states that no string tells apart as far as is known, split until that is true. A
/// state is looked at again only when a state that it leads to has come into another block, and of
/// a block that is split the largest part keeps its number: so a state changes its block log n
/// times at most, and a long chain of states costs no more than a short one for each.
class Refinement {
 public:
  explicit Refinement(const Dfa& dfa)
      : dfa_(dfa),
        block_(dfa.states.size()),
        place_(block_.size()),
        is_dirty_(block_.size(), char{true}) {
    const size_t n = block_.size();
    members_.resize(2);
    std::vector<uint32_t> n_into(n + 1, 0);
    for (uint32_t state = 0; state < n; ++state) {
      join(state, dfa.states[state].accepting ? 1 : 0);
      dirty_.push_back(state);
      for (const SymbolEdge& edge : dfa.states[state].edges)
        ++n_into[edge.target + 1];
    }
    std::partial_sum(n_into.begin(), n_into.end(), n_into.begin());
    into_begin_ = n_into;
    into_.resize(n_into.back());
    for (uint32_t state = 0; state < n; ++state) {
      for (const SymbolEdge& edge : dfa.states[state].edges)
        into_[n_into[edge.target]++] = state;
    }
  }

  /// The block of each state; numbered from 0, some without states.
  std::vector<uint32_t> run() {
    while (!dirty_.empty())
      round();
    return std::move(block_);
  }
  size_t n_blocks() const { return members_.size(); }

 private:
  using Signature = StateSet;  // what a state does, with blocks for states

  void join(uint32_t state, uint32_t block) {
    block_[state] = block;
    place_[state] = static_cast<uint32_t>(members_[block].size());
    members_[block].push_back(state);
  }
  void leave(uint32_t state) {
    std::vector<uint32_t>& members = members_[block_[state]];
    place_[members.back()] = place_[state];
    members[place_[state]] = members.back();
    members.pop_back();
  }

  Signature signature_of(uint32_t state) const {
    CompileWork::charge(1 + dfa_.states[state].edges.size());
    std::vector<SymbolEdge> edges;
    for (const SymbolEdge& edge : dfa_.states[state].edges)
      append_edge(edges, edge.first, edge.last, block_[edge.target]);
    Signature out;
    for (const SymbolEdge& edge : edges)
      out.insert(out.end(), {edge.first, edge.last, edge.target});
    return out;
  }

  /// Splits every block with a state to look at. All of them are compared by the blocks of the
  /// round's beginning.
  void round() {
    std::map<uint32_t, std::vector<uint32_t>> touched;  // in an order that repeats
    for (const uint32_t state : dirty_)
      touched[block_[state]].push_back(state);
    std::vector<std::pair<uint32_t, uint32_t>> moves;  // of a state to a block
    for (const auto& [block, states] : touched)
      split(block, states, moves);
    for (const uint32_t state : dirty_)
      is_dirty_[state] = false;
    dirty_.clear();
    members_.resize(members_.size() + std::exchange(n_new_, 0));
    for (const auto& [state, block] : moves) {
      leave(state);
      join(state, block);
    }
    for (const auto& [state, block] : moves) {
      for (uint32_t i = into_begin_[state]; i < into_begin_[state + 1]; ++i) {
        if (std::exchange(is_dirty_[into_[i]], char{true})) continue;
        dirty_.push_back(into_[i]);
      }
    }
  }

  void split(uint32_t block, const std::vector<uint32_t>& dirty,
             std::vector<std::pair<uint32_t, uint32_t>>& moves) {
    const std::vector<uint32_t>& members = members_[block];
    if (members.size() < 2) return;
    std::unordered_map<Signature, size_t, StateSetHash> ids;
    std::vector<std::vector<uint32_t>> parts;
    const auto part_of = [&](uint32_t state) -> std::vector<uint32_t>& {
      const auto [it, is_new] = ids.try_emplace(signature_of(state), parts.size());
      if (is_new) parts.emplace_back();
      return parts[it->second];
    };
    for (const uint32_t state : dirty)
      part_of(state).push_back(state);
    // The others do what they did, all of them the same.
    const auto clean = [&](uint32_t state) { return is_dirty_[state] == 0; };
    const size_t n_clean = members.size() - dirty.size();
    std::vector<uint32_t>* rest = nullptr;
    if (n_clean > 0) rest = &part_of(*std::ranges::find_if(members, clean));
    const auto size_of = [&](const std::vector<uint32_t>& part) {
      return part.size() + (&part == rest ? n_clean : 0);
    };
    const auto largest = std::ranges::max_element(parts, {}, size_of);
    for (auto part = parts.begin(); part != parts.end(); ++part) {
      if (part == largest) continue;
      if (&*part == rest) std::ranges::copy_if(members, std::back_inserter(*part), clean);
      const auto id = static_cast<uint32_t>(members_.size() + n_new_++);
      for (const uint32_t state : *part)
        moves.emplace_back(state, id);
    }
  }

  const Dfa& dfa_;
  std::vector<uint32_t> block_, place_;  // of each state: its block, where it stands there
  std::vector<std::vector<uint32_t>> members_;
  std::vector<uint32_t> into_, into_begin_;  // states with an edge to a state
  std::vector<uint32_t> dirty_;
  std::vector<char> is_dirty_;
  size_t n_new_ = 0;
};

}  // namespace

Dfa minimised(const Dfa& dfa) {
  if (dfa.states.empty()) return {};
  Refinement refinement(dfa);
  const std::vector<uint32_t> block = refinement.run();
  Dfa out;
  out.states.resize(refinement.n_blocks());
  out.start = block[dfa.start];
  for (size_t i = 0; i < block.size(); ++i) {
    Dfa::State& state = out.states[block[i]];
    if (!state.edges.empty()) continue;
    state.accepting = dfa.states[i].accepting;
    for (const SymbolEdge& edge : dfa.states[i].edges)
      append_edge(state.edges, edge.first, edge.last, block[edge.target]);
  }
  return trimmed(out);
}

namespace {

/// States that end with the same words are one, as soon as no word to come can change them.
class WordAutomaton {
 public:
  /// Words come in the order of their bytes.
  void add(std::string_view word) {
    CompileWork::charge(1 + word.size());
    const size_t n_common =
        static_cast<size_t>(std::ranges::mismatch(word, last_).in1 - word.begin());
    close(n_common);
    open_.resize(word.size() + 1);
    open_.back().accepting = true;
    last_ = word;
  }
  Dfa finish() {
    close(0);
    dfa_.start = id_of(std::move(open_[0]));
    return trimmed(dfa_);
  }
  size_t n_states() const { return dfa_.states.size() + open_.size(); }

 private:
  /// No further word has more than `depth` bytes in common with the last one.
  void close(size_t depth) {
    while (open_.size() > depth + 1) {
      const uint32_t id = id_of(std::move(open_.back()));
      open_.pop_back();
      const auto byte = static_cast<uint8_t>(last_[open_.size() - 1]);
      append_edge(open_.back().edges, byte, byte, id);
    }
  }
  uint32_t id_of(Dfa::State&& state) {
    StateSet signature{state.accepting};
    for (const SymbolEdge& edge : state.edges)
      signature.insert(signature.end(), {edge.first, edge.last, edge.target});
    const auto [it, is_new] =
        ids_.try_emplace(std::move(signature), static_cast<uint32_t>(dfa_.states.size()));
    if (is_new) dfa_.states.push_back(std::move(state));
    return it->second;
  }

  Dfa dfa_;  // states that are final
  std::unordered_map<StateSet, uint32_t, StateSetHash> ids_;
  std::string_view last_;
  std::vector<Dfa::State> open_{1};  // those along the last word
};

}  // namespace

std::optional<Dfa> of_words(std::vector<std::string_view> words, size_t max_states) {
  if (words.empty()) return Dfa{};
  std::ranges::sort(words);
  WordAutomaton automaton;
  for (const std::string_view word : words) {
    if (word.size() > max_states) return std::nullopt;
    automaton.add(word);
    if (automaton.n_states() > max_states) return std::nullopt;
  }
  return automaton.finish();
}

std::optional<Dfa> combined(const Dfa& a, const Dfa& b, Combination how, size_t max_states) {
  if (a.empty()) return Dfa{};
  if (b.empty()) return how == Combination::kBoth ? Dfa{} : a;
  using Pair = std::pair<uint32_t, uint32_t>;  // second: kNowhere where b has left its language
  std::map<Pair, uint32_t> ids;
  std::vector<Pair> pairs;
  const auto id_of = [&](Pair pair) {
    const auto [it, is_new] = ids.try_emplace(pair, static_cast<uint32_t>(pairs.size()));
    if (is_new) pairs.push_back(pair);
    return it->second;
  };
  id_of({a.start, b.start});
  Dfa out;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (pairs.size() > max_states) return std::nullopt;
    const auto [x, y] = pairs[i];
    out.states.emplace_back();
    const bool b_accepts = y != kNowhere && b.states[y].accepting;
    out.states[i].accepting = a.states[x].accepting && b_accepts == (how == Combination::kBoth);
    static const std::vector<SymbolEdge> kNone;
    const std::vector<SymbolEdge>& others = y == kNowhere ? kNone : b.states[y].edges;
    CompileWork::charge(1 + a.states[x].edges.size() + others.size());
    size_t j = 0;
    for (const SymbolEdge& edge : a.states[x].edges) {
      uint32_t first = edge.first;
      while (j < others.size() && others[j].last < first)
        ++j;
      for (size_t k = j; first <= edge.last;) {
        const bool inside = k < others.size() && others[k].first <= first;
        uint32_t last = edge.last;
        if (inside) {
          last = std::min(last, others[k].last);
        } else if (k < others.size()) {
          last = std::min(last, others[k].first - 1);
        }
        if (inside || how == Combination::kFirstOnly) {
          const uint32_t target = id_of({edge.target, inside ? others[k].target : kNowhere});
          append_edge(out.states[i].edges, first, last, target);
        }
        first = last + 1;
        while (k < others.size() && others[k].last < first)
          ++k;
      }
    }
  }
  return trimmed(out);
}

}  // namespace qw::grammar
