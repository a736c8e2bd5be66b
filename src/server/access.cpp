#include "server/access.h"

#include <fmt/ranges.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/guarded_json.h"
#include "base/json_limits.h"
#include "base/mapped_file.h"
#include "base/repeated_keys.h"
#include "base/sha256.h"
#include "server/request_error.h"

namespace qw::server {

namespace {

using Json = nlohmann::ordered_json;

/// What a value of a key file is, without its content: it may be a secret in the wrong place.
std::string kind_of(const Json& value) {
  if (value.is_string())
    return fmt::format("a string of {} characters", value.get_ref<const std::string&>().size());
  return value.is_number() ? value.dump() : value.type_name();
}

/// Reads the entries of a key file, each field by its name.
class KeyEntry {
 public:
  KeyEntry(const Json& entry, size_t index, std::string_view path)
      : entry_(entry), index_(index), path_(path) {
    if (!entry.is_object()) refuse("", "an object", kind_of(entry));
    for (const auto& [name, value] : entry.items()) {
      static constexpr std::array<std::string_view, 5> kKnown = {
          "name", "sha256", "admin", "requests_per_minute", "tokens_per_minute"};
      if (std::ranges::find(kKnown, name) == kKnown.end())
        refuse("", fmt::format("the fields {}", fmt::join(kKnown, ", ")),
               fmt::format("'{}' too", printable(name)));
    }
  }

  std::string name() const {
    const Json& name = required("name", "a name");
    if (!name.is_string() || name == "") refuse("name", "a name", kind_of(name));
    return name.get<std::string>();
  }
  std::string hash() const {
    constexpr const char* kForm = "64 hexadecimal digits in lower case";
    const Json& hash = required("sha256", kForm);
    if (!hash.is_string() || !is_hash(hash.get<std::string>()))
      refuse("sha256", kForm, kind_of(hash));
    return hash.get<std::string>();
  }
  bool is_admin() const {
    const auto admin = entry_.find("admin");
    if (admin == entry_.end()) return false;
    if (!admin->is_boolean()) refuse("admin", "true or false", kind_of(*admin));
    return admin->get<bool>();
  }
  std::optional<double> rate(const char* name) const {
    const auto rate = entry_.find(name);
    if (rate == entry_.end() || rate->is_null()) return std::nullopt;
    if (!rate->is_number() || rate->get<double>() <= 0 || rate->get<double>() > 1e12)
      refuse(name, "a number above 0, at most 1e12", kind_of(*rate));
    return rate->get<double>();
  }
  /// `field`: ""; the entry itself.
  [[noreturn]] void refuse(std::string_view field, std::string_view expected,
                           std::string_view got) const {
    fail(ErrorKind::kCorrupt, "keys", "keys[{}]{}{}: expected {}, got {} ({})", index_,
         field.empty() ? "" : ".", field, expected, got, printable(path_, 4096));
  }

 private:
  static bool is_hash(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
  }
  const Json& required(const char* name, std::string_view expected) const {
    const auto it = entry_.find(name);
    if (it == entry_.end()) refuse(name, expected, "none");
    return *it;
  }

