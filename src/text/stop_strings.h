// Stop strings in text that arrives in pieces: found across piece boundaries, never shown.
//
// Level 3 (text). One automaton for all stop strings (Aho and Corasick, 1975): what is held back is
// exactly the longest end of the text that could still become a stop string. Only text that was
// pushed counts; a stop string cannot begin in the prompt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qw {

class StopStrings {
 public:
  /// Errors: invalid_argument (an empty string, invalid UTF-8, 1 MiB in all or more). Copies share
  /// the automaton, so that one is enough for any number of texts.
  explicit StopStrings(const std::vector<std::string>& strings);

  bool empty() const noexcept;

  struct Result {
    std::string text;            // final text, in front of any stop string
    std::optional<size_t> stop;  // index of the stop string that was found
  };

  /// Takes the next piece. The stop string that ends first wins, of several ending together the
  /// longest, so that the outcome does not depend on how the text is cut into pieces. After a
  /// match the rest of the piece is dropped, and nothing more may be pushed before reset().
  /// What ends in this piece counts only if it is one of the first `n_counting` strings; the others
  /// may begin here and end in a later one.
  Result push(std::string_view piece, size_t n_counting = SIZE_MAX);

  /// The text held back, at the end of generation without a match.
  std::string flush();

  /// Makes ready for another text.
  void reset() noexcept;

 private:
  class Automaton;

  std::shared_ptr<const Automaton> automaton_;
  uint32_t state_ = 0;
  bool matched_ = false;
  std::string held_;  // always as long as the state is deep
};

}  // namespace qw
