// Whose turn it is: requests of several clients in one line, fair by tokens and never starving.
//
// Level 6 (engine). Pure host code. Start-time fair queueing: the line is measured in tokens. A
// request begins where the line is now, or where its client's last one ended if that is later; it
// takes its tokens' worth. So a client alone is served first come, first served, and one that asks
// for a hundred answers at once does not keep another, who asks for one, behind them. A priority
// moves a request by kPriorityTokens a level: those that come later than that do not overtake it,
// so nobody waits for ever. Sources: Goyal et al., "Start-time fair queuing", 1996; Sheng et al.,
// "Fairness in serving large language models", 2024.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace qw {

class FairQueue {
 public:
  static constexpr int64_t kPriorityTokens = 100'000;
  static constexpr int64_t kMaxPriority = 1'000;

  /// A request's part of the line.
  struct Place {
    std::string client;
    int64_t start = 0;     // where its part begins
    int64_t n_tokens = 0;  // how long it is at most
    int64_t order = 0;     // by which its turn comes: start, moved by the priority
  };

  /// Puts a request of `client` that may take so many tokens into the line.
  Place enter(const std::string& client, int64_t priority, int64_t n_tokens) {
    if (ends_.size() > kMaxClients) forget();
    int64_t& end = ends_[client];
    const int64_t start = std::max(end, now_);
    end = start + n_tokens;
    const int64_t shift = std::clamp(priority, -kMaxPriority, kMaxPriority) * kPriorityTokens;
    return {client, start, n_tokens, start + shift};
  }
  /// It is being computed: the line has come so far.
  void begin(const Place& place) { now_ = std::max(now_, place.start); }
  /// It has ended and took only so many tokens: its client gets the others back.
  void end(const Place& place, int64_t n_taken) {
    const auto it = ends_.find(place.client);
    if (it != ends_.end()) it->second -= std::max<int64_t>(place.n_tokens - n_taken, 0);
  }

 private:
  static constexpr size_t kMaxClients = 10'000;
  /// Clients whose requests have had their turn are as if they had never been there.
  void forget() {
    std::erase_if(ends_, [this](const auto& client) { return client.second <= now_; });
  }

  int64_t now_ = 0;
  std::unordered_map<std::string, int64_t> ends_;  // where each client's last request ends
};

}  // namespace qw
