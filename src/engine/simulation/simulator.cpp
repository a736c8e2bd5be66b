#include "engine/simulation/simulator.h"

#include <algorithm>
#include <map>
#include <queue>
#include <unordered_map>

#include "base/checked.h"
#include "base/error.h"
#include "engine/scheduler.h"

namespace qw::simulation {
namespace {

Distribution distribution_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double part) {
    return values[static_cast<size_t>(part * static_cast<double>(values.size() - 1))];
  };
  double sum = 0;
  for (const double value : values)
    sum += value;
  return {sum / static_cast<double>(values.size()), at(0.5), at(0.95), at(0.99), values.back()};
}

/// One run of a trace.
class Run {
 public:
  Run(const Trace& trace, const Machine& machine, const Policy& policy)
      : trace_(trace),
        machine_(machine),
        policy_(policy),
        scheduler_(options_of(machine, policy)),
        states_(trace.size()),
        followers_(trace.size()) {
    for (size_t i = 0; i < trace.size(); ++i) {
      const TracedRequest& request = trace[i];
      if (request.after) {
        followers_[static_cast<size_t>(*request.after)].push_back(i);
      } else {
        arrivals_.push({request.at_s, i});
      }
    }
  }

  Report run() {
    QW_CHECK(!arrivals_.empty());
    now_ = arrivals_.top().at_s;
    const double begin = now_;
    while (!arrivals_.empty() || !scheduler_.idle()) {
      if (scheduler_.idle()) now_ = std::max(now_, arrivals_.top().at_s);
      while (!arrivals_.empty() && arrivals_.top().at_s <= now_) {
        const Arrival arrival = arrivals_.top();
        arrivals_.pop();
        arrive(arrival);
      }
      step();
    }
    report_.makespan_s = now_ - begin;
    finish_report();
    return report_;
  }

 private:
  struct Arrival {
    double at_s = 0;
    size_t request = 0;
    auto operator<=>(const Arrival&) const = default;
  };
  struct State {
    double arrived_s = 0, started_s = -1, first_s = -1, ended_s = -1;
    UnitId unit = 0;
    int64_t n_generated = 0;
  };

  static SchedulerOptions options_of(const Machine& machine, const Policy& policy) {
    SchedulerOptions options;
    options.n_pages = machine.kv_tokens / machine.page_tokens;
    options.page_tokens = machine.page_tokens;
    options.max_tokens = machine.chunk_tokens;
    options.max_families = machine.n_slots;
    options.max_rows = std::max<int64_t>(64, machine.n_slots);
    options.keep_prefixes = true;
    options.max_overtakes = policy.max_overtakes;
    options.overtake_window = policy.overtake_window;
    options.weighs_length = policy.weighs_length;
    options.await_prefixes = policy.await_prefixes;
    options.pass_tokens = policy.pass_tokens;
    return options;
  }

  void arrive(const Arrival& arrival) {
    const TracedRequest& request = trace_[arrival.request];
    State& state = states_[arrival.request];
    state.arrived_s = arrival.at_s;
    Sequence spec;
    spec.tokens = prompt_tokens(request);
    spec.prompt_len = std::ssize(spec.tokens);
    const int64_t max_len = spec.prompt_len + request.answer.n_tokens;
    if (scheduler_.pages_for(max_len) > scheduler_.n_pages()) {
      fail(ErrorKind::kInvalidArgument, "simulation",
           "request {}: expected at most {} tokens (the cache), got {}", arrival.request,
           machine_.kv_tokens, max_len);
    }
    Turn turn;
    if (policy_.is_fair) {
      // How long an answer will be is known to nobody, here either.
      turn = {request.client, request.priority, true, spec.prompt_len + FairQueue::kAnswerTokens};
    }
    state.unit = scheduler_.add_unit(static_cast<int64_t>(arrival.request), turn);
    spec.lineage = static_cast<int64_t>(arrival.request);
    const SeqId seq = scheduler_.add_sequence(state.unit, std::move(spec));
    request_of_.emplace(seq, arrival.request);
  }

  void step() {
    const StepPlan step = scheduler_.schedule();
    QW_CHECK(!step.chunks.empty(), "requests and no step");
    double attended = 0;
    for (const StepPlan::Chunk& chunk : step.chunks) {
      attended += 0.5 * static_cast<double>((chunk.end - chunk.begin) * (chunk.begin + chunk.end));
      State& state = states_[request_of_.at(chunk.seq)];
      if (state.started_s >= 0) continue;
      state.started_s = now_;
      report_.n_cached_tokens += chunk.begin;
    }
    now_ += machine_.step_s + machine_.token_s * static_cast<double>(step.batch.n_tokens()) +
            machine_.row_s * static_cast<double>(step.rows.size()) + machine_.attended_s * attended;
    ++report_.n_steps;
    scheduler_.commit(step);
    for (const WantedRow& row : step.rows)
      generate(row.seq);
  }

  void generate(SeqId seq) {
    const size_t index = request_of_.at(seq);
    const TracedRequest& request = trace_[index];
    State& state = states_[index];
    if (state.n_generated == 0) state.first_s = now_;
    scheduler_.append(seq, token_of(request.answer.content, state.n_generated));
    if (++state.n_generated < request.answer.n_tokens) return;
    state.ended_s = now_;
    scheduler_.remove_unit(state.unit);
    request_of_.erase(seq);
    report_.n_prompt_tokens += request.n_prompt_tokens();
    report_.n_generated_tokens += state.n_generated;
    for (const size_t next : followers_[index])
      arrivals_.push({now_ + trace_[next].delay_s, next});
  }

  void finish_report() {
    std::vector<double> queued, first, latency;
    std::map<std::string, std::pair<double, int64_t>> clients;
    for (size_t i = 0; i < trace_.size(); ++i) {
      const State& state = states_[i];
      QW_CHECK(state.ended_s >= 0, "request {} did not end", i);
      queued.push_back(state.started_s - state.arrived_s);
      first.push_back(state.first_s - state.arrived_s);
      latency.push_back(state.ended_s - state.arrived_s);
      auto& [sum, n] = clients[trace_[i].client];
      sum += first.back();
      ++n;
    }
    std::vector<double> means;
    for (const auto& [client, total] : clients)
      means.push_back(total.first / static_cast<double>(total.second));
    report_.client_first_token_s = distribution_of(std::move(means));
    report_.n_requests = std::ssize(trace_);
    report_.n_preemptions = scheduler_.n_preemptions();
    report_.queue_s = distribution_of(std::move(queued));
    report_.first_token_s = distribution_of(std::move(first));
    report_.latency_s = distribution_of(std::move(latency));
    QW_CHECK(scheduler_.n_free_pages() == scheduler_.n_pages(), "pages are lost");
  }

  const Trace& trace_;
  const Machine& machine_;
  const Policy& policy_;
  Scheduler scheduler_;
  std::vector<State> states_;
  std::vector<std::vector<size_t>> followers_;
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::unordered_map<SeqId, size_t> request_of_;
  double now_ = 0;
  Report report_;
};

}  // namespace

Policy fcfs() {
  return {"fcfs", false, 0, 1, true, false};
}

Policy longest_prefix() {
  return {"lpm", false, SchedulerOptions::kNoLimit, 128, false, false};
}

Policy shipped() {
  const SchedulerOptions options;
  return {"qianwen",
          true,
          options.max_overtakes,
          options.overtake_window,
          options.weighs_length,
          options.await_prefixes,
          options.pass_tokens};
}

Report simulate(const Trace& trace, const Machine& machine, const Policy& policy) {
  return Run(trace, machine, policy).run();
}

}  // namespace qw::simulation
