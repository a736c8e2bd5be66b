// The fields of an endpoint's JSON body: one table that reads them and that tells what is done with
// each.
//
// Level 7 (server). A body is read member by member, by the table: honoured fields go to their
// reader, refused ones are an error unless they ask for nothing, ignored ones and unknown ones are
// listed as warnings (or are errors in strict mode). So the table that /compat prints is the table
// that is in force. null is the same as absent. A field "a.b" is the member b of the object a; of
// objects within lists, and of those of several kinds, a shape tells the members (server/shape.h).
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "server/request_error.h"

namespace qw::server {

using Json = nlohmann::ordered_json;

/// The longest time limit that a request may name, in seconds: a year.
inline constexpr double kLongestTimeout = 86400.0 * 365;

struct Shape;  // server/shape.h
using ShapePtr = std::shared_ptr<const Shape>;

enum class FieldStatus { kHonoured, kRefused, kIgnored };
std::string_view name_of(FieldStatus status) noexcept;

struct FieldInfo {
  std::string name;
  FieldStatus status = FieldStatus::kHonoured;
  std::string note;  // what is done with it, or why it is not
  Json neutral;  // the value that asks for nothing (refused and ignored fields); null: see below
  Json schema;   // what its value may be, as a JSON schema (honoured fields); see types below
  bool required = false;  // a request without it is refused
  ShapePtr shape = {};    // of the objects in its value; null: nothing is said of them
};

template <typename Task>
struct Field : FieldInfo {
  std::function<void(const Json&, Task&)> read;  // kHonoured only

