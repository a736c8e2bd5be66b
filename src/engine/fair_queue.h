// Whose turn it is: requests of several clients in one line, fair by work and never starving.
//
// Level 6 (engine). Pure host code. Start-time fair queueing: a client's time is how many tokens
// were computed for it, and who has the least is due. So a client alone is served first come, first
// served, and one that asks for a hundred answers at once does not keep another, who asks for one,
// behind them. Nobody knows beforehand what a request will take. When it begins its client pays for
// the prompt and the first kAnswerTokens of every answer; as it goes on, for what goes beyond; and
// at its end it gets back what was not taken. A client that comes anew starts at the time of those
// that wait: who asks for nothing saves nothing up. Sources: Goyal et al., "Start-time fair
// queuing", 1996; Sheng et al., "Fairness in serving large language models", 2024.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/function_ref.h"

namespace qw {

/// What a request says of its turn.
struct Turn {
  std::string client = {};
  /// Lower goes first, by kPriorityTokens a level: what its client asks for later than that does
  /// not overtake it, and as far it moves the client among others. So nobody waits for ever.
  int64_t priority = 0;
  bool passes_others = true;  // false: it moves the client back only
  int64_t n_tokens = 0;       // that its client pays for when it begins
};

class FairQueue {
 public:
  static constexpr int64_t kPriorityTokens = 100'000;
  static constexpr int64_t kMaxPriority = 1'000;
  /// Of every answer, paid for ahead: most are no longer, and one whose length nobody limited costs
  /// its client no turns that it will not use.
  static constexpr int64_t kAnswerTokens = 256;

  /// Puts a request into the line. `id` is the caller's, and new.
  void enter(int64_t id, const Turn& turn);
  /// It leaves the line and is computed from now on. So many of its tokens are there already.
  /// Returns the time of its client before that, moved by the priority.
  int64_t begin(int64_t id, int64_t n_saved = 0);
  /// So many tokens were computed for a request that has begun.
  void take(int64_t id, int64_t n_tokens);
  /// It ends, begun or not.
  void leave(int64_t id);

  struct Place {
    int64_t id = 0;
    int64_t number = 0;    // by arrival
    int64_t client = 0;    // which of those that are listed
    bool is_level = true;  // of the same priority as the first of its client
    int64_t lead = 0;      // of its client's time before the least of those that wait
    /// What has begun out of turn while clients waited that had had less than its own: the most
    /// that one of them has seen, in tokens.
    int64_t n_passed = 0;
  };
  /// Up to n of those in line for which counts(id), by arrival: the first of every client, of those
  /// clients that have had least, and as many more as came first.
  std::vector<Place> first(int64_t n, FunctionRef<bool(int64_t id)> counts) const;
  /// Requests that wait or have begun.
  int64_t n_open() const noexcept { return std::ssize(requests_); }
  size_t n_clients() const noexcept { return clients_.size(); }  // that it knows of
  int64_t n_clients_waiting() const noexcept { return std::ssize(waiting_); }

 private:
  static constexpr size_t kMaxClients = 10'000;
  /// In the line of a client: by what it had asked for until then, moved by the priority.
  struct Position {
    int64_t at = 0, number = 0, id = 0;
    auto operator<=>(const Position&) const = default;
  };
  struct Client {
    int64_t time = 0;
    int64_t n_asked = 0;   // tokens of all requests that entered
    int64_t n_open = 0;    // requests
    int64_t n_passed = 0;  // tokens that began out of turn while the first in line waits
    std::set<Position> line;
    std::multiset<int64_t> shifts;  // of those in line

    int64_t shifted_time() const { return time + *shifts.begin(); }
  };
  struct Request {
    Client* client = nullptr;
    Position position;
    int64_t priority = 0, shift = 0;
    int64_t n_tokens = 0, n_paid = 0, n_taken = 0;
    bool has_begun = false;
  };

  void leave_line(const Request& request);
  void note_time();
  void forget();

  int64_t now_ = 0;  // time of those that wait
  int64_t n_arrived_ = 0;
  std::unordered_map<std::string, Client> clients_;
  std::set<Client*> waiting_;
  std::unordered_map<int64_t, Request> requests_;
};

}  // namespace qw
