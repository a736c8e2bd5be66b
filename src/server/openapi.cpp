#include "server/openapi.h"

#include <algorithm>

namespace qw::server {

namespace {

constexpr const char* kJsonType = "application/json";

Json ref(const std::string& name) {
  return {{"$ref", "#/components/schemas/" + name}};
}

// ---- fields ------------------------------------------------------------------------------------

/// A schema that takes null as well, which for a field is the same as its absence.
Json nullable(Json schema) {
  if (schema.empty()) return schema;
  if (schema.contains("enum")) schema["enum"].push_back(nullptr);
  if (schema.contains("type")) {
    schema["type"] = Json::array({schema["type"], "null"});
    return schema;
  }
  if (schema.contains("enum")) return schema;
  if (schema.contains("anyOf")) {
    schema["anyOf"].push_back({{"type", "null"}});
    return schema;
  }
  return types::any_of({std::move(schema), Json{{"type", "null"}}});
}

/// What may stand in a field that is refused: what asks_for_nothing() lets pass.
Json schema_of_nothing(const FieldInfo& field) {
  if (!field.neutral.is_null()) return {{"enum", {nullptr, field.neutral}}};
  return {{"enum", {nullptr, false, 0, "", Json::array(), Json::object()}}};
}

Json schema_of(const FieldInfo& field) {
  Json schema = Json::object();
  std::string text = field.note;
  switch (field.status) {
    case FieldStatus::kHonoured:
      schema = field.required ? field.schema : nullable(field.schema);
      break;
    case FieldStatus::kRefused:
      schema = schema_of_nothing(field);
      text = "Refused: " + field.note;
      break;
    case FieldStatus::kIgnored:
      text = "Ignored with a warning: " + field.note;
      break;
  }
  if (!text.empty()) schema["description"] = text;
  return schema;
}

/// Puts a field "a.b.c" in its place within objects.
void insert_field(Json& object, std::string_view name, const FieldInfo& field, bool strict) {
  if (strict) object["additionalProperties"] = false;
  const size_t dot = name.find('.');
  Json& properties = object["properties"];
  if (properties.is_null()) properties = Json::object();
  const std::string first(name.substr(0, dot));
  if (dot == std::string_view::npos) {
    properties[first] = schema_of(field);
    if (field.required) object["required"].push_back(first);
    return;
  }
  Json& inner = properties[first];
  if (inner.is_null()) inner = {{"type", {"object", "null"}}};
  insert_field(inner, name.substr(dot + 1), field, strict);
}

Json body_schema(const Endpoint& endpoint, bool strict) {
  Json schema = types::object();
  for (const FieldInfo& field : endpoint.fields)
    insert_field(schema, field.name, field, strict);
  return schema;
}

// ---- errors ------------------------------------------------------------------------------------

void add_type(Json& types, const char* type) {
  if (std::ranges::find(types, Json(type)) == types.end()) types.push_back(type);
}

/// The form that examples have in common: every member of all of them, of the types that occur.
Json schema_of_examples(const std::vector<Json>& examples) {
  Json kinds = Json::array(), properties = Json::object();
  std::vector<std::string> names;
  for (const Json& example : examples) {
    if (example.is_null()) add_type(kinds, "null");
    if (example.is_boolean()) add_type(kinds, "boolean");
    if (example.is_number_integer()) add_type(kinds, "integer");
    if (example.is_string()) add_type(kinds, "string");
    if (!example.is_object()) continue;
    add_type(kinds, "object");
    for (const auto& [name, value] : example.items()) {
      if (std::ranges::find(names, name) == names.end()) names.push_back(name);
    }
  }
  Json schema = {{"type", kinds.size() == 1 ? kinds[0] : kinds}};
  if (names.empty()) return schema;
  for (const std::string& name : names) {
    std::vector<Json> values;
    for (const Json& example : examples)
      values.push_back(example.at(name));
    properties[name] = schema_of_examples(values);
  }
  schema["properties"] = std::move(properties);
  schema["required"] = names;
  return schema;
}

Json error_schema(const Dialect& dialect) {
  const RequestError with_field(ErrorKind::kNotFound, "message", "model");
  const RequestError without(ErrorKind::kInvalidArgument, "message");
  return schema_of_examples({dialect.error_body(with_field, 404), dialect.error_body(without, 400),
                             dialect.error_body(without, 401), dialect.error_body(without, 500)});
}

/// A dialect's name as part of another name: "llama_server" is "LlamaServer".
std::string camel_case(std::string_view name) {
  std::string out;
  bool begins = true;
  for (const char c : name) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool is_digit = c >= '0' && c <= '9';
    if (is_letter || is_digit) {
      out += begins && c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    }
    begins = !is_letter && !is_digit;
  }
  return out;
}

// ---- operations --------------------------------------------------------------------------------

class DocumentWriter {
 public:
  DocumentWriter(const std::vector<Endpoint>& endpoints, const OpenApiFacts& facts)
      : facts_(facts) {
    for (const Endpoint& endpoint : endpoints) {
      if (endpoint.header.empty())
        paths_[path_of(endpoint)][lower(endpoint.method)] = operation(endpoint);
    }
    for (const Endpoint& endpoint : endpoints) {
      if (!endpoint.header.empty())
        add_variant(paths_[path_of(endpoint)][lower(endpoint.method)], endpoint);
    }
  }

