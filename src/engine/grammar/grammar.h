// A grammar: which texts an answer may be. Compiled once, immutable, shared by any number of
// requests and threads.
//
// Level 6 (engine). Made from a JSON schema, a regular expression, GBNF/EBNF, a list of choices, or
// put together in code with GrammarBuilder (tool calls: free text up to a marker, then a name, then
// arguments by a schema). It speaks of bytes; token_masks.h makes tokens of that.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/grammar/expression.h"
#include "engine/grammar/fsm.h"

namespace qw {

struct JsonFormat {
  /// A regular expression for the white space wherever JSON allows some. Unset: what models write:
  /// nothing, one space after ':' and ',', or a line end and up to 20 spaces around members.
  std::optional<std::string> whitespace_pattern;
  /// Characters that strings hold as escapes only, whatever they may hold: marks of what is around
  /// the JSON, which would otherwise end it.
  grammar::CodePointSet escaped = {};
};

class Grammar {
 public:
  explicit Grammar(grammar::Fsm fsm, std::vector<std::string> notes = {})
      : fsm_(std::move(fsm)), notes_(std::move(notes)) {}

  /// Every instance of a JSON schema, but for key order and white space (docs/
  /// constrained-decoding.md). Errors: invalid_argument (not a schema, nothing fits), unsupported
  /// (a keyword that is not known, with its JSON pointer).
  static std::shared_ptr<const Grammar> from_json_schema(std::string_view schema,
                                                         const JsonFormat& format = {});
  static std::shared_ptr<const Grammar> json_object(const JsonFormat& format = {});
  static std::shared_ptr<const Grammar> json_value(const JsonFormat& format = {});
  /// The whole text fits `pattern`. Errors: invalid_argument and unsupported, with the position.
  static std::shared_ptr<const Grammar> from_regex(std::string_view pattern);
  /// `root` ::= ...; errors name line and column.
  static std::shared_ptr<const Grammar> from_gbnf(std::string_view text,
                                                  std::string_view root = "root");
  /// One of `texts`, none of them empty.
  static std::shared_ptr<const Grammar> choice(std::span<const std::string> texts);

  /// Whether the whole text fits, and whether some text that begins so does.
  bool accepts(std::string_view text) const;
  bool accepts_prefix(std::string_view text) const;

  const grammar::Fsm& fsm() const noexcept { return fsm_; }
  /// Where it allows more than its source says, a sentence each.
  const std::vector<std::string>& notes() const noexcept { return notes_; }

 private:
  grammar::Fsm fsm_;
  std::vector<std::string> notes_;
};

/// Puts a grammar together from expressions (grammar/expression.h) and sources.
class GrammarBuilder {
 public:
  /// A rule that may be named before it is defined, so that rules can call each other.
  uint32_t declare(std::string name);
  void define(uint32_t rule, grammar::Node body);
  /// A rule with its body.
  grammar::Node add(std::string name, grammar::Node body);

  grammar::Node json_schema(const nlohmann::ordered_json& schema, const JsonFormat& format = {});
  grammar::Node json_object(const JsonFormat& format = {});
  grammar::Node json_value(const JsonFormat& format = {});
  grammar::Node regex(std::string_view pattern);
  grammar::Node gbnf(std::string_view text, std::string_view root = "root");
  grammar::Node choice(std::span<const std::string> texts);

  std::shared_ptr<const Grammar> build(grammar::Node root,
                                       std::vector<std::string> notes = {}) const;

 private:
  std::vector<grammar::NamedRule> rules_;
};

}  // namespace qw
