// From conjunctions of schemas (schema_reader.h) to expressions.
//
// Level 6 (engine/grammar). One rule per conjunction, so that recursive schemas are recursive
// rules.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/grammar/grammar.h"
#include "engine/grammar/language.h"
#include "engine/grammar/schema_numbers.h"
#include "engine/grammar/schema_reader.h"

namespace qw::grammar {

class SchemaCompiler {
 public:
  SchemaCompiler(const Json& root, const JsonFormat& format, GrammarBuilder& builder);
  Node compile();

 private:
  // schema_compiler.cpp: what holds for all types.
  Node node_of(const Conjunction& conjunction);
  Node body_of(const Conjunction& conjunction);
  /// The alternatives of the first anyOf or oneOf that nothing was chosen from yet, each with the
  /// rest; nullopt: there is none.
  std::optional<std::vector<Conjunction>> alternatives_of(const Conjunction& conjunction);
  void check_disjoint(const Json& schema, const std::vector<Conjunction>& alternatives);
  uint8_t types_of(const Conjunction& conjunction) const;
  /// True: no value fits. False: perhaps some does.
  bool surely_empty(const Conjunction& conjunction, int depth);
  bool surely_empty_object(const Conjunction& conjunction, int depth);
  bool surely_empty_array(const Conjunction& conjunction, int depth);
  /// The values that enum and const leave; nullopt: there is neither.
  std::optional<std::vector<Json>> values_of(const Conjunction& conjunction);
  bool fits(const Json& value, const Conjunction& conjunction);
  Node value_node(const Json& value);

  // schema_strings.cpp
  static constexpr uint64_t kMaxLengthBound = 10'000'000;
  struct StringRules {
    uint64_t min = 0, max = kUnbounded;
    std::vector<Node> patterns;  // all must fit
    bool is_free() const { return min == 0 && max == kUnbounded && patterns.empty(); }
  };
  StringRules string_rules(const Conjunction& conjunction);
  Language language_of(const StringRules& rules);
  /// The strings that fit, as keys of objects or as text; enum and const count.
  Language language_of(const Conjunction& conjunction);
  Node string_node(const Conjunction& conjunction);
  bool string_fits(const std::string& text, const Conjunction& conjunction);
  Node quoted(Node contents);
  const Node& free_string();
  Node pattern_node(const Json& schema);
  NumberBounds number_bounds(const Conjunction& conjunction);

  // schema_objects.cpp
  struct ObjectRules;
  ObjectRules object_rules(const Conjunction& conjunction);
  Conjunction property_of(const Conjunction& conjunction, const std::string& name);
  Conjunction rest_of(const Conjunction& conjunction, const std::vector<std::string>& patterns,
                      size_t matched);
  std::vector<std::pair<std::string, bool>> names_of(const Conjunction& conjunction) const;
  void count_properties(const Conjunction& conjunction, uint64_t& min, uint64_t& max) const;
  void add_rest(const Conjunction& conjunction, ObjectRules& rules);
  const Language& pattern_language(const Json& schema, const std::string& pattern);
  Node object_node(const Conjunction& conjunction);
  Node object_graph(const ObjectRules& rules);
  bool name_allowed(const Conjunction& conjunction, const std::string& name);

  // schema_arrays.cpp
  struct ArrayRules;
  ArrayRules array_rules(const Conjunction& conjunction);
  Node array_node(const Conjunction& conjunction);

  SchemaReader reader_;
  GrammarBuilder& builder_;
  CodePointSet escaped_;  // of JsonFormat
  Node after_bracket_, before_bracket_, after_comma_, after_colon_, before_comma_, before_colon_;
  Node free_string_;
  std::map<std::vector<SchemaPart>, uint32_t> rules_;
  std::map<std::string, Language> pattern_languages_;
  int depth_ = 0;
};

}  // namespace qw::grammar
