// One client's connection: a reader that is always listening, a queue of bytes to send, two timers.
//
// Level 7 (server). Private to server.cpp. The reader never stops while an answer is under way, so
// that a client that goes is noticed at once; what it sends meanwhile waits (pipelining).
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <deque>
#include <exception>
#include <optional>
#include <sstream>
#include <unordered_set>
#include <vector>

#include "base/log.h"
#include "server/http/server.h"

namespace qw::http {

namespace asio = boost::asio;
namespace beast = boost::beast;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

/// What connections share.
class ConnectionBase;
struct ServerState {
  const ServerOptions& options;
  const Handler& handler;
  const HeadCheck& check_head;
  const Refusal& refuse;
  bool draining = false;
  size_t body_bytes = 0;  // of all requests that are being read or answered
  std::unordered_set<ConnectionBase*> connections;
};

class ConnectionBase : public std::enable_shared_from_this<ConnectionBase> {
 public:
  explicit ConnectionBase(ServerState& state) : state_(state) { state_.connections.insert(this); }
  virtual ~ConnectionBase() { state_.connections.erase(this); }
  ConnectionBase(const ConnectionBase&) = delete;
  ConnectionBase& operator=(const ConnectionBase&) = delete;

  virtual void start() = 0;
  /// Closes now if no answer is under way.
  virtual void close_if_idle() = 0;
  virtual bool is_lingering() const = 0;
  virtual void close() = 0;

 protected:
  ServerState& state_;
};

/// A TLS stream and a plain one differ in how they begin and end.
template <typename Stream>
struct StreamTraits;
template <>
struct StreamTraits<Tcp::socket> {
  static Tcp::socket& socket(Tcp::socket& stream) { return stream; }
  template <typename Done>
  static void handshake(Tcp::socket&, Done done) {
    done(ErrorCode{});
  }
};
template <>
struct StreamTraits<asio::ssl::stream<Tcp::socket>> {
  using Stream = asio::ssl::stream<Tcp::socket>;
  static Tcp::socket& socket(Stream& stream) { return stream.next_layer(); }
  template <typename Done>
  static void handshake(Stream& stream, Done done) {
    stream.async_handshake(asio::ssl::stream_base::server, std::move(done));
  }
};

template <typename Stream>
class Connection : public ConnectionBase {
 public:
  Connection(ServerState& state, Stream stream)
      : ConnectionBase(state),
        stream_(std::move(stream)),
        read_timer_(stream_.get_executor()),
        write_timer_(stream_.get_executor()),
        buffer_(state.options.max_header_bytes + kReadBytes) {
    ErrorCode ignored;
    socket().set_option(Tcp::no_delay(true), ignored);
    const auto endpoint = socket().remote_endpoint(ignored);
    std::ostringstream peer;
    peer << endpoint;
    peer_ = peer.str();
  }

  void start() override {
    arm(read_timer_, state_.options.header_timeout);
    StreamTraits<Stream>::handshake(stream_, [self = self()](ErrorCode error) {
      if (error) return self->close();
      self->expect_request();
    });
  }

  void close_if_idle() override {
    const bool is_amid_request = parser_ || buffer_.size() > 0;
    if (!current_ && out_.empty() && !is_amid_request) close();
  }

  bool is_lingering() const override { return lingering_; }

  void close() override {
    if (closed_) return;
    closed_ = true;
    charge(0);
    ErrorCode ignored;
    socket().close(ignored);
    read_timer_.cancel();
    write_timer_.cancel();
    out_.clear();
    if (const auto exchange = std::exchange(current_, nullptr)) exchange->lost();
  }

 private:
  static constexpr size_t kReadBytes = 8192;
  /// What may wait behind a request whose answer is under way.
  static constexpr size_t kPipelinedBytes = size_t{16} << 10;

  class ExchangeImpl;
  using Parser = beast::http::request_parser<beast::http::string_body>;

  std::shared_ptr<Connection> self() {
    return std::static_pointer_cast<Connection>(shared_from_this());
  }
  Tcp::socket& socket() { return StreamTraits<Stream>::socket(stream_); }

  /// Closes the connection when `after` has passed, unless re-armed or disarmed before.
  void arm(asio::steady_timer& timer, std::chrono::milliseconds after) {
    timer.expires_after(after);
    timer.async_wait([weak = std::weak_ptr(self())](ErrorCode error) {
      if (error) return;
      if (const auto self = weak.lock()) self->close();
    });
  }

  // --- reading ---

