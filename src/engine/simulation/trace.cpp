#include "engine/simulation/trace.h"

#include <algorithm>
#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/error.h"
#include "base/guarded_json.h"
#include "base/json_limits.h"

namespace qw::simulation {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMooncakeBlock = 512;
constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int64_t kMaxContent = int64_t{1} << 52;

/// One line of a file, and where it is.
class Line {
 public:
  Line(const std::string& text, const std::string& name, int64_t number)
      : name_(name), number_(number) {
    static const JsonLimits limits;
    try {
      json_ = parse_guarded<Json>(text, JsonLimitGuard(limits, ErrorKind::kCorrupt, name));
    } catch (const Json::exception&) {
      refuse("a JSON object", "something else");
    }
    if (!json_.is_object()) refuse("a JSON object", json_.type_name());
  }

  bool has(const char* key) const { return json_.contains(key); }
  double seconds(const char* key) const {
    const Json& value = field(key);
    if (!value.is_number() || !(value.get<double>() >= 0)) refuse(key, "a number from 0");
    return value.get<double>();
  }
  int64_t integer(const char* key, int64_t low, int64_t high) const {
    return integer(field(key), key, low, high);
  }
  std::string text(const char* key) const {
    if (!field(key).is_string()) refuse(key, "a string");
    return field(key).get<std::string>();
  }
  Piece piece(const char* key) const { return piece(field(key), key); }
  std::vector<Piece> pieces(const char* key) const {
    std::vector<Piece> out;
    for (const Json& item : array(key))
      out.push_back(piece(item, key));
    return out;
  }
  std::vector<int64_t> integers(const char* key) const {
    std::vector<int64_t> out;
    for (const Json& item : array(key))
      out.push_back(integer(item, key, 0, kMaxContent));
    return out;
  }
  [[noreturn]] void refuse(std::string_view what, std::string_view expected) const {
    fail(ErrorKind::kCorrupt, "trace", "{}: expected {}, got something else ({}, line {})", what,
         expected, printable(name_, 4096), number_);
  }

 private:
  const Json& field(const char* key) const {
    if (!has(key)) refuse(key, "a value");
    return json_.at(key);
  }
  const Json& array(const char* key) const {
    if (!field(key).is_array() || field(key).empty()) refuse(key, "a list that is not empty");
    return field(key);
  }
  int64_t integer(const Json& value, const char* key, int64_t low, int64_t high) const {
    const bool is_valid =
        value.is_number_integer() && value.get<int64_t>() >= low && value.get<int64_t>() <= high;
    if (!is_valid) refuse(key, "a whole number within its range");
    return value.get<int64_t>();
  }
  Piece piece(const Json& value, const char* key) const {
    if (!value.is_array() || value.size() != 2) refuse(key, "[content, tokens]");
    return {integer(value[0], key, 0, kMaxContent), integer(value[1], key, 1, kMaxTokens)};
  }

  std::string name_;
  int64_t number_;
  Json json_;
};

/// A line as Mooncake's traces have them: blocks of 512 tokens, named by hash.
TracedRequest read_mooncake(const Line& line, int64_t index) {
  TracedRequest request;
  request.at_s = line.seconds("timestamp") / 1000;
  int64_t left = line.integer("input_length", 1, kMaxTokens);
  for (const int64_t id : line.integers("hash_ids")) {
    if (left <= 0) line.refuse("hash_ids", "one for every 512 tokens of input_length");
    request.prompt.push_back({id, std::min(left, kMooncakeBlock)});
    left -= kMooncakeBlock;
  }
  if (left > 0) line.refuse("hash_ids", "one for every 512 tokens of input_length");
  // Nobody says what the answers are, so none is met again.
  request.answer = {kMaxContent + index, line.integer("output_length", 1, kMaxTokens)};
  return request;
}

TracedRequest read_own(const Line& line, int64_t index) {
  TracedRequest request;
  if (line.has("after")) {
    request.after = line.integer("after", 0, index - 1);
    request.delay_s = line.seconds("delay");
  } else {
    request.at_s = line.seconds("at");
  }
  if (line.has("client")) request.client = line.text("client");
  if (line.has("priority")) request.priority = line.integer("priority", -1000, 1000);
  request.prompt = line.pieces("prompt");
  request.answer = line.piece("answer");
  return request;
}

}  // namespace

int64_t TracedRequest::n_prompt_tokens() const {
  int64_t n = 0;
  for (const Piece& piece : prompt)
    n += piece.n_tokens;
  return n;
}

int32_t token_of(int64_t content, int64_t i) {
  // Two rounds of multiplying and folding: enough that equal places of two contents differ.
  uint64_t h = static_cast<uint64_t>(content) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(i);
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93u;
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93u;
  return static_cast<int32_t>(h >> 33);
}

std::vector<int32_t> prompt_tokens(const TracedRequest& request) {
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(request.n_prompt_tokens()));
  for (const Piece& piece : request.prompt) {
    for (int64_t i = 0; i < piece.n_tokens; ++i)
      tokens.push_back(token_of(piece.content, i));
  }
  return tokens;
}

Trace read_trace(std::istream& in, const std::string& name) {
  Trace trace;
  std::string text;
  for (int64_t number = 1; std::getline(in, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Line line(text, name, number);
    const int64_t index = std::ssize(trace);
    trace.push_back(line.has("hash_ids") ? read_mooncake(line, index) : read_own(line, index));
  }
  if (trace.empty())
    fail(ErrorKind::kCorrupt, "trace", "{}: expected a request, got none", printable(name, 4096));
  return trace;
}

void write_trace(const Trace& trace, std::ostream& out) {
  for (const TracedRequest& request : trace) {
    nlohmann::ordered_json line;
    if (request.after) {
      line["after"] = *request.after;
      line["delay"] = request.delay_s;
    } else {
      line["at"] = request.at_s;
    }
    if (!request.client.empty()) line["client"] = request.client;
    if (request.priority != 0) line["priority"] = request.priority;
    for (const Piece& piece : request.prompt)
      line["prompt"].push_back({piece.content, piece.n_tokens});
    line["answer"] = {request.answer.content, request.answer.n_tokens};
    out << line.dump() << '\n';
  }
}

}  // namespace qw::simulation
