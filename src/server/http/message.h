// HTTP requests and answers as plain data, so that nothing above this folder sees the HTTP library.
//
// Level 7 (server).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qw::http {

struct Header {
  std::string name, value;
};

struct Request {
  std::string method;                                      // "GET", "POST", ...
  std::string target;                                      // as sent: path and query
  std::string path;                                        // of target, percent-decoded
  std::vector<std::pair<std::string, std::string>> query;  // decoded, in order
  std::vector<Header> headers;
  std::string body;
  std::string peer;  // "127.0.0.1:50312"

  /// The first header of that name, in any case; null: none.
  const std::string* header(std::string_view name) const;
  /// The first query parameter of that name; null: none.
  const std::string* parameter(std::string_view name) const;
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<Header> headers;
  std::string body;
};

/// Splits a request target into path and query, both percent-decoded ("+" is a space in a query
/// only). The authority of an absolute one ("http://host/path") takes the place of the Host header
/// (RFC 9112, 3.2.2). False: a broken escape or a NUL byte.
bool split_target(std::string_view target, Request& request);

/// ASCII case-insensitive equality, for header names.
bool equal_ignoring_case(std::string_view a, std::string_view b) noexcept;

}  // namespace qw::http
