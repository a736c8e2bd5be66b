// The dialect of llama.cpp's server: /completion, /props, /slots and so on.
//
// Level 7 (server). One file for each group of addresses; this header is what the service sees.
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::llama_server {

std::vector<Endpoint> endpoints();

}  // namespace qw::server::llama_server
