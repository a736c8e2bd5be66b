// A small blocking HTTP client for tests and tools: sends bytes as they are, reads whole answers or
// pieces. It never hangs: an answer has a deadline.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

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

/// One connection. Beast is in the source file alone, since every test of the server includes this.
class HttpClient {
 public:
  explicit HttpClient(uint16_t port, std::chrono::milliseconds limit = std::chrono::minutes(1));
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;
  ~HttpClient();

  /// A connection that the server has closed already is no error here: read() will tell.
  void send(std::string_view bytes);
  /// Reads one answer whole. is_head: it has no body, whatever its header says.
  HttpAnswer read(bool is_head = false);
  /// Reads bytes until `text` has come or the connection has ended; returns all of them.
  std::string read_until(std::string_view text);
  /// What comes next, at most `n` bytes; "" at the end of the connection or the deadline.
  std::string read_bytes(size_t n);
  /// Bytes that have come and are not read yet.
  size_t available() const;

  HttpAnswer get(const std::string& target);
  HttpAnswer post(const std::string& target, const std::string& body,
                  const std::string& headers = "");
  static std::string post_text(const std::string& target, const std::string& body,
                               const std::string& headers = "");

  /// From here on `n` bytes at most at a time, each after a pause, from a small buffer.
  void read_slowly(size_t n, std::chrono::milliseconds pause);
  /// Ends the sending half of the connection.
  void shutdown_send();
  void close();
  /// Closes with a reset instead of an orderly end.
  void reset();

 private:
  struct Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace qw::testing
