// What SGLang's addresses share.
//
// Level 7 (server).
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::sglang {

extern const Dialect kSglang;

/// {"error": {"message", "type", "code"}}.
Json error_body(const Error& error, int status);

std::vector<Endpoint> generate_endpoints();
std::vector<Endpoint> encode_endpoints();
std::vector<Endpoint> info_endpoints();

}  // namespace qw::server::sglang
