// /openapi.json: a sound document, and true: of every address what it says holds over HTTP.
#include "server/openapi.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::HttpAnswer;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

/// Whether a value is an instance of a schema, as far as the document's schemas go.
class Validator {
 public:
  explicit Validator(const Json& document) : document_(document) {}

  bool accepts(const Json& schema, const Json& value) const {
    if (schema.contains("$ref")) return accepts(resolve(schema["$ref"]), value);
    if (schema.contains("anyOf")) {
      const Json& any = schema["anyOf"];
      if (std::ranges::none_of(any, [&](const Json& one) { return accepts(one, value); }))
        return false;
    }
    if (schema.contains("const") && schema["const"] != value) return false;
    if (schema.contains("enum")) {
      const Json& values = schema["enum"];
      if (std::ranges::find(values, value) == values.end()) return false;
    }
    return has_type(schema, value) && is_in_range(schema, value) && parts_fit(schema, value);
  }
  /// Null where there is nothing at that place.
  Json resolve(const std::string& ref) const {
    const std::string start = "#";
    if (!ref.starts_with(start)) return nullptr;
    const Json::json_pointer pointer(ref.substr(1));
    return document_.contains(pointer) ? document_[pointer] : Json();
  }

 private:
  static bool is_a(const std::string& type, const Json& value) {
    if (type == "null") return value.is_null();
    if (type == "boolean") return value.is_boolean();
    if (type == "string") return value.is_string();
    if (type == "number") return value.is_number();
    if (type == "array") return value.is_array();
    if (type == "object") return value.is_object();
    if (value.is_number_float()) return value.get<double>() == std::floor(value.get<double>());
    return type == "integer" && value.is_number_integer();
  }
  static bool has_type(const Json& schema, const Json& value) {
    if (!schema.contains("type")) return true;
    if (schema["type"].is_string()) return is_a(schema["type"], value);
    return std::ranges::any_of(schema["type"], [&](const Json& type) { return is_a(type, value); });
  }
  static bool is_in_range(const Json& schema, const Json& value) {
    if (!value.is_number()) return true;
    const double number = value.get<double>();
    return number >= schema.value("minimum", -1e300) && number <= schema.value("maximum", 1e300) &&
           number > schema.value("exclusiveMinimum", -1e301);
  }
  bool parts_fit(const Json& schema, const Json& value) const {
    if (value.is_string())
      return value.get_ref<const std::string&>().size() >= schema.value("minLength", size_t{0});
    if (value.is_array()) {
      if (value.size() < schema.value("minItems", size_t{0})) return false;
      if (value.size() > schema.value("maxItems", size_t{1} << 30)) return false;
      if (!schema.contains("items")) return true;
      return std::ranges::all_of(value,
                                 [&](const Json& item) { return accepts(schema["items"], item); });
    }
    if (!value.is_object()) return true;
    for (const Json& name : schema.value("required", Json::array())) {
      if (!value.contains(name.get<std::string>())) return false;
    }
    const Json properties = schema.value("properties", Json::object());
    for (const auto& [name, part] : properties.items()) {
      if (value.contains(name) && !accepts(part, value[name])) return false;
    }
    return true;
  }

  const Json& document_;
};

struct Operation {
  std::string method, path;
  const Json* json;
};

class OpenApi : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    running_ = new RunningService;
    document_ = new Json(running_->get("/openapi.json"));
  }
  static void TearDownTestSuite() {
    delete running_;
    delete document_;
    running_ = nullptr;
    document_ = nullptr;
  }
  static std::vector<Operation> operations() {
    std::vector<Operation> out;
    for (const auto& [path, methods] : (*document_)["paths"].items()) {
      for (const auto& [method, operation] : methods.items())
        out.push_back({method, path, &operation});
    }
    return out;
  }
  static const Json* body_of(const Operation& operation) {
    if (!operation.json->contains("requestBody")) return nullptr;
    return &(*operation.json)["requestBody"]["content"]["application/json"];
  }
  /// Whether its example is for another server than this one.
  static bool needs_setup(const Operation& operation) {
    const std::vector<Endpoint> all = all_endpoints(/*web_page=*/true);
    return std::ranges::any_of(all, [&](const Endpoint& endpoint) {
      return endpoint.path == operation.path && endpoint.notes.needs_setup;
    });
  }
  /// Whether it takes an object of fields.
  static bool has_fields(const Operation& operation) {
    const Json* media = body_of(operation);
    return media != nullptr && (*media)["schema"].contains("$ref");
  }
  /// The address with the examples of its parameters.
  static std::string target_of(const Operation& operation) {
    std::string target = operation.path;
    for (const Json& parameter : operation.json->value("parameters", Json::array())) {
      if (parameter["in"] != "path") continue;
      const std::string name = "{" + parameter["name"].get<std::string>() + "}";
      target.replace(target.find(name), name.size(), parameter.value("example", "x"));
    }
    return target;
  }
  static HttpAnswer ask(HttpClient& client, const Operation& operation, const Json& body) {
    std::string method = operation.method;
    for (char& c : method)
      c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    std::string text =
        HttpClient::post_text(target_of(operation), body.is_null() ? "" : body.dump());
    client.send(text.replace(0, 4, method));
    return client.read();
  }

  static RunningService* running_;
  static Json* document_;
};
RunningService* OpenApi::running_ = nullptr;
Json* OpenApi::document_ = nullptr;

