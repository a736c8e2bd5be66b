// Objects in schemas: properties in the schema's order, then those that only patterns or
// additionalProperties allow, in any order.
#include <algorithm>

#include "engine/grammar/regex.h"
#include "engine/grammar/schema_compiler.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

/// Patterns of keys are told apart by the sets that match: 2^n of them.
constexpr size_t kMaxPatterns = 6;
/// States of an object's graph: properties times how many of them are counted.
constexpr size_t kMaxGraphStates = 20'000;

}  // namespace

struct SchemaCompiler::ObjectRules {
  struct Property {
    std::string name;
    bool required = false;
    Node value;
  };
  struct Rest {
    Node key, value;
  };
  std::vector<Property> properties;
  std::vector<Rest> rest;
  uint64_t min = 0, max = kUnbounded;
  bool never = false;
};

/// Which schemas hold for the value of `name`: that of its property, of patterns that match, and of
/// additionalProperties where neither does.
Conjunction SchemaCompiler::property_of(const Conjunction& conjunction, const std::string& name) {
  std::vector<const Json*> schemas;
  for (const SchemaPart& part : conjunction.parts) {
    const Json& schema = *part.schema;
    bool matched = false;
    const Json* properties = reader_.find(schema, "properties");
    if (properties != nullptr) CompileWork::charge(1 + properties->size() / 4);  // in their order
    if (properties != nullptr && properties->contains(name)) {
      schemas.push_back(&reader_.child(schema, "properties", name));
      matched = true;
    }
    if (const Json* patterns = reader_.find(schema, "patternProperties")) {
      for (const auto& [pattern, value] : patterns->items()) {
        if (!pattern_language(schema, pattern).contains(name)) continue;
        schemas.push_back(&reader_.child(schema, "patternProperties", pattern));
        matched = true;
      }
    }
    if (!matched && schema.contains("additionalProperties"))
      schemas.push_back(&reader_.child(schema, "additionalProperties"));
  }
  return reader_.conjunction(schemas);
}

const Language& SchemaCompiler::pattern_language(const Json& schema, const std::string& pattern) {
  const auto it = pattern_languages_.find(pattern);
  if (it != pattern_languages_.end()) return it->second;
  try {
    return pattern_languages_
        .emplace(pattern, Language::of(parse_regex(pattern, RegexMatch::kAnywhere)))
        .first->second;
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{} (patternProperties at {})", error.message(),
                                          reader_.pointer(schema)));
  }
}

bool SchemaCompiler::name_allowed(const Conjunction& conjunction, const std::string& name) {
  return std::ranges::all_of(conjunction.parts, [&](const SchemaPart& part) {
    if (!part.schema->contains("propertyNames")) return true;
    const Json* names = &reader_.child(*part.schema, "propertyNames");
    return language_of(reader_.conjunction(std::span(&names, 1))).contains(name);
  });
}

/// The names that schemas speak of, in their order, and which of them are required.
std::vector<std::pair<std::string, bool>> SchemaCompiler::names_of(
    const Conjunction& conjunction) const {
  std::vector<std::pair<std::string, bool>> out;
  std::map<std::string, size_t> known;
  const auto at = [&](const std::string& name) -> bool& {
    const auto [it, is_new] = known.try_emplace(name, out.size());
    if (is_new) out.emplace_back(name, false);
    return out[it->second].second;
  };
  for (const SchemaPart& part : conjunction.parts) {
    if (const Json* properties = reader_.find(*part.schema, "properties"))
      for (const auto& [name, schema] : properties->items())
        at(name);
  }
  for (const SchemaPart& part : conjunction.parts) {
    if (const Json* required = reader_.find(*part.schema, "required"))
      for (const Json& name : *required)
        at(name.get<std::string>()) = true;
  }
  return out;
}

