// Endpoints about the server itself: health, readiness, version, the compatibility table.
//
// Level 7 (server).
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server {

std::vector<Endpoint> operation_endpoints();

}  // namespace qw::server
