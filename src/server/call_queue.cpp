#include "server/call_queue.h"

#include <algorithm>

namespace qw::server {

std::optional<CallQueue::Place> CallQueue::enter(const std::string& client, int64_t room) {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(client);
  const bool is_new = found == calls_.end();
  const int64_t own = is_new ? 0 : found->second;
  const int64_t n_clients = std::ssize(calls_) + (is_new ? 1 : 0);
  if (n_calls_ >= room && own >= std::max<int64_t>(room / n_clients, 1)) return std::nullopt;
  ++calls_[client];
  ++n_calls_;
  return std::optional<Place>(std::in_place, *this, client);
}

int64_t CallQueue::n_calls() const {
  const std::lock_guard lock(mutex_);
  return n_calls_;
}

void CallQueue::leave(const std::string& client) {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(client);
  if (--found->second == 0) calls_.erase(found);
  --n_calls_;
}

}  // namespace qw::server
