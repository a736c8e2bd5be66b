#include "engine/grammar/schema_compiler.h"

#include <algorithm>
#include <set>

#include "engine/grammar/json_schema.h"
#include "engine/grammar/regex.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

constexpr size_t kMaxRules = 20'000;
/// How deep properties are compared to show that two alternatives exclude each other.
constexpr int kMaxCompared = 4;
/// Spaces of an indent.
constexpr uint32_t kMaxIndent = 32;
/// Comparing a value, which is written and read for that.
constexpr uint64_t kStepsOfValue = 50;

/// Whether `node` is made of white space only. No rules.
bool is_white_space(const Node& node) {
  static const CodePointSet kSpaces{{' ', ' '}, {'\t', '\n'}, {'\r', '\r'}};
  switch (node->kind) {
    case Expression::Kind::kLiteral:
      return node->text.find_first_not_of(" \t\n\r") == std::string::npos;
    case Expression::Kind::kChars:
      return node->chars.without(kSpaces).empty();
    case Expression::Kind::kGraph:
    case Expression::Kind::kRule:
      return false;
    default:
      return std::ranges::all_of(node->items, is_white_space);
  }
}

/// A value as it is compared: objects of ordered JSON have an order, those of plain JSON are sets.
nlohmann::json comparable(const Json& value) {
  return nlohmann::json::parse(value.dump());
}

}  // namespace

Json parse_schema(std::string_view text) {
  return parse_schema_text(text);
}

Node json_schema_node(const Json& schema, const JsonFormat& format, GrammarBuilder& builder) {
  if (!schema.is_object() && !schema.is_boolean()) {
    fail(ErrorKind::kInvalidArgument, "json schema",
         "schema: expected an object or a boolean, got {}", printable(schema.dump()));
  }
  return SchemaCompiler(schema, format, builder).compile();
}

SchemaCompiler::SchemaCompiler(const Json& root, const JsonFormat& format, GrammarBuilder& builder)
    : reader_(root), builder_(builder), escaped_(format.escaped) {
  if (format.whitespace_pattern) {
    const Node space = parse_regex(*format.whitespace_pattern, RegexMatch::kWhole);
    if (!is_white_space(space)) {
      fail(ErrorKind::kInvalidArgument, "json schema",
           "whitespace_pattern: expected spaces, tabs and line ends only, got \"{}\"",
           printable(*format.whitespace_pattern));
    }
    const Node space_rule = builder_.add("white space", space);
    after_bracket_ = before_bracket_ = after_comma_ = after_colon_ = space_rule;
    before_comma_ = before_colon_ = space_rule;
    return;
  }
  const Node space = optional(literal(" "));
  const Node line = builder_.add(
      "white space",
      alternation({space, sequence({literal("\n"), repeat(literal(" "), 0, kMaxIndent)})}));
  after_bracket_ = before_bracket_ = after_comma_ = line;
  after_colon_ = space;
  before_comma_ = before_colon_ = nothing();
}

Node SchemaCompiler::compile() {
  const Json* root = &reader_.root();
  return node_of(reader_.conjunction(std::span(&root, 1)));
}

Node SchemaCompiler::node_of(const Conjunction& conjunction) {
  if (conjunction.never) return never();
  CompileWork::charge(1 + conjunction.parts.size());
  std::vector<SchemaPart> key = conjunction.parts;
  std::sort(key.begin(), key.end());
  if (const auto it = rules_.find(key); it != rules_.end()) return rule(it->second);
  const std::string name =
      key.empty() ? "any value"
                  : fmt::format("schema {}", reader_.pointer(*conjunction.parts[0].schema));
  if (rules_.size() >= kMaxRules) {
    fail(ErrorKind::kUnsupported, "json schema",
         "schema: expected at most {} combinations of subschemas, got more (at {})", kMaxRules,
         name);
  }
  if (++depth_ > 4 * kMaxNesting) {
    fail(ErrorKind::kUnsupported, "json schema",
         "schema: expected subschemas less deep than {}, got more (at {})", 4 * kMaxNesting, name);
  }
  const uint32_t id = builder_.declare(name);
  rules_.emplace(std::move(key), id);
  const Node body = body_of(conjunction);
  builder_.define(id, body);
  --depth_;
  return is_never(body) ? body : rule(id);
}