  Json document() && {
    Json security = {{"bearer", {{"type", "http"}, {"scheme", "bearer"}}},
                     {"api_key", {{"type", "apiKey"}, {"in", "header"}, {"name", "x-api-key"}}}};
    return {{"openapi", "3.1.0"},
            {"info",
             {{"title", "qianwen serve"},
              {"version", facts_.version},
              {"description",
               "Every address of this server with what is in force: a field that is not listed is "
               "named in the answer's warnings (with --strict it is an error). null is the same as "
               "a field's absence."}}},
            {"paths", std::move(paths_)},
            {"components",
             {{"schemas", std::move(schemas_)}, {"securitySchemes", std::move(security)}}}};
  }

 private:
  static std::string lower(std::string text) {
    for (char& c : text)
      c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return text;
  }
  /// OpenAPI has no names that stand for the rest of a path: "{name...}" is "{name}".
  static std::string path_of(const Endpoint& endpoint) {
    std::string path = endpoint.path;
    if (const size_t dots = path.find("...}"); dots != std::string::npos) path.erase(dots, 3);
    return path;
  }

  /// Another form of an answer, for who sends a header: OpenAPI has one operation for both.
  void add_variant(Json& operation, const Endpoint& endpoint) {
    Json& parameters = operation["parameters"];
    if (parameters.is_null()) parameters = Json::array();
    parameters.push_back({{"name", endpoint.header},
                          {"in", "header"},
                          {"description", "Given: the form of " + endpoint.dialect->name},
                          {"schema", types::string()}});
    for (const std::string& name : endpoint.notes.query)
      parameters.push_back({{"name", name}, {"in", "query"}, {"schema", types::string()}});
    operation["tags"].push_back(endpoint.dialect->name);
    const Json responses = responses_of(endpoint);
    for (auto& [status, response] : operation["responses"].items()) {
      if (!response.contains("content") || !responses.contains(status)) continue;
      Json& schema = response["content"][kJsonType]["schema"];
      schema = types::any_of({schema, responses[status]["content"][kJsonType]["schema"]});
    }
  }

  Json operation(const Endpoint& endpoint) {
    const std::string id = lower(endpoint.method) + camel_case(endpoint.path);
    Json out = {{"operationId", id},
                {"tags", {endpoint.dialect->name}},
                {"summary", endpoint.summary},
                {"security", security_of(endpoint)}};
    Json parameters = parameters_of(endpoint);
    if (!parameters.empty()) out["parameters"] = std::move(parameters);
    if (!endpoint.notes.body.is_null()) {
      Json media = {{"schema", endpoint.notes.body}, {"example", endpoint.notes.example}};
      out["requestBody"] = {{"required", true}, {"content", {{kJsonType, std::move(media)}}}};
    } else if (!endpoint.fields.empty()) {
      const std::string name = id + "Body";
      schemas_[name] = body_schema(endpoint, facts_.strict);
      Json media = {{"schema", ref(name)}};
      if (!endpoint.notes.example.is_null()) {
        Json& example = media["example"] = endpoint.notes.example;
        if (example.contains("model")) example["model"] = facts_.model;
      }
      out["requestBody"] = {{"required", true}, {"content", {{kJsonType, std::move(media)}}}};
    }
    out["responses"] = responses_of(endpoint);
    return out;
  }

