#include "server/generation/grammar_fields.h"

#include "server/shape.h"

namespace qw::server {

void set_grammar(GenerationTask& task, const std::string& field, GrammarSource source) {
  if (task.grammar)
    refuse_field(field, "expected one constraint, got {} as well", task.grammar_field);
  task.grammar = std::move(source);
  task.grammar_field = field;
}

std::string to_schema(const std::string& field, const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_object() && !value.is_boolean())
    refuse_field(field, "expected a JSON schema, got {}", shown(value));
  return value.dump();
}

Json response_format_schema() {
  const auto of_type = [](const char* name) {
    Json out = types::object();
    out["required"] = {"type"};
    out["properties"]["type"] = {{"const", name}};
    return out;
  };
  Json with_schema = of_type("json_schema");
  with_schema["required"].push_back("json_schema");
  Json& inner = with_schema["properties"]["json_schema"] = types::object();
  inner["required"] = {"schema"};
  inner["properties"]["schema"] = types::json_schema();
  return types::any_of({of_type("text"), of_type("json_object"), std::move(with_schema)});
}

ShapePtr response_format_shape() {
  static const ShapePtr made = [] {
    // Every format is held to its schema, so `strict` says nothing new; a name is a label.
    const ShapePtr format =
        object_of({member("name"), member("schema"), member("strict"),
                   ignored_member("description", "the model is told nothing of its format")});
    Shape shape;
    shape.members = {member("type")};
    shape.tag = "type";
    shape.kinds = {{"json_schema", {member("json_schema", format)}}};
    return std::make_shared<const Shape>(std::move(shape));
  }();
  return made;
}

void read_response_format(const std::string& field, const Json& value, GenerationTask& task) {
  const Json type = to_object(field, value).value("type", Json());
  if (type == "text") return;
  if (type == "json_object") {
    GrammarSource source;
    source.kind = GrammarSource::Kind::kJsonObject;
    return set_grammar(task, field, std::move(source));
  }
  if (type != "json_schema")
    refuse_field(field, "expected type text, json_object or json_schema, got {}", shown(type));
  const Json schema = value.value("json_schema", Json());
  if (!schema.is_object() || !schema.contains("schema"))
    refuse_field(field, "expected json_schema with a schema, got {}", shown(value));
  set_grammar(task, field, {GrammarSource::Kind::kJsonSchema, to_schema(field, schema["schema"])});
}

}  // namespace qw::server
