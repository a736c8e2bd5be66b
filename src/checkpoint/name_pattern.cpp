#include "checkpoint/name_pattern.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"

namespace qw {

namespace {

using Step = NamePattern::Step;
using ByteSet = NamePattern::ByteSet;
using Steps = std::vector<Step>;
using Kind = Step::Kind;

constexpr int kMaxDepth = 64;
constexpr int kMaxCount = 1000;

int32_t length(const Steps& steps) {
  return static_cast<int32_t>(steps.size());
}

ByteSet between(char first, char last) {
  ByteSet set;
  for (int c = first; c <= last; ++c)
    set.set(static_cast<size_t>(c));
  return set;
}

ByteSet one(char c) {
  return between(c, c);
}

/// \d, \w, \s and their opposites; nullopt for another letter.
std::optional<ByteSet> class_of(char letter) {
  ByteSet set;
  switch (letter | 0x20) {
    case 'd':
      set = between('0', '9');
      break;
    case 'w':
      set = between('0', '9') | between('a', 'z') | between('A', 'Z') | one('_');
      break;
    case 's':
      set = between('\t', '\r') | one(' ') | between(0x1c, 0x1f);
      break;
    default:
      return std::nullopt;
  }
  return letter < 'a' ? ~set : set;
}

class Parser {
 public:
  Parser(std::string_view text, std::string_view where, std::vector<ByteSet>& sets)
      : text_(text), where_(where), sets_(sets) {}

  Steps parse() {
    if (text_.size() > NamePattern::kMaxBytes)
      refuse(ErrorKind::kUnsupported, "at most {} bytes", NamePattern::kMaxBytes);
    Steps steps = alternatives(0);
    if (at_ < text_.size()) refuse(ErrorKind::kCorrupt, "a ( for each )");
    steps.push_back({Kind::kMatch, 1, 1, 0});
    return steps;
  }

 private:
  template <typename... Args>
  [[noreturn]] void refuse(ErrorKind kind, fmt::format_string<Args...> expected,
                           Args&&... args) const {
    fail(kind, "config", "pattern of names: expected {}, got {} at byte {} ({})",
         fmt::format(expected, std::forward<Args>(args)...), printable(text_), at_, where_);
  }

  bool is_next(char c) const { return at_ < text_.size() && text_[at_] == c; }
  bool take(char c) {
    if (!is_next(c)) return false;
    ++at_;
    return true;
  }
  char next(std::string_view what) {
    if (at_ == text_.size()) refuse(ErrorKind::kCorrupt, "{}", what);
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) >= 0x80) refuse(ErrorKind::kUnsupported, "ASCII");
    ++at_;
    return c;
  }

  void append(Steps& to, const Steps& more) const {
    if (to.size() + more.size() > NamePattern::kMaxSteps)
      refuse(ErrorKind::kUnsupported, "at most {} steps", NamePattern::kMaxSteps);
    to.insert(to.end(), more.begin(), more.end());
  }

  Steps bytes(const ByteSet& set) {
    const auto found = std::ranges::find(sets_, set);
    const auto index = static_cast<int32_t>(found - sets_.begin());
    if (found == sets_.end()) sets_.push_back(set);
    return {{Kind::kBytes, 1, 1, index}};
  }

  Steps alternatives(int depth) {
    if (depth > kMaxDepth) refuse(ErrorKind::kUnsupported, "at most {} groups deep", kMaxDepth);
    Steps out = sequence(depth);
    while (take('|')) {
      const Steps other = sequence(depth);
      Steps both = {{Kind::kBoth, 1, length(out) + 2, 0}};
      append(both, out);
      both.push_back({Kind::kJump, length(other) + 1, 1, 0});
      append(both, other);
      out = std::move(both);
    }
    return out;
  }

  Steps sequence(int depth) {
    Steps out;
    while (at_ < text_.size() && !is_next('|') && !is_next(')'))
      append(out, repeated(depth));
    return out;
  }

  Steps repeated(int depth) {
    const Steps piece = atom(depth);
    int least = 1, most = 1;
    if (!quantifier(least, most)) return piece;
    if (is_next('+'))
      refuse(ErrorKind::kUnsupported, "no possessive quantifier (not a regular language)");
    take('?');
    int ignored_least = 1, ignored_most = 1;
    if (quantifier(ignored_least, ignored_most))
      refuse(ErrorKind::kCorrupt, "one quantifier of a piece");
    Steps out;
    for (int i = 0; i < least; ++i)
      append(out, piece);
    if (most < 0) {
      append(out, {{Kind::kBoth, 1, length(piece) + 2, 0}});
      append(out, piece);
      append(out, {{Kind::kJump, -length(piece) - 1, 1, 0}});
    }
    for (int i = least; i < most; ++i) {
      append(out, {{Kind::kBoth, 1, length(piece) + 1, 0}});
      append(out, piece);
    }
    return out;
  }

  /// Takes one, if there is one. `most` -1: without end.
  bool quantifier(int& least, int& most) {
    if (take('*')) return least = 0, most = -1, true;
    if (take('+')) return least = 1, most = -1, true;
    if (take('?')) return least = 0, most = 1, true;
    if (!is_next('{')) return false;
    const size_t begin = at_++;
    const std::optional<int> first = number();
    std::optional<int> last = first;
    const bool is_range = take(',');
    if (is_range) last = number();
    if (!take('}') || (!first && !is_range)) {
      at_ = begin;  // Python takes it for itself
      return false;
    }
    least = first.value_or(0);
    most = last.value_or(-1);
    if (most >= 0 && most < least) refuse(ErrorKind::kCorrupt, "counts in order");
    return true;
  }

