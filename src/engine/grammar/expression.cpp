#include "engine/grammar/expression.h"

#include <fmt/format.h>

#include <deque>
#include <map>

#include "base/error.h"
#include "base/utf8.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

using Kind = Expression::Kind;

uint64_t saturating_add(uint64_t a, uint64_t b) {
  return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

uint64_t saturating_multiply(uint64_t a, uint64_t b) {
  return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

std::shared_ptr<Expression> make(Kind kind) {
  CompileWork::charge(1);
  auto out = std::make_shared<Expression>();
  out->kind = kind;
  return out;
}

std::vector<uint32_t> code_points_of(std::string_view text) {
  std::vector<uint32_t> out;
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    out.push_back(step.code_point);
    text.remove_prefix(step.length);
  }
  return out;
}

}  // namespace

Node never() {
  static const Node kNever = make(Kind::kNever);
  return kNever;
}

Node literal(std::string_view text) {
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    fail(ErrorKind::kInvalidArgument, "grammar",
         "literal: expected valid UTF-8, got an invalid byte (byte {} of \"{}\")", bad,
         printable(text));
  }
  auto out = make(Kind::kLiteral);
  out->text = text;
  out->weight = std::max<uint64_t>(1, text.size());
  return out;
}

Node chars(CodePointSet set) {
  if (set.empty()) return never();
  std::vector<Utf8Sequence> sequences;
  for (const CodePointRange& range : set.ranges())
    append_utf8_sequences(range.first, range.last, sequences);
  CompileWork::charge(sequences.size());
  auto out = make(Kind::kChars);
  out->weight = 0;
  for (const Utf8Sequence& sequence : sequences)
    out->weight += static_cast<uint64_t>(sequence.length);
  out->chars = std::move(set);
  return out;
}

namespace {

/// Puts a sequence together: sequences in it are its own items, literals that meet are one, so that
/// a choice among texts is seen to be one however they were put together.
class SequenceItems {
 public:
  void add(const Node& item) {
    if (item->kind != Kind::kLiteral) {
      flush();
      items_.push_back(item);
    } else if (!item->text.empty()) {
      CompileWork::charge(1 + item->text.size() / 64);
      text_ += item->text;
      only_ = text_.size() == item->text.size() ? item : nullptr;
    }
  }
  std::vector<Node> take() {
    flush();
    return std::move(items_);
  }

 private:
  void flush() {
    if (!text_.empty()) items_.push_back(only_ ? only_ : literal(text_));
    text_.clear();
  }

  std::vector<Node> items_;
  std::string text_;  // of the literals since the last other item
  Node only_;         // null: it is of several
};

}  // namespace

Node sequence(std::vector<Node> items) {
  auto out = make(Kind::kSequence);
  out->weight = 0;
  SequenceItems kept;
  for (const Node& item : items) {
    if (item->kind == Kind::kNever) return never();
    out->weight = saturating_add(out->weight, item->weight);
    CompileWork::charge(1 + item->items.size());
    if (item->kind == Kind::kSequence) {
      for (const Node& inner : item->items)
        kept.add(inner);
    } else {
      kept.add(item);
    }
  }
  out->items = kept.take();
  if (out->items.empty()) return literal("");
  if (out->items.size() == 1) return out->items[0];
  return out;
}

Node alternation(std::vector<Node> items) {
  auto out = make(Kind::kAlternation);
  out->weight = 0;
  for (Node& item : items) {
    if (item->kind == Kind::kNever) continue;
    out->weight = saturating_add(out->weight, item->weight);
    out->items.push_back(std::move(item));
  }
  if (out->items.empty()) return never();
  if (out->items.size() == 1) return out->items[0];
  return out;
}

Node repeat(Node item, uint32_t min, uint32_t max) {
  if (min > max) return never();
  if (max == 0) return literal("");
  if (item->kind == Kind::kNever) return min == 0 ? literal("") : item;
  if (min == 1 && max == 1) return item;
  if (item->kind == Kind::kRepeat) {
    // (x*){m,n} is x*, (x+){m,n} is x{m,}, and (x?)+ is x*: written out they would double each
    // time.
    if (item->max == kUnbounded && item->min <= 1)
      return repeat(item->items[0], item->min * min, kUnbounded);
    if (item->min == 0 && max == kUnbounded) return repeat(item->items[0], 0, kUnbounded);
  }
  auto out = make(Kind::kRepeat);
  out->min = min;
  out->max = max;
  out->weight = saturating_multiply(item->weight, max == kUnbounded ? std::max(min, 1u) : max);
  out->items.push_back(std::move(item));
  return out;
}

