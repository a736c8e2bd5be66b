#include "soak/mutator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace qw::soak {

namespace {

/// Strings that stand for text that is no JSON of its own, until the body is written.
constexpr std::string_view kRaw = "@@raw@@", kTwice = "@@twice@@";

/// Fields that make a request long when they are large: they are seldom touched.
bool is_costly(const std::string& key) {
  static const std::vector<std::string> kCostly = {
      "max_tokens", "n_predict",         "num_predict", "max_new_tokens", "n",
      "best_of",    "max_output_tokens", "n_cmpl",      "min_tokens",     "max_completion_tokens"};
  return std::ranges::find(kCostly, key) != kCostly.end();
}

std::string repeated(const std::string& text, int64_t n) {
  std::string out;
  for (int64_t i = 0; i < n; ++i)
    out += text;
  return out;
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

}  // namespace

std::vector<Address> addresses_of(const Json& compat) {
  std::vector<Address> out;
  for (const auto& [dialect, endpoints] : compat.at("dialects").items()) {
    for (const Json& endpoint : endpoints) {
      Address address{endpoint.at("method"), endpoint.at("path"), {}};
      for (const Json& field : endpoint.at("fields"))
        address.fields.push_back(field.at("name"));
      out.push_back(std::move(address));
    }
  }
  return out;
}

// ---- values ------------------------------------------------------------------------------------

/// Text in the place of a value that a JSON library would not write.
std::string Mutator::raw_json() {
  static const std::vector<std::string> kTexts = {"1e999",
                                                  "-1e999",
                                                  "NaN",
                                                  "Infinity",
                                                  "-",
                                                  "01",
                                                  "1.",
                                                  ".5",
                                                  "+1",
                                                  "0x10",
                                                  "\"\\ud800\"",
                                                  "\"\\udc00\\ud800\"",
                                                  "\"\xff\xfe\"",
                                                  "\"\xc0\x80\"",
                                                  "\"\xed\xa0\x80\"",
                                                  "\"\\u0000\"",
                                                  "\"\x01\"",
                                                  "\"\\x\"",
                                                  "tru",
                                                  "nul",
                                                  "'a'",
                                                  "{\"a\":1,\"a\":2}",
                                                  "[1,]",
                                                  "{,}",
                                                  "/**/1",
                                                  "18446744073709551616",
                                                  "-9223372036854775809",
                                                  "1E400",
                                                  "0e0",
                                                  "\"\xf4\x90\x80\x80\""};
  if (maker_.chance(0.1)) {
    const int64_t depth = maker_.draw(10, 2000);
    return repeated("[", depth) + repeated("]", depth);
  }
  if (maker_.chance(0.05)) {
    const int64_t depth = maker_.draw(10, 200);
    return repeated("{\"a\":", depth) + "1" + repeated("}", depth);
  }
  return maker_.one_of(kTexts);
}

Json Mutator::value(int depth) {
  static const std::vector<Json> kScalars = {nullptr,
                                             true,
                                             false,
                                             0,
                                             1,
                                             2,
                                             -1,
                                             0.5,
                                             -0.0,
                                             1e308,
                                             -1e308,
                                             5e-324,
                                             1e-9,
                                             INT64_MAX,
                                             INT64_MIN,
                                             UINT64_MAX,
                                             4294967296,
                                             2147483648,
                                             -2147483649,
                                             100000,
                                             "",
                                             "a",
                                             "0",
                                             "true",
                                             "auto",
                                             "none",
                                             "json",
                                             "../../etc/passwd",
                                             "%s%n",
                                             "\n",
                                             "<|im_start|>system",
                                             "<|endoftext|>",
                                             "✿FUNCTION✿:",
                                             "\U0001F468\u200d\U0001F469",
                                             "(a+)+$",
                                             "[z-a]",
                                             "root ::= root",
                                             "root ::= \"a\" root | root \"b\"",
                                             "{\"type\":\"object\"}",
                                             "\\",
                                             Json::object(),
                                             Json::array()};
  switch (maker_.draw(0, 11)) {
    case 0:
      return std::string(kRaw);
    case 1:
      return std::string(static_cast<size_t>(maker_.draw(100, 20000)), 'x');
    case 2: {
      Json list = Json::array();
      for (int64_t n = depth > 2 ? 0 : maker_.draw(0, 5); n > 0; --n)
        list.push_back(value(depth + 1));
      return list;
    }
    case 3: {
      Json object = Json::object();
      static const std::vector<std::string> kNames = {"type", "role", "content", "text",  "a",
                                                      "name", "",     "id",      "scale", "$ref"};
      for (int64_t n = depth > 2 ? 0 : maker_.draw(0, 4); n > 0; --n)
        object[maker_.one_of(kNames)] = value(depth + 1);
      return object;
    }
    default:
      return maker_.one_of(kScalars);
  }
}

/// Any value within `root` but costly ones, with where it is.
Json* Mutator::random_node(Json& root, std::string* key, Json** parent) {
  Json* node = &root;
  *parent = nullptr;
  while (node->is_structured() && !node->empty()) {
    if (*parent != nullptr && maker_.chance(0.3)) break;
    auto entry = node->begin();
    std::advance(entry, maker_.draw(0, static_cast<int64_t>(node->size()) - 1));
    const std::string name = node->is_object() ? entry.key() : "";
    if (is_costly(name) && !maker_.chance(0.03)) return nullptr;
    *key = name;
    *parent = node;
    node = &*entry;
  }
  return *parent == nullptr ? nullptr : node;
}

void Mutator::add_field(Json& body, const Address& address) {
  if (address.fields.empty()) return;
  const std::string& name = maker_.one_of(address.fields);
  const size_t dot = name.find('.');
  const std::string last = dot == std::string::npos ? name : name.substr(dot + 1);
  if (is_costly(last) && !maker_.chance(0.03)) return;
  if (dot == std::string::npos) {
    body[name] = value();
    return;
  }
  Json& group = body[name.substr(0, dot)];
  if (!group.is_object()) group = Json::object();
  group[last] = value();
}

void Mutator::change(Json& body, const Address* address) {
  std::string key;
  Json* parent = nullptr;
  if (body.is_object() && address != nullptr && maker_.chance(0.4))
    return add_field(body, *address);
  Json* node = random_node(body, &key, &parent);
  if (node == nullptr) return;
  switch (maker_.draw(0, 6)) {
    case 0:  // gone
      if (parent->is_object()) {
        parent->erase(key);
      } else {
        *node = nullptr;
      }
      break;
    case 1:  // under another name
      if (parent->is_object()) {
        const Json moved = *node;
        parent->erase(key);
        (*parent)[maker_.chance(0.5) ? key + "_" : key.substr(0, key.size() / 2)] = moved;
        break;
      }
      *node = value();
      break;
    case 2:  // twice
      if (parent->is_object()) {
        (*parent)[std::string(kTwice) + key] = value();
      } else {
        const Json copy = *node;
        for (int64_t n = maker_.draw(1, 30); n > 0; --n)
          parent->push_back(copy);
      }
      break;
    case 3:
      *node = Json::array({*node});
      break;
    case 4:
      *node = node->dump(-1, ' ', false, Json::error_handler_t::replace);
      break;
    default:
      *node = value();
  }
}

// ---- bytes -------------------------------------------------------------------------------------

std::string Mutator::text_of(const Json& body) {
  std::string text = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::string raw = fmt::format("\"{}\"", kRaw);
  for (size_t at = 0; (at = text.find(raw)) != std::string::npos;)
    text.replace(at, raw.size(), raw_json());
  replace_all(text, std::string(kTwice), "");
  return text;
}

/// Changes bytes of a body, whatever they say.
void Mutator::damage(std::string& text) {
  const auto place = [&] { return static_cast<size_t>(maker_.draw(0, std::ssize(text))); };
  switch (maker_.draw(0, 5)) {
    case 0:
      text.resize(place());
      break;
    case 1:
      text.insert(place(), 1, static_cast<char>(maker_.draw(0, 255)));
      break;
    case 2:
      if (!text.empty())
        text[std::min(place(), text.size() - 1)] = static_cast<char>(maker_.draw(0, 255));
      break;
    case 3:
      text += maker_.one_of<std::string>({"}", "]", "\0", " ", "{}", "null", "\xef\xbb\xbf"});
      break;
    case 4:
      text.insert(0, maker_.one_of<std::string>({"\xef\xbb\xbf", " ", "\xff\xfe", "[", "0"}));
      break;
    default: {
      const size_t from = place();
      text.insert(place(), text.substr(from, static_cast<size_t>(maker_.draw(0, 40))));
    }
  }
}

std::string Mutator::target_of(const Planned& request, bool& framed) {
  std::string target = request.target;
  if (!maker_.chance(0.06)) return target;
  static const std::vector<std::string> kSuffixes = {
      "?",        "?model=",   "?model=x",       "?a=%00",      "?%zz", "#x", "/",
      "/..",      "//",        "/%2e%2e/%2fetc", "?a=1&&b",     "?=;",  "%",  "?fail_on_no_slot=1",
      "?action=", "/\xc3\xa9", "?action=save",   "?q=%E4%BD%A0"};
  target += maker_.one_of(kSuffixes);
  if (maker_.chance(0.1)) target += std::string(static_cast<size_t>(maker_.draw(100, 40000)), 'a');
  if (maker_.chance(0.1))
    target = maker_.one_of<std::string>({"*", "", "x", "http://localhost/health"});
  // Bytes beyond ASCII, nothing at all, or more than a header may have: who knows.
  framed = framed && target.size() < 8000 && !target.empty() &&
           std::ranges::all_of(target, [](char c) { return c > ' ' && c < 127; });
  return target;
}

std::string Mutator::random_headers(bool& framed) {
  static const std::vector<std::string> kFine = {"Accept: */*",
                                                 "Accept-Encoding: gzip, br",
                                                 "Content-Type: text/plain",
                                                 "Content-Type: application/json; charset=utf-16",
                                                 "Content-Type: ",
                                                 "Authorization: Bearer x",
                                                 "Authorization: Basic",
                                                 "x-api-key: ",
                                                 "X-Empty:",
                                                 "Cookie: a=b",
                                                 "User-Agent: x",
                                                 "Accept-Language: *",
                                                 "anthropic-version: 1",
                                                 "Range: bytes=0-1",
                                                 "If-None-Match: *",
                                                 "X-Request-Id: 1",
                                                 "Expect: nothing",
                                                 "Forwarded: for=1"};
  static const std::vector<std::string> kOdd = {"no colon here",
                                                ": no name",
                                                "Bad Name: x",
                                                "X: a\r\n folded",
                                                "X: \x01",
                                                "X\xc3\xa9: y",
                                                "Host: other",
                                                "Host: evil.example",
                                                "Origin: http://evil.example",
                                                "Connection: close",
                                                "Connection: upgrade\r\nUpgrade: h2c",
                                                "Transfer-Encoding: gzip",
                                                "Transfer-Encoding: chunked",
                                                "Content-Length: 5",
                                                "Content-Length: -1",
                                                "Content-Length: 99999999999999999999",
                                                "Content-Length: abc",
                                                "Content-Length: 0x10",
                                                "Expect: 100-continue",
                                                "Trailer: X"};
  std::string out;
  for (int64_t n = maker_.draw(0, 2); n > 0; --n) {
    if (maker_.chance(0.15)) {
      out += maker_.one_of(kOdd) + "\r\n";
      framed = false;
    } else {
      out += maker_.one_of(kFine) + "\r\n";
    }
  }
  if (maker_.chance(0.01)) {
    out += "X: " + std::string(static_cast<size_t>(maker_.draw(1000, 60000)), 'h') + "\r\n";
    framed = false;
  }
  return out;
}

std::string Mutator::chunked(const std::string& body, bool& framed) {
  std::string out;
  for (size_t at = 0; at < body.size();) {
    const std::string piece = body.substr(at, static_cast<size_t>(maker_.draw(1, 300)));
    at += piece.size();
    out += fmt::format("{:x}{}\r\n{}\r\n", piece.size(), maker_.chance(0.1) ? ";ext=1" : "", piece);
  }
  if (!maker_.chance(0.2)) return out + "0\r\n\r\n";
  framed = false;
  return out + maker_.one_of<std::string>({"0\r\nTrailer: x\r\n\r\n", "ffffffffffffffff\r\nx",
                                           "-1\r\n\r\n", "zz\r\n", "5\r\nab", "0", "\r\n\r\n",
                                           "7fffffff\r\nabc"});
}

void Mutator::frame(const Planned& request, const std::string& body, Mutant& out) {
  bool& framed = out.well_framed;
  std::string method = request.method;
  if (maker_.chance(0.02))
    method =
        maker_.one_of<std::string>({"PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "GET"});
  out.is_head = method == "HEAD";
  std::string head = fmt::format("{} {} HTTP/1.1\r\n", method, target_of(request, framed));
  if (maker_.chance(0.005)) {
    head = maker_.one_of<std::string>({"POST / HTTP/1.0\r\n", "POST / HTTP/9.9\r\n", "POST /\r\n",
                                       "BAD\x01 / HTTP/1.1\r\n", "GET  /health  HTTP/1.1\r\n",
                                       "\r\nGET /health HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n"});
    framed = false;
  }
  if (maker_.chance(0.01)) {
    framed = false;  // HTTP/1.1 asks for one: refused, and the connection closed
  } else {
    head += "Host: localhost\r\n";
  }
  head += random_headers(framed);
  if (maker_.chance(0.05)) {
    out.bytes += head + "Transfer-Encoding: chunked\r\n\r\n" + chunked(body, framed);
    return;
  }
  int64_t length = std::ssize(body);
  if (maker_.chance(0.01)) {
    length += maker_.draw(-20, 20);
    framed = framed && length == std::ssize(body);
  }
  if (length != 0 || method == "POST") head += fmt::format("Content-Length: {}\r\n", length);
  out.bytes += head + "\r\n" + body;
  if (maker_.chance(0.005)) {
    out.bytes.resize(static_cast<size_t>(maker_.draw(1, std::ssize(out.bytes))));
    framed = false;
  }
}

// ---- requests ----------------------------------------------------------------------------------

/// A valid request; every address of /compat has its turn.
Planned Mutator::base() {
  const int64_t kind = maker_.draw(0, 99);
  if (kind < 55) return maker_.generation();
  if (kind < 75) return maker_.side_request();
  if (kind < 80) return maker_.look();
  if (kind < 83) return maker_.adapter_change();
  Planned out;
  const Address& address = maker_.one_of(addresses_);
  out.method = address.method;
  out.target = address.path;
  replace_all(out.target, "{model...}", "qianwen-mini-chat");
  replace_all(out.target, "{name...}", "x");
  replace_all(out.target, "{id}", "0");
  if (address.method != "GET") {
    out.body = Json::object();
    for (int64_t n = maker_.draw(0, 4); n > 0; --n)
      add_field(out.body, address);
  }
  return out;
}

Mutant Mutator::next() {
  Mutant out;
  out.n_requests = maker_.chance(0.03) ? 2 : 1;
  for (size_t i = 0; i < out.n_requests; ++i) {
    Planned request = base();
    const auto address = std::ranges::find_if(addresses_, [&](const Address& a) {
      return request.target.substr(0, request.target.find('?')) == a.path;
    });
    std::string body;
    if (!request.body.is_null()) {
      for (int64_t n = maker_.chance(0.05) ? 0 : maker_.draw(1, 3); n > 0; --n)
        change(request.body, address == addresses_.end() ? nullptr : &*address);
      body = text_of(request.body);
      if (maker_.chance(0.08)) damage(body);
    } else if (maker_.chance(0.05)) {
      body = raw_json();
    }
    Mutant one;
    frame(request, body, one);
    out.bytes += one.bytes;
    out.well_framed = out.well_framed && one.well_framed;
    if (one.is_head && i > 0) {  // the one before has a body
      out.bytes.resize(out.bytes.size() - one.bytes.size());
      out.n_requests = i;
      break;
    }
    out.is_head = one.is_head;
    if (one.is_head || !one.well_framed) {  // what follows could not be told apart
      out.n_requests = i + 1;
      break;
    }
  }
  return out;
}

}  // namespace qw::soak
