#include "engine/grammar/schema_reader.h"

#include <algorithm>
#include <array>

#include "base/guarded_json.h"
#include "engine/grammar/expression.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

/// Keywords that say something about instances here.
constexpr std::array kAssertions = {
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "minProperties",
    "maxProperties",
    "patternProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "additionalItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "anyOf",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "oneOf",
    "allOf",
    "$ref",
    "nullable",
    "uniqueItems",
};
/// Keywords that say nothing about instances.
constexpr std::array kAnnotations = {
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "externalDocs",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "discriminator",
    "xml",
};

template <size_t N>
bool holds(const std::array<const char*, N>& names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

std::string pointer_token(std::string_view token) {
  std::string out;
  for (const char c : token) {
    if (c == '~') {
      out += "~0";
    } else if (c == '/') {
      out += "~1";
    } else {
      out += c;
    }
  }
  return out;
}

/// ~0, ~1 and %XX undone.
std::string plain_token(std::string_view token) {
  std::string text;
  for (size_t i = 0; i < token.size(); ++i) {
    const auto digit = [&](size_t at) {
      const char c = at < token.size() ? token[at] : 'x';
      if (c >= '0' && c <= '9') return c - '0';
      const char lower = static_cast<char>(c | 0x20);
      return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
    };
    if (token[i] == '%' && digit(i + 1) >= 0 && digit(i + 2) >= 0) {
      text += static_cast<char>(digit(i + 1) * 16 + digit(i + 2));
      i += 2;
    } else {
      text += token[i];
    }
  }
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '~' && i + 1 < text.size() && (text[i + 1] == '0' || text[i + 1] == '1')) {
      out += text[++i] == '0' ? '~' : '/';
    } else {
      out += text[i];
    }
  }
  return out;
}

bool is_schema(const Json& value) {
  return value.is_object() || value.is_boolean();
}

}  // namespace

SchemaReader::SchemaReader(const Json& root) : root_(root) {
  pointers_[&root] += '#';  // not an assignment: GCC bug 105651 warns of it
}

std::string SchemaReader::pointer(const Json& schema) const {
  const auto it = pointers_.find(&schema);
  return it == pointers_.end() ? "?" : printable(it->second, 400);
}

void SchemaReader::note(const Json& child, const Json& parent, std::string_view token) const {
  if (pointers_.contains(&child)) return;
  const auto it = pointers_.find(&parent);
  pointers_[&child] =
      fmt::format("{}/{}", it == pointers_.end() ? "?" : it->second, pointer_token(token));
}

const Json& SchemaReader::child(const Json& schema, std::string_view keyword) const {
  const Json& out = schema.at(std::string(keyword));
  note(out, schema, keyword);
  return out;
}

const Json& SchemaReader::child(const Json& schema, std::string_view keyword,
                                std::string_view key) const {
  const Json& middle = child(schema, keyword);
  const Json& out = middle.at(std::string(key));
  note(out, middle, key);
  return out;
}

const Json& SchemaReader::child(const Json& schema, std::string_view keyword, size_t index) const {
  const Json& middle = child(schema, keyword);
  const Json& out = middle.at(index);
  note(out, middle, std::to_string(index));
  return out;
}

void SchemaReader::bad(const Json& schema, std::string_view keyword,
                       std::string_view expected) const {
  fail(ErrorKind::kInvalidArgument, "json schema", "{}: expected {}, got {} (at {})", keyword,
       expected, printable(schema.contains(keyword) ? schema[std::string(keyword)].dump() : "none"),
       pointer(schema));
}

void SchemaReader::unsupported(const Json& schema, std::string_view keyword,
                               std::string_view why) const {
  fail(ErrorKind::kUnsupported, "json schema", "{}: {} (at {})", printable(keyword), why,
       pointer(schema));
}

std::optional<uint64_t> SchemaReader::count_of(const Json& schema, std::string_view keyword) const {
  const Json* value = find(schema, keyword);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  if (value->is_number_float()) {
    const auto number = value->get<double>();
    if (number >= 0 && number < 1e15 &&
        number == static_cast<double>(static_cast<uint64_t>(number)))
      return static_cast<uint64_t>(number);
  }
  if (value->is_number_integer() && value->get<int64_t>() >= 0) return value->get<uint64_t>();
  bad(schema, keyword, "a number of at least 0 without fraction");
}

