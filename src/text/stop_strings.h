// Stop strings in text that arrives in pieces: found across piece boundaries, never shown.
//
// Level 3 (text). One automaton for all stop strings (Aho and Corasick, 1975): what is held back is
// exactly the longest end of the text that could still become a stop string. Only text that was
// pushed counts; a stop string cannot begin in the prompt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace qw {

class StopStrings {
 public:
  /// Errors: invalid_argument (an empty string, invalid UTF-8, 1 MiB in all or more).
  explicit StopStrings(std::vector<std::string> strings);

  bool empty() const noexcept { return strings_.empty(); }

  struct Result {
    std::string text;            // final text, in front of any stop string
    std::optional<size_t> stop;  // index of the stop string that was found
  };

  /// Takes the next piece. The stop string that ends first wins, of several ending together the
  /// longest, so that the outcome does not depend on how the text is cut into pieces. After a
  /// match the rest of the piece is dropped, and nothing more may be pushed before reset().
  Result push(std::string_view piece);

  /// The text held back, at the end of generation without a match.
  std::string flush();

  /// Makes ready for another text.
  void reset() noexcept;

 private:
  static constexpr uint32_t kRoot = 0;
  struct Node {
    uint32_t depth = 0;
    uint32_t fallback = kRoot;  // the longest proper suffix that is a node
    int32_t stop = -1;          // the longest stop string that ends here
  };
  std::optional<uint32_t> child_of(uint32_t node, unsigned char byte) const;
  void add(std::string_view text, int32_t index);
  void link();

  std::vector<std::string> strings_;
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) -> node
  uint32_t state_ = kRoot;
  bool matched_ = false;
  std::string held_;  // always nodes_[state_].depth bytes
};

}  // namespace qw
