// The thread that owns an engine: requests come in from any thread, events go out in batches.
//
// Level 7 (server). The loop is: take what has come in, one step, hand on what came of it. Nothing
// that a request does ends the thread; every request that was submitted gets exactly one end.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/bundle.h"
#include "engine/prefix_store.h"

namespace qw::server {

/// Who is told of a request. All calls come through the host's executor, one after the other:
/// on_accepted, any number of on_event, and at last either the event of kind kRequest or on_error;
/// on_error alone if the request was refused.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void on_accepted() {}
  virtual void on_event(const Event& event) = 0;
  virtual void on_error(const Error& error) = 0;
};

/// A request's number, given before the engine has seen it.
using Ticket = uint64_t;

struct Submission {
  Request request;
  std::shared_ptr<RequestSink> sink;
};

struct HostStats {
  int64_t n_running = 0, n_waiting = 0;        // requests
  std::map<std::string, Engine::Load> labels;  // of those that have a label, by label
  int64_t n_pages = 0, n_free_pages = 0, n_kept_pages = 0, n_touched_pages = 0, page_tokens = 0;
  int64_t n_preemptions = 0, n_steps = 0;
  /// Of the prefix cache on disk; nothing: there is none.
  std::optional<PrefixTierStats> disk;
  PrefixStoreStats store;
};

class EngineHost {
 public:
  /// Runs a task on the thread that listens to requests, in the order given.
  using Executor = std::function<void(std::function<void()>)>;

  /// `loaded` must outlive the host, and is used by its thread alone (files may be read by all).
  EngineHost(LoadedModel& loaded, Executor executor);
  ~EngineHost() { stop(); }
  /// Ends every request with an error, then the thread; what comes later is dropped. Any thread
  /// but its own.
  void stop();
  EngineHost(const EngineHost&) = delete;
  EngineHost& operator=(const EngineHost&) = delete;

  /// All come to the engine between the same two steps: every sink is told that its request was
  /// taken, or refused, before any of them has an event. label: what stats() counts them under; "":
  /// nothing of their own.
  std::vector<Ticket> submit(std::vector<Submission> submissions, const std::string& label = "");
  /// The request ends at the next step, with what it has. Ended ones are ignored.
  void cancel(Ticket ticket);
  /// Runs `task` on the engine's thread between two steps, unless the host is stopped before. What
  /// it throws is the caller's to catch:
  /// an exception that leaves it is logged and dropped.
  void run(std::function<void(Engine&)> task);

  HostStats stats() const;
  /// Requests submitted that have not ended.
  int64_t n_open() const { return n_open_.load(std::memory_order_relaxed); }

 private:
  struct Client {
    Ticket ticket = 0;
    std::shared_ptr<RequestSink> sink;
    std::string label;
  };
  using Delivery = std::function<void()>;

  void post(std::function<void()> task);
  void loop();
  bool take_inbox();
  void step();
  void start(Request request, Client client);
  void end_all(const Error& error);
  void note_stats();
  void deliver(std::vector<Delivery> deliveries);

  LoadedModel& loaded_;
  Executor executor_;
  std::unique_ptr<Engine> engine_;

  std::mutex mutex_;  // over inbox_ and stopping_
  std::condition_variable wake_;
  std::vector<std::function<void()>> inbox_;
  bool stopping_ = false;

  // The thread's own.
  std::unordered_map<RequestId, Client> clients_;
  std::map<Ticket, RequestId> requests_;
  std::vector<Delivery> out_;

  std::atomic<Ticket> next_ticket_{1};
  std::atomic<int64_t> n_open_{0};
  mutable std::mutex stats_mutex_;
  HostStats stats_;
  std::thread thread_;
};

}  // namespace qw::server
