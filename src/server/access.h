// Who may use the server and how much: keys, quotas, and which web pages may call it.
//
// Level 7 (server). Of a key only its SHA-256 is kept: keys are random and long, so that no slower
// hash is needed to protect them. Quotas are token buckets that hold a minute's worth.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/message.h"

namespace qw::server {

struct KeyQuota {
  std::optional<double> requests_per_minute, tokens_per_minute;
};

/// A client that has shown its key.
struct Client {
  std::string name;  // of the key; "": keys are not in use
  bool is_admin = true;
};

class KeyRing {
 public:
  using Clock = std::chrono::steady_clock;

  /// Reads a key file: {"keys": [{"name", "sha256", "admin"?, "requests_per_minute"?,
  /// "tokens_per_minute"?}]}. Errors: io, corrupt (naming the entry).
  static KeyRing read(const std::string& path);
  /// No keys: everybody may.
  KeyRing() = default;
  KeyRing(KeyRing&& other) noexcept : keys_(std::move(other.keys_)) {}
  KeyRing& operator=(KeyRing&& other) noexcept {
    keys_ = std::move(other.keys_);
    return *this;
  }

  bool in_use() const { return !keys_.empty(); }

  /// The client of a request: by "Authorization: Bearer KEY" or "x-api-key: KEY". Errors:
  /// RequestError with status 401.
  Client identify(const http::Request& request) const;
  /// Takes a request from the client's quota. Errors: RequestError with status 429, which says when
  /// to try again.
  void take_request(const Client& client, Clock::time_point now);
  /// Takes the tokens that a request came to.
  void take_tokens(const Client& client, int64_t n_tokens, Clock::time_point now);

  /// A new key ("qw-" and 43 characters: 256 random bits) and the entry of the key file for it.
  struct NewKey {
    std::string key, entry;
  };
  static NewKey make(const std::string& name, bool is_admin = false);

 private:
  /// Holds what is left of a quota; may go below zero, since tokens are counted afterwards.
  struct Bucket {
    Bucket(double rate, Clock::time_point now) : per_minute(rate), level(most()), filled(now) {}
    /// A minute's worth, or one: below one a minute it takes longer than that to come to one.
    double most() const { return std::max(per_minute, 1.0); }

    double per_minute, level;
    Clock::time_point filled;
    void fill(Clock::time_point now);
    double seconds_until(double amount) const;
  };
  struct Key {
    std::string name, sha256;
    bool is_admin = false;
    std::optional<Bucket> requests, tokens;
  };
  Key* find(const std::string& name);

  mutable std::mutex mutex_;
  std::vector<Key> keys_;
};

/// Which pages may call the server from a browser, and under which names it may be called.
struct OriginPolicy {
  std::vector<std::string> origins;  // "https://example.org"; "*": any
  std::vector<std::string> hosts;    // names beside addresses and localhost; "*": any
  bool loopback_only = true;         // the server is bound to the loopback interface

  /// Whether a browser may be answered. False for a page of another origin that is not listed, for
  /// what such a page embeds (an image's address comes without an origin), and on the loopback
  /// interface for a name that is not this machine's (DNS rebinding).
  bool allows(const http::Request& request) const;
  /// Whether a page of another origin made a browser send it without saying of which: an image, a
  /// frame, a link. By the fetch metadata that browsers add and pages cannot.
  static bool is_from_elsewhere(const http::Request& request);
  /// The headers that tell the browser so.
  std::vector<http::Header> headers(const http::Request& request) const;
};

}  // namespace qw::server
