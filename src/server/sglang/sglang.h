// The dialect of SGLang's native clients: /generate, /get_server_info and so on.
//
// Level 7 (server). One file for each group of addresses; this header is what the service sees.
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::sglang {

std::vector<Endpoint> endpoints();

}  // namespace qw::server::sglang
