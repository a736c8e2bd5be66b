// POST /tokenize, /detokenize and /apply-template: addresses that several systems have, each with
// fields of its own. One endpoint understands all of them.
//
// Level 7 (server).
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server {

std::vector<Endpoint> token_endpoints();

}  // namespace qw::server
