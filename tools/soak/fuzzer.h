// A client that sends requests that are nearly right, as fast as they are answered.
#pragma once

#include <optional>

#include "soak/actor.h"
#include "soak/mutator.h"

namespace qw::soak {

class Fuzzer {
 public:
  Fuzzer(uint64_t seed, std::vector<Address> addresses, const Place& place, Record& record)
      : mutator_(seed, std::move(addresses)), place_(place), record_(record) {}

  /// One mutant, on the connection of the one before where that is still good.
  void act();

 private:
  void send_framed(const Mutant& mutant);
  void send_broken(const Mutant& mutant);
  void judge(const HttpAnswer& answer);

  Mutator mutator_;
  const Place& place_;
  Record& record_;
  std::optional<testing::HttpClient> client_;
  std::deque<std::string> last_;
  int64_t n_ = 0;
};

/// What the server says at /compat.
std::vector<Address> read_addresses(const Place& place);

}  // namespace qw::soak
