// An HTTP/1.1 server on one thread: accepts, reads requests, sends answers whole or piece by piece.
//
// Level 7 (server). Over Boost.Asio and Boost.Beast, which only server.cpp and connection.h see.
// Everything here happens on the thread that calls run(); other threads use post(). A connection
// costs a few hundred bytes while it is idle. Slow and greedy clients meet limits of time and size.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "server/http/message.h"

namespace qw::http {

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;                  // 0: any free one
  std::string tls_certificate, tls_key;  // PEM files; both or none
  size_t max_connections = 4096;
  size_t max_header_bytes = size_t{32} << 10;
  size_t max_body_bytes = size_t{16} << 20;
  /// Of the bodies of all requests that are being read or answered; more are refused (503).
  size_t max_bodies_bytes = size_t{256} << 20;
  /// What a client that does not read may leave unsent before it is taken for lost.
  size_t max_unsent_bytes = size_t{16} << 20;
  std::chrono::milliseconds header_timeout{15'000};  // from the first byte to the last of a header
  std::chrono::milliseconds body_timeout{30'000};    // and a second more for every 64 KiB
  std::chrono::milliseconds idle_timeout{600'000};   // between two requests
  std::chrono::milliseconds write_timeout{60'000};   // without a byte taken by the client
};

/// One request and its answer. Lives on the server's thread.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const Request& request() const = 0;

  /// The whole answer.
  virtual void respond(Response response) = 0;
  /// An answer in pieces: head (whose body is the first piece), any number of write(), end().
  virtual void begin(Response head) = 0;
  virtual void write(std::string bytes) = 0;
  virtual void end() = 0;

  /// True once the client has gone; what is written then is dropped.
  virtual bool closed() const = 0;
  /// Called at most once, if the client goes before the answer has ended.
  virtual void on_close(std::function<void()> callback) = 0;
  /// Called once, when the answer has ended or the client has gone.
  virtual void on_done(std::function<void()> callback) = 0;
  /// Status of the answer and bytes of its body so far, for the access log. Status 0: none yet.
  virtual int status() const = 0;
  virtual size_t body_bytes() const = 0;
};

/// Takes a request and answers it, now or later. Must not block. What it throws is answered with
/// status 500.
using Handler = std::function<void(std::shared_ptr<Exchange>)>;
/// Asked when the header of a request has come and its body has not: an answer refuses it, and the
/// body is not read. Must not block, nor throw.
using HeadCheck = std::function<std::optional<Response>(const Request&)>;

/// Writes the answer to a request that could not be read, with its status and a sentence that says
/// why. Of the request there is what had come. Must not block, nor throw.
using Refusal = std::function<Response(const Request&, int status, const std::string& why)>;

class Server {
 public:
  /// Binds and listens. Errors: io (address in use), invalid_argument (host that is no address,
  /// certificate that cannot be read).
  Server(ServerOptions options, Handler handler, HeadCheck check_head = {}, Refusal refuse = {});
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  uint16_t port() const;

  /// Serves until stop().
  void run();
  /// Runs `task` on the server's thread, soon. Any thread.
  void post(std::function<void()> task);
  /// Runs `task` on the server's thread every `period` until stop(). Before run() or on its thread.
  void every(std::chrono::milliseconds period, std::function<void()> task);

  /// No new connections; idle ones are closed, the others after the answer to what has
  /// begun. Any thread.
  void drain();
  /// Connections open now. On the server's thread.
  size_t n_connections() const;
  /// Of these, all but those whose answer was sent and that wait for their client to close.
  size_t n_busy() const;
  /// Closes everything; run() returns. Any thread.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qw::http
