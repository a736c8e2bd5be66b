#include "server/engine_host.h"

#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "engine/current_error.h"

namespace qw::server {

EngineHost::EngineHost(LoadedModel& loaded, Executor executor)
    : loaded_(loaded), executor_(std::move(executor)), engine_(loaded.make_engine()) {
  note_stats();
  thread_ = std::thread([this] { loop(); });
}

void EngineHost::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  inbox_.clear();  // what never ran may hold the model, which holds the host
}

/// A task that comes too late goes on the thread that brings it.
void EngineHost::post(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  inbox_.push_back(std::move(task));
  wake_.notify_one();
}

std::vector<Ticket> EngineHost::submit(std::vector<Submission> submissions,
                                       const std::string& label) {
  const auto n = std::ssize(submissions);
  const Ticket first =
      next_ticket_.fetch_add(static_cast<Ticket>(n), std::memory_order_relaxed);
  n_open_.fetch_add(n, std::memory_order_relaxed);
  auto shared = std::make_shared<std::vector<Submission>>(std::move(submissions));
  post([this, shared, first, label] {
    for (size_t i = 0; i < shared->size(); ++i) {
      Submission& one = (*shared)[i];
      start(std::move(one.request), Client{first + i, std::move(one.sink), label});
    }
  });
  std::vector<Ticket> tickets(static_cast<size_t>(n));
  std::iota(tickets.begin(), tickets.end(), first);
  return tickets;
}

void EngineHost::cancel(Ticket ticket) {
  post([this, ticket] {
    if (const auto it = requests_.find(ticket); it != requests_.end()) engine_->cancel(it->second);
  });
}

void EngineHost::run(std::function<void(Engine&)> task) {
  post([this, task = std::move(task)]() mutable {
    try {
      task(*engine_);
    } catch (...) {
      logger().error("[server] task on the engine's thread: {}", current_error().message());
    }
  });
}

void EngineHost::loop() {
  while (take_inbox()) {
    if (!engine_->idle()) step();
    note_stats();
    deliver(std::exchange(out_, {}));
  }
  end_all(Error(ErrorKind::kCancelled,
                "[server] request: expected to reach its end, got a model that is unloaded"));
  deliver(std::exchange(out_, {}));
}

/// Waits for work; false when the host is to end.
bool EngineHost::take_inbox() {
  std::vector<std::function<void()>> tasks;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] {
      return stopping_ || !inbox_.empty() || !(engine_->idle() || engine_->stalled());
    });
    if (stopping_) return false;
    tasks.swap(inbox_);
  }
  for (auto& task : tasks)
    task();
  return true;
}

void EngineHost::start(Request request, Client client) {
  std::shared_ptr<RequestSink> sink = client.sink;
  try {
    const RequestId id = engine_->submit(std::move(request));
    requests_.emplace(client.ticket, id);
    clients_.emplace(id, std::move(client));
    out_.push_back([sink = std::move(sink)] { sink->on_accepted(); });
  } catch (...) {
    n_open_.fetch_sub(1, std::memory_order_relaxed);
    out_.push_back([sink = std::move(sink), error = current_error()] { sink->on_error(error); });
  }
}

void EngineHost::step() {
  std::vector<Event> events;
  try {
    events = engine_->step();
  } catch (...) {
    // The engine ends requests, not itself; what reaches here is a fault of ours. The requests
    // under way may be beyond saving, later ones are not.
    const Error error = current_error();
    logger().error("[server] step: {}", error.message());
    end_all(error);
    return;
  }
  {
    const std::lock_guard lock(stats_mutex_);
    ++stats_.n_steps;
  }
  for (Event& event : events) {
    const auto it = clients_.find(event.request);
    if (it == clients_.end()) continue;
    std::shared_ptr<RequestSink> sink = it->second.sink;
    if (event.kind == Event::Kind::kRequest) {
      requests_.erase(it->second.ticket);
      clients_.erase(it);
      n_open_.fetch_sub(1, std::memory_order_relaxed);
    }
    auto shared = std::make_shared<Event>(std::move(event));
    out_.push_back([sink = std::move(sink), shared] { sink->on_event(*shared); });
  }
}

void EngineHost::end_all(const Error& error) {
  for (auto& [id, client] : clients_) {
    engine_->cancel(id);
    out_.push_back([sink = std::move(client.sink), error] { sink->on_error(error); });
  }
  n_open_.fetch_sub(std::ssize(clients_), std::memory_order_relaxed);
  clients_.clear();
  requests_.clear();
}

void EngineHost::note_stats() {
  const Engine::Load load = engine_->load();
  std::map<std::string, Engine::Load> labels;
  for (const auto& [id, client] : clients_) {
    if (client.label.empty()) continue;
    Engine::Load& of_label = labels[client.label];
    ++(engine_->has_started(id) ? of_label.n_running : of_label.n_waiting);
  }
  const std::optional<PrefixTierStats> disk = engine_->disk_stats();
  const std::lock_guard lock(stats_mutex_);
  stats_.n_running = load.n_running;
  stats_.n_waiting = load.n_waiting;
  stats_.labels = std::move(labels);
  stats_.n_pages = engine_->n_pages();
  stats_.n_free_pages = engine_->free_pages();
  stats_.n_kept_pages = engine_->kept_pages();
  stats_.n_touched_pages = engine_->touched_pages();
  stats_.page_tokens = engine_->page_tokens();
  stats_.disk = disk;
  stats_.n_preemptions = engine_->n_preemptions();
}

HostStats EngineHost::stats() const {
  HostStats out;
  {
    const std::lock_guard lock(stats_mutex_);
    out = stats_;
  }
  // Its threads go on when the engine sleeps.
  if (const auto& store = loaded_.engine_options.prefix_store) out.store = store->stats();
  return out;
}

void EngineHost::deliver(std::vector<Delivery> deliveries) {
  if (deliveries.empty()) return;
  auto shared = std::make_shared<std::vector<Delivery>>(std::move(deliveries));
  executor_([shared] {
    for (const Delivery& delivery : *shared) {
      try {
        delivery();
      } catch (...) {
        logger().error("[server] answer: {}", current_error().message());
      }
    }
  });
}

}  // namespace qw::server
