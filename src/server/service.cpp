#include "server/service.h"

#include <algorithm>
#include <future>

#include "base/heap.h"
#include "base/log.h"
#include "server/anthropic/anthropic.h"
#include "server/call.h"
#include "server/llama_server/llama_server.h"
#include "server/ollama/ollama.h"
#include "server/openai/openai.h"
#include "server/operation.h"
#include "server/sglang/sglang.h"
#include "server/tokens.h"
#include "server/web/web.h"

namespace qw::server {

Services::Services(ServiceOptions given) : options(std::move(given)) {
  if (!options.key_file.empty()) keys = KeyRing::read(options.key_file);
}

std::vector<Endpoint> all_endpoints(bool web_page) {
  std::vector<Endpoint> all;
  for (auto make : {operation_endpoints, anthropic::endpoints, openai::endpoints, token_endpoints,
                    ollama::endpoints, llama_server::endpoints, sglang::endpoints}) {
    for (Endpoint& endpoint : make())
      all.push_back(std::move(endpoint));
  }
  if (!web_page) {
    all.push_back(web::root_without_page());
    return all;
  }
  for (Endpoint& endpoint : web::endpoints())
    all.push_back(std::move(endpoint));
  return all;
}

Service::Service(ServiceOptions options) : services_(std::move(options)) {
  services_.endpoints = all_endpoints(services_.options.web_page);
  services_.http = std::make_unique<http::Server>(
      services_.options.http,
      [this](const std::shared_ptr<http::Exchange>& exchange) { route(exchange); },
      [this](const http::Request& request) { return check_head(request); },
      [this](const http::Request& request, int status, const std::string& why) {
        return refusal(request, RequestError(ErrorKind::kInvalidArgument, why, "", status));
      });
  services_.workers = std::make_unique<Workers>(services_.options.n_workers);
  services_.file_worker = std::make_unique<Workers>(1);
  services_.compilers = std::make_unique<Workers>(kCompilers);
  services_.hub = std::make_unique<ModelHub>(
      services_.options.models,
      [this](std::function<void()> task) { services_.post(std::move(task)); });
  services_.http->every(std::chrono::milliseconds(200), [this] { tick(); });
}

// Whoever may still post to the HTTP server ends before it.
Service::~Service() {
  for (Workers* workers : {&*services_.workers, &*services_.file_worker, &*services_.compilers})
    workers->stop();
  services_.hub.reset();
}

uint16_t Service::port() const {
  return services_.http->port();
}

bool Service::load_default() {
  constexpr std::chrono::milliseconds kLook(50);
  std::vector<std::string> names = {""};
  for (const LoraModule& module : services_.options.models.front().lora_modules)
    names.push_back(module.name);
  for (const std::string& name : names) {
    if (is_stop_asked()) return false;
    std::promise<void> loaded;
    services_.hub->with_model(
        name, [&loaded](const auto&) { loaded.set_value(); },
        [&loaded](const Error& error) {
          loaded.set_exception(std::make_exception_ptr(Error(error.kind(), error.message())));
        });
    std::future<void> done = loaded.get_future();
    while (done.wait_for(kLook) != std::future_status::ready) {
      if (is_stop_asked()) services_.hub->stop_loading();
    }
    if (is_stop_asked()) return false;
    done.get();
  }
  services_.is_loaded = true;
  services_.hub->log_failures();  // of what is loaded later; those here are the caller's
  return true;
}

bool Service::is_stop_asked() const {
  const CancelFlag* stop_asked = services_.options.stop_asked;
  return stop_asked != nullptr && stop_asked->cancelled();
}

void Service::run() {
  services_.http->run();
}

void Service::stop() {
  services_.http->stop();
}

void Service::drain() {
  services_.http->drain();
  services_.post([this] {
    if (services_.draining.exchange(true)) return;
    drain_end_ = std::chrono::steady_clock::now() + services_.options.drain_timeout;
    logger().info("[server] drain: {} answers under way have {} s to end", services_.calls.size(),
                  services_.options.drain_timeout.count());
  });
}

void Service::tick() {
  services_.workers->post([this] { services_.hub->unload_idle(); });
  auto& deadlines = services_.deadlines;
  while (!deadlines.empty() && deadlines.begin()->first <= std::chrono::steady_clock::now()) {
    if (const auto call = deadlines.begin()->second.lock()) {
      call->expire();
    } else {
      deadlines.erase(deadlines.begin());
    }
  }
  ping();
  if (services_.calls.empty() && services_.heap_is_stretched.exchange(false))
    services_.workers->post(give_back_freed_memory);
  if (!services_.draining && is_stop_asked()) drain();
  if (!services_.draining) return;
  const size_t n_open = services_.http->n_connections();
  if (n_open > 0 && std::chrono::steady_clock::now() < drain_end_) return;
  // Those that only wait for their client to close have got all that they wanted.
  const size_t n_busy = services_.http->n_busy();
  if (n_busy > 0 && !std::exchange(cut_, true)) return cut_answers(n_busy);
  services_.http->stop();
}

void Service::ping() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::shared_ptr<Call>> calls;  // held: writing may find that a client has gone
  for (Call* call : services_.calls)
    if (call->streaming()) calls.push_back(call->shared_from_this());
  for (const std::shared_ptr<Call>& call : calls)
    call->ping_if_silent(now);
}

