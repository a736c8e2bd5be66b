#include "server/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <random>
#include <utility>

#include "base/guarded_json.h"
#include "base/log.h"
#include "base/repeated_keys.h"
#include "engine/current_error.h"
#include "server/service.h"

namespace qw::server {

namespace {

/// 128 random bits. Not a secret, but nobody's to guess.
std::string random_id() {
  thread_local std::random_device device;
  std::string out;
  for (int i = 0; i < 4; ++i)
    out += fmt::format("{:08x}", device());
  return out;
}

/// Warnings that an answer lists, and bytes of them in a header: clients have limits of their own.
constexpr size_t kMaxWarnings = 32, kMaxHeaderBytes = 2000;

std::string and_more(size_t n) {
  return fmt::format("and {} more", n);
}

/// A JSON list of sentences, in ASCII.
std::string warnings_header(const std::vector<std::string>& warnings) {
  const auto text_of = [](const Json& json) {
    return json.dump(-1, ' ', true, Json::error_handler_t::replace);
  };
  Json list = Json::array();
  size_t n_bytes = 0;
  for (const std::string& warning : warnings) {
    n_bytes += text_of(warning).size() + 1;
    if (n_bytes > kMaxHeaderBytes) {
      list.push_back(and_more(warnings.size() - list.size()));
      break;
    }
    list.push_back(warning);
  }
  return text_of(list);
}

}  // namespace

Call::Call(Services& services, std::shared_ptr<http::Exchange> exchange, const Endpoint& endpoint,
           PathParameters parameters, Client client)
    : services_(services),
      exchange_(std::move(exchange)),
      endpoint_(endpoint),
      parameters_(std::move(parameters)),
      id_(random_id()),
      created_(static_cast<int64_t>(std::time(nullptr))),
      client_(std::move(client)),
      started_(std::chrono::steady_clock::now()) {}

void Call::watch() {
  services_.calls.insert(this);
  exchange_->on_done([self = shared_from_this()] {
    self->services_.calls.erase(self.get());
    self->done_ = true;
    self->cancel_.cancel();
    // What is made of a body, and an answer while it is made, takes a multiple of its size.
    constexpr size_t kLarge = size_t{1} << 20;
    if (self->request().body.size() + self->exchange_->body_bytes() > kLarge)
      self->services_.heap_is_stretched = true;
    self->forget_deadline();
    self->log();
  });
}

// ---- deadlines ---------------------------------------------------------------------------------

void Call::limit_time(double seconds) {
  const auto limit = std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
  post([self = shared_from_this(), seconds, limit] {
    if (self->done_ || self->expired_) return;
    if (self->time_s_ != 0 && self->time_s_ <= seconds) return;
    self->forget_deadline();
    self->time_s_ = seconds;
    self->deadline_ = self->services_.deadlines.emplace(self->started_ + limit, self);
  });
}

void Call::limit_time_by_header() {
  if (const auto timeout = services_.options.request_timeout)
    limit_time(static_cast<double>(timeout->count()));
  const std::string* text = request().header("x-request-timeout");
  if (text == nullptr) return;
  double seconds = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, seconds);
  if (error != std::errc{} || stop != end || !(seconds > 0 && seconds <= kLongestTimeout)) {
    refuse_field("x-request-timeout", "expected seconds above 0 and up to {}, got '{}'",
                 kLongestTimeout, printable(*text));
  }
  limit_time(seconds);
}

void Call::forget_deadline() {
  if (deadline_) services_.deadlines.erase(*deadline_);
  deadline_.reset();
}

void Call::expire() {
  cut(RequestError(ErrorKind::kCancelled,
                   fmt::format("[server] time: expected the answer within {} s, got none", time_s_),
                   "", 504));
}

void Call::cut(const Error& error) {
  forget_deadline();
  if (exchange_->closed() || expired_.exchange(true)) return;
  on_expire_ ? on_expire_(error) : fail(error);
  cancel_.cancel();  // what ends by it fails, too: after the error that tells why
}

void add_retry_after(http::Response& response, const Error& error) {
  if (response.status != 429 && response.status != 503) return;
  const auto* own = dynamic_cast<const RequestError*>(&error);
  const int64_t seconds = own == nullptr ? 1 : own->retry_after_s();
  response.headers.push_back({"Retry-After", std::to_string(seconds)});
}

