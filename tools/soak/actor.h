// A client that behaves well, badly, or not at all, by chance; and what all of them share.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "soak/requests.h"

namespace qw::soak {

/// Violations and counts of all actors.
class Record {
 public:
  void violation(const std::string& what, const std::deque<std::string>& last_requests);
  void count(const std::string& what);
  int64_t n_violations() const { return n_violations_; }
  int64_t n_requests() const { return n_requests_; }
  void add_request() { ++n_requests_; }
  std::map<std::string, int64_t> counts() const;

 private:
  std::atomic<int64_t> n_violations_{0}, n_requests_{0};
  mutable std::mutex mutex_;
  std::map<std::string, int64_t> counts_;
};

/// Where the server is, and whether it is being killed and started anew.
struct Place {
  std::atomic<uint16_t> port{0};
  std::atomic<int64_t> life{0};                 // odd while the server is down on purpose
  std::chrono::milliseconds patience{120'000};  // a longer silence is a fault
};

/// Unloads all adapters, whatever their names.
void unload_adapters(const Place& place);

/// Requests whose answers must have the same bits whenever they are asked.
class FixedRequests {
 public:
  /// Asks all of them. Errors: std::runtime_error.
  void learn(const Place& place);
  /// Asks one of them again; what differs, "": nothing.
  std::string check(const Place& place, size_t index, HttpAnswer* answer = nullptr) const;
  size_t size() const { return requests().size(); }

 private:
  static const std::vector<Planned>& requests();
  /// Of an answer: what must not change.
  static std::string bits_of(const Planned& request, const HttpAnswer& answer);
  std::vector<std::string> bits_;
};

class Actor {
 public:
  Actor(uint64_t seed, const MakerOptions& options, const Place& place, const FixedRequests& fixed,
        Record& record)
      : maker_(seed, options), place_(place), fixed_(fixed), record_(record) {}

  /// One request, or something that only resembles one.
  void act();

 private:
  void behave();
  void walk_away();
  void half_send();
  void read_slowly();
  void ask_again();
  void keep_alive();

  /// Whether what went wrong since `life` is the doing of whoever kills the server.
  bool excused(int64_t life) const { return life % 2 == 1 || place_.life != life; }
  std::string remember(const Planned& request, const std::string& manner);
  void judge(const Planned& request, const HttpAnswer& answer, int64_t life);
  Planned any_request();

  RequestMaker maker_;
  const Place& place_;
  const FixedRequests& fixed_;
  Record& record_;
  std::deque<std::string> last_;  // what was sent last, for whoever looks for the fault
};

}  // namespace qw::soak