  void expect_request() {
    if (state_.draining) return close();
    parser_.reset();
    arm(read_timer_, state_.options.idle_timeout);
    if (buffer_.size() > 0) return parse();
    buffer_.shrink_to_fit();  // an idle connection keeps nothing
    read();
  }

  void read() {
    if (closed_ || reading_) return;
    reading_ = true;
    const size_t room = buffer_.max_size() - buffer_.size();
    incoming_.resize(std::min(room, parser_ ? kReadBytes : kReadBytes / 8));
    stream_.async_read_some(asio::buffer(incoming_), [self = self()](ErrorCode error, size_t n) {
      self->reading_ = false;
      if (error == asio::error::eof && self->finish_before_close()) return;
      if (error) return self->close();
      self->buffer_.commit(
          asio::buffer_copy(self->buffer_.prepare(n), asio::buffer(self->incoming_, n)));
      self->incoming_ = {};
      self->on_bytes();
    });
  }

  /// The client will send no more. It is taken for gone, as others take it, unless an answer is
  /// whole and on its way: that one is sent.
  bool finish_before_close() {
    if (current_ || out_.empty() || lingering_) return false;
    keep_alive_ = false;
    return true;
  }

  void on_bytes() {
    if (!current_ && out_.empty() && !lingering_) return parse();
    if (lingering_) buffer_.consume(buffer_.size());
    if (buffer_.size() < kPipelinedBytes) read();
  }

  void parse() {
    if (!parser_) {
      parser_.emplace();
      parser_->eager(true);
      parser_->header_limit(static_cast<uint32_t>(state_.options.max_header_bytes));
      parser_->body_limit(state_.options.max_body_bytes);
      header_seen_ = false;
      arm(read_timer_, state_.options.header_timeout);
    }
    ErrorCode error;
    while (buffer_.size() > 0 && !parser_->is_done()) {
      const size_t n = parser_->put(buffer_.data(), error);
      buffer_.consume(n);
      if (error == beast::http::error::need_more) {
        error = {};
        break;
      }
      if (error) return refuse(error);
      if (n == 0) break;
    }
    if (parser_->is_header_done() && !header_seen_) {
      header_seen_ = true;
      if (!has_host()) return refuse_host();
      if (!parser_->is_done() && !head_is_welcome()) return;
      on_header();
    }
    charge(parser_->get().body().size());
    if (state_.body_bytes > state_.options.max_bodies_bytes && charged_ > 0) return refuse_body();
    if (!parser_->is_done()) return read();
    dispatch();
  }

  /// Counts what this connection holds of a body.
  void charge(size_t n_bytes) {
    state_.body_bytes += n_bytes - charged_;
    charged_ = n_bytes;
  }

  /// What of a request is known before its body.
  Request request_head() {
    const auto& message = parser_->get();
    Request request;
    request.method = std::string(message.method_string());
    request.target = std::string(message.target());
    request.peer = peer_;
    for (const auto& field : message)
      request.headers.push_back({std::string(field.name_string()), std::string(field.value())});
    return request;
  }

  /// Whether the body is worth reading; if not, the request is answered.
  bool head_is_welcome() {
    if (!state_.check_head) return true;
    Request request = request_head();
    if (!split_target(request.target, request)) return true;  // dispatch() answers it
    std::optional<Response> refusal = state_.check_head(request);
    if (!refusal) return true;
    refuse(std::move(request), std::move(*refusal));
    return false;
  }

  /// RFC 9112, 3.2: one, from HTTP/1.1 on.
  bool has_host() {
    const auto& message = parser_->get();
    const size_t n = message.count(beast::http::field::host);
    return n == 1 || (n == 0 && message.version() < 11);
  }
  void refuse_host() {
    refuse(400, "[http] request: expected one Host header, got none or several");
  }
  void refuse_body() {
    refuse(503,
           "[http] request: expected room for its body beside those of others, got none; try "
           "again later");
  }

  void on_header() {
    const uint64_t length = parser_->content_length().value_or(state_.options.max_body_bytes);
    arm(read_timer_,
        state_.options.body_timeout + std::chrono::seconds(std::min<uint64_t>(length >> 16, 3600)));
    if (!parser_->is_done() &&
        beast::iequals(parser_->get()[beast::http::field::expect], "100-continue")) {
      send("HTTP/1.1 100 Continue\r\n\r\n");
    }
  }