  /// Says what the value may be: one of types:: below.
  Field as(Json value_schema) && {
    schema = std::move(value_schema);
    return std::move(*this);
  }
  /// Says what the objects in the value are made of.
  Field with(ShapePtr value_shape) && {
    shape = std::move(value_shape);
    return std::move(*this);
  }
  Field must() && {
    required = true;
    return std::move(*this);
  }
};

/// JSON schemas (draft 2020-12) of values, as the readers below take them.
namespace types {
Json boolean();
Json string();
Json number();
Json integer(int64_t least = INT64_MIN, int64_t most = INT64_MAX);
Json object();
/// With members that are always there.
Json object(const std::vector<std::string>& members);
Json list(Json item);
Json choice(const std::vector<std::string>& values);
/// One of several.
Json any_of(std::vector<Json> schemas);
/// A string, or a list of them.
Json strings();
/// Token ids.
Json ids();
/// A text, a list of texts, ids, or a list of lists of ids.
Json prompts();
/// A JSON schema, as an object or as its text.
Json json_schema();
/// Messages in OpenAI's form, at least so many.
Json messages(int64_t least = 1);
Json anything();
}  // namespace types

/// Honoured; `read` gets the value, which is not null.
template <typename Task, typename Read>
Field<Task> honoured(std::string name, Read read, std::string note = "") {
  return {{std::move(name), FieldStatus::kHonoured, std::move(note), nullptr, nullptr, false, {}},
          std::move(read)};
}
/// Refused, or ignored with a warning, unless the value asks for nothing: `neutral` if it is given,
/// else anything empty.
template <typename Task>
Field<Task> refused(std::string name, std::string reason, Json neutral = nullptr) {
  return {{std::move(name),
           FieldStatus::kRefused,
           std::move(reason),
           std::move(neutral),
           nullptr,
           false,
           {}},
          {}};
}
template <typename Task>
Field<Task> ignored(std::string name, std::string reason, Json neutral = nullptr) {
  return {{std::move(name),
           FieldStatus::kIgnored,
           std::move(reason),
           std::move(neutral),
           nullptr,
           false,
           {}},
          {}};
}

template <typename Task>
using FieldTable = std::vector<Field<Task>>;

/// Whether a value asks for nothing: null, the field's neutral value, or where it has none false,
/// 0,
/// "", [] or {}.
bool asks_for_nothing(const FieldInfo& field, const Json& value) noexcept;

/// The value as it may stand in a message: its JSON, cut.
std::string shown(const Json& value);

/// What is said of a field that is not honoured; throws if it must be.
void note_refused(const FieldInfo& field, const Json& value);
std::string ignored_warning(const FieldInfo& field);
std::string unknown_warning(std::string_view name, bool strict);
[[noreturn]] void refuse_unknown(const std::string& shown_name);

/// What is not known or ignored in the objects of `value`, a sentence each. Errors: RequestError
/// (in strict mode, what is not known).
std::vector<std::string> check_members(const std::string& name, const Json& value,
                                       const Shape& shape, bool strict);

/// Reads `body`, an object whose members' names begin with `prefix`, into `task`. Returns warnings.
/// Errors: RequestError naming the field.
template <typename Task>
std::vector<std::string> read_fields(const Json& body, const FieldTable<Task>& table, Task& task,
                                     bool strict, const std::string& prefix = "") {
  std::vector<std::string> warnings;
  if (!body.is_object()) {
    refuse_field(prefix.empty() ? "body" : prefix.substr(0, prefix.size() - 1),
                 "expected a JSON object, got {}", shown(body));
  }
  for (const auto& [key, value] : body.items()) {
    if (value.is_null()) continue;
    const std::string name = prefix + key, inner = name + ".";
    const Field<Task>* field = nullptr;
    bool is_object = false;
    for (const Field<Task>& candidate : table) {
      if (candidate.name == name) field = &candidate;
      is_object = is_object || candidate.name.starts_with(inner);
    }
    if (field == nullptr && is_object) {
      for (std::string& warning : read_fields(value, table, task, strict, inner))
        warnings.push_back(std::move(warning));
    } else if (field == nullptr) {
      warnings.push_back(unknown_warning(name, strict));
    } else if (field->status == FieldStatus::kHonoured) {
      field->read(value, task);
      if (field->shape == nullptr) continue;
      for (std::string& warning : check_members(name, value, *field->shape, strict))
        warnings.push_back(std::move(warning));
    } else if (field->status == FieldStatus::kRefused) {
      note_refused(*field, value);
    } else if (!asks_for_nothing(*field, value)) {
      warnings.push_back(ignored_warning(*field));
    }
  }
  return warnings;
}

/// All fields of a table, for /compat.
template <typename Task>
std::vector<FieldInfo> infos_of(const FieldTable<Task>& table) {
  return {table.begin(), table.end()};
}

// Typed values. Errors: RequestError "[request] name: expected a string, got 3".
bool to_bool(std::string_view name, const Json& value);
std::string to_string(std::string_view name, const Json& value);
int64_t to_integer(std::string_view name, const Json& value, int64_t least = INT64_MIN,
                   int64_t most = INT64_MAX);
double to_number(std::string_view name, const Json& value);
/// A string, or a list of them.
std::vector<std::string> to_strings(std::string_view name, const Json& value);
std::vector<int32_t> to_ids(std::string_view name, const Json& value);
const Json& to_object(std::string_view name, const Json& value);
const Json& to_array(std::string_view name, const Json& value);

// Fields that are a part of the task: `part` is a pointer to a member, or a function that gives a
// reference to what is to be set.
template <typename Task, typename Part>
Field<Task> flag_field(std::string name, Part part, std::string note = "") {
  auto read = [name, part](const Json& value, Task& task) {
    std::invoke(part, task) = to_bool(name, value);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::boolean());
}
template <typename Task, typename Part>
Field<Task> string_field(std::string name, Part part, std::string note = "") {
  auto read = [name, part](const Json& value, Task& task) {
    std::invoke(part, task) = to_string(name, value);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::string());
}
template <typename Task, typename Part>
Field<Task> integer_field(std::string name, Part part, int64_t least, int64_t most,
                          std::string note = "") {
  auto read = [name, part, least, most](const Json& value, Task& task) {
    std::invoke(part, task) = to_integer(name, value, least, most);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::integer(least, most));
}
template <typename Task, typename Part>
Field<Task> integer_field(std::string name, Part part, int64_t least, std::string note = "") {
  return integer_field<Task>(std::move(name), part, least, INT64_MAX, std::move(note));
}
/// A string or a list of them.
template <typename Task, typename Part>
Field<Task> strings_field(std::string name, Part part, std::string note = "") {
  auto read = [name, part](const Json& value, Task& task) {
    std::invoke(part, task) = to_strings(name, value);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::strings());
}
template <typename Task, typename Part>
Field<Task> ids_field(std::string name, Part part, std::string note = "") {
  auto read = [name, part](const Json& value, Task& task) {
    std::invoke(part, task) = to_ids(name, value);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::ids());
}
template <typename Task, typename Part>
Field<Task> object_field(std::string name, Part part, std::string note = "") {
  auto read = [name, part](const Json& value, Task& task) {
    std::invoke(part, task) = to_object(name, value);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::object());
}
template <typename Task, typename Part>
Field<Task> list_field(std::string name, Part part, std::string note = "") {
  auto read = [name, part](const Json& value, Task& task) {
    std::invoke(part, task) = to_array(name, value);
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::list(types::anything()));
}

}  // namespace qw::server
