#include "soak/fuzzer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace qw::soak {

using testing::HttpClient;

namespace {

/// Bytes as they can be shown and pasted into a shell's $'...'.
std::string escaped(const std::string& bytes) {
  constexpr size_t kShown = 3000;
  std::string out;
  for (const char c : bytes.substr(0, kShown)) {
    if (c == '\r') {
      out += "\\r";
    } else if (c == '\n') {
      out += "\\n";
    } else if (c >= ' ' && c < 127) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return out + (bytes.size() > kShown ? fmt::format("... ({} bytes)", bytes.size()) : "");
}

}  // namespace

std::vector<Address> read_addresses(const Place& place) {
  return addresses_of(Json::parse(HttpClient(place.port).get("/compat").body));
}

void Fuzzer::act() {
  constexpr int64_t kSweep = 500;
  constexpr size_t kRemembered = 2;
  if (++n_ % kSweep == 0) unload_adapters(place_);  // whatever names mutants gave them
  const Mutant mutant = mutator_.next();
  record_.add_request();
  last_.push_back(escaped(mutant.bytes));
  if (last_.size() > kRemembered) last_.pop_front();
  try {
    if (mutant.well_framed) {
      send_framed(mutant);
    } else {
      send_broken(mutant);
    }
  } catch (const std::exception& error) {
    client_.reset();
    record_.violation(error.what(), last_);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

/// No fault of the server's own, and JSON that is JSON.
void Fuzzer::judge(const HttpAnswer& answer) {
  record_.count(fmt::format("status {}", answer.status));
  if (answer.status >= 500 && answer.status != 503 && answer.status != 504)
    record_.violation(fmt::format("status {}: {}", answer.status, answer.body.substr(0, 1000)),
                      last_);
  const auto type = answer.headers.find("content-type");
  if (!answer.complete || answer.body.empty() || type == answer.headers.end()) return;
  if (type->second.starts_with("application/json") &&
      Json::parse(answer.body, nullptr, false).is_discarded())
    record_.violation("a body that is no JSON: " + answer.body.substr(0, 1000), last_);
  if (answer.body.find("this is a bug in qianwen") != std::string::npos)
    record_.violation("a broken promise: " + answer.body.substr(0, 1000), last_);
}

void Fuzzer::send_framed(const Mutant& mutant) {
  record_.count("well framed");
  if (!client_) client_.emplace(place_.port, place_.patience);
  client_->send(mutant.bytes);
  for (size_t i = 0; i < mutant.n_requests; ++i) {
    const HttpAnswer answer = client_->read(mutant.is_head);
    if (answer.timed_out || !answer.complete) {
      record_.violation(answer.timed_out ? "no answer in time" : "no whole answer: " + answer.error,
                        last_);
      client_.reset();
      return;
    }
    judge(answer);
    if (!answer.keep_alive) {
      client_.reset();
      return;
    }
  }
}

/// The server may answer or close, but not wait once nothing more can come.
void Fuzzer::send_broken(const Mutant& mutant) {
  record_.count("badly framed");
  HttpClient client(place_.port, place_.patience);
  client.send(mutant.bytes);
  client.shutdown_send();
  const HttpAnswer answer = client.read(mutant.is_head);
  if (answer.timed_out) record_.violation("no answer in time, and no end", last_);
  judge(answer);
}

}  // namespace qw::soak
