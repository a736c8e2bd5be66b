// The server as a whole: models, workers, endpoints and the HTTP server in front of them.
//
// Level 7 (server).
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "server/access.h"
#include "server/call.h"
#include "server/endpoint.h"
#include "server/http/server.h"
#include "server/metrics.h"
#include "server/model_hub.h"
#include "server/workers.h"

namespace qw::server {

/// Threads that compile grammars: one that takes long leaves the other.
inline constexpr int kCompilers = 2;

struct ServiceOptions {
  http::ServerOptions http;
  std::vector<ModelSpec> models;  // at least one; the first is the default
  int n_workers = 2;
  bool strict = false;               // unknown fields are errors
  Pooling pooling = Pooling::kLast;  // of embeddings
  bool model_defaults = true;        // the checkpoint's generation_config.json, else neutral values
  std::string key_file;              // "": everybody may
  OriginPolicy origins;              // which web pages may call
  /// Requests that may wait for a slot, of each model; more are refused with status 429.
  int64_t max_queue = 512;
  std::optional<std::chrono::seconds> request_timeout;  // of a generation, queueing included
  std::chrono::seconds drain_timeout{30};
  std::chrono::milliseconds ping_after{
      5'000};  // of silence, in streams of dialects that have pings
  bool access_log = true;
  bool web_page = true;                          // the chat page at "/"
  int64_t slot_piece_bytes = int64_t{16} << 20;  // of slots: copied at a time, a page at least
  std::string lora_dir;                    // adapters may be loaded from here; "": from nowhere
  const CancelFlag* stop_asked = nullptr;  // set: drain and end
  std::string version;                     // of the program
  std::string build;                       // its commit
};

/// What endpoints work with.
struct Services {
  explicit Services(ServiceOptions options);
  Services(const Services&) = delete;
  Services& operator=(const Services&) = delete;

  ServiceOptions options;
  std::vector<Endpoint> endpoints;
  KeyRing keys;
  Metrics metrics;
  /// When calls are to end. The HTTP server's thread; calls that end with the server look here.
  Deadlines deadlines;
  /// Calls under way, likewise; and whether the server is about to end.
  std::unordered_set<Call*> calls;
  std::atomic<bool> draining{false};
  std::atomic<bool> is_loaded{false};  // the default model was, once
  /// Something large was freed: the next time that nobody is being answered, the system gets it
  /// back.
  std::atomic<bool> heap_is_stretched{false};
  std::unique_ptr<http::Server> http;
  std::unique_ptr<Workers> workers;
  std::unique_ptr<Workers> file_worker;  // for slots: a slow disk keeps no request from the others
  std::unique_ptr<Workers> compilers;    // for grammars: seconds of work, if clients want it so
  std::unique_ptr<ModelHub> hub;

  /// Runs on the HTTP server's thread.
  void post(std::function<void()> task) const { http->post(std::move(task)); }
};

/// What a server answers to, in the order in which addresses are looked up.
std::vector<Endpoint> all_endpoints(bool web_page);

class Service {
 public:
  /// Listens; nothing is loaded yet. Errors: those of http::Server.
  explicit Service(ServiceOptions options);
  ~Service();

  uint16_t port() const;
  /// Loads the default model and its adapters, and returns once they are ready. False: the end was
  /// asked for meanwhile, and loading was given up. Errors: those of open_model and
  /// Model::stage_adapters.
  bool load_default();
  /// Serves until stop(), or drain() and the last answer.
  void run();
  /// No new requests; run() returns after the answers under way, or options.drain_timeout. Any
  /// thread.
  void drain();
  void stop();

  const Services& services() const { return services_; }

 private:
  void route(const std::shared_ptr<http::Exchange>& exchange);
  /// Whether the rest of a request is worth reading; if not, the answer to it.
  std::optional<http::Response> check_head(const http::Request& request);
  /// Who may have what. Errors: RequestError, which names what is wrong.
  void check_origin(const http::Request& request) const;
  /// Bodies are read as they are.
  static void check_encoding(const http::Request& request);
  const Endpoint& find_endpoint(const http::Request& request, PathParameters& parameters) const;
  Client identify(const http::Request& request, const Endpoint& endpoint) const;
  /// From its quota.
  void take_request(const Client& client);
  void dispatch(std::shared_ptr<http::Exchange> exchange, const Endpoint& endpoint,
                PathParameters parameters, Client client);
  bool answer_preflight(const std::shared_ptr<http::Exchange>& exchange) const;
  /// The answer to a request that no call is made of; counted and logged as others are.
  http::Response refusal(const http::Request& request, const Error& error);
  const Dialect& dialect_of(const http::Request& request) const;
  /// "GET, POST": those that an address takes.
  std::string allowed_methods(const std::string& path) const;
  void tick();
  bool is_stop_asked() const;

  Services services_;
  void ping();
  void cut_answers(size_t n_open);

  bool cut_ = false;
  std::chrono::steady_clock::time_point drain_end_;
};

}  // namespace qw::server
