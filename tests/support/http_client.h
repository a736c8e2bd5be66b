// A small blocking HTTP client for tests and tools: sends bytes as they are, reads whole answers or
// pieces. It never hangs: an answer has a deadline.
#pragma once

#include <poll.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_prefix.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/dynamic_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <limits>
#include <map>
#include <string>
#include <thread>

namespace qw::testing {

/// An answer; status 0: the server closed the connection without one.
struct HttpAnswer {
  int status = 0;
  std::map<std::string, std::string, std::less<>> headers;  // names in lower case
  std::string body;
  bool complete = false;    // to its last byte
  bool timed_out = false;   // the deadline passed before
  bool keep_alive = false;  // the connection takes another request
  std::string error;        // why it is not complete
};

/// A socket whose reads end at a deadline, as a stream that Beast reads from.
class DeadlineStream {
 public:
  using Clock = std::chrono::steady_clock;

  explicit DeadlineStream(boost::asio::io_context& io) : socket(io) {}

  template <typename Buffers>
  size_t read_some(const Buffers& buffers, boost::system::error_code& error) {
    using std::chrono::milliseconds;
    if (pause.count() > 0) std::this_thread::sleep_for(pause);
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    pollfd waiting{socket.native_handle(), POLLIN, 0};
    if (left <= 0 || ::poll(&waiting, 1, static_cast<int>(left)) == 0) {
      error = boost::asio::error::timed_out;
      return 0;
    }
    return socket.read_some(boost::beast::buffers_prefix(read_bytes, buffers), error);
  }
  template <typename Buffers>
  size_t read_some(const Buffers& buffers) {
    boost::system::error_code error;
    const size_t n = read_some(buffers, error);
    if (error) throw boost::system::system_error(error);
    return n;
  }

  boost::asio::ip::tcp::socket socket;
  Clock::time_point deadline = Clock::time_point::max();
  std::chrono::milliseconds pause{0};  // before every read: a slow client
  size_t read_bytes = size_t{1} << 16;
};

class HttpClient {
 public:
  explicit HttpClient(uint16_t port, std::chrono::milliseconds limit = std::chrono::minutes(1))
      : stream_(io_), limit_(limit) {
    stream_.socket.connect({boost::asio::ip::make_address("127.0.0.1"), port});
  }

  void send(std::string_view bytes) {
    boost::system::error_code ignored;  // the server may have closed already: read() will tell
    boost::asio::write(stream_.socket, boost::asio::buffer(bytes), ignored);
  }
  /// Reads one answer whole. is_head: it has no body, whatever its header says.
  HttpAnswer read(bool is_head = false) {
    namespace http = boost::beast::http;
    http::response_parser<http::string_body> parser;
    // Not none: Beast compares a length with a limit that is not there, and sometimes finds it
    // larger.
    parser.body_limit(std::numeric_limits<uint64_t>::max());
    parser.skip(is_head);
    boost::system::error_code error;
    stream_.deadline = DeadlineStream::Clock::now() + limit_;
    http::read(stream_, buffer_, parser, error);
    HttpAnswer answer;
    answer.timed_out = error == boost::asio::error::timed_out;
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
  /// Reads bytes until `text` has come or the connection has ended; returns all of them.
  std::string read_until(std::string_view text) {
    std::string all;
    while (all.find(text) == std::string::npos) {
      const std::string bytes = read_bytes(4096);
      if (bytes.empty()) break;
      all += bytes;
    }
    return all;
  }
  /// What comes next, at most `n` bytes; "" at the end of the connection or the deadline.
  std::string read_bytes(size_t n) {
    stream_.deadline = DeadlineStream::Clock::now() + limit_;
    std::string bytes(n, '\0');
    boost::system::error_code error;
    bytes.resize(stream_.read_some(boost::asio::buffer(bytes), error));
    return bytes;
  }
  HttpAnswer get(const std::string& target) {
    send("GET " + target + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    return read();
  }
  HttpAnswer post(const std::string& target, const std::string& body,
                  const std::string& headers = "") {
    send(post_text(target, body, headers));
    return read();
  }
  static std::string post_text(const std::string& target, const std::string& body,
                               const std::string& headers = "") {
    return "POST " + target + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
           headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  void close() {
    boost::system::error_code ignored;
    stream_.socket.close(ignored);
  }
  DeadlineStream& stream() { return stream_; }

 private:
  boost::asio::io_context io_;
  DeadlineStream stream_;
  std::chrono::milliseconds limit_;
  boost::beast::flat_buffer buffer_;
};

}  // namespace qw::testing
