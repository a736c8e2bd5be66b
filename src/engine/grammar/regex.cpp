#include "engine/grammar/regex.h"

#include <unicode/uset.h>

#include <memory>
#include <optional>

#include "base/utf8.h"
#include "engine/grammar/source_reader.h"

namespace qw::grammar {
namespace {

/// A pattern as it was written: anchors are still in place.
struct Part {
  enum class Kind { kNode, kSequence, kAlternation, kBegin, kEnd } kind = Kind::kNode;
  Node node;
  std::vector<Part> items;
  size_t offset = 0;
  bool has_anchor = false;
};

/// One way to read a pattern once its anchors are gone.
struct Way {
  bool begin = false, end = false;  // anchored there
  Node node;
};
constexpr size_t kMaxWays = 64;

CodePointSet digits() {
  return {{'0', '9'}};
}
CodePointSet word() {
  return {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
}
CodePointSet spaces() {
  return {{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
          {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
}
CodePointSet line_ends() {
  return {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
}

class RegexParser {
 public:
  explicit RegexParser(std::string_view pattern) : in_(pattern, "regex", false) {}

  Node parse(RegexMatch match) {
    const Part part = alternation_part(0);
    if (!in_.at_end()) in_.fail_at(in_.offset(), "an opening parenthesis before it");
    std::vector<Node> out;
    for (const Way& way : ways_of(part, true, true)) {
      if (match == RegexMatch::kWhole) {
        out.push_back(way.node);
      } else {
        out.push_back(sequence(
            {way.begin ? nothing() : any_text(), way.node, way.end ? nothing() : any_text()}));
      }
    }
    return alternation(std::move(out));
  }

 private:
  Part alternation_part(int depth) {
    if (depth > kMaxNesting) in_.fail_at(in_.offset(), "groups that are less deep");
    Part out{Part::Kind::kAlternation, nullptr, {}, in_.offset(), false};
    do {
      out.items.push_back(sequence_part(depth));
      out.has_anchor = out.has_anchor || out.items.back().has_anchor;
    } while (in_.accept("|"));
    if (out.items.size() == 1) return std::move(out.items[0]);
    if (!out.has_anchor) return node_part(plain(out), out.offset);
    return out;
  }

  Part sequence_part(int depth) {
    Part out{Part::Kind::kSequence, nullptr, {}, in_.offset(), false};
    while (!in_.at_end() && in_.peek() != '|' && in_.peek() != ')') {
      out.items.push_back(quantified(depth));
      out.has_anchor = out.has_anchor || out.items.back().has_anchor;
    }
    if (!out.has_anchor) return node_part(plain(out), out.offset);
    return out;
  }

  static Part node_part(Node node, size_t offset) {
    return {Part::Kind::kNode, std::move(node), {}, offset, false};
  }

  /// The expression of a part without anchors.
  static Node plain(const Part& part) {
    if (part.kind == Part::Kind::kNode) return part.node;
    std::vector<Node> items;
    for (const Part& item : part.items)
      items.push_back(plain(item));
    return part.kind == Part::Kind::kSequence ? sequence(std::move(items))
                                              : alternation(std::move(items));
  }

  Part quantified(int depth) {
    const size_t offset = in_.offset();
    Part out = atom(depth);
    for (;;) {
      const size_t here = in_.offset();
      uint32_t min = 0, max = 0;
      if (!quantifier(min, max)) return out;
      if (out.has_anchor) in_.refuse(here, "quantifiers of anchors");
      if (in_.accept("+")) in_.refuse(here, "possessive quantifiers");
      in_.accept("?");  // lazy: the same texts
      if (min > max) in_.fail_at(here, "bounds in ascending order");
      out = node_part(repeat(out.node, min, max), offset);
      const uint32_t next = in_.peek();
      if (next == '*' || next == '+' || next == '?') {
        in_.fail_at(in_.offset(), "something to repeat before it");
      }
    }
  }

  bool quantifier(uint32_t& min, uint32_t& max) {
    max = kUnbounded;
    if (in_.accept("*")) return true;
    if (in_.accept("+")) return (min = 1) != 0;
    if (in_.accept("?")) return (max = 1) != 0;
    if (in_.peek() != '{') return false;
    const std::string_view rest = in_.rest();
    const size_t end = rest.find_first_not_of("0123456789,", 1);
    if (end == std::string_view::npos || rest[end] != '}' || end == 1) return false;  // plain text
    if (rest.starts_with("{,")) in_.refuse(in_.offset(), "quantifiers without lower bound");
    in_.accept("{");
    min = max = in_.count();
    if (in_.accept(",")) max = in_.peek() == '}' ? kUnbounded : in_.count();
    if (!in_.accept("}")) in_.fail_at(in_.offset(), "the end of a quantifier");
    return true;
  }

  Part atom(int depth) {
    const size_t offset = in_.offset();
    const uint32_t c = in_.next();
    switch (c) {
      case '^':
        return {Part::Kind::kBegin, nullptr, {}, offset, true};
      case '$':
        return {Part::Kind::kEnd, nullptr, {}, offset, true};
      case '.':
        return node_part(chars(line_ends().complement()), offset);
      case '(':
        return group(depth, offset);
      case '[':
        return node_part(chars(char_class(offset)), offset);
      case '*':
      case '+':
      case '?':
        in_.fail_at(offset, "something to repeat before it");
      case '\\': {
        const uint32_t kind = in_.peek();
        if (kind == 'A') return in_.next(), Part{Part::Kind::kBegin, nullptr, {}, offset, true};
        if (kind == 'Z' || kind == 'z')
          return in_.next(), Part{Part::Kind::kEnd, nullptr, {}, offset, true};
        CodePointSet set;
        escape(set, offset, false);
        return node_part(chars(std::move(set)), offset);
      }
      default: {
        std::string text;
        append_utf8(text, c);
        return node_part(literal(text), offset);
      }
    }
  }

  Part group(int depth, size_t offset) {
    if (in_.accept("?")) {
      if (in_.accept("=") || in_.accept("!") || in_.accept("<=") || in_.accept("<!"))
        in_.refuse(offset, "look-ahead and look-behind");
      if (in_.accept("P=")) in_.refuse(offset, "back-references");
      if (in_.accept("P<") || in_.accept("<")) {
        const size_t end = in_.rest().find('>');
        if (end == std::string_view::npos || end == 0) in_.fail_at(in_.offset(), "a group's name");
        in_.seek(in_.offset() + end + 1);
      } else if (!in_.accept(":")) {
        in_.refuse(offset, "flags and other special groups");
      }
    }
    Part out = alternation_part(depth + 1);
    if (!in_.accept(")")) in_.fail_at(in_.offset(), "a closing parenthesis");
    return out;
  }

  CodePointSet char_class(size_t offset) {
    const bool negated = in_.accept("^");
    CodePointSet out;
    for (bool first = true;; first = false) {
      const size_t here = in_.offset();
      if (in_.at_end())
        in_.fail_at(here, fmt::format("the end of the class that begins at {}", offset));
      if (in_.peek() == ']' && !first) break;
      if (in_.peek() == ']') in_.refuse(here, "classes that begin with a bracket (write \\])");
      CodePointSet one;
      const std::optional<uint32_t> low = class_member(one, here);
      const bool is_range = in_.peek() == '-' && in_.rest().size() > 1 && in_.rest()[1] != ']';
      if (!is_range) {
        out.add(one);
        continue;
      }
      in_.next();
      CodePointSet other;
      const size_t there = in_.offset();
      const std::optional<uint32_t> high = class_member(other, there);
      if (!low || !high) in_.fail_at(there, "characters at both ends of a range");
      if (*low > *high) in_.fail_at(there, "a range in ascending order");
      out.add(*low, *high);
    }
    in_.next();
    return negated ? out.complement() : out;
  }

  /// Adds a member to `out`; its code point, where it is one character.
  std::optional<uint32_t> class_member(CodePointSet& out, size_t offset) {
    const uint32_t c = in_.next();
    if (c == '\\') return escape(out, offset, true);
    out.add(c);
    return c;
  }

  /// What follows a backslash.
  std::optional<uint32_t> escape(CodePointSet& out, size_t offset, bool in_class) {
    const uint32_t c = in_.next();
    const auto one = [&](uint32_t value) {
      if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF))
        in_.fail_at(offset, "a character");
      out.add(value);
      return std::optional<uint32_t>(value);
    };
    switch (c) {
      case 'd':
        return out.add(digits()), std::nullopt;
      case 'D':
        return out.add(digits().complement()), std::nullopt;
      case 'w':
        return out.add(word()), std::nullopt;
      case 'W':
        return out.add(word().complement()), std::nullopt;
      case 's':
        return out.add(spaces()), std::nullopt;
      case 'S':
        return out.add(spaces().complement()), std::nullopt;
      case 't':
        return one('\t');
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case 'x':
        return one(in_.hex(2));
      case 'U':
        return one(in_.hex(8));
      case 'u': {
        if (!in_.accept("{")) return one(in_.utf16_escape());
        uint32_t value = 0;
        const size_t begin = in_.offset();
        while (in_.peek() != '}' && in_.offset() - begin < 6)
          value = value << 4 | in_.hex(1);
        if (!in_.accept("}") || in_.offset() == begin + 1) in_.fail_at(offset, "\\u{...}");
        return one(value);
      }
      case 'p':
      case 'P':
        return property(out, offset, c == 'P'), std::nullopt;
      case 'b':
        if (in_class) return one('\b');
        [[fallthrough]];
      case 'B':
        in_.refuse(offset, "word boundaries");
      case 'k':
        in_.refuse(offset, "back-references");
      default:
        break;
    }
    if (c == '0' && !(in_.peek() >= '0' && in_.peek() <= '9')) return one(0);
    if (c >= '0' && c <= '9') in_.refuse(offset, "back-references and octal escapes");
    const bool is_letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    if (c == SourceReader::kEnd || (is_letter && c < 0x80)) in_.fail_at(offset, "a known escape");
    return one(c);
  }

  /// \p{...}, by ICU.
  void property(CodePointSet& out, size_t offset, bool negated) {
    const std::string_view rest = in_.rest();
    const size_t end = rest.find('}');
    if (!rest.starts_with("{") || end == std::string_view::npos || end > 60)
      in_.fail_at(offset, "\\p{...}");
    const std::string_view name = rest.substr(1, end - 1);
    constexpr std::string_view kAllowed =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_= ";
    if (name.empty() || name.find_first_not_of(kAllowed) != std::string_view::npos)
      in_.fail_at(offset, "the name of a property of Unicode");
    in_.seek(in_.offset() + end + 1);
    std::u16string pattern = u"[\\p{";
    pattern.append(name.begin(), name.end());
    pattern += u"}]";
    UErrorCode status = U_ZERO_ERROR;
    const std::unique_ptr<USet, void (*)(USet*)> set(
        uset_openPattern(pattern.data(), static_cast<int32_t>(pattern.size()), &status),
        uset_close);
    if (U_FAILURE(status)) in_.fail_at(offset, "the name of a property of Unicode");
    CodePointSet members;
    for (int32_t i = 0, n = uset_getItemCount(set.get()); i < n; ++i) {
      UChar32 first = 0, last = 0;
      UErrorCode ignored = U_ZERO_ERROR;
      if (uset_getItem(set.get(), i, &first, &last, nullptr, 0, &ignored) == 0)
        members.add(static_cast<uint32_t>(first), static_cast<uint32_t>(last));
    }
    out.add(negated ? members.complement() : members);
  }

  std::vector<Way> ways_of(const Part& part, bool at_begin, bool at_end) const {
    switch (part.kind) {
      case Part::Kind::kNode:
        return {{false, false, part.node}};
      case Part::Kind::kBegin:
        if (!at_begin) in_.refuse(part.offset, "anchors in the middle of a pattern");
        return {{true, false, nothing()}};
      case Part::Kind::kEnd:
        if (!at_end) in_.refuse(part.offset, "anchors in the middle of a pattern");
        return {{false, true, nothing()}};
      case Part::Kind::kSequence:
        return ways_of_sequence(part.items, at_begin, at_end);
      case Part::Kind::kAlternation:
        break;
    }
    std::vector<Way> out;
    for (const Part& item : part.items) {
      for (Way& way : ways_of(item, at_begin, at_end))
        out.push_back(std::move(way));
    }
    return out;
  }

  std::vector<Way> ways_of_sequence(const std::vector<Part>& items, bool at_begin,
                                    bool at_end) const {
    // Anchors stand at an end as long as only anchors are further out.
    size_t first = 0, last = items.size();
    while (first < items.size() && items[first].kind == Part::Kind::kBegin)
      ++first;
    while (last > 0 && items[last - 1].kind == Part::Kind::kEnd)
      --last;
    struct Partial {
      bool begin = false, end = false;
      std::vector<Node> nodes;  // put together at the end: a long pattern has many
    };
    std::vector<Partial> partial(1);
    for (size_t i = 0; i < items.size(); ++i) {
      const std::vector<Way> rights =
          ways_of(items[i], at_begin && i <= first, at_end && i + 1 >= last);
      if (partial.size() * rights.size() > kMaxWays) in_.refuse(items[i].offset, "so many anchors");
      const size_t n = partial.size();
      for (size_t k = n; k < n * rights.size(); ++k)
        partial.push_back(Partial(partial[k - n]));
      for (size_t k = 0; k < partial.size(); ++k) {
        const Way& right = rights[k / n];
        partial[k].begin = partial[k].begin || right.begin;
        partial[k].end = partial[k].end || right.end;
        partial[k].nodes.push_back(right.node);
      }
    }
    std::vector<Way> out;
    for (Partial& way : partial)
      out.push_back({way.begin, way.end, sequence(std::move(way.nodes))});
    return out;
  }

  SourceReader in_;
};

}  // namespace

Node parse_regex(std::string_view pattern, RegexMatch match) {
  return RegexParser(pattern).parse(match);
}

}  // namespace qw::grammar