void Call::note_tokens(int64_t n_prompt, int64_t n_generated) {
  n_prompt_tokens_ += n_prompt;
  n_generated_tokens_ += n_generated;
  services_.keys.take_tokens(client_, n_prompt + n_generated, std::chrono::steady_clock::now());
}

/// One line of JSON for each answer; nothing of what was said.
void Call::log() const {
  const auto elapsed = std::chrono::steady_clock::now() - started_;
  const double seconds = std::chrono::duration<double>(elapsed).count();
  // 499, as others write it: the client has gone before its answer.
  const int status = exchange_->closed() ? 499 : exchange_->status();
  services_.metrics.http_answer(endpoint_.method, endpoint_.path, status, seconds);
  {
    const std::lock_guard lock(warnings_mutex_);
    if (n_warnings_ > 0) services_.metrics.ignored_fields(endpoint_.path, n_warnings_);
  }
  if (!services_.options.access_log) return;
  Json line = {{"time", created_},
               {"id", id_},
               {"peer", request().peer},
               {"method", request().method},
               {"path", request().path},
               {"status", status},
               {"bytes", exchange_->body_bytes()},
               {"seconds", seconds}};
  if (!client_.name.empty()) line["key"] = client_.name;
  if (n_prompt_tokens_ + n_generated_tokens_ > 0) {
    line["prompt_tokens"] = n_prompt_tokens_;
    line["generated_tokens"] = n_generated_tokens_;
  }
  logger().info("access {}", line.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void log_refusal(Services& services, const http::Request& request, http::Response& response) {
  const std::string id = random_id();
  response.headers.push_back({"X-Request-Id", id});
  // Neither method nor path is one of ours: as labels they would be what clients make them.
  services.metrics.http_answer("-", "-", response.status, 0);
  if (!services.options.access_log) return;
  const Json line = {{"time", static_cast<int64_t>(std::time(nullptr))},
                     {"id", id},
                     {"peer", request.peer},
                     {"method", printable(request.method)},
                     {"path", printable(request.path)},
                     {"status", response.status},
                     {"bytes", response.body.size()},
                     {"seconds", 0}};
  logger().info("access {}", line.dump(-1, ' ', false, Json::error_handler_t::replace));
}

const std::string& Call::path_parameter(std::string_view name) const {
  for (const auto& [key, value] : parameters_) {
    if (key == name) return value;
  }
  QW_CHECK(false, "no path parameter {}", name);
  return id_;  // not reached
}

Json Call::body() {
  const std::string& text = request().body;
  const JsonLimits limits{.max_bytes = services_.options.http.max_body_bytes};
  JsonLimitGuard guard(limits, ErrorKind::kInvalidArgument, "body");
  RepeatedKeys<Json> repeated;
  try {
    Json json = parse_guarded<Json>(
        text, guard, [&](auto event, const Json& parsed) { repeated.see(event, parsed); });
    for (const std::string& key : repeated.found()) {
      if (is_strict()) refuse_field(key, "expected it once in its object, got it again");
      warn(fmt::format("{}: ignored (it comes again in the same object, where the last one counts)",
                       key));
    }
    if (const size_t n = repeated.n_found() - repeated.found().size(); n > 0)
      warn(fmt::format("body: {} more keys that come again in their objects are ignored", n));
    return json;
  } catch (const Json::parse_error& error) {
    throw RequestError(
        ErrorKind::kInvalidArgument,
        error.byte > text.size()
            ? fmt::format("[request] body: expected JSON, got its beginning ({} bytes)",
                          text.size())
            : fmt::format("[request] body: expected JSON, got a fault at byte {} of {}", error.byte,
                          text.size()),
        "body");
  } catch (const Json::out_of_range&) {
    throw RequestError(ErrorKind::kInvalidArgument,
                       "[request] body: expected numbers that a double can hold, got a larger one",
                       "body");
  }
}

bool Call::is_strict() const {
  return services_.options.strict;
}

void Call::check_query() {
  for (const auto& [name, value] : request().query) {
    if (std::ranges::find(endpoint_.notes.query, name) != endpoint_.notes.query.end()) continue;
    const std::string shown_name = printable(name);
    if (is_strict() && endpoint_.needs_key) {
      refuse_field(
          shown_name,
          "expected a known parameter of the query, got this one (/openapi.json lists them)");
    }
    warn(fmt::format(
        "{}: ignored (unknown parameter of the query; /openapi.json lists those that are known)",
        shown_name));
  }
}

void Call::check(const std::string& name, const Json& part, const Shape& shape) {
  add_warnings(check_members(name, part, shape, is_strict()));
}

void Call::add_warnings(std::vector<std::string> warnings) {
  for (std::string& warning : warnings)
    warn(std::move(warning));
}

void Call::warn(std::string sentence) {
  const std::lock_guard lock(warnings_mutex_);
  if (++n_warnings_ <= kMaxWarnings) warnings_.push_back(std::move(sentence));
}

std::vector<std::string> Call::warnings() const {
  const std::lock_guard lock(warnings_mutex_);
  std::vector<std::string> all = warnings_;
  if (n_warnings_ > all.size()) all.push_back(and_more(n_warnings_ - all.size()));
  return all;
}

void Call::post(std::function<void()> task) const {
  services_.post(std::move(task));
}

void Call::add_headers(http::Response& response) const {
  response.headers.push_back({"X-Request-Id", id_});
  if (const std::vector<std::string> all = warnings(); !all.empty())
    response.headers.push_back({"X-Qianwen-Warnings", warnings_header(all)});
  for (http::Header& header : services_.options.origins.headers(request()))
    response.headers.push_back(std::move(header));
}

void Call::respond(Json answer, int status) {
  if (std::vector<std::string> all = warnings(); !all.empty()) {
    const bool is_list = answer.is_array() && !answer.empty();
    Json& place = is_list ? answer.back() : answer;
    if (place.is_object()) place["warnings"] = std::move(all);
  }
  http::Response response;
  response.status = status;
  response.body = answer.dump(-1, ' ', false, Json::error_handler_t::replace);
  respond(std::move(response));
}

void Call::respond(http::Response response) {
  add_headers(response);
  post([self = shared_from_this(), response = std::move(response)]() mutable {
    if (!self->exchange_->closed() && self->exchange_->status() == 0)
      self->exchange_->respond(std::move(response));
  });
}

void Call::fail(const Error& error) {
  const int status = http_status(error);
  if (status >= 500 && error.kind() != ErrorKind::kCancelled)
    logger().error("{} (request {})", error.message(), id_);
  http::Response response;
  response.status = status;
  response.body = endpoint_.dialect->error_body(error, status)
                      .dump(-1, ' ', false, Json::error_handler_t::replace);
  add_retry_after(response, error);
  respond(std::move(response));
}

void Call::begin_stream(const std::string& content_type) {
  if (exchange_->closed() || exchange_->status() != 0) return;
  streaming_ = true;
  last_said_ = std::chrono::steady_clock::now();
  http::Response head;
  head.content_type = content_type;
  head.headers = {{"Cache-Control", "no-cache"}};
  add_headers(head);
  exchange_->begin(std::move(head));
}

void Call::write(std::string bytes) {
  if (!streaming_ || exchange_->closed()) return;
  last_said_ = std::chrono::steady_clock::now();
  exchange_->write(std::move(bytes));
}

void Call::ping_if_silent(std::chrono::steady_clock::time_point now) {
  if (!ping_.empty() && now - last_said_ >= services_.options.ping_after) write(ping_);
}

void Call::end_stream() {
  if (std::exchange(streaming_, false) && !exchange_->closed()) exchange_->end();
}

void Call::on_close(std::function<void()> callback) {
  if (exchange_->closed()) return callback();
  exchange_->on_close(std::move(callback));
}

RequestError still_loading() {
  constexpr int64_t kRetryAfter = 2;  // seconds: a probe's usual distance
  return {ErrorKind::kCancelled,      // nobody's fault, so nothing that a log should tell
          "[server] requests: expected the default model to be loaded, got it still loading; try "
          "again later",
          "", 503, kRetryAfter};
}

void guarded(const std::shared_ptr<Call>& call, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    call->fail(error);
  } catch (...) {
    call->fail(current_error());
  }
}

void with_model(const std::shared_ptr<Call>& call, const std::string& name,
                std::function<void(const std::shared_ptr<ServedModel>&)> use) {
  with_model(call, ModelChoice{name, std::nullopt}, std::move(use));
}

void with_model(const std::shared_ptr<Call>& call, const ModelChoice& choice,
                std::function<void(const std::shared_ptr<ServedModel>&)> use) {
  if (!call->services().is_loaded) throw still_loading();
  call->services().hub->with_model(
      choice,
      [call, use = std::move(use)](const std::shared_ptr<ServedModel>& model) {
        guarded(call, [&] { use(model); });
      },
      [call](const Error& error) { call->fail(error); });
}

}  // namespace qw::server