  /// Answers a request that could not be read, and closes.
  void refuse(ErrorCode error) {
    const ServerOptions& limits = state_.options;
    int status = 400;
    std::string why = fmt::format("[http] request: expected HTTP/1.1, got: {}", error.message());
    if (error == beast::http::error::body_limit) {
      status = 413;
      why = fmt::format("[http] body: expected at most {} bytes, got more", limits.max_body_bytes);
    } else if (error == beast::http::error::header_limit) {
      status = 431;
      why = fmt::format("[http] header: expected at most {} bytes, got more",
                        limits.max_header_bytes);
    }
    refuse(status, why);
  }
  void refuse(int status, const std::string& why) {
    Request request = request_head();
    split_target(request.target, request);  // where it cannot be, the path stays empty
    Response response = refusal(request, status, why);
    refuse(std::move(request), std::move(response));
  }
  /// In the form of the address, where somebody knows it.
  Response refusal(const Request& request, int status, const std::string& why) const {
    if (state_.refuse) return state_.refuse(request, status, why);
    Response response{status, "text/plain; charset=utf-8", {}, why + "\n"};
    if (status == 503) response.headers.push_back({"Retry-After", "1"});
    return response;
  }
  void refuse(Request request, Response response) {
    logger().info("[http] client {}: refused with status {}", peer_, response.status);
    charge(0);
    parser_.reset();
    current_ = std::make_shared<ExchangeImpl>(self(), std::move(request), 11, false, false);
    keep_alive_ = false;
    const std::shared_ptr<ExchangeImpl> exchange = current_;  // respond() lets go of it
    exchange->respond(std::move(response));
  }

  void dispatch() {
    read_timer_.cancel();
    auto& message = parser_->get();
    keep_alive_ = message.keep_alive();
    Request request = request_head();
    request.body = std::move(message.body());
    const bool has_target = split_target(request.target, request);
    const bool is_head = request.method == "HEAD";
    current_ = std::make_shared<ExchangeImpl>(self(), std::move(request), message.version(),
                                              keep_alive_ && !state_.draining, is_head);
    parser_.reset();
    const std::shared_ptr<ExchangeImpl> exchange = current_;  // the answer may come at once
    if (!has_target) {
      exchange->respond(
          refusal(exchange->request(), 400,
                  "[http] target: expected percent-encoded UTF-8, got a broken escape"));
    } else {
      try {
        state_.handler(exchange);
      } catch (const std::exception& thrown) {
        logger().error("[http] handler: expected no exception, got: {}", thrown.what());
        if (exchange->status() == 0) {
          exchange->respond({500, "text/plain; charset=utf-8", {}, "internal error\n"});
        } else {
          close();
        }
      }
    }
    read();
  }

  // --- writing ---

  void send(std::string bytes) {
    if (closed_ || bytes.empty()) return;
    // What was there before: a whole answer may be as large as it is.
    if (unsent_bytes_ > state_.options.max_unsent_bytes) {
      logger().warn("[http] client {}: expected to read its answer, got {} bytes unsent", peer_,
                    unsent_bytes_);
      return close();
    }
    unsent_bytes_ += bytes.size();
    out_.push_back(std::move(bytes));
    if (!writing_) write();
  }

  /// Sends on; the timer begins anew with every byte that the client takes.
  void write() {
    writing_ = true;
    arm(write_timer_, state_.options.write_timeout);
    const auto rest = asio::buffer(out_.front()) + n_sent_;
    stream_.async_write_some(rest, [self = self()](ErrorCode error, size_t n) {
      self->writing_ = false;
      self->write_timer_.cancel();
      if (self->closed_) return;
      if (error) return self->close();
      self->unsent_bytes_ -= n;
      self->n_sent_ += n;
      if (self->n_sent_ == self->out_.front().size()) {
        self->out_.pop_front();
        self->n_sent_ = 0;
      }
      if (!self->out_.empty()) return self->write();
      if (self->ended_) self->finish();
    });
  }

  /// The answer under way has got its last byte.
  void end_answer(bool keep_alive) {
    keep_alive_ = keep_alive;
    current_.reset();
    charge(0);
    ended_ = true;
    if (!writing_ && out_.empty()) finish();
  }

  void finish() {
    ended_ = false;
    if (keep_alive_ && !state_.draining) return expect_request_after_answer();
    // Says "no more" and lets the client read what is on its way before the socket goes.
    lingering_ = true;
    ErrorCode ignored;
    socket().shutdown(Tcp::socket::shutdown_send, ignored);
    arm(read_timer_, std::chrono::seconds(2));
    buffer_.consume(buffer_.size());
    read();
  }

  void expect_request_after_answer() {
    if (!reading_) return expect_request();
    parser_.reset();
    arm(read_timer_, state_.options.idle_timeout);
    if (buffer_.size() > 0) parse();
  }

