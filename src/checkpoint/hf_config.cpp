#include "checkpoint/hf_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/guarded_json.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

// nlohmann's sentence without its "[json.exception...]" prefix and its position in lines.
std::string reason_of(const nlohmann::json::exception& error) {
  const std::string_view text = error.what();
  const size_t colon = text.find(": ");
  return printable(colon == std::string_view::npos ? text : text.substr(colon + 2), 200);
}

template <typename T>
T required(std::optional<T> value, std::string_view key, std::string_view expected,
           std::string_view file) {
  if (!value) {
    fail(ErrorKind::kCorrupt, "config", "{}: expected {}, got nothing ({})", key, expected,
         printable(file, 4096));
  }
  return *std::move(value);
}

[[noreturn]] void wrong_type(std::string_view key, std::string_view expected,
                             const ordered_json& got, std::string_view file) {
  fail(ErrorKind::kCorrupt, "config", "{}: expected {}, got {} ({})", key, expected,
       describe_json(got), printable(file, 4096));
}

constexpr std::string_view kInteger = "an integer";
constexpr std::string_view kNumber = "a number";
constexpr std::string_view kBoolean = "true or false";
constexpr std::string_view kText = "a string";

}  // namespace

ordered_json parse_json(std::string_view text, std::string_view file, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    fail(ErrorKind::kCorrupt, "json", "size: expected at most {} bytes, got {} ({})",
         limits.max_bytes, text.size(), printable(file, 4096));
  }
  try {
    return parse_guarded<ordered_json>(text, JsonLimitGuard(limits, ErrorKind::kCorrupt, file));
  } catch (const ordered_json::parse_error& error) {
    fail(ErrorKind::kCorrupt, "json",
         "document: expected valid JSON, got an error at byte {}: {} ({})", error.byte,
         reason_of(error), printable(file, 4096));
  } catch (const ordered_json::exception& error) {
    fail(ErrorKind::kCorrupt, "json", "document: expected valid JSON, got: {} ({})",
         reason_of(error), printable(file, 4096));
  }
}

ordered_json parse_json_object(std::string_view text, std::string_view file,
                               const JsonLimits& limits) {
  ordered_json value = parse_json(text, file, limits);
  if (!value.is_object()) {
    fail(ErrorKind::kCorrupt, "json", "document: expected an object {{...}}, got {} ({})",
         describe_json(value), printable(file, 4096));
  }
  return value;
}

std::string describe_json(const ordered_json& value) {
  if (value.is_object()) return fmt::format("an object of {} keys", value.size());
  if (value.is_array() && value.size() > 16)
    return fmt::format("an array of {} values", value.size());
  return printable(value.dump(-1, ' ', false, ordered_json::error_handler_t::replace), 60);
}

const ordered_json* find_member(const ordered_json& object, std::string_view key,
                                std::string_view file) {
  if (!object.is_object()) wrong_type(key, "an object around it", object, file);
  const auto found = object.find(std::string(key));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> optional_int(const ordered_json& object, std::string_view key,
                                    std::string_view file) {
  const ordered_json* value = find_member(object, key, file);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) {
    if (const auto number = value->get<uint64_t>(); number <= uint64_t{INT64_MAX}) {
      return static_cast<int64_t>(number);
    }
  } else if (value->is_number_integer()) {
    return value->get<int64_t>();
  } else if (value->is_number_float()) {
    // Some tools write 4096.0. Beyond 2^53 a float no longer says which integer was meant.
    const double number = value->get<double>();
    if (number == std::floor(number) && std::fabs(number) <= 0x1p53)
      return static_cast<int64_t>(number);
  }
  wrong_type(key, kInteger, *value, file);
}

std::optional<double> optional_real(const ordered_json& object, std::string_view key,
                                    std::string_view file) {
  const ordered_json* value = find_member(object, key, file);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) wrong_type(key, kNumber, *value, file);
  return value->get<double>();
}

std::optional<bool> optional_bool(const ordered_json& object, std::string_view key,
                                  std::string_view file) {
  const ordered_json* value = find_member(object, key, file);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong_type(key, kBoolean, *value, file);
  return value->get<bool>();
}

std::optional<std::string> optional_string(const ordered_json& object, std::string_view key,
                                           std::string_view file) {
  const ordered_json* value = find_member(object, key, file);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong_type(key, kText, *value, file);
  return value->get<std::string>();
}

int64_t required_int(const ordered_json& object, std::string_view key, std::string_view file) {
  return required(optional_int(object, key, file), key, kInteger, file);
}
double required_real(const ordered_json& object, std::string_view key, std::string_view file) {
  return required(optional_real(object, key, file), key, kNumber, file);
}
bool required_bool(const ordered_json& object, std::string_view key, std::string_view file) {
  return required(optional_bool(object, key, file), key, kBoolean, file);
}
std::string required_string(const ordered_json& object, std::string_view key,
                            std::string_view file) {
  return required(optional_string(object, key, file), key, kText, file);
}

}  // namespace qw
