// What the server offers, as an OpenAPI 3.1 document, made of the tables that are in force.
//
// Level 7 (server). Addresses, fields, what values may be and errors come from the endpoints
// themselves, so the document cannot say anything else than /compat and the reader of bodies do.
// Source: OpenAPI Specification 3.1.0, JSON Schema draft 2020-12.
#pragma once

#include <string>
#include <vector>

#include "server/endpoint.h"

namespace qw::server {

struct OpenApiFacts {
  std::string version;       // of the program
  std::string model;         // the default model's name, for examples
  bool strict = false;       // unknown fields are errors
  bool keys_in_use = false;  // whether clients must show one
};

Json openapi(const std::vector<Endpoint>& endpoints, const OpenApiFacts& facts);

}  // namespace qw::server