  const Json& entry_;
  size_t index_;
  std::string_view path_;
};

/// The file's list of keys. Errors: io, corrupt.
Json read_keys(const std::string& path) {
  const JsonLimits limits;
  const std::string text = read_text_file(path, limits.max_bytes);
  Json file;
  try {
    RepeatedKeys<Json> repeated;
    file = parse_guarded<Json>(
        text, JsonLimitGuard(limits, ErrorKind::kCorrupt, path),
        [&](Json::parse_event_t event, const Json& parsed) { repeated.see(event, parsed); });
    if (!repeated.found().empty()) {
      fail(ErrorKind::kCorrupt, "keys", "{}: expected it once in its object, got it again ({})",
           repeated.found().front(), printable(path, 4096));
    }
  } catch (const Json::parse_error& error) {
    fail(ErrorKind::kCorrupt, "keys", "file: expected JSON, got an error at byte {} ({})",
         error.byte, printable(path, 4096));
  }
  if (!file.is_object() || !file.contains("keys") || !file["keys"].is_array()) {
    fail(ErrorKind::kCorrupt, "keys", "file: expected {{\"keys\": [...]}}, got {} ({})",
         file.is_object() ? "an object without such a list" : kind_of(file), printable(path, 4096));
  }
  for (const auto& [name, value] : file.items()) {
    if (name != "keys") {
      fail(ErrorKind::kCorrupt, "keys", "file: expected nothing beside \"keys\", got '{}' ({})",
           printable(name), printable(path, 4096));
    }
  }
  return std::move(file["keys"]);
}

/// Host of "host:port", "[::1]:port" or "host".
std::string_view host_of(std::string_view authority) {
  if (authority.starts_with('[')) return authority.substr(0, authority.find(']') + 1);
  return authority.substr(0, authority.find(':'));
}

bool is_address(std::string_view host) {
  if (host.starts_with('[')) return true;
  return !host.empty() && host.find_first_not_of("0123456789.") == std::string_view::npos;
}

}  // namespace

// ---- keys --------------------------------------------------------------------------------------

KeyRing KeyRing::read(const std::string& path) {
  const Json keys = read_keys(path);
  KeyRing ring;
  const auto now = Clock::now();
  for (size_t i = 0; i < keys.size(); ++i) {
    const KeyEntry entry(keys[i], i, path);
    Key key;
    key.name = entry.name();
    key.sha256 = entry.hash();
    key.is_admin = entry.is_admin();
    if (const auto rate = entry.rate("requests_per_minute")) key.requests.emplace(*rate, now);
    if (const auto rate = entry.rate("tokens_per_minute")) key.tokens.emplace(*rate, now);
    if (ring.find(key.name) != nullptr)
      entry.refuse("name", "a name of its own", "that of another key");
    if (std::ranges::find(ring.keys_, key.sha256, &Key::sha256) != ring.keys_.end())
      entry.refuse("sha256", "a key of its own", "that of another entry");
    ring.keys_.push_back(std::move(key));
  }
  if (ring.keys_.empty())
    fail(ErrorKind::kCorrupt, "keys", "file: expected at least one key, got none ({})",
         printable(path, 4096));
  return ring;
}

KeyRing::Key* KeyRing::find(const std::string& name) {
  const auto it = std::ranges::find_if(keys_, [&](const Key& key) { return key.name == name; });
  return it == keys_.end() ? nullptr : &*it;
}

Client KeyRing::identify(const http::Request& request) const {
  if (keys_.empty()) return {};
  constexpr std::string_view kBearer = "Bearer ";
  const std::string* authorization = request.header("authorization");
  const std::string* plain = request.header("x-api-key");
  std::string_view given;
  if (authorization != nullptr &&
      http::equal_ignoring_case(std::string_view(*authorization).substr(0, kBearer.size()),
                                kBearer)) {
    given = std::string_view(*authorization).substr(kBearer.size());
  } else if (plain != nullptr) {  // other schemes of Authorization are for a proxy in front
    given = *plain;
  } else if (authorization != nullptr) {
    given = *authorization;
  }
  const std::string hash = sha256_hex(std::as_bytes(std::span(given)));
  const Key* found = nullptr;
  for (const Key& key : keys_) {  // all of them, each in the same time
    if (CRYPTO_memcmp(key.sha256.data(), hash.data(), hash.size()) == 0) found = &key;
  }
  if (found == nullptr || given.empty()) {
    throw RequestError(ErrorKind::kInvalidArgument,
                       fmt::format("[access] key: expected a valid one as \"Authorization: Bearer "
                                   "KEY\" or \"x-api-key: KEY\", got {}",
                                   given.empty() ? "none" : "another"),
                       "", 401);
  }
  return {found->name, found->is_admin};
}

void KeyRing::Bucket::fill(Clock::time_point now) {
  const double minutes = std::chrono::duration<double>(now - filled).count() / 60;
  level = std::min(most(), level + per_minute * std::max(minutes, 0.0));
  filled = now;
}

double KeyRing::Bucket::seconds_until(double amount) const {
  return std::max(0.0, (amount - level) / per_minute * 60);
}

void KeyRing::take_request(const Client& client, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  Key* key = find(client.name);
  if (key == nullptr) return;
  const auto require = [&](std::optional<Bucket>& bucket, double amount, std::string_view what) {
    if (!bucket) return;
    bucket->fill(now);
    if (bucket->level >= amount) return;
    const auto wait_s =
        static_cast<int64_t>(std::max(1.0, std::ceil(bucket->seconds_until(amount))));
    throw RequestError(
        ErrorKind::kInvalidArgument,
        fmt::format("[access] quota: expected at most {} {} a minute of key '{}', got more; try "
                    "again in {} s",
                    bucket->per_minute, what, printable(client.name), wait_s),
        "", 429, wait_s);
  };
  require(key->requests, 1, "requests");
  // Tokens are counted when they are known; a request may begin as long as there are some left.
  require(key->tokens, 1, "tokens");
  if (key->requests) key->requests->level -= 1;
}

void KeyRing::take_tokens(const Client& client, int64_t n_tokens, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  Key* key = find(client.name);
  if (key == nullptr || !key->tokens) return;
  key->tokens->fill(now);
  key->tokens->level -= static_cast<double>(n_tokens);
}

KeyRing::NewKey KeyRing::make(const std::string& name, bool is_admin) {
  std::array<unsigned char, 32> random{};
  if (RAND_bytes(random.data(), static_cast<int>(random.size())) != 1)
    fail(ErrorKind::kIo, "keys", "random numbers: expected some of the system, got none");
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string key = "qw-";
  unsigned bits = 0, value = 0;
  for (const unsigned char byte : random) {
    value = value << 8 | byte;
    bits += 8;
    while (bits >= 6) {
      bits -= 6;
      key += kAlphabet[value >> bits & 63];
    }
  }
  key += kAlphabet[value << (6 - bits) & 63];
  Json entry = {{"name", name}, {"sha256", sha256_hex(std::as_bytes(std::span(key)))}};
  if (is_admin) entry["admin"] = true;
  return {key, entry.dump()};
}

// ---- origins -----------------------------------------------------------------------------------

bool OriginPolicy::allows(const http::Request& request) const {
  const auto listed = [](const std::vector<std::string>& list, std::string_view value) {
    return std::ranges::any_of(list, [&](const std::string& item) {
      return item == "*" || http::equal_ignoring_case(item, value);
    });
  };
  const std::string* host = request.header("host");
  if (loopback_only && host != nullptr) {
    const std::string_view name = host_of(*host);
    if (!is_address(name) && !http::equal_ignoring_case(name, "localhost") && !listed(hosts, name))
      return false;
  }
  const std::string* origin = request.header("origin");
  if (origin == nullptr) {
    const std::string* kind = request.header("sec-fetch-dest");
    const bool is_followed = kind != nullptr && *kind == "document";  // a link to one of our pages
    return is_followed || listed(origins, "*") || !is_from_elsewhere(request);
  }
  if (listed(origins, *origin)) return true;
  const size_t slashes = origin->find("://");
  if (slashes == std::string::npos || host == nullptr) return false;
  return http::equal_ignoring_case(std::string_view(*origin).substr(slashes + 3), *host);
}

bool OriginPolicy::is_from_elsewhere(const http::Request& request) {
  const std::string* site = request.header("sec-fetch-site");
  return request.header("origin") == nullptr && site != nullptr &&
         (*site == "cross-site" || *site == "same-site");
}

std::vector<http::Header> OriginPolicy::headers(const http::Request& request) const {
  const std::string* origin = request.header("origin");
  if (origin == nullptr) return {};
  return {{"Access-Control-Allow-Origin", *origin},
          {"Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"},
          {"Access-Control-Allow-Headers", "*, Authorization"},
          {"Access-Control-Expose-Headers", "X-Request-Id, X-Qianwen-Warnings, Retry-After"},
          {"Access-Control-Max-Age", "600"},
          {"Vary", "Origin"}};
}

}  // namespace qw::server