uint8_t SchemaReader::types_of(const Json& schema) const {
  const Json* type = find(schema, "type");
  if (type == nullptr) return kAllTypes;
  const auto one = [&](const Json& name) -> uint8_t {
    if (name == "null") return kNull;
    if (name == "boolean") return kBoolean;
    if (name == "object") return kObject;
    if (name == "array") return kArray;
    if (name == "string") return kString;
    if (name == "integer") return kInteger;
    if (name == "number") return kNumber | kInteger;
    bad(schema, "type", "null, boolean, object, array, string, integer, number or a list of these");
  };
  uint8_t out = 0;
  if (type->is_array()) {
    for (const Json& name : *type)
      out |= one(name);
  } else {
    out = one(*type);
  }
  if (const Json* nullable = find(schema, "nullable"); nullable != nullptr && *nullable == true)
    out |= kNull;
  return out;
}

void SchemaReader::check_keywords(const Json& schema) {
  if (!checked_.insert(&schema).second) return;
  for (const auto& [keyword, value] : schema.items()) {
    if (holds(kAssertions, keyword) || holds(kAnnotations, keyword)) continue;
    if (keyword.starts_with("x-")) continue;  // extensions of OpenAPI: annotations
    unsupported(schema, keyword, "expected a keyword that is supported, got one that is not");
  }
  check_kinds(schema);
}

void SchemaReader::check_kinds(const Json& schema) const {
  const auto want = [&](const char* keyword, auto&& fits, const char* expected) {
    const Json* value = find(schema, keyword);
    if (value != nullptr && !fits(*value)) bad(schema, keyword, expected);
  };
  const auto object_of_schemas = [](const Json& v) {
    return v.is_object() && std::ranges::all_of(v, is_schema);
  };
  const auto schemas = [](const Json& v) {
    return v.is_array() && !v.empty() && std::ranges::all_of(v, is_schema);
  };
  const auto strings = [](const Json& v) {
    return v.is_array() && std::ranges::all_of(v, [](const Json& s) { return s.is_string(); });
  };
  for (const char* keyword : {"properties", "patternProperties"})
    want(keyword, object_of_schemas, "an object of schemas");
  for (const char* keyword : {"anyOf", "oneOf", "allOf", "prefixItems"})
    want(keyword, schemas, "a list of schemas, not empty");
  for (const char* keyword : {"additionalProperties", "propertyNames", "additionalItems"})
    want(keyword, is_schema, "a schema");
  want(
      "items", [&](const Json& v) { return is_schema(v) || schemas(v); }, "a schema");
  want("required", strings, "a list of strings");
  want(
      "enum", [](const Json& v) { return v.is_array() && !v.empty(); }, "a list, not empty");
  for (const char* keyword : {"pattern", "format", "$ref"})
    want(
        keyword, [](const Json& v) { return v.is_string(); }, "a string");
  for (const char* keyword : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
    want(
        keyword, [](const Json& v) { return v.is_number(); }, "a number");
  for (const char* keyword : {"nullable", "uniqueItems"})
    want(
        keyword, [](const Json& v) { return v.is_boolean(); }, "true or false");
  const Json* unique = find(schema, "uniqueItems");
  if (unique != nullptr && *unique == true && count_of(schema, "maxItems").value_or(2) > 1)
    unsupported(schema, "uniqueItems", "expected false, got true, which no grammar can say");
}

const Json& SchemaReader::resolve(const Json& schema, const std::string& reference) {
  std::string_view rest = reference;
  if (const Json* id = find(root_, "$id"); id != nullptr && id->is_string()) {
    const auto& base = id->get_ref<const std::string&>();
    if (!base.empty() && rest.starts_with(base)) rest.remove_prefix(base.size());
  }
  if (rest.empty() || rest == "#") return root_;
  if (rest[0] != '#')
    unsupported(
        schema, "$ref",
        fmt::format("expected a reference within the schema, got {}", printable(reference)));
  rest.remove_prefix(1);
  if (rest[0] != '/') {
    const Json* anchor = find_anchor(root_, std::string(rest), 0);
    if (anchor == nullptr) bad(schema, "$ref", "a reference to something that is there");
    return *anchor;
  }
  const Json* at = &root_;
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const size_t end = std::min(rest.find('/'), rest.size());
    const std::string token = plain_token(rest.substr(0, end));
    CompileWork::charge(1 + at->size() / 4);
    const Json* next = nullptr;
    if (at->is_object()) {
      next = find(*at, token);
    } else if (at->is_array() && !token.empty() && token.size() < 9 &&
               token.find_first_not_of("0123456789") == std::string::npos) {
      const size_t index = std::stoul(token);
      if (index < at->size()) next = &(*at)[index];
    }
    if (next == nullptr) bad(schema, "$ref", "a reference to something that is there");
    note(*next, *at, token);
    at = next;
    rest.remove_prefix(end);
  }
  if (!is_schema(*at)) bad(schema, "$ref", "a reference to a schema");
  return *at;
}

