// Strings and the bounds of numbers in schemas.
#include <algorithm>
#include <cmath>

#include "engine/grammar/regex.h"
#include "engine/grammar/schema_compiler.h"
#include "engine/grammar/schema_formats.h"

namespace qw::grammar {
namespace {

Node hex_digit() {
  return chars({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
}

/// \uHHHH but for surrogates, or a pair of these: one character.
Node unicode_escape() {
  const Node hex = hex_digit();
  const Node not_surrogate = alternation({
      sequence(
          {chars({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}), repeat(hex, 3, 3)}),
      sequence({chars({{'D', 'D'}, {'d', 'd'}}), chars({{'0', '7'}}), repeat(hex, 2, 2)}),
  });
  const Node d = chars({{'D', 'D'}, {'d', 'd'}});
  const Node pair =
      sequence({d, chars({{'8', '9'}, {'A', 'B'}, {'a', 'b'}}), repeat(hex, 2, 2), literal("\\u"),
                d, chars({{'C', 'F'}, {'c', 'f'}}), repeat(hex, 2, 2)});
  return sequence({literal("\\u"), alternation({not_surrogate, pair})});
}

/// One character of a JSON string, however it may be written; those of `more` as escapes only.
Node string_char(const CodePointSet& more) {
  CodePointSet needs_escape{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
  needs_escape.add(more);
  const CodePointSet simple{{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'b', 'b'},
                            {'f', 'f'}, {'n', 'n'},   {'r', 'r'}, {'t', 't'}};
  return alternation({chars(needs_escape.complement()), sequence({literal("\\"), chars(simple)}),
                      unicode_escape()});
}

}  // namespace

Node SchemaCompiler::quoted(Node contents) {
  return sequence({literal("\""), std::move(contents), literal("\"")});
}

const Node& SchemaCompiler::free_string() {
  if (!free_string_)
    free_string_ = builder_.add("string", quoted(any_number_of(string_char(escaped_))));
  return free_string_;
}

Node SchemaCompiler::pattern_node(const Json& schema) {
  const auto& pattern = schema.at("pattern").get_ref<const std::string&>();
  try {
    return parse_regex(pattern, RegexMatch::kAnywhere);
  } catch (const Error& error) {
    throw Error(error.kind(),
                fmt::format("{} (pattern at {})", error.message(), reader_.pointer(schema)));
  }
}

SchemaCompiler::StringRules SchemaCompiler::string_rules(const Conjunction& conjunction) {
  StringRules out;
  for (const SchemaPart& part : conjunction.parts) {
    const Json& schema = *part.schema;
    out.min = std::max(out.min, reader_.count_of(schema, "minLength").value_or(0));
    out.max = std::min(out.max, reader_.count_of(schema, "maxLength").value_or(kUnbounded));
    if (schema.contains("pattern")) out.patterns.push_back(pattern_node(schema));
    const Json* format = reader_.find(schema, "format");
    if (format == nullptr) continue;
    const auto& name = format->get_ref<const std::string&>();
    if (auto known = string_format(name)) {
      out.patterns.push_back(std::move(*known));
    } else if ((reader_.types_of(schema) & kString) != 0) {
      reader_.unsupported(
          schema, "format",
          fmt::format("expected one of {}, got {}", string_format_names(), printable(name)));
    }
  }
  return out;
}

Language SchemaCompiler::language_of(const StringRules& rules) {
  if (rules.patterns.empty()) {
    // The emptiness of lengths alone needs no automaton of their size.
    if (rules.is_free()) return Language::any();
    if (rules.min > rules.max) return Language::of(never());
    return Language::of_length(rules.min, rules.max);
  }
  Language out = Language::of(rules.patterns[0]);
  for (size_t i = 1; i < rules.patterns.size(); ++i)
    out = out.both(Language::of(rules.patterns[i]));
  if (out.empty()) return out;
  const auto longest = out.longest();
  const bool long_enough = out.shortest() >= rules.min;
  const bool short_enough = longest ? *longest <= rules.max : rules.max == kUnbounded;
  if (long_enough && short_enough) return out;
  return out.both(Language::of_length(rules.min, short_enough ? kUnbounded : rules.max));
}

Language SchemaCompiler::language_of(const Conjunction& conjunction) {
  if (conjunction.never) return Language::of(never());
  if (const auto ways = alternatives_of(conjunction)) {
    std::vector<Node> out;
    for (const Conjunction& way : *ways)
      out.push_back(language_of(way).node());
    return Language::of(alternation(std::move(out)));
  }
  if (const auto values = values_of(conjunction)) {
    std::vector<Node> out;
    for (const Json& value : *values)
      if (value.is_string()) out.push_back(literal(value.get_ref<const std::string&>()));
    return Language::of(alternation(std::move(out)));
  }
  if ((types_of(conjunction) & kString) == 0) return Language::of(never());
  return language_of(string_rules(conjunction));
}

Node SchemaCompiler::string_node(const Conjunction& conjunction) {
  const StringRules rules = string_rules(conjunction);
  if (rules.is_free()) return free_string();
  if (rules.min > rules.max) return never();
  if (rules.patterns.empty()) {
    if (rules.min >= kMaxLengthBound || (rules.max >= kMaxLengthBound && rules.max != kUnbounded)) {
      reader_.unsupported(*conjunction.parts[0].schema, "minLength, maxLength",
                          fmt::format("expected less than {}, got more", kMaxLengthBound));
    }
    return quoted(repeat(string_char(escaped_), static_cast<uint32_t>(rules.min),
                         static_cast<uint32_t>(rules.max)));
  }
  const bool is_plain = rules.patterns.size() == 1 && rules.min == 0 && rules.max == kUnbounded;
  return quoted(json_escaped(is_plain ? rules.patterns[0] : language_of(rules).node(), escaped_));
}

bool SchemaCompiler::string_fits(const std::string& text, const Conjunction& conjunction) {
  const StringRules rules = string_rules(conjunction);
  const auto length = static_cast<uint64_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
  if (length < rules.min || length > rules.max) return false;
  return std::ranges::all_of(
      rules.patterns, [&](const Node& pattern) { return Language::of(pattern).contains(text); });
}

NumberBounds SchemaCompiler::number_bounds(const Conjunction& conjunction) {
  NumberBounds out;
  const auto at_least = [&](const Decimal& bound, bool excluded) {
    const int order = out.min ? compare(bound, *out.min) : 1;
    if (order > 0) {
      out.min = bound;
      out.min_excluded = excluded;
    } else if (order == 0) {
      out.min_excluded = out.min_excluded || excluded;
    }
  };
  const auto at_most = [&](const Decimal& bound, bool excluded) {
    const int order = out.max ? compare(bound, *out.max) : -1;
    if (order < 0) {
      out.max = bound;
      out.max_excluded = excluded;
    } else if (order == 0) {
      out.max_excluded = out.max_excluded || excluded;
    }
  };
  for (const SchemaPart& part : conjunction.parts) {
    const Json& schema = *part.schema;
    const auto decimal = [&](const char* keyword) -> std::optional<Decimal> {
      const Json* value = reader_.find(schema, keyword);
      if (value == nullptr) return std::nullopt;
      return parse_decimal(value->dump());
    };
    if (const auto bound = decimal("minimum")) at_least(*bound, false);
    if (const auto bound = decimal("exclusiveMinimum")) at_least(*bound, true);
    if (const auto bound = decimal("maximum")) at_most(*bound, false);
    if (const auto bound = decimal("exclusiveMaximum")) at_most(*bound, true);
    const Json* format = reader_.find(schema, "format");
    const uint8_t types = reader_.types_of(schema);
    if (format == nullptr || (types & (kInteger | kNumber)) == 0 || (types & kString) != 0)
      continue;
    // OpenAPI's formats of numbers.
    if (*format == "int32" || *format == "int64") {
      const bool is_32 = *format == "int32";
      at_least(parse_decimal(is_32 ? "-2147483648" : "-9223372036854775808"), false);
      at_most(parse_decimal(is_32 ? "2147483647" : "9223372036854775807"), false);
    } else if (*format != "float" && *format != "double") {
      reader_.unsupported(schema, "format",
                          fmt::format("expected int32, int64, float or double for a number, got {}",
                                      printable(format->get<std::string>())));
    }
  }
  return out;
}

}  // namespace qw::grammar
