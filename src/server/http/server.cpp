#include "server/http/server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "server/http/connection.h"

namespace qw::http {

class Server::Impl {
 public:
  Impl(ServerOptions options, Handler handler, HeadCheck check_head, Refusal refuse)
      : options_(std::move(options)),
        handler_(std::move(handler)),
        check_head_(std::move(check_head)),
        refuse_(std::move(refuse)),
        state_{options_, handler_, check_head_, refuse_, false, 0, {}},
        acceptor_(io_),
        retry_(io_) {
    use_certificate();
    listen();
  }
  ~Impl() { close_all(); }

  uint16_t port() const { return port_; }

  void run() {
    accept();
    io_.run();
  }
  void post(std::function<void()> task) { asio::post(io_, std::move(task)); }

  void every(std::chrono::milliseconds period, std::function<void()> task) {
    auto timer = std::make_shared<asio::steady_timer>(io_);
    repeat(std::move(timer), period, std::move(task));
  }

  void drain() {
    post([this] {
      state_.draining = true;
      ErrorCode ignored;
      acceptor_.close(ignored);
      for (const auto& connection : open_connections())
        connection->close_if_idle();
    });
  }

  void stop() {
    post([this] {
      close_all();
      io_.stop();
    });
  }
  size_t n_connections() const { return state_.connections.size(); }
  size_t n_busy() const {
    return static_cast<size_t>(std::ranges::count_if(
        state_.connections, [](const ConnectionBase* one) { return !one->is_lingering(); }));
  }

 private:
  void use_certificate() {
    if (options_.tls_certificate.empty() && options_.tls_key.empty()) return;
    if (options_.tls_certificate.empty() || options_.tls_key.empty()) {
      fail(ErrorKind::kInvalidArgument, "http",
           "TLS: expected both a certificate and its key, got only one of them");
    }
    tls_.emplace(asio::ssl::context::tls_server);
    tls_->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                      asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                      asio::ssl::context::no_tlsv1_1);
    for (const std::string& path : {options_.tls_certificate, options_.tls_key})
      read_text_file(path, size_t{1} << 20);  // whose errors say what is wrong with the file
    const auto check = [](const ErrorCode& error, std::string_view what, const std::string& path) {
      if (!error) return;
      fail(ErrorKind::kInvalidArgument, "http", "TLS: expected {} in PEM form, got: {} ({})", what,
           error.message(), printable(path, 4096));
    };
    ErrorCode error;
    tls_->use_certificate_chain_file(options_.tls_certificate, error);
    check(error, "a certificate chain", options_.tls_certificate);
    tls_->use_private_key_file(options_.tls_key, asio::ssl::context::pem, error);
    check(error, "the certificate's private key", options_.tls_key);
  }

  void listen() {
    ErrorCode error;
    const std::string host = options_.host == "localhost" ? "127.0.0.1" : options_.host;
    const auto address = asio::ip::make_address(host, error);
    if (error) {
      fail(ErrorKind::kInvalidArgument, "http",
           "host: expected an IP address of this machine, got '{}'", printable(options_.host));
    }
    const Tcp::endpoint endpoint(address, options_.port);
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      fail(ErrorKind::kIo, "http", "address: expected to listen on {}:{}, got: {}", host,
           options_.port, error.message());
    }
    port_ = acceptor_.local_endpoint().port();
  }

  void accept() {
    acceptor_.async_accept([this](ErrorCode error, Tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (error) {  // no descriptors left, or the client is gone already
        warn_of_accept(error);
        return accept_later();
      }
      if (state_.connections.size() >= options_.max_connections) {
        ErrorCode ignored;
        socket.close(ignored);
        return accept();
      }
      if (tls_) {
        std::make_shared<Connection<asio::ssl::stream<Tcp::socket>>>(
            state_, asio::ssl::stream<Tcp::socket>(std::move(socket), *tls_))
            ->start();
      } else {
        std::make_shared<Connection<Tcp::socket>>(state_, std::move(socket))->start();
      }
      accept();
    });
  }

  /// Once a minute at most.
  void warn_of_accept(ErrorCode error) {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_warning_) return;
    next_warning_ = now + std::chrono::minutes(1);
    logger().warn("[http] connection: expected to take another beside {}, got: {}",
                  state_.connections.size(), error.message());
  }

  void accept_later() {
    retry_.expires_after(std::chrono::milliseconds(50));
    retry_.async_wait([this](ErrorCode error) {
      if (!error && acceptor_.is_open()) accept();
    });
  }

  void repeat(std::shared_ptr<asio::steady_timer> timer, std::chrono::milliseconds period,
              std::function<void()> task) {
    timer->expires_after(period);
    timer->async_wait([this, timer, period, task = std::move(task)](ErrorCode error) mutable {
      if (error) return;
      task();
      repeat(std::move(timer), period, std::move(task));
    });
  }

  /// Held, because closing one may end it while the set is walked.
  std::vector<std::shared_ptr<ConnectionBase>> open_connections() const {
    std::vector<std::shared_ptr<ConnectionBase>> open;
    for (ConnectionBase* connection : state_.connections) {
      if (auto held = connection->weak_from_this().lock()) open.push_back(std::move(held));
    }
    return open;
  }

  void close_all() {
    ErrorCode ignored;
    acceptor_.close(ignored);
    for (const auto& connection : open_connections())
      connection->close();
  }

  ServerOptions options_;
  Handler handler_;
  HeadCheck check_head_;
  Refusal refuse_;
  ServerState state_;  // outlives the connections, which io_ may still hold
  asio::io_context io_{1};
  std::optional<asio::ssl::context> tls_;
  Tcp::acceptor acceptor_;
  std::chrono::steady_clock::time_point next_warning_;
  asio::steady_timer retry_;
  uint16_t port_ = 0;
};

Server::Server(ServerOptions options, Handler handler, HeadCheck check_head, Refusal refuse)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler), std::move(check_head),
                                   std::move(refuse))) {}
Server::~Server() = default;
uint16_t Server::port() const {
  return impl_->port();
}
void Server::run() {
  impl_->run();
}
void Server::post(std::function<void()> task) {
  impl_->post(std::move(task));
}
void Server::every(std::chrono::milliseconds period, std::function<void()> task) {
  impl_->every(period, std::move(task));
}
void Server::drain() {
  impl_->drain();
}
size_t Server::n_busy() const {
  return impl_->n_busy();
}
size_t Server::n_connections() const {
  return impl_->n_connections();
}
void Server::stop() {
  impl_->stop();
}

}  // namespace qw::http
