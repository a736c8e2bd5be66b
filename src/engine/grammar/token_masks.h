// Which tokens may come next: a grammar's configurations over a vocabulary.
//
// Level 6 (engine/grammar). In two layers. A state's mask says which tokens fit whatever the stack
// below it is, and at which nodes of the vocabulary's trie the state's rule may have ended, so that
// the stack decides; it is computed once per state. The mask of a configuration is the union over
// its heads, the trie walked on from those nodes with the real stack. Source of the split: Dong et
// al., "XGrammar", 2024 (context-independent tokens); keeping nodes instead of tokens is ours.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine/grammar/configurations.h"
#include "engine/grammar/grammar.h"
#include "engine/grammar/vocabulary.h"

namespace qw {

namespace grammar {

/// Tokens that one state allows over an unknown stack.
struct StateMask {
  /// Tokens that take so many more repetitions of the state's rule (0 where it does not repeat),
  /// ascending by these: all tokens where they are few, otherwise those beyond the layers.
  struct Counted {
    uint32_t count = 0;
    int32_t id = 0;
  };
  std::vector<Counted> few;
  /// layers[n]: one bit an id, tokens that take at most n more repetitions.
  std::vector<std::vector<uint64_t>> layers;
  /// At the parent of this node of the trie the rule may have ended, after so many more
  /// repetitions.
  struct End {
    uint32_t node = 0, count = 0;
  };
  std::vector<End> ends;  // by the node's byte: ends of byte b begin at ends_begin[b]
  std::array<uint32_t, 257> ends_begin{};
  size_t bytes() const;
};

}  // namespace grammar

/// The tokens that may follow a text.
struct TokenMask {
  bool accepts = false;        // the text may end here
  bool is_sparse = false;      // `ids` holds them; otherwise `bits` does
  std::vector<int32_t> ids;    // ascending
  std::vector<uint64_t> bits;  // one bit an id, GrammarVocabulary::size() of them
  int64_t n_tokens = 0;
  bool allows(int32_t id) const;
  size_t bytes() const { return sizeof(*this) + ids.size() * 4 + bits.size() * 8; }
};

/// A grammar over a vocabulary, with everything that was found out so far. Shared by all requests
/// with the grammar; thread-safe: take a Session for as long as configurations are used.
class GrammarMatcher {
 public:
  GrammarMatcher(std::shared_ptr<const Grammar> grammar,
                 std::shared_ptr<const GrammarVocabulary> vocabulary);

  const Grammar& grammar() const noexcept { return *grammar_; }
  const GrammarVocabulary& vocabulary() const noexcept { return *vocabulary_; }
  /// Of memory, about: the automata, and what was found out by the end of the last session. Any
  /// thread.
  size_t bytes() const noexcept { return bytes_.load(std::memory_order_relaxed); }

  /// Exclusive use. Configurations are good while generation() stays what it was.
  class Session {
   public:
    explicit Session(GrammarMatcher& matcher);
    ~Session() { matcher_.note_bytes(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    uint64_t generation() const { return matcher_.generation_; }
    grammar::ConfigId start() { return matcher_.configs_.start(); }
    /// After the text of `id`; kDead when the grammar does not allow it.
    grammar::ConfigId advance(grammar::ConfigId config, int32_t id);
    grammar::ConfigId advance(grammar::ConfigId config, std::string_view bytes);
    bool accepts(grammar::ConfigId config) { return matcher_.configs_.accepts(config); }
    std::shared_ptr<const TokenMask> mask(grammar::ConfigId config);

   private:
    GrammarMatcher& matcher_;
    std::lock_guard<std::mutex> lock_;
  };

 private:
  void note_bytes() noexcept;
  const grammar::StateMask& state_mask(uint32_t state);
  std::shared_ptr<const grammar::StateMask> compute_state_mask(uint32_t state);
  void add_ends(uint32_t node, grammar::ConfigId config, grammar::StateMask& out);
  std::shared_ptr<const TokenMask> compute_mask(grammar::ConfigId config);
  void add_head(const grammar::Head& head);
  /// Sets the bits of the tokens below `node` that fit after `config`.
  template <typename F>
  void walk(uint32_t node, grammar::ConfigId config, F&& on_node);

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const GrammarVocabulary> vocabulary_;
  std::mutex mutex_;
  grammar::Configurations configs_;
  uint64_t generation_ = 1;
  std::unordered_map<uint32_t, std::shared_ptr<const grammar::StateMask>> state_masks_;
  size_t state_mask_bytes_ = 0;
  std::unordered_map<grammar::ConfigId, std::shared_ptr<const TokenMask>> masks_;
  size_t mask_bytes_ = 0;
  std::atomic<size_t> bytes_{0};
  std::vector<grammar::ConfigId> path_;  // of walk(), by depth
  std::vector<uint64_t> bits_;           // of compute_mask()
};

}  // namespace qw
