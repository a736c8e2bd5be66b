// The dialect of OpenAI's clients, with what vLLM adds to it.
//
// Level 7 (server). One file for each group of addresses; this header is what the service sees.
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::openai {

std::vector<Endpoint> endpoints();

}  // namespace qw::server::openai
