// Who may wait for a model: a bound on the calls under way and waiting that one client alone cannot
// use up.
//
// Level 7 (server). A call enters if fewer than `room` calls have, or if its client has less than
// its share, room / n of n clients (itself among them), but at least one. So a crowd's calls are
// refused beyond the room, and whoever comes beside it is not; of n clients all together have at
// most room (1 + 1/2 + ... + 1/n) + n.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace qw::server {

class CallQueue {
 public:
  /// Of one call that has entered; given back at the end of its life. The queue must outlive it.
  class Place {
   public:
    Place(CallQueue& queue, std::string client) : queue_(&queue), client_(std::move(client)) {}
    Place(Place&& other) noexcept
        : queue_(std::exchange(other.queue_, nullptr)), client_(std::move(other.client_)) {}
    Place& operator=(Place&& other) noexcept {
      std::swap(queue_, other.queue_);
      std::swap(client_, other.client_);
      return *this;
    }
    ~Place() {
      if (queue_ != nullptr) queue_->leave(client_);
    }

   private:
    CallQueue* queue_;
    std::string client_;
  };

  /// nullopt: there is no room. Any thread.
  std::optional<Place> enter(const std::string& client, int64_t room);
  /// Calls that have entered and not left. Any thread.
  int64_t n_calls() const;

 private:
  void leave(const std::string& client);

  mutable std::mutex mutex_;
  std::map<std::string, int64_t> calls_;  // of each client that has any
  int64_t n_calls_ = 0;
};

}  // namespace qw::server