std::optional<std::vector<Conjunction>> SchemaCompiler::alternatives_of(
    const Conjunction& conjunction) {
  for (size_t i = 0; i < conjunction.parts.size(); ++i) {
    const SchemaPart& part = conjunction.parts[i];
    for (const char* keyword : {"anyOf", "oneOf"}) {
      const bool is_any = std::string_view(keyword) == "anyOf";
      const Json* list = reader_.find(*part.schema, keyword);
      if (list == nullptr || (is_any ? part.any_of_done : part.one_of_done)) continue;
      Conjunction rest = conjunction;
      (is_any ? rest.parts[i].any_of_done : rest.parts[i].one_of_done) = true;
      std::vector<Conjunction> out;
      for (size_t k = 0; k < list->size(); ++k)
        out.push_back(reader_.with(rest, reader_.child(*part.schema, keyword, k)));
      if (!is_any) check_disjoint(*part.schema, out);
      return out;
    }
  }
  return std::nullopt;
}

void SchemaCompiler::check_disjoint(const Json& schema, const std::vector<Conjunction>& ways) {
  const Json& list = schema.at("oneOf");
  for (size_t i = 0; i < ways.size(); ++i) {
    for (size_t k = i + 1; k < ways.size(); ++k) {
      const Conjunction both = reader_.with(ways[i], list[k]);
      if (surely_empty(both, 0)) continue;
      reader_.unsupported(
          schema, "oneOf",
          fmt::format("expected alternatives that exclude each other by type, by a required "
                      "property or by their values, got none of these for {} and {}; write anyOf "
                      "if both may hold",
                      i, k));
    }
  }
}

uint8_t SchemaCompiler::types_of(const Conjunction& conjunction) const {
  uint8_t types = kAllTypes;
  for (const SchemaPart& part : conjunction.parts)
    types &= reader_.types_of(*part.schema);
  return types;
}

Node SchemaCompiler::body_of(const Conjunction& conjunction) {
  std::vector<Node> out;
  if (const auto alternatives = alternatives_of(conjunction)) {
    for (const Conjunction& alternative : *alternatives)
      out.push_back(node_of(alternative));
    return alternation(std::move(out));
  }
  if (const auto values = values_of(conjunction)) {
    for (const Json& value : *values)
      out.push_back(value_node(value));
    return alternation(std::move(out));
  }
  const uint8_t types = types_of(conjunction);
  if (types & kObject) out.push_back(object_node(conjunction));
  if (types & kArray) out.push_back(array_node(conjunction));
  if (types & kString) out.push_back(string_node(conjunction));
  if (types & kNumber) {
    out.push_back(number_node(number_bounds(conjunction)));
  } else if (types & kInteger) {
    out.push_back(integer_node(number_bounds(conjunction)));
  }
  if (types & kBoolean) out.push_back(alternation({literal("true"), literal("false")}));
  if (types & kNull) out.push_back(literal("null"));
  return alternation(std::move(out));
}

bool SchemaCompiler::surely_empty(const Conjunction& conjunction, int depth) {
  CompileWork::charge(1 + conjunction.parts.size());
  if (conjunction.never) return true;
  if (depth > kMaxCompared) return false;
  for (size_t i = 0; i < conjunction.parts.size(); ++i) {
    const SchemaPart& part = conjunction.parts[i];
    for (const char* keyword : {"anyOf", "oneOf"}) {
      const bool is_any = std::string_view(keyword) == "anyOf";
      const Json* list = reader_.find(*part.schema, keyword);
      if (list == nullptr || (is_any ? part.any_of_done : part.one_of_done)) continue;
      Conjunction rest = conjunction;
      (is_any ? rest.parts[i].any_of_done : rest.parts[i].one_of_done) = true;
      bool all_empty = true;
      for (size_t k = 0; all_empty && k < list->size(); ++k) {
        all_empty =
            surely_empty(reader_.with(rest, reader_.child(*part.schema, keyword, k)), depth + 1);
      }
      return all_empty;
    }
  }
  if (const auto values = values_of(conjunction)) return values->empty();
  const uint8_t types = types_of(conjunction);
  if (types & (kNull | kBoolean)) return false;
  if (types & kString) {
    const StringRules rules = string_rules(conjunction);
    if (rules.patterns.empty() ? rules.min <= rules.max : !language_of(rules).empty()) return false;
  }
  if ((types & (kNumber | kInteger)) && !number_bounds(conjunction).empty((types & kNumber) == 0))
    return false;
  if ((types & kObject) && !surely_empty_object(conjunction, depth)) return false;
  return (types & kArray) == 0 || surely_empty_array(conjunction, depth);
}

