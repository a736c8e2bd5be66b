// Cuts text into the pieces that BPE works on: the published regular expressions as a linear scan.
//
// Level 3 (text). Written by hand, since the engines that know lookahead backtrack and those that
// do not backtrack have no lookahead; the scan looks at every character at most three times.
// Patterns:
//
//   kQwen2   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*
//            |\s*[\r\n]+|\s+(?!\S)|\s+
//   kCl100k  the same with \p{N}{1,3}
//   kGpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "text/tokenizer_spec.h"
#include "text/unicode.h"

namespace qw {

class Splitter {
 public:
  explicit Splitter(SplitPattern pattern) : pattern_(pattern), table_(CharTable::get()) {}

  /// The end of the piece that begins at `begin` < text.size(); always greater than `begin`, on a
  /// character boundary. `text` must be valid UTF-8. Calls from piece to piece are O(n) in all.
  size_t piece_end(std::string_view text, size_t begin) const noexcept;

  /// The pattern a regular expression of tokenizer.json stands for, if it is one of ours.
  static std::optional<SplitPattern> from_regex(std::string_view regex);

 private:
  SplitPattern pattern_;
  const CharTable& table_;
};

}  // namespace qw
