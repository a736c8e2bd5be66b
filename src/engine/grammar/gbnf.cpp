#include "engine/grammar/gbnf.h"

#include <map>

#include "base/utf8.h"
#include "engine/grammar/source_reader.h"

namespace qw::grammar {
namespace {

constexpr size_t kMaxRules = 100'000;

class GbnfParser {
 public:
  GbnfParser(std::string_view text, GrammarBuilder& builder)
      : in_(text, "gbnf", true), builder_(builder) {}

  Node parse(std::string_view root) {
    skip_space();
    while (!in_.at_end())
      definition();
    for (const auto& [name, known] : rules_) {
      if (known.defined) continue;
      fail(ErrorKind::kInvalidArgument, "gbnf", "rule {}: expected a definition, got none ({})",
           printable(name), in_.position(known.offset));
    }
    const auto it = rules_.find(root);
    if (it == rules_.end()) {
      fail(ErrorKind::kInvalidArgument, "gbnf", "rule {}: expected a definition, got {} others",
           printable(root), rules_.size());
    }
    return rule(it->second.id);
  }

 private:
  struct Known {
    uint32_t id = 0;
    size_t offset = 0;  // where it was first named
    bool defined = false;
  };

  static bool is_name(uint32_t c) {
    return c < 0x80 && (((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || (c >= '0' && c <= '9') ||
                        c == '-' || c == '_');
  }

  void skip_space() {
    for (;;) {
      const uint32_t c = in_.peek();
      if (c == '#') {
        while (!in_.at_end() && in_.peek() != '\n')
          in_.next();
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        in_.next();
      } else {
        return;
      }
    }
  }

  std::string name() {
    const size_t begin = in_.offset();
    while (is_name(in_.peek()))
      in_.next();
    return std::string(in_.text().substr(begin, in_.offset() - begin));
  }

  Known& known(const std::string& name, size_t offset) {
    const auto it = rules_.find(name);
    if (it != rules_.end()) return it->second;
    if (rules_.size() >= kMaxRules) in_.fail_at(offset, fmt::format("at most {} rules", kMaxRules));
    return rules_.emplace(name, Known{builder_.declare(name), offset, false}).first->second;
  }

  bool at_name() const { return is_name(in_.peek()); }

  /// Whether `name ::=` comes next.
  bool at_definition() {
    if (!at_name()) return false;
    const size_t here = in_.offset();
    name();
    skip_space();
    const bool found = in_.rest().starts_with("::=");
    in_.seek(here);
    return found;
  }

  void definition() {
    const size_t offset = in_.offset();
    if (!at_name()) in_.fail_at(offset, "the name of a rule");
    Known& rule = known(name(), offset);
    if (rule.defined) in_.fail_at(offset, "a rule that is not defined yet");
    rule.defined = true;
    const uint32_t id = rule.id;
    skip_space();
    if (!in_.accept("::=")) in_.fail_at(in_.offset(), "::=");
    skip_space();
    builder_.define(id, alternatives(0));
    if (!in_.at_end() && !at_definition()) in_.fail_at(in_.offset(), "the end of the rule");
  }

  Node alternatives(int depth) {
    if (depth > kMaxNesting) in_.fail_at(in_.offset(), "groups that are less deep");
    std::vector<Node> out;
    do {
      skip_space();
      std::vector<Node> items;
      while (!at_end_of_sequence())
        items.push_back(item(depth));
      out.push_back(sequence(std::move(items)));
    } while (in_.accept("|"));
    return alternation(std::move(out));
  }

  bool at_end_of_sequence() {
    return in_.at_end() || in_.peek() == '|' || in_.peek() == ')' || at_definition();
  }

  Node item(int depth) {
    Node out = atom(depth);
    skip_space();
    for (int n = 0;; ++n) {
      const size_t offset = in_.offset();
      uint32_t min = 0, max = kUnbounded;
      if (in_.accept("*")) {
      } else if (in_.accept("+")) {
        min = 1;
      } else if (in_.accept("?")) {
        max = 1;
      } else if (in_.accept("{")) {
        bounds(min, max);
      } else {
        return out;
      }
      if (min > max) in_.fail_at(offset, "bounds in ascending order");
      if (n >= kMaxNesting) in_.fail_at(offset, "fewer repetitions of repetitions");
      out = repeat(std::move(out), min, max);
      skip_space();
    }
  }

  void bounds(uint32_t& min, uint32_t& max) {
    skip_space();
    if (in_.peek() != ',') min = in_.count();
    skip_space();
    max = min;
    if (in_.accept(",")) {
      skip_space();
      max = in_.peek() == '}' ? kUnbounded : in_.count();
      skip_space();
    }
    if (!in_.accept("}")) in_.fail_at(in_.offset(), "the end of the bounds");
  }

  Node atom(int depth) {
    const size_t offset = in_.offset();
    if (in_.accept("\"")) return quoted(offset);
    if (in_.accept("[")) return char_class(offset);
    if (in_.accept(".")) return chars(CodePointSet::all());
    if (in_.accept("(")) {
      if (in_.peek() == '=') in_.refuse(offset, "look-ahead assertions");
      Node out = alternatives(depth + 1);
      if (!in_.accept(")")) in_.fail_at(in_.offset(), "a closing parenthesis");
      return out;
    }
    if (in_.peek() == '<' || in_.peek() == '!') in_.refuse(offset, "tokens by their name or id");
    if (!at_name()) in_.fail_at(offset, "a literal, a class, a group or the name of a rule");
    return rule(known(name(), offset).id);
  }

  Node quoted(size_t offset) {
    std::string text;
    for (;;) {
      if (in_.at_end())  // a line's end stands for itself
        in_.fail_at(in_.offset(),
                    fmt::format("the end of the literal that begins at {}", in_.position(offset)));
      if (in_.accept("\"")) return literal(text);
      append_utf8(text, character());
    }
  }

  uint32_t character() {
    const size_t offset = in_.offset();
    const uint32_t c = in_.next();
    if (c != '\\') return c;
    uint32_t value = in_.next();
    switch (value) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        value = in_.hex(2);
        break;
      case 'u':
        value = in_.utf16_escape();
        break;
      case 'U':
        value = in_.hex(8);
        break;
      case '"':
      case '\\':
      case '/':
      case '\'':
      case '[':
      case ']':
      case '-':
      case '^':
        return value;
      default:
        in_.fail_at(offset, "a known escape");
    }
    if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF))
      in_.fail_at(offset, "a character");
    return value;
  }

  Node char_class(size_t offset) {
    const bool negated = in_.accept("^");
    CodePointSet out;
    while (!in_.accept("]")) {
      if (in_.at_end())
        in_.fail_at(in_.offset(),
                    fmt::format("the end of the class that begins at {}", in_.position(offset)));
      const uint32_t low = character();
      uint32_t high = low;
      if (in_.peek() == '-' && in_.rest().size() > 1 && in_.rest()[1] != ']') {
        in_.next();
        const size_t there = in_.offset();
        high = character();
        if (low > high) in_.fail_at(there, "a range in ascending order");
      }
      out.add(low, high);
    }
    return chars(negated ? out.complement() : out);
  }

  SourceReader in_;
  GrammarBuilder& builder_;
  std::map<std::string, Known, std::less<>> rules_;
};

}  // namespace

Node parse_gbnf(std::string_view text, std::string_view root, GrammarBuilder& builder) {
  return GbnfParser(text, builder).parse(root);
}

}  // namespace qw::grammar