Node rule(uint32_t id) {
  auto out = make(Kind::kRule);
  out->rule = id;
  return out;
}

void for_each_call(const Node& node, std::unordered_set<const Expression*>& seen,
                   FunctionRef<void(uint32_t)> visit) {
  if (node == nullptr || !seen.insert(node.get()).second) return;
  CompileWork::charge(1);
  if (node->kind == Kind::kRule) visit(node->rule);
  for (const Node& item : node->items)
    for_each_call(item, seen, visit);
  if (node->kind != Kind::kGraph) return;
  for (const Graph::Edge& edge : node->graph.edges)
    for_each_call(edge.label, seen, visit);
}

Node graph(Graph graph) {
  auto out = make(Kind::kGraph);
  out->weight = graph.accepting.size();
  std::erase_if(graph.edges, [](const Graph::Edge& e) { return e.label && is_never(e.label); });
  for (const Graph::Edge& edge : graph.edges)
    out->weight = saturating_add(out->weight, edge.label ? edge.label->weight : 1);
  out->graph = std::move(graph);
  return out;
}

namespace {

/// The trie of the triggers with its failure links.
class AhoCorasick {
 public:
  explicit AhoCorasick(const std::vector<Trigger>& triggers) {
    nodes_.emplace_back();
    for (size_t i = 0; i < triggers.size(); ++i)
      insert(triggers[i].trigger, static_cast<int>(i));
    link();
  }

  struct Item {
    std::map<uint32_t, uint32_t> next;  // of the trie
    uint32_t fallback = 0;
    int ends = -1;  // the trigger that is complete here
    uint32_t depth = 0;
  };
  const std::vector<Item>& nodes() const { return nodes_; }

  uint32_t step(uint32_t node, uint32_t c) const {
    for (;;) {
      if (const auto it = nodes_[node].next.find(c); it != nodes_[node].next.end())
        return it->second;
      if (node == 0) return 0;
      node = nodes_[node].fallback;
    }
  }

 private:
  void insert(const std::string& text, int index) {
    if (text.empty() || find_invalid_utf8(text) != std::string_view::npos) {
      fail(ErrorKind::kInvalidArgument, "grammar",
           "text that ends free text: expected UTF-8, not empty, got \"{}\"", printable(text));
    }
    uint32_t at = 0;
    for (const uint32_t c : code_points_of(text)) {
      auto it = nodes_[at].next.find(c);
      if (it == nodes_[at].next.end()) {
        it = nodes_[at].next.emplace(c, static_cast<uint32_t>(nodes_.size())).first;
        const uint32_t depth = nodes_[at].depth + 1;
        at = it->second;
        nodes_.emplace_back().depth = depth;
      } else {
        at = it->second;
      }
      if (nodes_[at].ends >= 0) refuse(text);
    }
    if (!nodes_[at].next.empty()) refuse(text);
    nodes_[at].ends = index;
  }

  void link() {
    std::deque<uint32_t> queue{0};
    while (!queue.empty()) {
      const uint32_t at = queue.front();
      queue.pop_front();
      for (const auto& [c, child] : nodes_[at].next) {
        nodes_[child].fallback = at == 0 ? 0 : step(nodes_[at].fallback, c);
        if (nodes_[nodes_[child].fallback].ends >= 0) refuse("a text within another");
        queue.push_back(child);
      }
    }
  }

  [[noreturn]] static void refuse(std::string_view text) {
    fail(ErrorKind::kInvalidArgument, "grammar",
         "texts that end free text: expected that none is part of another, got \"{}\"",
         printable(text));
  }

  std::vector<Item> nodes_;
};

}  // namespace

