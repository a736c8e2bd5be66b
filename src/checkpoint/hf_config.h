// Reading JSON that came with a checkpoint: strict parsing, typed fields, errors that name them.
//
// Level 3 (checkpoint). What the fields mean is model/'s business; here only that a missing or
// mistyped one is reported as "hidden_size: expected an integer, got "64" (config.json)".
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/json_limits.h"

namespace qw {

/// Parses `text` (UTF-8, an optional byte order mark). Of a key that appears twice the last value
/// counts, as in Python. `file` names the source in errors.
/// Errors: corrupt, with the byte offset; among them the literals NaN and Infinity, which Python
/// writes but JSON has not.
nlohmann::ordered_json parse_json(std::string_view text, std::string_view file,
                                  const JsonLimits& limits = {});

/// As parse_json, and the top value must be an object. Errors: corrupt.
nlohmann::ordered_json parse_json_object(std::string_view text, std::string_view file,
                                         const JsonLimits& limits = {});

// Typed fields of an object. required_*: Error{kCorrupt} when the key is absent or has another
// type. optional_*: nullopt when the key is absent or null. Integers may be written as floats
// with an integral value (4.0), booleans are not numbers.
int64_t required_int(const nlohmann::ordered_json& object, std::string_view key,
                     std::string_view file);
double required_real(const nlohmann::ordered_json& object, std::string_view key,
                     std::string_view file);
bool required_bool(const nlohmann::ordered_json& object, std::string_view key,
                   std::string_view file);
std::string required_string(const nlohmann::ordered_json& object, std::string_view key,
                            std::string_view file);
std::optional<int64_t> optional_int(const nlohmann::ordered_json& object, std::string_view key,
                                    std::string_view file);
std::optional<double> optional_real(const nlohmann::ordered_json& object, std::string_view key,
                                    std::string_view file);
std::optional<bool> optional_bool(const nlohmann::ordered_json& object, std::string_view key,
                                  std::string_view file);
std::optional<std::string> optional_string(const nlohmann::ordered_json& object,
                                           std::string_view key, std::string_view file);
/// The member `key`, or null when it is absent or JSON null. `object` must be an object.
const nlohmann::ordered_json* find_member(const nlohmann::ordered_json& object,
                                          std::string_view key, std::string_view file);

/// A JSON value as one short line for messages: `"64"`, `[1,2,3]`, cut after 60 bytes.
std::string describe_json(const nlohmann::ordered_json& value);

}  // namespace qw
