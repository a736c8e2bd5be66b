// What Anthropic's addresses share.
//
// Level 7 (server).
#pragma once

#include <vector>

#include "server/endpoint.h"

namespace qw::server::anthropic {

extern const Dialect kAnthropic;

std::vector<Endpoint> message_endpoints();
std::vector<Endpoint> model_endpoints();

}  // namespace qw::server::anthropic
