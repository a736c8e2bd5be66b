// The dialect of Anthropic's clients: /v1/messages.
//
// Level 7 (server). This header is what the service sees.
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::anthropic {

std::vector<Endpoint> endpoints();

}  // namespace qw::server::anthropic
