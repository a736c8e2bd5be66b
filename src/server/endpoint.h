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

struct Endpoint {
  std::string method;  // "GET", "POST", ...
  std::string path;    // "/v1/models/{model...}": a name in braces is a segment, with dots the rest
  const Dialect* dialect = nullptr;
  std::string summary;
  /// Answers. On a worker's thread; may throw, which is answered with dialect->error_body.
  std::function<void(std::shared_ptr<Call>)> handle;
  std::vector<FieldInfo> fields;
  bool needs_key = true;  // where keys are in use
};

/// Values of the names in braces.
using PathParameters = std::vector<std::pair<std::string, std::string>>;

/// Whether `path` is of the form `pattern`; fills `parameters`.
bool match_path(std::string_view pattern, std::string_view path, PathParameters& parameters);

}  // namespace qw::server
