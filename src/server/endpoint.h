// What an address of the server does: who answers, in whose form errors are written, which fields.
//
// Level 7 (server). A dialect is a function that returns its endpoints; dialects know nothing of
// each other, and the router nothing of dialects.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/fields.h"

namespace qw::server {

class Call;

/// How one family of clients wants to be spoken to.
struct Dialect {
  std::string name;  // "openai", ...
  /// The body of a failed answer.
  Json (*error_body)(const Error& error, int status);
};

/// What /openapi.json says of an address beside its fields.
struct EndpointNotes {
  Json example = {};  // a body that is answered well; null: none is taken
  Json body = {};     // schema of one that is no object of fields; null: it is, or there is none
  Json answer = types::object();                 // schema of the whole answer
  std::string answer_type = "application/json";  // its content type
  std::string stream_type = {};                  // of an answer in pieces; "": there is none
  bool generates = false;                        // waits for a place, takes time
  bool may_be_unready = false;                   // 503 while no requests are taken
  bool needs_setup = false;             // its example is not answered by the bundled model as it is
  bool always_refused = false;          // there is no other answer than an error
  std::vector<std::string> query = {};  // names of the query's parameters
  std::string path_example = {};        // a value for the name in braces
};

struct Endpoint {
  std::string method;  // "GET", "POST", ...
  std::string path;    // "/v1/models/{model...}": a name in braces is a segment, with dots the rest
  const Dialect* dialect = nullptr;
  std::string summary;
  /// Answers. On a worker's thread; may throw, which is answered with dialect->error_body.
  std::function<void(std::shared_ptr<Call>)> handle;
  std::vector<FieldInfo> fields;
  bool needs_key = true;  // where keys are in use
  EndpointNotes notes = {};
  /// Only for requests that have a header of this name; such an endpoint stands before others of
  /// the same address. "": for all.
  std::string header = {};
  /// Changes what others get: where keys are in use, for those of administrators.
  bool needs_admin = false;
  /// Answers from numbers at hand, on the server's thread: also when all workers are busy.
  bool at_once = false;
};

/// Values of the names in braces.
using PathParameters = std::vector<std::pair<std::string, std::string>>;

/// Whether `path` is of the form `pattern`; fills `parameters`.
bool match_path(std::string_view pattern, std::string_view path, PathParameters& parameters);

}  // namespace qw::server