void find_refs(const Json& json, std::vector<std::string>& refs) {
  if (json.is_object() && json.contains("$ref")) refs.push_back(json["$ref"]);
  if (!json.is_structured()) return;
  for (const Json& part : json)
    find_refs(part, refs);
}

TEST_F(OpenApi, KeepsTheRulesOfOpenApi) {
  const Json& document = *document_;
  EXPECT_EQ(document["openapi"], "3.1.0");
  EXPECT_EQ(document["info"]["version"], "test");
  std::vector<std::string> refs;
  find_refs(document, refs);
  EXPECT_GT(refs.size(), 100u);
  for (const std::string& ref : refs)
    EXPECT_TRUE(Validator(document).resolve(ref).is_object()) << ref;
  std::set<std::string> ids;
  for (const Operation& operation : operations()) {
    SCOPED_TRACE(operation.method + " " + operation.path);
    const Json& json = *operation.json;
    EXPECT_TRUE(ids.insert(json["operationId"]).second) << json["operationId"];
    EXPECT_FALSE(json["summary"].get<std::string>().empty());
    ASSERT_FALSE(json["responses"].empty());
    for (const auto& [status, response] : json["responses"].items())
      EXPECT_TRUE(response.contains("description")) << status;
    for (const Json& way : json["security"]) {
      for (const auto& [name, scopes] : way.items())
        EXPECT_TRUE(document["components"]["securitySchemes"].contains(name)) << name;
    }
    size_t n_braces = 0;
    for (const Json& parameter : json.value("parameters", Json::array())) {
      if (parameter["in"] != "path") continue;
      ++n_braces;
      EXPECT_EQ(parameter["required"], true);
      EXPECT_THAT(operation.path,
                  HasSubstr(fmt::format("{{{}}}", parameter["name"].get<std::string>())));
    }
    EXPECT_EQ(std::ranges::count(operation.path, '{'), static_cast<ptrdiff_t>(n_braces));
    EXPECT_EQ(operation.path.find("..."), std::string::npos);
  }
}

TEST_F(OpenApi, ListsWhatTheRouterKnows) {
  std::set<std::string> routed, listed;
  for (const Endpoint& endpoint : all_endpoints(/*web_page=*/true)) {
    std::string path = endpoint.path;
    if (const size_t dots = path.find("..."); dots != std::string::npos) path.erase(dots, 3);
    routed.insert(endpoint.method + " " + path);
  }
  for (const Operation& operation : operations()) {
    std::string method = operation.method;
    std::ranges::transform(method, method.begin(), [](char c) {
      return static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    });
    listed.insert(method + " " + operation.path);
  }
  EXPECT_EQ(routed, listed);
}

TEST_F(OpenApi, EveryHonouredFieldSaysWhatItTakes) {
  for (const Endpoint& endpoint : all_endpoints(/*web_page=*/true)) {
    for (const FieldInfo& field : endpoint.fields) {
      const bool is_honoured = field.status == FieldStatus::kHonoured;
      EXPECT_EQ(field.schema.is_object(), is_honoured) << endpoint.path << " " << field.name;
    }
    const bool has_body = !endpoint.fields.empty() || !endpoint.notes.body.is_null();
    EXPECT_NE(has_body, endpoint.notes.example.is_null()) << endpoint.path;
  }
}

TEST_F(OpenApi, EveryExampleIsAnsweredAsTheDocumentSays) {
  const Validator validator(*document_);
  for (const Operation& operation : operations()) {
    SCOPED_TRACE(operation.method + " " + operation.path);
    const Json* media = body_of(operation);
    Json example;
    if (media != nullptr) {
      example = (*media)["example"];
      EXPECT_TRUE(validator.accepts((*media)["schema"], example)) << example;
    }
    HttpClient client = running_->client();
    const HttpAnswer answer = ask(client, operation, example);
    const Json& responses = (*operation.json)["responses"];
    ASSERT_TRUE(responses.contains(responses.contains("200") ? "200" : "400"));
    if (needs_setup(operation)) {
      EXPECT_GE(answer.status, 400);
      continue;
    }
    ASSERT_EQ(answer.status, responses.contains("200") ? 200 : 400) << answer.body;
    const Json& content = responses[std::to_string(answer.status)]["content"];
    if (!content.contains("application/json")) continue;
    EXPECT_TRUE(validator.accepts(content["application/json"]["schema"], Json::parse(answer.body)))
        << answer.body;
  }
}

