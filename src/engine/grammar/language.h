// Regular sets of texts, character by character: what patterns and lengths say about strings, and
// which keys are left when others are taken.
//
// Level 6 (engine/grammar). Deterministic automata over code points (automaton.h) with the few
// operations that schemas need.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/grammar/automaton.h"
#include "engine/grammar/expression.h"

namespace qw::grammar {

class Language {
 public:
  /// More states than this are an error.
  static constexpr size_t kMaxStates = 50'000;

  static Language any();
  /// `node` holds no rules. Errors: unsupported (too large).
  static Language of(const Node& node);
  /// Texts of min..max characters.
  static Language of_length(uint64_t min, uint64_t max);

  Language both(const Language& other) const;
  Language without(const Language& other) const;
  bool empty() const { return dfa_.empty(); }
  bool contains(std::string_view text) const;
  /// Of the shortest and the longest text; nullopt: there is no longest. Not empty.
  uint64_t shortest() const;
  std::optional<uint64_t> longest() const;
  Node node() const;

 private:
  explicit Language(Dfa dfa) : dfa_(std::move(dfa)) {}
  Dfa dfa_;
};

}  // namespace qw::grammar
