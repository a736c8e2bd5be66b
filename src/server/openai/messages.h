// OpenAI's messages as the chat template wants them.
//
// Level 7 (server).
#pragma once

#include "server/fields.h"

namespace qw::server::openai {

/// Contents that are lists of text parts become strings, "developer" becomes "system"; other
/// members stay. Errors: RequestError naming the message (no list, no role, an image).
Json plain_messages(const Json& messages);

}  // namespace qw::server::openai
