// The thread of a running server's engine, held still by a test.
//
// Part of the tests; header only.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include "support/running_service.h"

namespace qw::testing {

/// Lets an engine's thread take what has come in only when it is told to: a job stands still
/// between two of its parts.
class EngineGate {
 public:
  explicit EngineGate(const RunningService& service)
      : model_(service.service.services().hub->find("mini").loaded) {
    wait();
  }
  ~EngineGate() { open(); }
  /// Once more what has come in.
  void step() {
    wait();  // before it goes on: it takes no more than that
    {
      const std::lock_guard lock(state_->mutex);
      ++state_->n_steps;
    }
    state_->wake.notify_one();
  }
  /// From now on as ever.
  void open() {
    {
      const std::lock_guard lock(state_->mutex);
      state_->open = true;
    }
    state_->wake.notify_one();
  }
  const std::shared_ptr<server::ServedModel>& model() const { return model_; }
  void forget_model() { model_.reset(); }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable wake;
    int64_t n_steps = 0;
    bool open = false;
  };
  void wait() {
    model_->host().run([state = state_](Engine&) {
      std::unique_lock lock(state->mutex);
      state->wake.wait(lock, [&] { return state->open || state->n_steps > 0; });
      if (!state->open) --state->n_steps;
    });
  }

  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::shared_ptr<server::ServedModel> model_;
};

}  // namespace qw::testing