/// Ends what is under way with an error that its clients can read, and leaves them time for that.
void Service::cut_answers(size_t n_open) {
  constexpr std::chrono::seconds kForReading(1);
  logger().warn("[server] drain: expected {} answers to end in time, cut them", n_open);
  drain_end_ += kForReading;
  std::vector<std::shared_ptr<Call>> calls;
  for (Call* call : services_.calls)
    calls.push_back(call->shared_from_this());
  for (const std::shared_ptr<Call>& call : calls) {
    call->cut(RequestError(ErrorKind::kCancelled,
                           "[server] drain: expected the answer before the server's end, got none "
                           "in time",
                           "", 503));
  }
}

// ---- routing -----------------------------------------------------------------------------------

namespace {

RequestError foreign_origin() {
  return {ErrorKind::kInvalidArgument,
          "[access] origin: expected this server's own page or one that --cors-origin names, and a "
          "host name that --allowed-host names, got another",
          "", 403};
}

}  // namespace

void Service::check_origin(const http::Request& request) const {
  if (!services_.options.origins.allows(request)) throw foreign_origin();
}

void Service::check_encoding(const http::Request& request) {
  const std::string* encoding = request.header("content-encoding");
  if (encoding == nullptr || http::equal_ignoring_case(*encoding, "identity")) return;
  throw RequestError(
      ErrorKind::kUnsupported,
      fmt::format("[request] Content-Encoding: expected none, got {}", printable(*encoding)), "",
      415);
}

const Endpoint& Service::find_endpoint(const http::Request& request,
                                       PathParameters& parameters) const {
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  bool path_known = false;
  for (const Endpoint& endpoint : services_.endpoints) {
    if (!match_path(endpoint.path, request.path, parameters)) continue;
    path_known = true;
    if (endpoint.method != method) continue;
    const bool has_header = !endpoint.header.empty() && request.header(endpoint.header) != nullptr;
    if (endpoint.header.empty() || has_header) return endpoint;
  }
  if (path_known) {
    throw RequestError(ErrorKind::kInvalidArgument,
                       fmt::format("[request] method: expected another one than {} for {}",
                                   printable(request.method), printable(request.path)),
                       "", 405);
  }
  throw RequestError(ErrorKind::kNotFound,
                     fmt::format("[request] address: expected one that /compat lists, got {} {}",
                                 printable(request.method), printable(request.path)));
}

Client Service::identify(const http::Request& request, const Endpoint& endpoint) const {
  if (endpoint.needs_admin && OriginPolicy::is_from_elsewhere(request)) throw foreign_origin();
  if (!endpoint.needs_key) return {};
  Client client = services_.keys.identify(request);
  if (!endpoint.needs_admin || client.is_admin) return client;
  throw RequestError(ErrorKind::kInvalidArgument,
                     fmt::format("[access] key: expected one with \"admin\": true for {} {}, which "
                                 "changes what others get, got '{}'",
                                 endpoint.method, endpoint.path, printable(client.name)),
                     "", 403);
}

