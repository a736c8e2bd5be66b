// What a monitor wants to know, in Prometheus' form; under vLLM's names where vLLM has them.
//
// Level 7 (server). Over prometheus-cpp. Counters and histograms are fed as things happen; what the
// engines count and hold is read from them when somebody asks.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine/engine.h"

namespace qw::server {

class ModelHub;

/// The metrics of one model. Any thread.
class ModelMetrics {
 public:
  virtual ~ModelMetrics() = default;
  virtual void first_token(double seconds_since_request) = 0;
  virtual void next_token(double seconds_since_last) = 0;
  virtual void answer(FinishReason reason) = 0;
  /// A request that has ended, and how long it took from the client's call on.
  virtual void request(const Timings& timings, double seconds) = 0;
  virtual void failed_request() = 0;
  /// The engine has taken a prompt; one that it took has ended, in whatever way. At rest both have
  /// come equally often.
  virtual void accepted_request() = 0;
  virtual void ended_request() = 0;
};

class Metrics {
 public:
  Metrics();
  ~Metrics();

  /// The metrics of the model of that name. They stay as long as somebody holds them or the model
  /// is listed.
  std::shared_ptr<ModelMetrics> of_model(const std::string& name);
  /// An answer to a request for an endpoint ("": none of ours).
  void http_answer(std::string_view method, std::string_view path, int status, double seconds);
  /// Fields of requests that were not understood or have no effect.
  void ignored_fields(std::string_view path, size_t n);
  void refused_by_quota(std::string_view key);

  /// Takes over what the engines say, and forgets adapters that were unloaded; to be called when
  /// one is, as well.
  void update(const ModelHub& hub);
  /// The text of /metrics.
  std::string text(const ModelHub& hub, size_t n_connections);

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // also theirs who hold metrics of a model
};

}  // namespace qw::server