void SchemaCompiler::count_properties(const Conjunction& conjunction, uint64_t& min,
                                      uint64_t& max) const {
  for (const SchemaPart& part : conjunction.parts) {
    min = std::max(min, reader_.count_of(*part.schema, "minProperties").value_or(0));
    max = std::min(max, reader_.count_of(*part.schema, "maxProperties").value_or(kUnbounded));
  }
}

bool SchemaCompiler::surely_empty_object(const Conjunction& conjunction, int depth) {
  uint64_t min = 0, max = kUnbounded;
  count_properties(conjunction, min, max);
  uint64_t n_required = 0;
  for (const auto& [name, required] : names_of(conjunction)) {
    if (!required) continue;
    ++n_required;
    if (!name_allowed(conjunction, name)) return true;
    if (surely_empty(property_of(conjunction, name), depth + 1)) return true;
  }
  return min > max || n_required > max;
}

SchemaCompiler::ObjectRules SchemaCompiler::object_rules(const Conjunction& conjunction) {
  ObjectRules out;
  count_properties(conjunction, out.min, out.max);
  for (const auto& [name, required] : names_of(conjunction)) {
    Node value =
        name_allowed(conjunction, name) ? node_of(property_of(conjunction, name)) : never();
    if (!is_never(value)) {
      out.properties.push_back({name, required, std::move(value)});
    } else if (required) {
      out.never = true;
      return out;
    }
  }
  add_rest(conjunction, out);
  const auto n_required = static_cast<uint64_t>(
      std::ranges::count_if(out.properties, &ObjectRules::Property::required));
  if (out.min <= n_required) out.min = 0;
  if (out.rest.empty() && out.max >= out.properties.size()) out.max = kUnbounded;
  const uint64_t most = out.rest.empty() ? out.properties.size() : kUnbounded;
  out.never = out.min > out.max || n_required > out.max || out.min > most;
  return out;
}

/// Keys that no property names, by the patterns that they match.
void SchemaCompiler::add_rest(const Conjunction& conjunction, ObjectRules& out) {
  std::vector<std::string> patterns;
  const Json* patterned = nullptr;
  std::vector<Node> names;
  std::optional<Language> allowed;
  for (const SchemaPart& part : conjunction.parts) {
    const Json& schema = *part.schema;
    if (const Json* list = reader_.find(schema, "patternProperties")) {
      patterned = &schema;
      for (const auto& [pattern, value] : list->items())
        if (std::ranges::find(patterns, pattern) == patterns.end()) patterns.push_back(pattern);
    }
    if (schema.contains("propertyNames")) {
      const Json* names_schema = &reader_.child(schema, "propertyNames");
      const Language language = language_of(reader_.conjunction(std::span(&names_schema, 1)));
      allowed = allowed ? allowed->both(language) : language;
    }
  }
  if (patterns.size() > kMaxPatterns) {
    reader_.unsupported(
        *patterned, "patternProperties",
        fmt::format("expected at most {} patterns, got {}", kMaxPatterns, patterns.size()));
  }
  for (const auto& [name, required] : names_of(conjunction))
    names.push_back(literal(name));
  for (size_t matched = 0; matched < size_t{1} << patterns.size(); ++matched) {
    const Conjunction value = rest_of(conjunction, patterns, matched);
    if (value.never) continue;
    const bool any_key = patterns.empty() && names.empty() && !allowed;
    Node key = free_string();
    if (!any_key) {
      Language keys = allowed ? *allowed : Language::any();
      if (!names.empty()) keys = keys.without(Language::of(alternation(names)));
      for (size_t i = 0; i < patterns.size(); ++i) {
        const Language& pattern = pattern_language(*patterned, patterns[i]);
        keys = (matched >> i & 1) != 0 ? keys.both(pattern) : keys.without(pattern);
      }
      if (keys.empty()) continue;
      key = builder_.add("key", quoted(json_escaped(keys.node(), escaped_)));
    }
    Node node = node_of(value);
    if (!is_never(node)) out.rest.push_back({std::move(key), std::move(node)});
  }
}

