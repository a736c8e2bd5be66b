// A JSON schema as a document: references, pointers, which keywords it may hold, and schemas that
// hold at the same time as one set.
//
// Level 6 (engine/grammar). Every instance must fit all schemas of a Conjunction: a schema, what
// its $ref and allOf bring in, the chosen alternative of an anyOf. That makes merging unnecessary:
// each question ("what may property x be?") is asked of all members. Source: JSON Schema 2020-12.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.h"

namespace qw::grammar {

using Json = nlohmann::ordered_json;

/// One schema object of a conjunction. Its anyOf/oneOf may have been chosen from already.
struct SchemaPart {
  const Json* schema = nullptr;
  bool any_of_done = false, one_of_done = false;
  auto operator<=>(const SchemaPart&) const = default;
};

/// Schemas that must all hold.
struct Conjunction {
  std::vector<SchemaPart> parts;  // objects, each once, in the order in which they were met
  bool never = false;             // one of them is `false`
};

/// JSON's types; an integer is a number too.
enum SchemaType : uint8_t {
  kNull = 1,
  kBoolean = 2,
  kObject = 4,
  kArray = 8,
  kString = 16,
  kInteger = 32,
  kNumber = 64,
  kAllTypes = 127,
};

class SchemaReader {
 public:
  explicit SchemaReader(const Json& root);

  const Json& root() const { return root_; }
  /// Schemas and what they refer to. Errors: invalid_argument, unsupported (keywords).
  Conjunction conjunction(std::span<const Json* const> schemas);
  Conjunction with(Conjunction some, const Json& more);

  /// "#/properties/x"
  std::string pointer(const Json& schema) const;
  /// A child of a schema under a keyword (and a key or index), remembered for pointer().
  const Json& child(const Json& schema, std::string_view keyword) const;
  const Json& child(const Json& schema, std::string_view keyword, std::string_view key) const;
  const Json& child(const Json& schema, std::string_view keyword, size_t index) const;

  uint8_t types_of(const Json& schema) const;
  /// A keyword's value as a number of things; nullopt when it is not there.
  std::optional<uint64_t> count_of(const Json& schema, std::string_view keyword) const;
  const Json* find(const Json& schema, std::string_view keyword) const {
    const auto it = schema.find(keyword);
    return it == schema.end() ? nullptr : &*it;
  }

  [[noreturn]] void bad(const Json& schema, std::string_view keyword,
                        std::string_view expected) const;
  [[noreturn]] void unsupported(const Json& schema, std::string_view keyword,
                                std::string_view why) const;

 private:
  void add(const SchemaPart& part, Conjunction& out, std::vector<const Json*>& path);
  void check_keywords(const Json& schema);
  void check_kinds(const Json& schema) const;
  const Json& resolve(const Json& schema, const std::string& reference);
  const Json* find_anchor(const Json& at, const std::string& name, int depth);
  void note(const Json& child, const Json& parent, std::string_view token) const;

  const Json& root_;
  std::set<const Json*> checked_;
  mutable std::unordered_map<const Json*, std::string> pointers_;
};

/// The text of a schema. Errors: invalid_argument (not JSON, neither object nor boolean, too deep).
Json parse_schema_text(std::string_view text);

}  // namespace qw::grammar
