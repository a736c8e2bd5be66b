// Arrays in schemas.
#include <algorithm>

#include "engine/grammar/schema_compiler.h"

namespace qw::grammar {

struct SchemaCompiler::ArrayRules {
  uint64_t min = 0, max = kUnbounded;
  std::vector<Conjunction> prefix;  // of the first items
  Conjunction items;                // of those after them
};

SchemaCompiler::ArrayRules SchemaCompiler::array_rules(const Conjunction& conjunction) {
  ArrayRules out;
  size_t n_prefix = 0;
  struct Keywords {
    const char *prefix = nullptr, *rest = nullptr;
  };
  // Before 2020-12 a list of items was what prefixItems is now, and additionalItems the rest.
  const auto keywords_of = [&](const Json& schema) -> Keywords {
    const Json* items = reader_.find(schema, "items");
    if (items != nullptr && items->is_array()) return {"items", "additionalItems"};
    return {"prefixItems", "items"};
  };
  for (const SchemaPart& part : conjunction.parts) {
    const Json& schema = *part.schema;
    out.min = std::max(out.min, reader_.count_of(schema, "minItems").value_or(0));
    out.max = std::min(out.max, reader_.count_of(schema, "maxItems").value_or(kUnbounded));
    if (const Json* prefix = reader_.find(schema, keywords_of(schema).prefix))
      n_prefix = std::max(n_prefix, prefix->size());
  }
  const auto item_at = [&](size_t i) {
    std::vector<const Json*> schemas;
    for (const SchemaPart& part : conjunction.parts) {
      const auto [prefix, rest] = keywords_of(*part.schema);
      const Json* first = reader_.find(*part.schema, prefix);
      if (first != nullptr && i < first->size()) {
        schemas.push_back(&reader_.child(*part.schema, prefix, i));
      } else if (part.schema->contains(rest)) {
        schemas.push_back(&reader_.child(*part.schema, rest));
      }
    }
    return reader_.conjunction(schemas);
  };
  for (size_t i = 0; i < n_prefix; ++i)
    out.prefix.push_back(item_at(i));
  out.items = item_at(n_prefix);
  return out;
}

bool SchemaCompiler::surely_empty_array(const Conjunction& conjunction, int depth) {
  const ArrayRules rules = array_rules(conjunction);
  if (rules.min > rules.max) return true;
  for (size_t i = 0; i < std::min<uint64_t>(rules.prefix.size(), rules.min); ++i)
    if (surely_empty(rules.prefix[i], depth + 1)) return true;
  return rules.min > rules.prefix.size() && surely_empty(rules.items, depth + 1);
}

Node SchemaCompiler::array_node(const Conjunction& conjunction) {
  ArrayRules rules = array_rules(conjunction);
  std::vector<Node> prefix;
  for (const Conjunction& item : rules.prefix) {
    if (prefix.size() >= rules.max) break;
    prefix.push_back(node_of(item));
    if (!is_never(prefix.back())) continue;
    rules.max = std::min<uint64_t>(rules.max, prefix.size() - 1);
    prefix.pop_back();
    break;
  }
  Node item = never();
  if (rules.max > prefix.size()) item = node_of(rules.items);
  if (is_never(item)) rules.max = std::min<uint64_t>(rules.max, prefix.size());
  if (rules.min > rules.max) return never();
  if (rules.min >= kMaxLengthBound || (rules.max >= kMaxLengthBound && rules.max != kUnbounded)) {
    reader_.unsupported(*conjunction.parts[0].schema, "minItems, maxItems",
                        fmt::format("expected less than {}, got more", kMaxLengthBound));
  }
  // A state for each number of items up to the prefix; then as many more as there may be.
  const Node comma = sequence({before_comma_, literal(","), after_comma_});
  Graph out;
  uint32_t at = out.start = out.add_state(rules.min == 0);
  for (size_t i = 0; i < prefix.size(); ++i) {
    const uint32_t next = out.add_state(i + 1 >= rules.min);
    out.add_edge(at, next, i == 0 ? prefix[i] : sequence({comma, prefix[i]}));
    at = next;
  }
  if (rules.max > prefix.size()) {
    const uint64_t done = std::max<uint64_t>(prefix.size(), 1);
    if (prefix.empty()) {
      const uint32_t next = out.add_state(false);
      out.add_edge(at, next, item);
      at = next;
    }
    const auto min = static_cast<uint32_t>(rules.min > done ? rules.min - done : 0);
    const auto max = rules.max == kUnbounded ? kUnbounded : static_cast<uint32_t>(rules.max - done);
    const uint32_t end = out.add_state(true);
    out.add_edge(at, end, repeat(sequence({comma, item}), min, max));
  }
  const Node items = graph(std::move(out));
  const Node filled = sequence({after_bracket_, items, before_bracket_});
  return sequence({literal("["), rules.min == 0 ? alternation({after_bracket_, filled}) : filled,
                   literal("]")});
}

}  // namespace qw::grammar
