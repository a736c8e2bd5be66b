#include "support/http_client.h"

#include <poll.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_prefix.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cctype>
#include <limits>
#include <thread>

namespace qw::testing {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using std::chrono::milliseconds;

/// A socket whose reads end at a deadline, as a stream that Beast reads from.
class DeadlineStream {
 public:
  using Clock = std::chrono::steady_clock;

  explicit DeadlineStream(asio::io_context& io) : socket(io) {}

  template <typename Buffers>
  size_t read_some(const Buffers& buffers, error_code& error) {
    if (pause.count() > 0) std::this_thread::sleep_for(pause);
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    pollfd waiting{socket.native_handle(), POLLIN, 0};
    if (left <= 0 || ::poll(&waiting, 1, static_cast<int>(left)) == 0) {
      error = asio::error::timed_out;
      return 0;
    }
    return socket.read_some(boost::beast::buffers_prefix(read_bytes, buffers), error);
  }
  template <typename Buffers>
  size_t read_some(const Buffers& buffers) {
    error_code error;
    const size_t n = read_some(buffers, error);
    if (error) throw boost::system::system_error(error);
    return n;
  }

  asio::ip::tcp::socket socket;
  Clock::time_point deadline = Clock::time_point::max();
  milliseconds pause{0};  // before every read
  size_t read_bytes = size_t{1} << 16;
};

}  // namespace

struct HttpClient::Connection {
  explicit Connection(milliseconds patience) : stream(io), limit(patience) {}

  asio::io_context io;
  DeadlineStream stream;
  milliseconds limit;
  boost::beast::flat_buffer buffer;
};

HttpClient::HttpClient(uint16_t port, milliseconds limit)
    : connection_(std::make_unique<Connection>(limit)) {
  connection_->stream.socket.connect({asio::ip::make_address("127.0.0.1"), port});
}

HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;
HttpClient::~HttpClient() = default;

void HttpClient::send(std::string_view bytes) {
  error_code ignored;
  asio::write(connection_->stream.socket, asio::buffer(bytes), ignored);
}

HttpAnswer HttpClient::read(bool is_head) {
  http::response_parser<http::string_body> parser;
  // Not none: Beast compares a length with a limit that is not there, and sometimes finds it
  // larger.
  parser.body_limit(std::numeric_limits<uint64_t>::max());
  parser.skip(is_head);
  error_code error;
  connection_->stream.deadline = DeadlineStream::Clock::now() + connection_->limit;
  http::read(connection_->stream, connection_->buffer, parser, error);
  HttpAnswer answer;
  answer.timed_out = error == asio::error::timed_out;
  if (error) answer.error = error.message();
  if (!parser.is_header_done()) return answer;
  answer.complete = parser.is_done() && !error;
  answer.keep_alive = answer.complete && parser.get().keep_alive();
  answer.status = parser.get().result_int();
  for (const auto& field : parser.get()) {
    std::string name(field.name_string());
    for (char& c : name)
      c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    answer.headers[name] = std::string(field.value());
  }
  answer.body = parser.get().body();
  return answer;
}

std::string HttpClient::read_until(std::string_view text) {
  std::string all;
  while (all.find(text) == std::string::npos) {
    const std::string bytes = read_bytes(4096);
    if (bytes.empty()) break;
    all += bytes;
  }
  return all;
}

std::string HttpClient::read_bytes(size_t n) {
  connection_->stream.deadline = DeadlineStream::Clock::now() + connection_->limit;
  std::string bytes(n, '\0');
  error_code error;
  bytes.resize(connection_->stream.read_some(asio::buffer(bytes), error));
  return bytes;
}

size_t HttpClient::available() const {
  return connection_->stream.socket.available();
}

HttpAnswer HttpClient::get(const std::string& target) {
  send("GET " + target + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  return read();
}

HttpAnswer HttpClient::post(const std::string& target, const std::string& body,
                            const std::string& headers) {
  send(post_text(target, body, headers));
  return read();
}

std::string HttpClient::post_text(const std::string& target, const std::string& body,
                                  const std::string& headers) {
  return "POST " + target + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

void HttpClient::read_slowly(size_t n, milliseconds pause) {
  error_code ignored;
  connection_->stream.socket.set_option(asio::socket_base::receive_buffer_size(2048), ignored);
  connection_->stream.read_bytes = n;
  connection_->stream.pause = pause;
}

void HttpClient::shutdown_send() {
  error_code ignored;
  connection_->stream.socket.shutdown(asio::socket_base::shutdown_send, ignored);
}

void HttpClient::close() {
  error_code ignored;
  connection_->stream.socket.close(ignored);
}

void HttpClient::reset() {
  error_code ignored;
  connection_->stream.socket.set_option(asio::socket_base::linger(true, 0), ignored);
  close();
}

}  // namespace qw::testing