  Stream stream_;
  asio::steady_timer read_timer_, write_timer_;
  beast::flat_buffer buffer_;
  // What is being read: a place of its own, since a request that waits in buffer_ may be parsed,
  // and buffer_ moved, before the bytes come.
  std::vector<char> incoming_;
  std::optional<Parser> parser_;
  std::string peer_;
  std::shared_ptr<ExchangeImpl> current_;  // whose answer is under way
  std::deque<std::string> out_;
  size_t unsent_bytes_ = 0, n_sent_ = 0;  // n_sent_: of the first of out_
  size_t charged_ = 0;                    // of the body, in state_.body_bytes
  bool reading_ = false, writing_ = false, ended_ = false, lingering_ = false, closed_ = false;
  bool keep_alive_ = true, header_seen_ = false;
};

/// Holds its connection while the answer is under way.
template <typename Stream>
class Connection<Stream>::ExchangeImpl : public Exchange {
 public:
  ExchangeImpl(std::shared_ptr<Connection> connection, Request request, unsigned version,
               bool keep_alive, bool is_head)
      : connection_(std::move(connection)),
        request_(std::move(request)),
        version_(version),
        keep_alive_(keep_alive),
        is_head_(is_head) {}

  const Request& request() const override { return request_; }

  void respond(Response response) override {
    QW_CHECK(status_ == 0, "one answer to a request");
    status_ = response.status;
    body_bytes_ = response.body.size();
    auto head = head_of(response);
    // These two have no body, and a length that is not that of the body they stand for would lie.
    if (response.status != 204 && response.status != 304) head.content_length(response.body.size());
    std::string bytes = text_of(head);
    if (!is_head_) bytes += response.body;
    send(std::move(bytes));
    finish();
  }

  void begin(Response head) override {
    QW_CHECK(status_ == 0, "one answer to a request");
    status_ = head.status;
    auto fields = head_of(head);
    chunked_ = version_ >= 11;
    if (chunked_) {
      fields.chunked(true);
    } else {
      keep_alive_ = false;  // the end of the connection is the end of the answer
      fields.keep_alive(false);
    }
    send(text_of(fields));
    write(std::move(head.body));
  }

  void write(std::string bytes) override {
    QW_CHECK(status_ != 0 && !ended_, "an answer that has begun and not ended");
    if (bytes.empty() || is_head_) return;
    body_bytes_ += bytes.size();
    send(chunked_ ? fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes) : std::move(bytes));
  }

  void end() override {
    QW_CHECK(status_ != 0 && !ended_, "an answer that has begun and not ended");
    if (chunked_ && !is_head_) send("0\r\n\r\n");
    finish();
  }

  bool closed() const override { return lost_; }
  void on_close(std::function<void()> callback) override { on_close_ = std::move(callback); }
  void on_done(std::function<void()> callback) override { on_done_ = std::move(callback); }
  int status() const override { return status_; }
  size_t body_bytes() const override { return body_bytes_; }

  /// The connection has gone.
  void lost() {
    lost_ = true;
    connection_.reset();
    if (const auto callback = std::exchange(on_close_, nullptr); callback && !ended_) callback();
    done();
  }

 private:
  using Head = beast::http::response<beast::http::empty_body>;

  void done() {
    if (const auto callback = std::exchange(on_done_, nullptr)) callback();
  }

  Head head_of(const Response& response) const {
    Head head(static_cast<beast::http::status>(response.status), version_);
    head.set(beast::http::field::server, "qianwen");
    if (!response.content_type.empty())
      head.set(beast::http::field::content_type, response.content_type);
    for (const Header& header : response.headers)
      head.insert(header.name, header.value);
    head.keep_alive(keep_alive_);
    return head;
  }
  static std::string text_of(const Head& head) {
    std::ostringstream text;
    text << head.base();
    return std::move(text).str();
  }
  void send(std::string bytes) {
    if (const auto connection = connection_) connection->send(std::move(bytes));
  }
  void finish() {
    ended_ = true;
    on_close_ = nullptr;
    done();
    if (const auto connection = std::exchange(connection_, nullptr))
      connection->end_answer(keep_alive_);
  }

  std::shared_ptr<Connection> connection_;
  Request request_;
  unsigned version_;
  bool keep_alive_, is_head_, chunked_ = false, ended_ = false, lost_ = false;
  int status_ = 0;
  size_t body_bytes_ = 0;
  std::function<void()> on_close_, on_done_;
};

}  // namespace qw::http