  std::optional<int> number() {
    std::optional<int> value;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = value.value_or(0) * 10 + (text_[at_++] - '0');
      if (*value > kMaxCount) refuse(ErrorKind::kUnsupported, "counts up to {}", kMaxCount);
    }
    return value;
  }

  Steps atom(int depth) {
    const char c = next("a piece of a pattern");
    switch (c) {
      case '(':
        return group(depth);
      case '[':
        return bytes(bracket());
      case '.':
        return bytes(~one('\n'));
      case '^':
        return {{Kind::kAtStart, 1, 1, 0}};
      case '$':
        return {{Kind::kAtEnd, 1, 1, 0}};
      case '\\':
        return escape();
      case '*':
      case '+':
      case '?':
        --at_;
        refuse(ErrorKind::kCorrupt, "something that {} repeats", c);
      default:
        return bytes(one(c));
    }
  }

  Steps group(int depth) {
    if (take('?')) {
      const bool is_named = take('P');
      if (is_named && is_next('<')) {
        const size_t end = text_.find('>', at_);
        if (end == std::string_view::npos) refuse(ErrorKind::kCorrupt, "a > behind a name");
        at_ = end + 1;
      } else if (is_named || !take(':')) {
        refuse(ErrorKind::kUnsupported, "no look-around, flag or reference");
      }
    }
    Steps out = alternatives(depth + 1);
    if (!take(')')) refuse(ErrorKind::kCorrupt, "a ) for each (");
    return out;
  }

  Steps escape() {
    const char c = next("a character behind \\");
    if (c == 'A') return {{Kind::kAtStart, 1, 1, 0}};
    if (c == 'Z') return {{Kind::kAtEnd, 1, 1, 0}};
    if (const auto set = class_of(c)) return bytes(*set);
    return bytes(one(escaped(c)));
  }

  /// The character that \c stands for.
  char escaped(char c) {
    switch (c) {
      case 'n':
        return '\n';
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      default:
        break;
    }
    if (class_of('w')->test(static_cast<size_t>(c)) && c != '_') {
      --at_;
      refuse(ErrorKind::kUnsupported, "no back-reference, \\b or \\{}", c);
    }
    return c;
  }

  /// What follows [, and the ].
  ByteSet bracket() {
    const bool is_negated = take('^');
    ByteSet set;
    for (bool is_first = true; is_first || !is_next(']'); is_first = false) {
      const auto [members, first] = bracket_item();
      set |= members;
      if (!first || !is_next('-') || text_.substr(at_).starts_with("-]")) continue;
      ++at_;
      const auto [unused, last] = bracket_item();
      if (!last || *last < *first) refuse(ErrorKind::kCorrupt, "a range in order");
      set |= between(*first, *last);
    }
    ++at_;
    return is_negated ? ~set : set;
  }

  /// Members, and the character when it is one.
  std::pair<ByteSet, std::optional<char>> bracket_item() {
    char c = next("a ] for each [");
    if (c == '\\') {
      c = next("a character behind \\");
      if (const auto set = class_of(c)) return {*set, std::nullopt};
      c = escaped(c);
    }
    return {one(c), c};
  }

  std::string_view text_, where_;
  std::vector<ByteSet>& sets_;
  size_t at_ = 0;
};

/// The steps that wait for a byte, each once.
class Frontier {
 public:
  Frontier(const Steps& steps, size_t name_bytes)
      : steps_(steps), name_bytes_(name_bytes), seen_(steps.size(), 0) {}

  const std::vector<int32_t>& waiting() const { return waiting_; }
  void clear() {
    waiting_.clear();
    ++round_;
  }
  /// Step `index`, and whatever is reached from it without a byte. True: the pattern's end.
  bool add(int32_t index, size_t position) {
    todo_.assign(1, index);
    while (!todo_.empty()) {
      const int32_t i = todo_.back();
      todo_.pop_back();
      if (std::exchange(seen_[static_cast<size_t>(i)], round_) == round_) continue;
      const Step& step = steps_[static_cast<size_t>(i)];
      switch (step.kind) {
        case Kind::kBytes:
          waiting_.push_back(i);
          break;
        case Kind::kBoth:
          todo_.push_back(i + step.or_to);
          [[fallthrough]];
        case Kind::kJump:
          todo_.push_back(i + step.to);
          break;
        case Kind::kAtStart:
          if (position == 0) todo_.push_back(i + 1);
          break;
        case Kind::kAtEnd:
          if (position == name_bytes_) todo_.push_back(i + 1);
          break;
        case Kind::kMatch:
          return true;
      }
    }
    return false;
  }

 private:
  const Steps& steps_;
  size_t name_bytes_;
  std::vector<uint32_t> seen_;  // the round that a step was met in
  uint32_t round_ = 1;
  std::vector<int32_t> waiting_, todo_;
};

}  // namespace

NamePattern::NamePattern(std::string_view text, std::string_view where) : text_(text) {
  steps_ = Parser(text, where, sets_).parse();
}

bool NamePattern::matches_start(std::string_view name) const {
  Frontier here(steps_, name.size()), there(steps_, name.size());
  Frontier *now = &here, *next = &there;
  if (now->add(0, 0)) return true;
  for (size_t i = 0; i < name.size() && !now->waiting().empty(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    next->clear();
    for (const int32_t step : now->waiting()) {
      const ByteSet& set = sets_[static_cast<size_t>(steps_[static_cast<size_t>(step)].set)];
      // What is beyond ASCII is in no class that a pattern names, and in all opposites.
      const bool is_in = byte < 0x80 ? set.test(byte) : set.test(0);
      if (is_in && next->add(step + 1, i + 1)) return true;
    }
    std::swap(now, next);
  }
  return false;
}

}  // namespace qw