const Json* SchemaReader::find_anchor(const Json& at, const std::string& name, int depth) {
  if (depth > kMaxNesting || !at.is_structured()) return nullptr;
  CompileWork::charge(1 + at.size());
  if (at.is_object()) {
    const Json* anchor = find(at, "$anchor");
    if (anchor != nullptr && *anchor == name) return &at;
  }
  for (const auto& [key, value] : at.items()) {
    if (!value.is_structured()) continue;
    note(value, at, key);
    if (const Json* found = find_anchor(value, name, depth + 1)) return found;
  }
  return nullptr;
}

void SchemaReader::add(const SchemaPart& part, Conjunction& out, std::vector<const Json*>& path) {
  const Json& schema = *part.schema;
  CompileWork::charge(1 + out.parts.size() / 4);
  if (schema.is_boolean()) {
    if (!schema.get<bool>()) out.never = true;
    return;
  }
  if (std::ranges::find(path, &schema) != path.end()) {
    unsupported(schema, "$ref", "expected a value between a schema and itself, got a circle");
  }
  if (path.size() > kMaxNesting)
    unsupported(schema, "$ref", "expected fewer references one after the other, got a long chain");
  check_keywords(schema);
  const auto known = std::ranges::find_if(
      out.parts, [&](const SchemaPart& other) { return other.schema == &schema; });
  if (known != out.parts.end()) {
    // An alternative that leads back to where it was chosen says nothing about the value.
    if ((known->any_of_done && find(schema, "anyOf")) ||
        (known->one_of_done && find(schema, "oneOf"))) {
      unsupported(schema, "$ref", "expected a value between a schema and itself, got a circle");
    }
    return;
  }
  out.parts.push_back(part);
  path.push_back(&schema);
  if (const Json* reference = find(schema, "$ref"))
    add({&resolve(schema, reference->get<std::string>())}, out, path);
  if (const Json* all = find(schema, "allOf")) {
    for (size_t i = 0; i < all->size(); ++i)
      add({&child(schema, "allOf", i)}, out, path);
  }
  path.pop_back();
}

Conjunction SchemaReader::conjunction(std::span<const Json* const> schemas) {
  Conjunction out;
  for (const Json* schema : schemas)
    out = with(std::move(out), *schema);
  return out;
}

Conjunction SchemaReader::with(Conjunction some, const Json& more) {
  std::vector<const Json*> path;
  add({&more}, some, path);
  return some;
}

Json parse_schema_text(std::string_view text) {
  constexpr JsonLimits kLimits{.max_bytes = size_t{16} << 20, .max_depth = kMaxNesting};
  if (text.size() > kLimits.max_bytes) {
    fail(ErrorKind::kInvalidArgument, "json schema", "schema: expected at most {} bytes, got {}",
         kLimits.max_bytes, text.size());
  }
  try {
    return parse_guarded<Json>(
        text, JsonLimitGuard(kLimits, ErrorKind::kInvalidArgument, "the JSON schema"));
  } catch (const Json::exception& error) {
    fail(ErrorKind::kInvalidArgument, "json schema", "schema: expected JSON, got {}",
         printable(error.what(), 200));
  }
}

}  // namespace qw::grammar