Node free_text(const std::vector<Trigger>& triggers, bool may_end, const TextStart& start) {
  const AhoCorasick automaton(triggers);
  Graph out;
  CodePointSet known = start.skipped;
  for (const auto& node : automaton.nodes()) {
    out.add_state(may_end && node.ends < 0);
    for (const auto& [c, child] : node.next)
      known.add(c);
  }
  const CodePointSet unknown = known.complement();
  uint32_t begun = 0;
  for (const uint32_t c : code_points_of(start.read)) {
    begun = automaton.step(begun, c);
    QW_CHECK(automaton.nodes()[begun].ends < 0, "free text begins after {}", start.read);
  }
  // One state more for the start, which differs from that of `begun` in what is skipped.
  const auto n_nodes = static_cast<uint32_t>(automaton.nodes().size());
  out.start = out.add_state(may_end);
  for (uint32_t i = 0; i <= n_nodes; ++i) {
    CompileWork::charge(1 + known.ranges().size());
    const auto& node = automaton.nodes()[i < n_nodes ? i : begun];
    if (node.ends >= 0) {
      const Node& then = triggers[static_cast<size_t>(node.ends)].then;
      if (then) {
        out.add_edge(i, 0, then);
      } else {
        out.accepting[i] = true;
      }
      continue;
    }
    std::map<uint32_t, CodePointSet> targets;
    targets[0].add(unknown);
    for (const CodePointRange& range : known.ranges()) {
      for (uint32_t c = range.first; c <= range.last; ++c) {
        const bool is_skipped = i == n_nodes && start.skipped.contains(c);
        targets[is_skipped ? i : automaton.step(i < n_nodes ? i : begun, c)].add(c);
      }
    }
    for (auto& [target, set] : targets)
      out.add_edge(i, target, chars(std::move(set)));
  }
  return graph(std::move(out));
}

Node text_without(std::string_view literal) {
  return free_text({{std::string(literal), never()}}, true);
}

Node any_text() {
  return any_number_of(chars(CodePointSet::all()));
}

namespace {

std::string json_escape(uint32_t c) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      break;
  }
  if (c <= 0xFFFF) return fmt::format("\\u{:04x}", c);
  const uint32_t above = c - 0x10000;  // as a pair of surrogates
  return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (above >> 10), 0xDC00 + (above & 0x3FF));
}

CodePointSet needs_escape(const CodePointSet& more) {
  CodePointSet set{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
  set.add(more);
  return set;
}

Node json_escaped_chars(const CodePointSet& set, const CodePointSet& needs) {
  std::vector<Node> ways{chars(set.without(needs))};
  const CodePointSet escaped = set.intersected_with(needs);
  for (const CodePointRange& range : escaped.ranges()) {
    for (uint32_t c = range.first; c <= range.last; ++c)
      ways.push_back(literal(json_escape(c)));
  }
  return alternation(std::move(ways));
}

/// `needs`: all characters that must be escaped.
Node escaped_node(const Node& node, const CodePointSet& needs) {
  CompileWork::charge(1 + node->text.size());
  switch (node->kind) {
    case Kind::kNever:
      return node;
    case Kind::kLiteral: {
      std::string text;
      for (const uint32_t c : code_points_of(node->text)) {
        if (needs.contains(c)) {
          text += json_escape(c);
        } else {
          append_utf8(text, c);
        }
      }
      return literal(text);
    }
    case Kind::kChars:
      return json_escaped_chars(node->chars, needs);
    case Kind::kRule:
      QW_CHECK(false, "a rule within a JSON string");
      return never();
    case Kind::kGraph: {
      Graph out = node->graph;
      for (Graph::Edge& edge : out.edges)
        if (edge.label) edge.label = escaped_node(edge.label, needs);
      return graph(std::move(out));
    }
    case Kind::kSequence:
    case Kind::kAlternation:
    case Kind::kRepeat:
      break;
  }
  std::vector<Node> items;
  for (const Node& item : node->items)
    items.push_back(escaped_node(item, needs));
  if (node->kind == Kind::kSequence) return sequence(std::move(items));
  if (node->kind == Kind::kAlternation) return alternation(std::move(items));
  return repeat(items[0], node->min, node->max);
}

}  // namespace

Node json_escaped(const Node& node, const CodePointSet& more) {
  return escaped_node(node, needs_escape(more));
}

}  // namespace qw::grammar
