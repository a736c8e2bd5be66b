#include "server/operation.h"

#include <map>

#include "server/call.h"
#include "server/openapi.h"
#include "server/service.h"
#include "server/shape.h"

namespace qw::server {

namespace {

Json plain_error(const Error& error, int status) {
  return {{"error", {{"code", status}, {"message", error.message()}}}};
}

const Dialect kOperation{"operation", plain_error};

/// Alive: the process answers, whatever it can serve.
void health(const std::shared_ptr<Call>& call) {
  call->respond({{"status", "ok"}});
}

/// Ready: requests are taken. A default model that was unloaded because nobody asked for it is
/// loaded by the next one who does: a probe must not keep that one away.
void ready(const std::shared_ptr<Call>& call) {
  if (call->services().draining) {
    throw RequestError(ErrorKind::kCancelled,
                       "[server] requests: expected to take new ones, got the server's end", "",
                       503);
  }
  const ModelHub::Listing model = call->services().hub->find("");
  if (!call->services().is_loaded) throw still_loading();
  call->respond({{"status", "ready"}, {"model", model.name}, {"loaded", model.loaded != nullptr}});
}

void version(const std::shared_ptr<Call>& call) {
  call->respond({{"version", call->services().options.version}});
}

Json field_json(const FieldInfo& field) {
  Json item = {{"name", field.name}, {"status", name_of(field.status)}};
  if (!field.note.empty()) item["note"] = field.note;
  return item;
}

/// Every address, and of every field what is done with it: what is in force, as it is.
void compat(const std::shared_ptr<Call>& call) {
  Json dialects = Json::object();
  for (const Endpoint& endpoint : call->services().endpoints) {
    Json fields = Json::array();
    std::vector<FieldInfo> members;
    for (const FieldInfo& field : endpoint.fields) {
      fields.push_back(field_json(field));
      for (FieldInfo& info : members_of(field))
        members.push_back(std::move(info));
    }
    for (const FieldInfo& info : members)
      fields.push_back(field_json(info));
    dialects[endpoint.dialect->name].push_back({{"method", endpoint.method},
                                                {"path", endpoint.path},
                                                {"summary", endpoint.summary},
                                                {"fields", std::move(fields)}});
  }
  call->respond({{"version", call->services().options.version},
                 {"strict", call->services().options.strict},
                 {"dialects", std::move(dialects)}});
}

void document(const std::shared_ptr<Call>& call) {
  const Services& services = call->services();
  call->respond(openapi(services.endpoints, {services.options.version, services.hub->find("").name,
                                             services.options.strict, services.keys.in_use()}));
}

void metrics(const std::shared_ptr<Call>& call) {
  call->post([call] {  // connections are counted on the server's thread
    Services& services = call->services();
    http::Response response;
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = services.metrics.text(*services.hub, services.http->n_connections());
    call->respond(std::move(response));
  });
}

}  // namespace

std::vector<Endpoint> operation_endpoints() {
  std::vector<Endpoint> all = {
      {"GET", "/health", &kOperation, "Whether the process answers", health, {}, false},
      {"GET",
       "/ready",
       &kOperation,
       "Whether new requests are taken",
       ready,
       {},
       false,
       {.may_be_unready = true}},
      {"GET", "/v1/health", &kOperation, "The same as /health", health, {}, false},
      {"GET", "/ping", &kOperation, "The same as /health", health, {}, false},
      {"GET", "/version", &kOperation, "The program's version", version, {}, false},
      {"GET",
       "/metrics",
       &kOperation,
       "Prometheus' metrics",
       metrics,
       {},
       false,
       {.answer = types::string(), .answer_type = "text/plain"}},
      {"GET",
       "/compat",
       &kOperation,
       "What is done with every field of every address",
       compat,
       {},
       false,
       {.answer = types::object({"version", "strict", "dialects"})}},
      {"GET",
       "/openapi.json",
       &kOperation,
       "The same as an OpenAPI document",
       document,
       {},
       false,
       {.answer = types::object({"openapi", "info", "paths", "components"})}},
  };
  for (Endpoint& endpoint : all)
    endpoint.at_once = endpoint.path != "/compat" && endpoint.path != "/openapi.json";
  return all;
}

}  // namespace qw::server
