#include "engine/simulation/workloads.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/rng.h"

namespace qw::simulation {
namespace {

/// Draws, and names of content that nobody else has.
class Maker {
 public:
  explicit Maker(uint64_t seed) : seed_(seed) {}

  double uniform() { return random_uniform(seed_, 0, next_++); }
  int64_t below(int64_t n) {
    return std::min<int64_t>(static_cast<int64_t>(uniform() * static_cast<double>(n)), n - 1);
  }
  double exponential(double mean) { return -mean * std::log1p(-uniform()); }
  /// Lengths of texts: log-normal, from 1 to 8,000.
  int64_t length(double median, double sigma) {
    const double draw = median * std::exp(sigma * random_normal(seed_, 1, next_++));
    return std::clamp<int64_t>(std::llround(draw), 1, 8000);
  }
  Piece piece(int64_t n_tokens) { return {++content_, n_tokens}; }
  /// Index by Zipf's law over n: the k-th is met in proportion to 1/k.
  int64_t popular(int64_t n) {
    double left =
        uniform() * (std::log(static_cast<double>(n)) + 0.5772 + 0.5 / static_cast<double>(n));
    for (int64_t k = 1; k < n; ++k) {
      left -= 1.0 / static_cast<double>(k);
      if (left <= 0) return k - 1;
    }
    return n - 1;
  }
  /// Moments of a Poisson process whose rate is `mean_gap_s` on average, in busy and quiet spells
  /// of a few minutes, three times and a third as busy.
  double next_moment(double mean_gap_s) {
    if (now_ >= spell_end_) {
      is_busy_ = !is_busy_;
      spell_end_ = now_ + exponential(is_busy_ ? 60 : 180);
    }
    now_ += exponential(mean_gap_s * (is_busy_ ? 0.5 : 2));
    return now_;
  }

 private:
  uint64_t seed_, next_ = 0;
  int64_t content_ = 0;
  double now_ = 0, spell_end_ = 0;
  bool is_busy_ = false;
};

/// Adds one conversation: its turns follow each other, every prompt holds all that was said.
void add_conversation(Maker& make, double at_s, Piece system, std::string client, int64_t n_turns,
                      Trace& trace) {
  std::vector<Piece> said{system};
  for (int64_t turn = 0; turn < n_turns; ++turn) {
    TracedRequest request;
    request.client = client;
    if (turn == 0) {
      request.at_s = at_s;
    } else {
      request.after = std::ssize(trace) - 1;
      request.delay_s = 2 + make.exponential(20);
    }
    said.push_back(make.piece(make.length(60, 0.8)));
    request.prompt = said;
    request.answer = make.piece(std::min<int64_t>(make.length(150, 0.7), 1500));
    said.push_back(request.answer);
    trace.push_back(std::move(request));
  }
}

int64_t n_turns(Maker& make) {
  int64_t n = 1;
  while (n < 12 && make.uniform() < 0.75)
    ++n;
  return n;
}

Trace chat(int64_t n_requests, uint64_t seed) {
  Maker make(seed);
  std::vector<Piece> systems;
  for (int i = 0; i < 5; ++i)
    systems.push_back(make.piece(100 + 100 * i));
  Trace trace;
  while (std::ssize(trace) < n_requests) {
    const double at = make.next_moment(7);
    const Piece system = systems[static_cast<size_t>(make.below(5))];
    add_conversation(make, at, system, "user " + std::to_string(trace.size()), n_turns(make),
                     trace);
  }
  return trace;
}

Trace assistants(int64_t n_requests, uint64_t seed) {
  Maker make(seed);
  std::vector<Piece> systems;
  for (int i = 0; i < 60; ++i)
    systems.push_back(make.piece(500 + make.below(3500)));
  Trace trace;
  while (std::ssize(trace) < n_requests) {
    TracedRequest request;
    request.at_s = make.next_moment(2.2);
    const int64_t app = make.popular(60);
    request.client = "app " + std::to_string(app);
    request.prompt = {systems[static_cast<size_t>(app)], make.piece(make.length(60, 0.8))};
    request.answer = make.piece(make.length(50, 0.6));
    trace.push_back(std::move(request));
  }
  return trace;
}

Trace few_shot(int64_t n_requests, uint64_t seed) {
  Maker make(seed);
  std::vector<Piece> tasks;
  for (int i = 0; i < 57; ++i)
    tasks.push_back(make.piece(600 + make.below(1800)));
  Trace trace;
  while (std::ssize(trace) < n_requests) {
    TracedRequest request;
    request.client = "evaluation";
    request.prompt = {tasks[static_cast<size_t>(make.below(57))], make.piece(make.length(60, 0.6))};
    request.answer = make.piece(make.length(6, 0.5));
    // As clients do that keep a few hundred questions under way.
    if (std::ssize(trace) >= 256) request.after = std::ssize(trace) - 256;
    trace.push_back(std::move(request));
  }
  return trace;
}

Trace documents(int64_t n_requests, uint64_t seed) {
  Maker make(seed);
  const Piece system = make.piece(60);
  Trace trace;
  while (std::ssize(trace) < n_requests) {
    const double at = make.next_moment(40);
    const std::string client = "reader " + std::to_string(make.below(40));
    if (make.uniform() < 0.5) {
      add_conversation(make, at, system, client, n_turns(make), trace);
      continue;
    }
    // Several questions at once to one document, and some later.
    const Piece document = make.piece(2000 + make.below(6000));
    const int64_t n_questions = 2 + make.below(7);
    for (int64_t i = 0; i < n_questions; ++i) {
      TracedRequest request;
      request.at_s = at + (i < 3 ? 0 : make.exponential(60));
      request.client = client;
      request.prompt = {system, document, make.piece(make.length(30, 0.5))};
      request.answer = make.piece(make.length(120, 0.6));
      trace.push_back(std::move(request));
    }
  }
  return trace;
}

Trace crowd(int64_t n_requests, uint64_t seed) {
  Maker make(seed);
  const Piece template_of_batch = make.piece(700);
  const Piece system = make.piece(200);
  Trace trace;
  while (std::ssize(trace) < n_requests) {
    const double at = make.next_moment(16);
    if (make.uniform() < 0.03) {
      for (int i = 0; i < 150; ++i) {
        TracedRequest request;
        request.at_s = at;
        request.client = "batch";
        request.prompt = {template_of_batch, make.piece(make.length(200, 0.5))};
        request.answer = make.piece(make.length(100, 0.4));
        trace.push_back(std::move(request));
      }
      continue;
    }
    add_conversation(make, at, system, "user " + std::to_string(make.below(10)), n_turns(make),
                     trace);
  }
  return trace;
}

}  // namespace

const std::vector<Workload>& workloads() {
  static const std::vector<Workload> all = {
      {"chat", "conversations, five system prompts", chat},
      {"assistants", "60 applications with system prompts of 500 to 4,000 tokens", assistants},
      {"few-shot", "57 tasks of an evaluation, mixed, 256 questions under way", few_shot},
      {"documents", "several questions to long documents, among conversations", documents},
      {"crowd", "conversations, and one client with 150 requests at once", crowd},
  };
  return all;
}

const Workload& workload_named(std::string_view name) {
  std::string names;
  for (const Workload& workload : workloads()) {
    if (workload.name == name) return workload;
    names += names.empty() ? "" : ", ";
    names += workload.name;
  }
  fail(ErrorKind::kInvalidArgument, "simulation", "workload: expected one of {}, got '{}'", names,
       printable(name));
}

}  // namespace qw::simulation