/// What holds for the value of a key that no property names and that matches just these patterns.
Conjunction SchemaCompiler::rest_of(const Conjunction& conjunction,
                                    const std::vector<std::string>& patterns, size_t matched) {
  std::vector<const Json*> schemas;
  for (const SchemaPart& part : conjunction.parts) {
    const Json& schema = *part.schema;
    bool any = false;
    const Json* own = reader_.find(schema, "patternProperties");
    for (size_t i = 0; own != nullptr && i < patterns.size(); ++i) {
      if ((matched >> i & 1) == 0 || !own->contains(patterns[i])) continue;
      schemas.push_back(&reader_.child(schema, "patternProperties", patterns[i]));
      any = true;
    }
    if (!any && schema.contains("additionalProperties"))
      schemas.push_back(&reader_.child(schema, "additionalProperties"));
  }
  return reader_.conjunction(schemas);
}

Node SchemaCompiler::object_node(const Conjunction& conjunction) {
  const ObjectRules rules = object_rules(conjunction);
  if (rules.never) return never();
  const Json* schema = conjunction.parts.empty() ? nullptr : conjunction.parts[0].schema;
  if (rules.min > 1 && !rules.rest.empty()) {
    reader_.unsupported(*schema, "minProperties",
                        "expected at most 1, or as many as are required, where other properties "
                        "than the named ones are allowed, got more");
  }
  const uint64_t counted =
      rules.max == kUnbounded ? rules.min : std::max<uint64_t>(rules.min, rules.max);
  if ((counted + 1) * (rules.properties.size() + 1) > kMaxGraphStates) {
    reader_.unsupported(
        *schema, "minProperties, maxProperties",
        fmt::format("expected at most {} counts of properties, got {}", kMaxGraphStates,
                    (counted + 1) * (rules.properties.size() + 1)));
  }
  return object_graph(rules);
}

Node SchemaCompiler::object_graph(const ObjectRules& rules) {
  // State (i, k): properties before i are decided, k of them were said, counted as far as it
  // matters; 0 or "some" where nothing is counted.
  const size_t n = rules.properties.size();
  const bool bounded = rules.max != kUnbounded;
  const uint64_t top = bounded ? rules.max : std::max<uint64_t>(rules.min, 1);
  const Node comma = sequence({before_comma_, literal(","), after_comma_});
  const auto member = [&](uint64_t said, Node key, const Node& value) {
    return sequence({said > 0 ? comma : nothing(), std::move(key), before_colon_, literal(":"),
                     after_colon_, value});
  };
  Graph out;
  for (size_t i = 0; i < (n + 1) * (top + 1); ++i)
    out.add_state();
  const auto id = [&](size_t i, uint64_t k) {
    return static_cast<uint32_t>(i * (top + 1) + std::min(k, top));
  };
  for (size_t i = 0; i < n; ++i) {
    const ObjectRules::Property& property = rules.properties[i];
    const Node key = quoted(json_escaped(literal(property.name), escaped_));
    for (uint64_t k = 0; k <= top; ++k) {
      if (!property.required) out.add_edge(id(i, k), id(i + 1, k), nullptr);
      if (bounded && k == top) continue;
      out.add_edge(id(i, k), id(i + 1, k + 1), member(k, key, property.value));
    }
  }
  for (uint64_t k = 0; k <= top; ++k) {
    for (const ObjectRules::Rest& rest : rules.rest) {
      if (bounded && k == top) continue;
      out.add_edge(id(n, k), id(n, k + 1), member(k, rest.key, rest.value));
    }
  }
  // The empty object, and the others with white space before the end.
  const uint32_t end = out.add_state(true);
  for (uint64_t k = std::max<uint64_t>(rules.min, 1); k <= top; ++k)
    out.add_edge(id(n, k), end, before_bracket_);
  if (rules.min == 0) out.accepting[id(n, 0)] = true;
  return sequence({literal("{"), after_bracket_, graph(std::move(out)), literal("}")});
}

}  // namespace qw::grammar
