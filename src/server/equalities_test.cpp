// A request's bits do not depend on who else is served: alone, in a batch of 32, after a prefix
// hit, streamed or not. (With guesses ahead and after preemption: openai/openai_test.cpp.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;

constexpr int kSlots = 32;
constexpr const char* kChat = "/v1/chat/completions";

ServiceOptions options() {
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = kSlots;
  return options;
}

/// With a prompt of several pages, sampled, with what tells one bit from another.
ordered_json request() {
  std::string system = "You answer in one sentence.";
  for (int i = 0; i < 40; ++i)
    system += fmt::format(" Rule {} is as good as any other.", i);
  return {{"messages",
           {{{"role", "system"}, {"content", system}},
            {{"role", "user"}, {"content", "Tell me about the sea."}}}},
          {"temperature", 0.9},
          {"seed", 7},
          {"max_tokens", 48},
          {"ignore_eos", true},
          {"logprobs", true},
          {"top_logprobs", 3}};
}

/// Text and log-probabilities.
struct Bits {
  std::string text;
  ordered_json logprobs = ordered_json::array();
  bool operator==(const Bits&) const = default;
};
void PrintTo(const Bits& bits, std::ostream* out) {
  *out << bits.text << " " << bits.logprobs;
}

Bits bits_of(const ordered_json& answer) {
  const ordered_json& choice = answer["choices"].at(0);
  return {choice["message"]["content"], choice["logprobs"]["content"]};
}

Bits streamed(const RunningService& running) {
  ordered_json body = request();
  body["stream"] = true;
  Bits bits;
  for (const ordered_json& event : running.stream(kChat, body)) {
    const ordered_json& choice = event["choices"].at(0);
    bits.text += choice["delta"].value("content", "");
    if (!choice.contains("logprobs") || choice["logprobs"].is_null()) continue;
    for (const ordered_json& token : choice["logprobs"]["content"])
      bits.logprobs.push_back(token);
  }
  return bits;
}

int64_t n_cached(const ordered_json& answer) {
  return answer["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
}

int n_running(const RunningService& running) {
  const std::string text = running.client().get("/metrics").body;
  const std::string name = "\nvllm:num_requests_running{";
  const size_t at = text.find(name);
  return at == std::string::npos ? -1 : std::stoi(text.substr(text.find("} ", at) + 2));
}

/// Streams that go on until their clients leave.
class Crowd {
 public:
  Crowd(const RunningService& running, int n) {
    for (int i = 0; i < n; ++i) {
      const ordered_json body = {{"prompt", fmt::format("The number {} is", i)},
                                 {"max_tokens", 1900},
                                 {"temperature", 1.0},
                                 {"seed", i},
                                 {"ignore_eos", true},
                                 {"stream", true}};
      clients_.emplace_back(running.service.port());
      clients_.back().send(HttpClient::post_text("/v1/completions", body.dump()));
    }
    for (HttpClient& client : clients_)
      EXPECT_THAT(client.read_until("data: "), ::testing::HasSubstr("200 OK"));
  }

 private:
  std::deque<HttpClient> clients_;
};

TEST(EqualitiesOverHttp, NeitherMatesNorTheCacheNorStreamingChangeABit) {
  Bits alone;
  {
    const RunningService running(options());
    const ordered_json first = running.post(kChat, request());
    ASSERT_EQ(n_cached(first), 0);
    alone = bits_of(first);
    ASSERT_EQ(alone.logprobs.size(), 48u);
    const ordered_json again = running.post(kChat, request());
    EXPECT_GT(n_cached(again), 0);
    EXPECT_EQ(bits_of(again), alone);
    EXPECT_EQ(streamed(running), alone);
  }
  const RunningService running(options());
  const Crowd crowd(running, kSlots - 1);
  const ordered_json among = running.post(kChat, request());
  EXPECT_EQ(n_cached(among), 0);
  EXPECT_EQ(bits_of(among), alone);
  EXPECT_EQ(streamed(running), alone);
  EXPECT_EQ(n_running(running), kSlots - 1) << "the crowd was to be there all the time";
}

}  // namespace
}  // namespace qw::server