/// Values of every type, and those just beyond the bounds that the schema names.
void add_candidates(const Json& schema, std::vector<Json>& out) {
  if (schema.contains("minimum")) out.push_back(schema["minimum"].get<double>() - 1);
  if (schema.contains("maximum")) out.push_back(schema["maximum"].get<double>() + 1);
  if (schema.contains("exclusiveMinimum")) out.push_back(schema["exclusiveMinimum"]);
  for (const Json& one : schema.value("anyOf", Json::array()))
    add_candidates(one, out);
}

struct Leaf {
  Json::json_pointer place;
  const Json* schema;
};
void find_leaves(const Json& object, const Json::json_pointer& place, std::vector<Leaf>& out) {
  for (const auto& [name, schema] : object["properties"].items()) {
    const bool is_inner = schema.contains("properties") && !schema.contains("description");
    if (is_inner && schema.value("type", Json()).is_array()) {
      find_leaves(schema, place / name, out);
    } else {
      out.push_back({place / name, &schema});
    }
  }
}

// What the document excludes is refused, with the field's name; so its types and ranges are those
// of the code that reads them.
TEST_F(OpenApi, WhatTheDocumentExcludesIsRefused) {
  const Validator validator(*document_);
  size_t n_refused = 0;
  for (const Operation& operation : operations()) {
    const Json* media = body_of(operation);
    if (!has_fields(operation)) continue;
    const Json schema = validator.resolve((*media)["schema"]["$ref"]);
    std::vector<Leaf> leaves;
    find_leaves(schema, Json::json_pointer(), leaves);
    HttpClient client = running_->client();
    for (const Leaf& leaf : leaves) {
      std::vector<Json> candidates = {true, "~", 0.37, -3, Json::array(), {true}, Json::object()};
      add_candidates(*leaf.schema, candidates);
      for (const Json& candidate : candidates) {
        if (validator.accepts(*leaf.schema, candidate)) continue;
        Json body = (*media)["example"];
        body[leaf.place] = candidate;
        const HttpAnswer answer = ask(client, operation, body);
        EXPECT_EQ(answer.status, 400) << operation.path << " " << leaf.place.to_string() << " "
                                      << candidate << ": " << answer.body.substr(0, 200);
        ++n_refused;
      }
    }
    for (const Json& name : schema.value("required", Json::array())) {
      Json body = (*media)["example"];
      body.erase(name.get<std::string>());
      EXPECT_EQ(ask(client, operation, body).status, 400) << operation.path << " " << name;
    }
  }
  EXPECT_GT(n_refused, 1000u);
}

TEST_F(OpenApi, ErrorsHaveTheFormThatTheDocumentSays) {
  const Validator validator(*document_);
  for (const Operation& operation : operations()) {
    if (!has_fields(operation)) continue;
    HttpClient client = running_->client();
    const HttpAnswer answer = ask(client, operation, Json::array());
    EXPECT_EQ(answer.status, 400) << operation.path;
    const Json& content = (*operation.json)["responses"]["400"]["content"];
    EXPECT_TRUE(validator.accepts(content["application/json"]["schema"], Json::parse(answer.body)))
        << operation.path << ": " << answer.body;
  }
}

TEST(OpenApiFacts, FollowTheOptions) {
  const std::vector<Endpoint> endpoints = all_endpoints(/*web_page=*/false);
  const Json open = openapi(endpoints, {"1", "m", false, false});
  const Json strict = openapi(endpoints, {"1", "m", true, true});
  const auto chat = [](const Json& document) {
    return document["components"]["schemas"]["postV1ChatCompletionsBody"];
  };
  EXPECT_FALSE(chat(open).contains("additionalProperties"));
  EXPECT_EQ(chat(strict)["additionalProperties"], false);
  EXPECT_EQ(open["paths"]["/v1/models"]["get"]["security"].size(), 3u);  // one of them: none
  EXPECT_EQ(strict["paths"]["/v1/models"]["get"]["security"].size(), 2u);
  EXPECT_TRUE(strict["paths"]["/health"]["get"]["security"].empty());
  EXPECT_EQ(chat(open)["properties"]["top_p"]["maximum"], 1.0);
  EXPECT_EQ(chat(open)["required"], Json::array({"messages"}));
}

}  // namespace
}  // namespace qw::server