  Json security_of(const Endpoint& endpoint) const {
    if (!endpoint.needs_key) return Json::array();
    Json either = Json::array({Json{{"bearer", Json::array()}}, Json{{"api_key", Json::array()}}});
    if (!facts_.keys_in_use) either.insert(either.begin(), Json::object());
    return either;
  }

  Json parameters_of(const Endpoint& endpoint) const {
    Json out = Json::array();
    if (const size_t open = endpoint.path.find('{'); open != std::string::npos) {
      std::string name = endpoint.path.substr(open + 1, endpoint.path.find('}') - open - 1);
      if (name.ends_with("...")) name.resize(name.size() - 3);
      Json parameter = {
          {"name", name}, {"in", "path"}, {"required", true}, {"schema", types::string()}};
      const std::string& example = endpoint.notes.path_example;
      if (name == "model" || !example.empty())
        parameter["example"] = example.empty() ? facts_.model : example;
      out.push_back(std::move(parameter));
    }
    for (const std::string& name : endpoint.notes.query)
      out.push_back({{"name", name}, {"in", "query"}, {"schema", types::string()}});
    if (endpoint.notes.generates) {
      out.push_back(
          {{"name", "x-request-timeout"},
           {"in", "header"},
           {"description", "Seconds that the answer may take, waiting included"},
           {"schema",
            {{"type", "number"}, {"exclusiveMinimum", 0}, {"maximum", kLongestTimeout}}}});
    }
    return out;
  }

  Json error(const Endpoint& endpoint, const char* what) {
    const std::string name = camel_case(endpoint.dialect->name) + "Error";
    if (!schemas_.contains(name)) schemas_[name] = error_schema(*endpoint.dialect);
    return {{"description", what}, {"content", {{kJsonType, {{"schema", ref(name)}}}}}};
  }

  static bool takes_model(const Endpoint& endpoint) {
    return std::ranges::any_of(endpoint.fields,
                               [](const FieldInfo& field) { return field.name == "model"; }) ||
           endpoint.path.find("{model") != std::string::npos;
  }

  static Json retry_after() {
    return {{"Retry-After",
             {{"description", "Seconds after which to try again"}, {"schema", types::integer(1)}}}};
  }

  Json responses_of(const Endpoint& endpoint) {
    const EndpointNotes& notes = endpoint.notes;
    Json out = Json::object();
    if (!notes.always_refused) {
      Json content = {{notes.answer_type, {{"schema", notes.answer}}}};
      if (!notes.stream_type.empty()) content[notes.stream_type] = {{"schema", types::string()}};
      out["200"] = {{"description", endpoint.summary}, {"content", std::move(content)}};
    }
    if (!endpoint.fields.empty() || !notes.body.is_null() || notes.always_refused)
      out["400"] = error(endpoint, "The request is not as it must be; the message says where");
    if (endpoint.needs_key)
      out["401"] = error(endpoint, "Keys are in use, and there is no valid one");
    if (takes_model(endpoint)) out["404"] = error(endpoint, "There is no such model");
    if (!endpoint.fields.empty()) {
      out["413"] = {{"description", "The body is too long; the connection is closed"}};
    }
    if (endpoint.needs_key) {
      out["429"] = error(endpoint, "Beyond the key's quota, or too many requests wait");
      out["429"]["headers"] = retry_after();
    }
    if (notes.generates) {
      out["503"] = error(endpoint, "The server ends, or lacks the memory to load the model");
      out["504"] = error(endpoint, "The answer was not there in time");
    }
    if (notes.may_be_unready) {
      out["503"] = error(endpoint, "The model is being loaded, or the server ends");
      out["503"]["headers"] = retry_after();
    }
    out["default"] = error(endpoint, "Any other error");
    return out;
  }

  OpenApiFacts facts_;
  Json paths_ = Json::object(), schemas_ = Json::object();
};

}  // namespace

Json openapi(const std::vector<Endpoint>& endpoints, const OpenApiFacts& facts) {
  return DocumentWriter(endpoints, facts).document();
}

}  // namespace qw::server
