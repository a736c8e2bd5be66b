// A small blocking HTTP client for tests: sends bytes as they are, reads whole answers or pieces.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/dynamic_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <functional>
#include <map>
#include <string>

namespace qw::testing {

/// An answer; status 0: the server closed the connection without one.
struct HttpAnswer {
  int status = 0;
  std::map<std::string, std::string, std::less<>> headers;  // names in lower case
  std::string body;
};

class HttpClient {
 public:
  explicit HttpClient(uint16_t port) : socket_(io_) {
    socket_.connect({boost::asio::ip::make_address("127.0.0.1"), port});
    timeval limit{20, 0};  // a test must not hang
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }

  void send(std::string_view bytes) {
    boost::system::error_code ignored;  // the server may have closed already: read() will tell
    boost::asio::write(socket_, boost::asio::buffer(bytes), ignored);
  }
  /// Reads one answer whole. is_head: it has no body, whatever its header says.
  HttpAnswer read(bool is_head = false) {
    namespace http = boost::beast::http;
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    parser.skip(is_head);
    boost::system::error_code error;
    http::read(socket_, buffer_, parser, error);
    HttpAnswer answer;
    if (!parser.is_header_done()) return answer;
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
    char bytes[4096];
    while (all.find(text) == std::string::npos) {
      boost::system::error_code error;
      const size_t n = socket_.read_some(boost::asio::buffer(bytes), error);
      all.append(bytes, n);
      if (error) break;
    }
    return all;
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
    socket_.close(ignored);
  }

 private:
  boost::asio::io_context io_;
  boost::asio::ip::tcp::socket socket_;
  boost::beast::flat_buffer buffer_;
};

}  // namespace qw::testing
