#include "server/fields.h"

#include <algorithm>
#include <cmath>

namespace qw::server {

std::string_view name_of(FieldStatus status) noexcept {
  switch (status) {
    case FieldStatus::kHonoured:
      return "honoured";
    case FieldStatus::kRefused:
      return "refused";
    case FieldStatus::kIgnored:
      return "ignored with warning";
  }
  return "";
}

namespace types {

Json boolean() {
  return {{"type", "boolean"}};
}
Json string() {
  return {{"type", "string"}};
}
Json number() {
  return {{"type", "number"}};
}
Json integer(int64_t least, int64_t most) {
  Json out = {{"type", "integer"}};
  if (least != INT64_MIN) out["minimum"] = least;
  if (most != INT64_MAX) out["maximum"] = most;
  return out;
}
Json object() {
  return {{"type", "object"}};
}
Json object(const std::vector<std::string>& members) {
  return {{"type", "object"}, {"required", members}};
}
Json list(Json item) {
  return {{"type", "array"}, {"items", std::move(item)}};
}
Json choice(const std::vector<std::string>& values) {
  return {{"type", "string"}, {"enum", values}};
}
Json any_of(std::vector<Json> schemas) {
  return {{"anyOf", std::move(schemas)}};
}
Json strings() {
  return any_of({string(), list(string())});
}
Json ids() {
  return list(integer(0, INT32_MAX));
}
Json prompts() {
  return any_of({string(), list(string()), ids(), list(ids())});
}
Json json_schema() {
  return any_of({object(), boolean(), string()});
}
Json messages(int64_t least) {
  Json message = object();
  message["required"] = {"role"};
  message["properties"] = {{"role", string()}, {"content", anything()}};
  Json out = list(std::move(message));
  if (least > 0) out["minItems"] = least;
  return out;
}
Json anything() {
  return Json::object();
}

}  // namespace types

bool asks_for_nothing(const FieldInfo& field, const Json& value) noexcept {
  if (value.is_null()) return true;
  if (!field.neutral.is_null()) return value == field.neutral;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

void note_refused(const FieldInfo& field, const Json& value) {
  if (asks_for_nothing(field, value)) return;
  throw RequestError(ErrorKind::kUnsupported,
                     fmt::format("[request] {}: expected it to be left out, got {} ({})",
                                 field.name, shown(value), field.note),
                     field.name);
}

std::string ignored_warning(const FieldInfo& field) {
  return fmt::format("{}: ignored ({})", field.name, field.note);
}

void refuse_unknown(const std::string& shown_name) {
  throw RequestError(
      ErrorKind::kInvalidArgument,
      fmt::format("[request] {}: expected a known field, got this one (/compat lists them)",
                  shown_name),
      shown_name);
}

std::string unknown_warning(std::string_view name, bool strict) {
  const std::string shown_name = printable(name);
  if (strict) refuse_unknown(shown_name);
  return fmt::format("{}: ignored (unknown field; /compat lists those that are known)", shown_name);
}

std::string shown(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

bool to_bool(std::string_view name, const Json& value) {
  if (!value.is_boolean()) refuse_field(name, "expected true or false, got {}", shown(value));
  return value.get<bool>();
}

std::string to_string(std::string_view name, const Json& value) {
  if (!value.is_string()) refuse_field(name, "expected a string, got {}", shown(value));
  return value.get<std::string>();
}

int64_t to_integer(std::string_view name, const Json& value, int64_t least, int64_t most) {
  const bool fits_unsigned = !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX;
  int64_t integer = 0;
  bool is_integer = value.is_number_integer() && fits_unsigned;
  if (is_integer) integer = value.get<int64_t>();
  if (value.is_number_float()) {  // 16.0, as some clients write it
    const double number = value.get<double>();
    is_integer = std::trunc(number) == number && std::abs(number) < 9e15;
    if (is_integer) integer = static_cast<int64_t>(number);
  }
  if (!fits_unsigned) {
    refuse_field(name, "expected an integer from {} to {}, got {}", least, most, shown(value));
  }
  if (!is_integer) refuse_field(name, "expected an integer, got {}", shown(value));
  if (integer < least || integer > most) {
    if (most == INT64_MAX)
      refuse_field(name, "expected an integer from {}, got {}", least, integer);
    refuse_field(name, "expected an integer from {} to {}, got {}", least, most, integer);
  }
  return integer;
}

double to_number(std::string_view name, const Json& value) {
  if (!value.is_number()) refuse_field(name, "expected a number, got {}", shown(value));
  return value.get<double>();
}

std::vector<std::string> to_strings(std::string_view name, const Json& value) {
  if (value.is_string()) return {value.get<std::string>()};
  if (!value.is_array())
    refuse_field(name, "expected a string or a list of strings, got {}", shown(value));
  std::vector<std::string> out;
  for (const Json& item : value)
    out.push_back(to_string(name, item));
  return out;
}

std::vector<int32_t> to_ids(std::string_view name, const Json& value) {
  std::vector<int32_t> out;
  for (const Json& item : to_array(name, value))
    out.push_back(static_cast<int32_t>(to_integer(name, item, 0, INT32_MAX)));
  return out;
}

const Json& to_object(std::string_view name, const Json& value) {
  if (!value.is_object()) refuse_field(name, "expected an object, got {}", shown(value));
  return value;
}

const Json& to_array(std::string_view name, const Json& value) {
  if (!value.is_array()) refuse_field(name, "expected a list, got {}", shown(value));
  return value;
}

}  // namespace qw::server
