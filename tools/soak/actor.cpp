#include "soak/actor.h"

#include <fmt/format.h>

#include <cstdio>
#include <stdexcept>
#include <thread>

namespace qw::soak {

using testing::HttpClient;

namespace {

std::string bytes_of(const Planned& request) {
  if (request.body.is_null())
    return fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\n\r\n", request.method, request.target);
  return HttpClient::post_text(request.target, request.body.dump());
}

}  // namespace

// ---- what is shared ----------------------------------------------------------------------------

void Record::violation(const std::string& what, const std::deque<std::string>& last_requests) {
  const std::lock_guard lock(mutex_);
  if (++n_violations_ > 50) return;  // the first ones tell enough
  fmt::print("VIOLATION: {}\n", what);
  for (const std::string& request : last_requests)
    fmt::print("  after {}\n", request);
  std::fflush(stdout);
}

void Record::count(const std::string& what) {
  const std::lock_guard lock(mutex_);
  ++counts_[what];
}

std::map<std::string, int64_t> Record::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void unload_adapters(const Place& place) {
  HttpClient client(place.port, place.patience);
  const Json models = Json::parse(client.get("/v1/models").body, nullptr, false);
  if (!models.is_object()) return;
  for (const Json& model : models.value("data", Json::array())) {
    if (!model.contains("parent") || model["parent"].is_null()) continue;
    const Json body = {{"lora_name", model["id"]}};
    client.post("/v1/unload_lora_adapter", body.dump());
  }
}

// ---- the same bits -----------------------------------------------------------------------------

const std::vector<Planned>& FixedRequests::requests() {
  static const std::vector<Planned> kRequests = [] {
    const Json sampled = {{"prompt", "The people of the city"},
                          {"max_tokens", 24},
                          {"seed", 11},
                          {"temperature", 0.9},
                          {"logprobs", 3},
                          {"n", 2}};
    const Json greedy = {
        {"messages", {{{"role", "user"}, {"content", "What is the capital of Japan?"}}}},
        {"max_tokens", 16},
        {"temperature", 0},
        {"logprobs", true}};
    Json streamed = greedy;
    streamed["stream"] = true;
    return std::vector<Planned>{
        {"POST", "/v1/completions", sampled, Form::kChoices, 2, {200}},
        {"POST", "/v1/chat/completions", greedy, Form::kChoices, 1, {200}},
        {"POST", "/v1/chat/completions", streamed, Form::kOpenAiStream, 1, {200}},
        {"POST", "/v1/embeddings", {{"input", "The same bits"}}, Form::kJson, 1, {200}}};
  }();
  return kRequests;
}

std::string FixedRequests::bits_of(const Planned& request, const HttpAnswer& answer) {
  if (request.form != Form::kOpenAiStream) {
    const Json json = Json::parse(answer.body);
    return json.contains("choices") ? json["choices"].dump() : json.at("data").dump();
  }
  std::string bits;
  size_t at = 0;
  while ((at = answer.body.find("\"choices\":", at)) != std::string::npos) {
    const size_t end = answer.body.find('\n', at);
    bits += answer.body.substr(at, end - at);
    at = end;
  }
  return bits;
}

void FixedRequests::learn(const Place& place) {
  for (size_t i = 0; i < size(); ++i) {
    HttpAnswer answer;
    bits_.emplace_back();
    check(place, i, &answer);
    const std::string fault = fault_of(requests()[i], answer);
    if (!fault.empty() || answer.status != 200)
      throw std::runtime_error(fmt::format("fixed request {}: {} {}", i, fault, answer.body));
    bits_.back() = bits_of(requests()[i], answer);
  }
}

std::string FixedRequests::check(const Place& place, size_t index, HttpAnswer* out) const {
  const Planned& request = requests()[index];
  HttpClient client(place.port, place.patience);
  client.send(bytes_of(request));
  const HttpAnswer answer = client.read();
  if (out != nullptr) *out = answer;
  const std::string fault = fault_of(request, answer);
  if (!fault.empty() || answer.status != 200) return fault;
  const std::string bits = bits_of(request, answer);
  if (bits == bits_[index]) return "";
  return fmt::format("other bits than at the beginning for {}:\n  {}\n  {}", request.body.dump(),
                     bits_[index], bits);
}

// ---- an actor ----------------------------------------------------------------------------------

std::string Actor::remember(const Planned& request, const std::string& manner) {
  constexpr size_t kShown = 1500, kKept = 3;
  record_.add_request();
  record_.count(manner);
  last_.push_back(fmt::format("({}) {} {} {}", manner, request.method, request.target,
                              request.body.is_null() ? "" : request.body.dump().substr(0, kShown)));
  if (last_.size() > kKept) last_.pop_front();
  return bytes_of(request);
}

void Actor::judge(const Planned& request, const HttpAnswer& answer, int64_t life) {
  const std::string fault = fault_of(request, answer);
  record_.count(fmt::format("status {}", answer.status));
  if (fault.empty() || excused(life)) return;
  record_.violation(
      fmt::format("{}\n  answer: {}", fault,
                  answer.body.substr(answer.body.size() > 1500 ? answer.body.size() - 1500 : 0)),
      last_);
}

Planned Actor::any_request() {
  const int64_t kind = maker_.draw(0, 99);
  if (kind < 80) return maker_.generation();
  if (kind < 90) return maker_.side_request();
  if (kind < 96) return maker_.look();
  return maker_.adapter_change();
}

void Actor::act() {
  const int64_t life = place_.life;
  if (life % 2 == 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return;
  }
  try {
    const int64_t kind = maker_.draw(0, 99);
    if (kind < 50) {
      behave();
    } else if (kind < 65) {
      keep_alive();
    } else if (kind < 85) {
      walk_away();
    } else if (kind < 92) {
      half_send();
    } else if (kind < 96) {
      read_slowly();
    } else {
      ask_again();
    }
  } catch (const std::exception& error) {
    if (excused(life)) return;
    record_.violation(error.what(), last_);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

void Actor::behave() {
  const int64_t life = place_.life;
  const Planned request = any_request();
  HttpClient client(place_.port, place_.patience);
  client.send(remember(request, "whole"));
  judge(request, client.read(), life);
}

/// Several requests on one connection, now and then the second before the first is answered.
void Actor::keep_alive() {
  const int64_t life = place_.life;
  HttpClient client(place_.port, place_.patience);
  for (int64_t i = maker_.draw(2, 4); i > 0; --i) {
    const Planned first = any_request(), second = any_request();
    const bool pipelined = maker_.chance(0.3);
    std::string bytes = remember(first, "kept connection");
    if (pipelined) bytes += remember(second, "pipelined");
    client.send(bytes);
    for (const Planned* request : {&first, &second}) {
      if (request == &second && !pipelined) break;
      const HttpAnswer answer = client.read();
      judge(*request, answer, life);
      if (!answer.keep_alive) return;  // what comes next would be taken for another's
    }
  }
}

/// Goes before the answer, or amid it; politely or with a reset.
void Actor::walk_away() {
  const Planned request = any_request();
  HttpClient client(place_.port, std::chrono::milliseconds(500));
  client.send(remember(request, "walked away"));
  switch (maker_.draw(0, 2)) {
    case 0:
      break;
    case 1:
      std::this_thread::sleep_for(std::chrono::milliseconds(maker_.draw(0, 300)));
      break;
    default:
      client.read_bytes(static_cast<size_t>(maker_.draw(1, 3000)));
      if (maker_.chance(0.5)) client.read_bytes(static_cast<size_t>(maker_.draw(1, 3000)));
  }
  maker_.chance(0.5) ? client.reset() : client.close();
}

/// A part of a request, or one that is broken; then gone, or waiting for what the server says.
void Actor::half_send() {
  const Planned request = any_request();
  std::string bytes = remember(request, "half sent");
  HttpClient client(place_.port, place_.patience);
  const auto size = std::ssize(bytes);
  if (maker_.chance(0.3)) {
    bytes[static_cast<size_t>(maker_.draw(0, size - 1))] = static_cast<char>(maker_.draw(0, 255));
  } else {
    bytes.resize(static_cast<size_t>(maker_.draw(0, size - 1)));
  }
  client.send(bytes);
  if (maker_.chance(0.5))
    std::this_thread::sleep_for(std::chrono::milliseconds(maker_.draw(0, 200)));
  if (maker_.chance(0.5)) {
    client.shutdown_send();
    const HttpAnswer answer = client.read();
    record_.count(fmt::format("status {} to what was half sent", answer.status));
    if (answer.status >= 500 && answer.status != 503)
      record_.violation(
          fmt::format("status {} to what was half sent: {}", answer.status, answer.body), last_);
  }
}

void Actor::read_slowly() {
  const int64_t life = place_.life;
  const Planned request = maker_.generation();
  HttpClient client(place_.port, place_.patience);
  const std::chrono::milliseconds pause(maker_.draw(1, 30));
  client.read_slowly(static_cast<size_t>(maker_.draw(50, 500)), pause);
  client.send(remember(request, "read slowly"));
  judge(request, client.read(), life);
}

void Actor::ask_again() {
  const int64_t life = place_.life;
  const auto index = static_cast<size_t>(maker_.draw(0, static_cast<int64_t>(fixed_.size()) - 1));
  record_.add_request();
  record_.count("asked again");
  const std::string fault = fixed_.check(place_, index);
  if (!fault.empty() && !excused(life)) record_.violation(fault, last_);
}

}  // namespace qw::soak