std::optional<std::vector<Json>> SchemaCompiler::values_of(const Conjunction& conjunction) {
  std::optional<std::vector<Json>> out;
  const auto keep = [&](const std::vector<Json>& values) {
    CompileWork::charge(kStepsOfValue * values.size());
    std::set<nlohmann::json> seen;
    if (!out) {
      out.emplace();
      for (const Json& value : values) {  // a value that stands twice is one
        if (seen.insert(comparable(value)).second) out->push_back(value);
      }
      return;
    }
    for (const Json& value : values)
      seen.insert(comparable(value));
    std::erase_if(*out, [&](const Json& value) { return seen.count(comparable(value)) == 0; });
  };
  for (const SchemaPart& part : conjunction.parts) {
    if (const Json* list = reader_.find(*part.schema, "enum")) keep(list->get<std::vector<Json>>());
    if (const Json* value = reader_.find(*part.schema, "const")) keep({*value});
  }
  if (out) std::erase_if(*out, [&](const Json& value) { return !fits(value, conjunction); });
  return out;
}

bool SchemaCompiler::fits(const Json& value, const Conjunction& conjunction) {
  CompileWork::charge(kStepsOfValue);
  const uint8_t types = types_of(conjunction);
  if (value.is_null()) return (types & kNull) != 0;
  if (value.is_boolean()) return (types & kBoolean) != 0;
  if (value.is_string())
    return (types & kString) != 0 && string_fits(value.get_ref<const std::string&>(), conjunction);
  if (value.is_number()) {
    const Decimal number = parse_decimal(value.dump());
    if ((types & (number.fraction.empty() ? kInteger : kNumber)) == 0) return false;
    const NumberBounds bounds = number_bounds(conjunction);
    const int low = bounds.min ? compare(number, *bounds.min) : 1;
    const int high = bounds.max ? compare(*bounds.max, number) : 1;
    return (bounds.min_excluded ? low > 0 : low >= 0) &&
           (bounds.max_excluded ? high > 0 : high >= 0);
  }
  if ((types & (value.is_object() ? kObject : kArray)) == 0) return false;
  const auto keywords =
      value.is_object()
          ? std::vector<const char*>{"properties",           "required",      "propertyNames",
                                     "additionalProperties", "minProperties", "maxProperties",
                                     "patternProperties"}
          : std::vector<const char*>{"items", "prefixItems", "minItems", "maxItems",
                                     "additionalItems"};
  for (const SchemaPart& part : conjunction.parts) {
    for (const char* keyword : keywords) {
      if (!part.schema->contains(keyword)) continue;
      reader_.unsupported(
          *part.schema, keyword,
          "expected no rules beside an enum or const with objects or arrays, got some");
    }
  }
  return true;
}

Node SchemaCompiler::value_node(const Json& value) {
  if (value.is_string()) return quoted(json_escaped(literal(value.get<std::string>()), escaped_));
  if (!value.is_structured()) return literal(value.dump());
  std::vector<Node> out{literal(value.is_object() ? "{" : "["), after_bracket_};
  bool first = true;
  for (const auto& [key, item] : value.items()) {
    if (!first) out.insert(out.end(), {before_comma_, literal(","), after_comma_});
    first = false;
    if (value.is_object()) {
      out.insert(out.end(), {quoted(json_escaped(literal(key), escaped_)), before_colon_,
                             literal(":"), after_colon_});
    }
    out.push_back(value_node(item));
  }
  if (!first) out.push_back(before_bracket_);
  out.push_back(literal(value.is_object() ? "}" : "]"));
  return sequence(std::move(out));
}

}  // namespace qw::grammar
