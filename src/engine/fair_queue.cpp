#include "engine/fair_queue.h"

#include <algorithm>
#include <queue>
#include <tuple>

#include "base/checked.h"
#include "base/error.h"

namespace qw {

void FairQueue::enter(int64_t id, const Turn& turn) {
  if (clients_.size() > kMaxClients) forget();
  Client& client = clients_[turn.client];
  Request request;
  request.client = &client;
  request.priority = std::clamp(turn.priority, -kMaxPriority, kMaxPriority);
  const int64_t moved = request.priority * kPriorityTokens;
  request.shift = turn.passes_others ? moved : std::max<int64_t>(moved, 0);
  request.n_tokens = turn.n_tokens;
  request.position = {client.n_asked + moved, n_arrived_++, id};
  QW_CHECK(requests_.emplace(id, request).second, "request {} is in line already", id);
  if (client.line.empty()) client.n_passed = 0;
  // A client that lets others go first saves up as little as one that asks for nothing.
  if (client.line.empty() || request.shift < *client.shifts.begin())
    client.time = std::max(client.time, now_);
  client.n_asked += turn.n_tokens;
  ++client.n_open;
  client.line.insert(request.position);
  client.shifts.insert(request.shift);
  waiting_.insert(&client);
}

void FairQueue::leave_line(const Request& request) {
  Client& client = *request.client;
  client.line.erase(request.position);
  client.shifts.erase(client.shifts.find(request.shift));
  if (client.line.empty()) waiting_.erase(&client);
}

/// The clock goes with the client that is due. One that is only because of its priority may be far
/// ahead of the others, one that lets others go first far behind: neither moves it.
void FairQueue::note_time() {
  const auto due = std::ranges::min_element(waiting_, {}, [](const Client* client) {
    return client->time + std::max<int64_t>(*client->shifts.begin(), 0);
  });
  now_ = std::max(now_, (*due)->time);
}

int64_t FairQueue::begin(int64_t id, int64_t n_saved) {
  Request& request = requests_.at(id);
  QW_CHECK(!request.has_begun, "request {} has begun already", id);
  note_time();
  Client& own = *request.client;
  const int64_t time = own.shifted_time();
  leave_line(request);
  request.has_begun = true;
  request.n_paid = std::max<int64_t>(request.n_tokens - n_saved, 0);
  for (Client* client : waiting_) {
    if (client != &own && client->shifted_time() < time) client->n_passed += request.n_paid;
  }
  own.n_passed = 0;
  own.time += request.n_paid;
  return time;
}

void FairQueue::take(int64_t id, int64_t n_tokens) {
  Request& request = requests_.at(id);
  request.n_taken += n_tokens;
  const int64_t n_more = request.n_taken - request.n_paid;
  if (n_more <= 0) return;
  request.client->time += n_more;
  request.n_paid += n_more;
}

void FairQueue::leave(int64_t id) {
  const auto it = requests_.find(id);
  QW_CHECK(it != requests_.end(), "no request {}", id);
  const Request& request = it->second;
  Client& client = *request.client;
  if (request.has_begun) {
    client.time -= request.n_paid - request.n_taken;
  } else {
    leave_line(request);
  }
  --client.n_open;
  requests_.erase(it);
  if (!requests_.empty()) return;
  // Nobody waited, so nobody owes anything to anybody.
  clients_.clear();
  now_ = 0;
}

std::vector<FairQueue::Place> FairQueue::first(int64_t n,
                                               FunctionRef<bool(int64_t id)> counts) const {
  struct Next {  // of a client
    int64_t time = 0;
    const Client* client = nullptr;
    std::set<Position>::const_iterator position;
    int64_t priority = 0, n_passed = 0;
  };
  const auto find = [&](Next& next) {
    const auto end = next.client->line.end();
    next.position = std::find_if(next.position, end, [&](const auto& at) { return counts(at.id); });
    return next.position != end;
  };
  std::vector<Next> nexts;
  for (const Client* client : waiting_) {
    Next next{client->shifted_time(), client, client->line.begin()};
    if (!find(next)) continue;
    next.priority = requests_.at(next.position->id).priority;
    nexts.push_back(next);
  }
  std::ranges::sort(nexts, {},
                    [](const Next& next) { return std::pair(next.time, next.position->number); });
  if (std::ssize(nexts) > n) nexts.resize(static_cast<size_t>(n));
  int64_t n_passed = 0;  // by clients of a lower time
  for (size_t i = 0, level = 0; i < nexts.size(); ++i) {
    for (; nexts[level].time < nexts[i].time; ++level)
      n_passed = std::max(n_passed, nexts[level].client->n_passed);
    nexts[i].n_passed = n_passed;
  }
  std::vector<Place> out;
  using Later = std::pair<int64_t, size_t>;  // by arrival, which client's
  std::priority_queue<Later, std::vector<Later>, std::greater<>> later;
  const auto put = [&](size_t i) {
    Next& next = nexts[i];
    const bool is_level = requests_.at(next.position->id).priority == next.priority;
    out.push_back({next.position->id, next.position->number, static_cast<int64_t>(i), is_level,
                   next.time - nexts[0].time, next.n_passed});
    ++next.position;
    if (find(next)) later.push({next.position->number, i});
  };
  for (size_t i = 0; i < nexts.size(); ++i)
    put(i);
  while (std::ssize(out) < n && !later.empty()) {
    const size_t i = later.top().second;
    later.pop();
    put(i);
  }
  std::ranges::sort(out, {}, &Place::number);
  return out;
}

/// Forgets clients without requests, first those that owe least, as they lose least by it.
void FairQueue::forget() {
  std::vector<int64_t> times;
  for (const auto& [name, client] : clients_) {
    if (client.n_open == 0) times.push_back(client.time);
  }
  if (times.empty()) return;
  const auto middle = times.begin() + std::ssize(times) / 2;
  std::ranges::nth_element(times, middle);
  std::erase_if(clients_, [last = *middle](const auto& entry) {
    return entry.second.n_open == 0 && entry.second.time <= last;
  });
}

}  // namespace qw
