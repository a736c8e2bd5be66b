// How an answer is written piece by piece: server-sent events, or a line of JSON each.
//
// Level 7 (server).
#pragma once

#include <string>
#include <string_view>

#include "server/fields.h"

namespace qw::server {

inline constexpr std::string_view kSseType = "text/event-stream; charset=utf-8";
inline constexpr std::string_view kNdjsonType = "application/x-ndjson";

/// The JSON on one line; text that is not UTF-8 is replaced.
inline std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}
/// "data: JSON\n\n".
inline std::string sse(const Json& json) {
  return "data: " + dump(json) + "\n\n";
}
/// "event: NAME\ndata: JSON\n\n".
inline std::string sse(std::string_view name, const Json& json) {
  return "event: " + std::string(name) + "\n" + sse(json);
}
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
/// "JSON\n".
inline std::string json_line(const Json& json) {
  return dump(json) + "\n";
}

}  // namespace qw::server
