// The server with the bundled model, on a free port and a thread of its own, for tests over HTTP.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "server/service.h"
#include "support/http_client.h"

namespace qw::testing {

inline server::ServiceOptions service_options() {
  server::ServiceOptions options;
  options.http.port = 0;
  options.version = "test";
  server::ModelSpec spec;
  spec.name = "mini";
  spec.path = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  spec.open.engine.ctx = 2048;
  spec.open.engine.n_slots = 4;
  spec.open.backend.n_threads = 2;
  spec.open.quiet = true;
  options.models.push_back(spec);
  return options;
}

class RunningService {
 public:
  explicit RunningService(const server::ServiceOptions& options = service_options())
      : service(options), thread_([this] { service.run(); }) {
    EXPECT_TRUE(service.load_default());
  }
  ~RunningService() {
    service.stop();
    if (thread_.joinable()) thread_.join();
  }
  /// Until the service has ended by itself.
  void wait() { thread_.join(); }
  HttpClient client() const { return HttpClient(service.port()); }

  /// Posts JSON; the answer must be JSON too.
  nlohmann::ordered_json post(const std::string& target, const nlohmann::ordered_json& body,
                              int* status = nullptr) const {
    const HttpAnswer answer = client().post(target, body.dump());
    if (status != nullptr) *status = answer.status;
    return nlohmann::ordered_json::parse(answer.body);
  }
  nlohmann::ordered_json get(const std::string& target, int* status = nullptr) const {
    const HttpAnswer answer = client().get(target);
    if (status != nullptr) *status = answer.status;
    return nlohmann::ordered_json::parse(answer.body);
  }
  /// The "data: " events of a stream, without [DONE]; each must be JSON.
  std::vector<nlohmann::ordered_json> stream(const std::string& target,
                                             const nlohmann::ordered_json& body) const {
    const std::string text = client().post(target, body.dump()).body;
    std::vector<nlohmann::ordered_json> events;
    size_t begin = 0;
    while ((begin = text.find("data: ", begin)) != std::string::npos) {
      begin += 6;
      const std::string data = text.substr(begin, text.find("\n\n", begin) - begin);
      if (data != "[DONE]") events.push_back(nlohmann::ordered_json::parse(data));
    }
    return events;
  }

  server::Service service;

 private:
  std::thread thread_;
};

}  // namespace qw::testing
