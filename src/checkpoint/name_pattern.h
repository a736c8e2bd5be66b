// Patterns that modules' names begin with, as files of other programs hold them: the part of
// Python's regular expressions that means a regular language.
//
// Level 3 (checkpoint). Foreign bytes, so nothing backtracks: all ways through the pattern are
// walked at once (Thompson 1968), in time of at most name * instructions.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qw {

class NamePattern {
 public:
  /// Literals, `.`, classes, \d \w \s and their opposites (ASCII), escapes, groups, alternatives,
  /// quantifiers (greedy or lazy, which find the same names), ^ \A and $ \Z. `where` names the
  /// source in errors. Errors: corrupt (no pattern of Python's), unsupported (look-around,
  /// back-references, \b, flags, possessive quantifiers, characters beyond ASCII; longer than
  /// kMaxBytes; more than kMaxSteps when counts are written out); with the offset in `text`.
  NamePattern(std::string_view text, std::string_view where);

  static constexpr size_t kMaxBytes = 8192;
  static constexpr size_t kMaxSteps = 16384;

  const std::string& text() const noexcept { return text_; }
  size_t n_steps() const noexcept { return steps_.size(); }
  /// Whether `name` begins with a text of the pattern, as re.match has it.
  bool matches_start(std::string_view name) const;

  /// One step of the walk. Targets are relative, so that a piece can be written out several times.
  struct Step {
    enum class Kind : uint8_t { kBytes, kBoth, kJump, kAtStart, kAtEnd, kMatch };
    Kind kind = Kind::kMatch;
    int32_t to = 1, or_to = 1;  // kJump, kBoth: from this step
    int32_t set = 0;            // kBytes: of sets
  };
  using ByteSet = std::bitset<128>;

 private:
  std::string text_;
  std::vector<Step> steps_;
  std::vector<ByteSet> sets_;
};

}  // namespace qw
