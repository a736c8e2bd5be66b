// The dialect of Ollama's clients: /api/...
//
// Level 7 (server). One file for each group of addresses; this header is what the service sees.
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::ollama {

std::vector<Endpoint> endpoints();

}  // namespace qw::server::ollama