std::optional<http::Response> Service::check_head(const http::Request& request) {
  try {
    check_origin(request);
    PathParameters parameters;
    identify(request, find_endpoint(request, parameters));
    check_encoding(request);
    return std::nullopt;
  } catch (const RequestError& error) {
    return refusal(request, error);
  }
}

void Service::take_request(const Client& client) {
  try {
    services_.keys.take_request(client, KeyRing::Clock::now());
  } catch (const RequestError&) {
    services_.metrics.refused_by_quota(client.name);
    throw;
  }
}

void Service::route(const std::shared_ptr<http::Exchange>& exchange) {
  const http::Request& request = exchange->request();
  try {
    check_origin(request);
    if (answer_preflight(exchange)) return;
    PathParameters parameters;
    const Endpoint& endpoint = find_endpoint(request, parameters);
    Client client = identify(request, endpoint);
    check_encoding(request);
    if (endpoint.needs_key) take_request(client);
    dispatch(exchange, endpoint, std::move(parameters), std::move(client));
  } catch (const RequestError& error) {
    exchange->respond(refusal(request, error));
  }
}

/// Errors are written as the address's others are, whatever the method; those of an address that
/// nobody has as its neighbours', where "/v1" is OpenAI's first of all.
const Dialect& Service::dialect_of(const http::Request& request) const {
  const std::string& path = request.path;
  PathParameters ignored;
  for (const Endpoint& endpoint : services_.endpoints) {
    if (!match_path(endpoint.path, path, ignored)) continue;
    if (endpoint.header.empty() || request.header(endpoint.header) != nullptr)
      return *endpoint.dialect;
  }
  const std::string_view first = std::string_view(path).substr(0, path.find('/', 1));
  for (const Endpoint& endpoint : services_.endpoints) {
    if (!endpoint.path.starts_with(first)) continue;
    if (first != "/v1" || endpoint.dialect->name == "openai") return *endpoint.dialect;
  }
  return *services_.endpoints.front().dialect;
}

std::string Service::allowed_methods(const std::string& path) const {
  std::string list;
  PathParameters ignored;
  for (const Endpoint& endpoint : services_.endpoints) {
    if (!match_path(endpoint.path, path, ignored)) continue;
    const std::string method = endpoint.method == "GET" ? "GET, HEAD" : endpoint.method;
    if (list.find(method) == std::string::npos) list += method + ", ";
  }
  return list + "OPTIONS";
}

http::Response Service::refusal(const http::Request& request, const Error& error) {
  const Dialect& dialect = dialect_of(request);
  http::Response response;
  response.status = http_status(error);
  response.body = dialect.error_body(error, response.status).dump();
  // A page that is refused is not told that it may read why.
  if (services_.options.origins.allows(request))
    response.headers = services_.options.origins.headers(request);
  if (response.status == 405) response.headers.push_back({"Allow", allowed_methods(request.path)});
  if (response.status == 401)
    response.headers.push_back({"WWW-Authenticate", R"(Bearer realm="qianwen")"});
  add_retry_after(response, error);
  log_refusal(services_, request, response);
  return response;
}

bool Service::answer_preflight(const std::shared_ptr<http::Exchange>& exchange) const {
  if (exchange->request().method != "OPTIONS") return false;
  http::Response response;
  response.status = 204;
  response.content_type.clear();
  response.headers = services_.options.origins.headers(exchange->request());
  response.headers.push_back({"Allow", allowed_methods(exchange->request().path)});
  exchange->respond(std::move(response));
  return true;
}

void Service::dispatch(std::shared_ptr<http::Exchange> exchange, const Endpoint& endpoint,
                       PathParameters parameters, Client client) {
  auto call = std::make_shared<Call>(services_, std::move(exchange), endpoint,
                                     std::move(parameters), std::move(client));
  call->watch();
  try {
    call->check_query();
  } catch (const Error& error) {
    return call->fail(error);
  }
  const auto handle = [call] { guarded(call, [&call] { call->endpoint().handle(call); }); };
  if (endpoint.at_once) return handle();
  try {
    call->limit_time_by_header();  // from now on: it may wait for a worker
  } catch (const Error& error) {
    return call->fail(error);
  }
  services_.workers->post([call, handle] {
    if (!call->cancel_flag().cancelled()) handle();
  });
}

}  // namespace qw::server
