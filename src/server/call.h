// One request on its way through the server: body, warnings, and the answer from whatever thread.
//
// Level 7 (server).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "server/access.h"
#include "server/endpoint.h"
#include "server/http/server.h"
#include "server/request_error.h"

namespace qw::server {

struct Services;
struct ModelChoice;
class ServedModel;

class Call;
/// Calls that end at a time, the earliest first.
using Deadlines = std::multimap<std::chrono::steady_clock::time_point, std::weak_ptr<Call>>;

class Call : public std::enable_shared_from_this<Call> {
 public:
  Call(Services& services, std::shared_ptr<http::Exchange> exchange, const Endpoint& endpoint,
       PathParameters parameters, Client client);

  /// Has the answer counted and logged when it has ended.
  void watch();

  Services& services() const { return services_; }
  const http::Request& request() const { return exchange_->request(); }
  const Endpoint& endpoint() const { return endpoint_; }
  /// A request's number, as in "chatcmpl-..." and in the access log: 32 hexadecimal digits.
  const std::string& id() const { return id_; }
  /// Seconds since 1970 at which the request came.
  int64_t created() const { return created_; }
  const Client& client() const { return client_; }
  std::chrono::steady_clock::time_point started() const { return started_; }

  /// The answer must be there `seconds` after the request came, or the call fails with status 504;
  /// of several limits the shortest holds. Any thread.
  void limit_time(double seconds);
  /// limit_time() by the server's own limit and the header x-request-timeout. Errors: RequestError.
  void limit_time_by_header();
  /// Its time has come. The server's thread.
  void expire();
  /// Ends it with `error`, wherever it is. The server's thread.
  void cut(const Error& error);
  bool expired() const { return expired_; }
  /// Set once nobody waits for the answer any more: it has ended, its time is over, its client has
  /// gone, the server ends. For work that looks at it now and then. Any thread.
  const CancelFlag& cancel_flag() const { return cancel_; }
  /// Called when the time has come, with the error to end with; without, the call fails at once.
  /// The server's thread.
  void on_expire(std::function<void(const Error&)> callback) { on_expire_ = std::move(callback); }
  /// For the access log and the quota: what the request came to. The server's thread.
  void note_tokens(int64_t n_prompt, int64_t n_generated);

  /// The value of a name in braces of the endpoint's path.
  const std::string& path_parameter(std::string_view name) const;

  /// The body as JSON; of a key that an object has twice the last value counts, with a warning.
  /// Errors: RequestError (not JSON, beyond the limits, in strict mode a key twice).
  Json body();
  /// Reads the body by the endpoint's table; what is ignored becomes a warning.
  template <typename Task>
  void read(const FieldTable<Task>& table, Task& task) {
    add_warnings(read_fields(body(), table, task, is_strict()));
  }
  /// What the endpoint does not know of the query, likewise; addresses that answer everybody the
  /// same refuse nothing.
  void check_query();
  /// The same for the members of a part of the body that no table reads.
  void check(const std::string& name, const Json& part, const Shape& shape);
  /// One sentence for each thing that the client asked for and does not get.
  /// Any thread, as warnings().
  void warn(std::string sentence);
  /// The first so many; a last sentence says how many more there were.
  std::vector<std::string> warnings() const;

  // Any thread. Once the client has gone they do nothing.
  /// The whole answer, with "warnings" if there are any: its own, or in a list of objects the last
  /// one's. All of them come in a header too, whatever the answer's form.
  void respond(Json answer, int status = 200);
  void respond(http::Response response);
  /// The error in the dialect's form; within a stream that has begun, nothing but its end.
  void fail(const Error& error);

  // The server's thread.
  void begin_stream(const std::string& content_type);
  bool streaming() const { return streaming_; }
  void write(std::string bytes);
  void end_stream();
  /// Written whenever a stream has said nothing for ServiceOptions::ping_after.
  void ping_with(std::string bytes) { ping_ = std::move(bytes); }
  void ping_if_silent(std::chrono::steady_clock::time_point now);
  void on_close(std::function<void()> callback);

  /// Runs on the server's thread.
  void post(std::function<void()> task) const;

 private:
  bool is_strict() const;
  void log() const;
  void forget_deadline();
  void add_headers(http::Response& response) const;
  void add_warnings(std::vector<std::string> warnings);

  Services& services_;
  std::shared_ptr<http::Exchange> exchange_;
  const Endpoint& endpoint_;
  PathParameters parameters_;
  std::string id_;
  int64_t created_;
  Client client_;
  std::chrono::steady_clock::time_point started_;
  mutable std::mutex warnings_mutex_;
  std::vector<std::string> warnings_;
  size_t n_warnings_ = 0;  // with those that were left out
  std::optional<Deadlines::iterator> deadline_;
  bool done_ = false;
  bool streaming_ = false;
  std::string ping_;                                 // "": none
  std::chrono::steady_clock::time_point last_said_;  // in the stream
  std::atomic<bool> expired_ = false;                // set on the HTTP server's thread
  CancelFlag cancel_;                                // likewise
  double time_s_ = 0;                                // the shortest limit; 0: none
  std::function<void(const Error&)> on_expire_;
  int64_t n_prompt_tokens_ = 0, n_generated_tokens_ = 0;
};

/// What whoever comes while the server's first model is loaded is told.
RequestError still_loading();

/// Runs `action`; what it throws is the call's failure.
void guarded(const std::shared_ptr<Call>& call, const std::function<void()>& action);

/// Counts and logs the answer to a request that no call was made of, and gives it a number.
void log_refusal(Services& services, const http::Request& request, http::Response& response);

/// "Retry-After" of an answer with status 429 or 503.
void add_retry_after(http::Response& response, const Error& error);

/// Calls `use` with the model chosen, on a worker's or a loading thread. What it throws, and what
/// goes wrong before, is the call's failure. Errors: still_loading().
void with_model(const std::shared_ptr<Call>& call, const ModelChoice& choice,
                std::function<void(const std::shared_ptr<ServedModel>&)> use);
/// The same, by name ("": the default).
void with_model(const std::shared_ptr<Call>& call, const std::string& name,
                std::function<void(const std::shared_ptr<ServedModel>&)> use);

}  // namespace qw::server
