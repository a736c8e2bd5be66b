// The bytes of a vocabulary's tokens as a trie, made once per tokenizer and shared.
//
// Level 6 (engine/grammar). Walking the trie along with an automaton finds all tokens that fit at
// once; a branch that does not fit is skipped as a whole.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace qw {

class Tokenizer;

namespace grammar {
struct StateMask;
}

class GrammarVocabulary {
 public:
  /// Special tokens and ids without bytes are in no text that a grammar describes.
  explicit GrammarVocabulary(const Tokenizer& tokenizer);
  /// The bytes of ids 0, 1, ...; empty: never in a text.
  explicit GrammarVocabulary(const std::vector<std::string>& bytes);
  ~GrammarVocabulary();

  /// Nodes in preorder; node 0 is the root. `end` is the node after the branch.
  struct Node {
    uint32_t end = 0;
    uint32_t first_token = 0;
    uint16_t depth = 0;
    uint8_t byte = 0;
  };
  std::span<const Node> nodes() const noexcept { return {nodes_.data(), nodes_.size() - 1}; }
  /// The tokens that end at a node.
  std::span<const int32_t> tokens_at(size_t node) const noexcept {
    const uint32_t first = nodes_[node].first_token;
    return std::span(tokens_).subspan(first, nodes_[node + 1].first_token - first);
  }
  /// Ids from here on are in no text.
  int32_t size() const noexcept { return size_; }
  /// The bytes of an id that may be in a text; empty for others.
  std::string_view bytes(int32_t id) const noexcept;
  size_t max_depth() const noexcept { return max_depth_; }

  /// Masks of states that many grammars share (the inside of a JSON string), by what the state's
  /// rule is. Thread-safe; bounded.
  std::shared_ptr<const grammar::StateMask> shared_mask(const std::string& key) const;
  void share_mask(const std::string& key, std::shared_ptr<const grammar::StateMask> mask) const;

 private:
  void build(const std::vector<std::string_view>& bytes);

  std::vector<Node> nodes_;  // and one more, to end the last
  std::vector<int32_t> tokens_;
  std::string arena_;
  std::vector<uint32_t> offsets_;  // of each id in arena_, and the end
  int32_t size_ = 0;
  size_t max_depth_ = 0;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string, std::shared_ptr<const grammar::StateMask>> masks_;
};

}  // namespace qw
