#include <algorithm>

#include "base/error.h"
#include "checkpoint/gguf.h"

namespace qw {

std::string_view name_of(GgufType type) noexcept {
  switch (type) {
    case GgufType::kU8:
      return "u8";
    case GgufType::kI8:
      return "i8";
    case GgufType::kU16:
      return "u16";
    case GgufType::kI16:
      return "i16";
    case GgufType::kU32:
      return "u32";
    case GgufType::kI32:
      return "i32";
    case GgufType::kF32:
      return "f32";
    case GgufType::kBool:
      return "bool";
    case GgufType::kString:
      return "string";
    case GgufType::kArray:
      return "array";
    case GgufType::kU64:
      return "u64";
    case GgufType::kI64:
      return "i64";
    case GgufType::kF64:
      return "f64";
  }
  return "?";
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  // Some thirty keys, asked for once each: a search is simpler than an index.
  const auto entry = std::ranges::find(
      entries, key, [](const auto& pair) { return std::string_view(pair.first); });
  return entry == entries.end() ? nullptr : &entry->second;
}

const GgufValue& GgufMetadata::required(std::string_view key, std::string_view expected) const {
  if (const GgufValue* value = find(key)) return *value;
  fail(ErrorKind::kCorrupt, "gguf", "{}: expected {}, got no such key ({})", printable(key),
       expected, printable(file, 4096));
}

void GgufMetadata::wrong_type(std::string_view key, std::string_view expected,
                              const GgufValue& got) const {
  const bool is_array = got.type == GgufType::kArray;
  fail(ErrorKind::kCorrupt, "gguf", "{}: expected {}, got {}{} ({})", printable(key), expected,
       is_array ? "an array of " : "", name_of(is_array ? got.element : got.type),
       printable(file, 4096));
}

int64_t GgufMetadata::to_integer(std::string_view key, const GgufValue& value) const {
  if (const auto* number = std::get_if<int64_t>(&value.value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(&value.value)) {
    if (*number <= uint64_t{INT64_MAX}) return static_cast<int64_t>(*number);
    fail(ErrorKind::kCorrupt, "gguf", "{}: expected at most {}, got {} ({})", printable(key),
         INT64_MAX, *number, printable(file, 4096));
  }
  wrong_type(key, "an integer", value);
}

double GgufMetadata::to_real(std::string_view key, const GgufValue& value) const {
  if (const auto* number = std::get_if<double>(&value.value)) return *number;
  if (const auto* number = std::get_if<int64_t>(&value.value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<uint64_t>(&value.value)) return static_cast<double>(*number);
  wrong_type(key, "a number", value);
}

int64_t GgufMetadata::integer(std::string_view key) const {
  return to_integer(key, required(key, "an integer"));
}

double GgufMetadata::real(std::string_view key) const {
  return to_real(key, required(key, "a number"));
}

const std::string& GgufMetadata::string(std::string_view key) const {
  const GgufValue& value = required(key, "a string");
  if (const auto* text = std::get_if<std::string>(&value.value)) return *text;
  wrong_type(key, "a string", value);
}

bool GgufMetadata::boolean_or(std::string_view key, bool otherwise) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return otherwise;
  if (const auto* flag = std::get_if<bool>(&value->value)) return *flag;
  wrong_type(key, "a bool", *value);
}

int64_t GgufMetadata::integer_or(std::string_view key, int64_t otherwise) const {
  const GgufValue* value = find(key);
  return value == nullptr ? otherwise : to_integer(key, *value);
}

double GgufMetadata::real_or(std::string_view key, double otherwise) const {
  const GgufValue* value = find(key);
  return value == nullptr ? otherwise : to_real(key, *value);
}

std::string GgufMetadata::string_or(std::string_view key, std::string otherwise) const {
  return find(key) == nullptr ? otherwise : string(key);
}

const std::vector<std::string>* GgufMetadata::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (const auto* list = std::get_if<std::vector<std::string>>(&value->value)) return list;
  wrong_type(key, "an array of strings", *value);
}

const std::vector<int64_t>* GgufMetadata::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value->value)) return list;
  wrong_type(key, "an array of integers", *value);
}

const std::vector<double>* GgufMetadata::reals(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (const auto* list = std::get_if<std::vector<double>>(&value->value)) return list;
  wrong_type(key, "an array of floats", *value);
}

}  // namespace qw
