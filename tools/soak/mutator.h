// Requests that are nearly right: valid ones with something of them changed, in what they say or in
// how they are sent.
#pragma once

#include <string>
#include <vector>

#include "soak/requests.h"

namespace qw::soak {

/// Bytes to send, and what may be hoped for.
struct Mutant {
  std::string bytes;
  bool well_framed = true;  // HTTP is intact: each request gets an answer, the connection goes on
  bool is_head = false;
  size_t n_requests = 1;  // that were sent together
};

/// An address and the names of its fields, as /compat lists them.
struct Address {
  std::string method, path;
  std::vector<std::string> fields;
};
std::vector<Address> addresses_of(const Json& compat);

class Mutator {
 public:
  Mutator(uint64_t seed, std::vector<Address> addresses)
      : maker_(seed, {.max_tokens = 2, .long_words = 0, .names_adapters = false}),
        addresses_(std::move(addresses)) {}

  Mutant next();

 private:
  Planned base();
  Json value(int depth = 0);
  std::string raw_json();
  Json* random_node(Json& root, std::string* key, Json** parent);
  void change(Json& body, const Address* address);
  void add_field(Json& body, const Address& address);
  std::string text_of(const Json& body);
  void damage(std::string& text);
  std::string target_of(const Planned& request, bool& framed);
  std::string random_headers(bool& framed);
  std::string chunked(const std::string& body, bool& framed);
  void frame(const Planned& request, const std::string& body, Mutant& out);

  RequestMaker maker_;
  std::vector<Address> addresses_;
};

}  // namespace qw::soak
