// Messages as the chat template wants them.
//
// Level 7 (server). Dialects that write messages as OpenAI's clients do share this; those with
// forms of their own share what a list of text parts is worth.
#pragma once

#include "server/shape.h"

namespace qw::server {

/// The text of a content: a string, or a list of text parts ("text", "input_text", "output_text"),
/// joined. Errors: RequestError naming `where` (an image, a part without a type).
std::string text_of_content(const Json& content, const std::string& where);

/// Contents that are lists of text parts become strings, "developer" becomes "system"; other
/// members stay. Errors: RequestError naming the message (no list, no role, an image).
Json plain_messages(const Json& messages);

// What such messages and tools have. `strict` of a function is what every call is held to.
ShapePtr messages_shape();
ShapePtr text_parts_shape();
ShapePtr tools_shape();
ShapePtr tool_choice_shape();

}  // namespace qw::server
