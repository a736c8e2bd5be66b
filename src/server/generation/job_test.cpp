// What every dialect's generations share: copies of a greedy answer, deadlines, who waits for whom.
#include "server/generation/job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::HttpAnswer;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

Json chat_body(Json more = Json::object()) {
  Json body = {{"messages", {{{"role", "user"}, {"content", "What is the capital of Japan?"}}}},
               {"temperature", 0},
               {"max_tokens", 20}};
  body.update(more);
  return body;
}

/// A value of /metrics that has no labels but the model's.
double metric(const RunningService& running, const std::string& name) {
  const std::string text = running.client().get("/metrics").body;
  const size_t at = text.find("\n" + name + "{");
  return at == std::string::npos ? -1.0 : std::stod(text.substr(text.find("} ", at) + 2));
}

/// A request of every dialect with a prompt of some pages that no other has.
std::vector<std::pair<std::string, Json>> requests_of_every_dialect() {
  std::vector<std::pair<std::string, Json>> out;
  const auto text = [&] {
    std::string prompt = fmt::format("This is number {}.", out.size());
    for (int i = 0; i < 40; ++i)
      prompt += " One two three four.";
    return prompt;
  };
  const auto messages = [&] { return Json::array({{{"role", "user"}, {"content", text()}}}); };
  const Json options = {{"temperature", 0}, {"num_predict", 2}};
  out.emplace_back("/v1/chat/completions",
                   Json{{"messages", messages()}, {"temperature", 0}, {"max_tokens", 2}});
  out.emplace_back("/v1/completions",
                   Json{{"prompt", text()}, {"temperature", 0}, {"max_tokens", 2}});
  out.emplace_back("/v1/responses",
                   Json{{"input", text()}, {"temperature", 0}, {"max_output_tokens", 2}});
  out.emplace_back("/v1/messages",
                   Json{{"messages", messages()}, {"temperature", 0}, {"max_tokens", 2}});
  out.emplace_back("/api/chat",
                   Json{{"messages", messages()}, {"options", options}, {"stream", false}});
  out.emplace_back("/api/generate",
                   Json{{"prompt", text()}, {"options", options}, {"stream", false}});
  out.emplace_back("/completion", Json{{"prompt", text()}, {"temperature", 0}, {"n_predict", 2}});
  out.emplace_back(
      "/generate",
      Json{{"text", text()}, {"sampling_params", {{"temperature", 0}, {"max_new_tokens", 2}}}});
  out.emplace_back("/v1/embeddings", Json{{"input", text()}});
  out.emplace_back("/api/embed", Json{{"input", text()}});
  out.emplace_back("/embedding", Json{{"content", text()}});
  return out;
}

TEST(CacheSalt, SharesPromptsOnlyWithTheSame) {
  const RunningService running;
  for (auto [target, body] : requests_of_every_dialect()) {
    const auto n_cached = [&, target = target, body = body](const std::string& salt) {
      Json own = body;
      if (!salt.empty()) own["cache_salt"] = salt;
      const double before = std::max(metric(running, "vllm:prefix_cache_hits_total"), 0.0);
      int status = 0;
      const Json answer = running.post(target, own, &status);
      EXPECT_EQ(status, 200) << target << answer;
      EXPECT_FALSE(answer.is_object() && answer.contains("warnings")) << target << answer;
      return metric(running, "vllm:prefix_cache_hits_total") - before;
    };
    // A few tokens of a template are every conversation's.
    for (const char* salt : {"", "a", "b"})
      EXPECT_LT(n_cached(salt), 64) << target << " " << salt;
    for (const char* salt : {"", "a", "b"})
      EXPECT_GT(n_cached(salt), 127) << target << " " << salt;
    int status = 0;
    body["cache_salt"] = "";
    running.post(target, body, &status);
    EXPECT_EQ(status, 400) << target;
  }
}

TEST(CacheSalt, ChangesNoAnswerAndHoldsAfterARestart) {
  const std::string directory = fmt::format("{}cache_salt_{}", ::testing::TempDir(), ::getpid());
  std::filesystem::remove_all(directory);
  ServiceOptions options = service_options();
  options.models[0].open.prefix_cache_dir = directory;
  Json body = requests_of_every_dialect()[1].second;
  body["temperature"] = 1;
  body["seed"] = 5;
  body["max_tokens"] = 20;
  body["logprobs"] = 2;
  std::string choices;
  for (const bool again : {false, true}) {
    const RunningService running(options);
    for (const char* salt : {"", "a", "b"}) {
      if (*salt != 0) body["cache_salt"] = salt;
      const Json answer = running.post("/v1/completions", body);
      if (choices.empty()) choices = answer["choices"].dump();
      EXPECT_EQ(answer["choices"].dump(), choices) << salt;
      const int n_cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"];
      if (again) {
        EXPECT_GT(n_cached, 127);
      } else {
        EXPECT_EQ(n_cached, 0);
      }
    }
    body.erase("cache_salt");
  }
  std::filesystem::remove_all(directory);
}

TEST(GreedyAnswers, AreCopiedWhereSeveralAreAskedFor) {
  const RunningService running;
  const Json one = running.post("/v1/chat/completions", chat_body());
  const Json three = running.post("/v1/chat/completions", chat_body({{"n", 3}}));
  ASSERT_EQ(three["choices"].size(), 3u) << three;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(three["choices"][i]["message"], one["choices"][0]["message"]);
    EXPECT_EQ(three["choices"][i]["index"], i);
  }
  EXPECT_EQ(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
  EXPECT_EQ(three["usage"]["completion_tokens"], 3 * one["usage"]["completion_tokens"].get<int>());

  // Streamed: every choice has the whole text and one end.
  std::map<int, std::string> texts;
  std::map<int, int> ends;
  for (const Json& event :
       running.stream("/v1/chat/completions", chat_body({{"n", 3}, {"stream", true}}))) {
    for (const Json& choice : event["choices"]) {
      texts[choice["index"]] += choice["delta"].value("content", "");
      ends[choice["index"]] += choice["finish_reason"].is_null() ? 0 : 1;
    }
  }
  ASSERT_EQ(texts.size(), 3u);
  for (const auto& [index, text] : texts) {
    EXPECT_EQ(text, one["choices"][0]["message"]["content"]) << index;
    EXPECT_EQ(ends[index], 1);
  }
}

TEST(GreedyAnswers, AreCopiedInEveryDialectAndOfEveryPrompt) {
  const RunningService running;
  const Json two = running.post(
      "/v1/completions",
      {{"prompt", {"One two", "A b c"}}, {"n", 2}, {"temperature", 0}, {"max_tokens", 4}});
  ASSERT_EQ(two["choices"].size(), 4u) << two;
  EXPECT_EQ(two["choices"][0]["text"], two["choices"][1]["text"]);
  EXPECT_EQ(two["choices"][2]["text"], two["choices"][3]["text"]);
  EXPECT_NE(two["choices"][0]["text"], two["choices"][2]["text"]);
  const Json llama = running.post(
      "/completion", {{"prompt", "One two"}, {"n_cmpl", 2}, {"temperature", 0}, {"n_predict", 4}});
  ASSERT_EQ(llama.size(), 2u) << llama;
  EXPECT_EQ(llama[0]["content"], two["choices"][0]["text"]);
  EXPECT_EQ(llama[1]["content"], two["choices"][0]["text"]);
  EXPECT_EQ(llama[1]["index"], 1);
  const Json sglang = running.post(
      "/generate", {{"text", "One two"},
                    {"sampling_params", {{"n", 2}, {"temperature", 0}, {"max_new_tokens", 4}}}});
  ASSERT_EQ(sglang.size(), 2u) << sglang;
  EXPECT_EQ(sglang[1]["text"], two["choices"][0]["text"]);
}

// ---- deadlines ---------------------------------------------------------------------------------

/// An answer that would take far longer than any test waits.
Json long_body(Json more = Json::object()) {
  Json body = {{"prompt", "One"}, {"ignore_eos", true}, {"max_tokens", 2000}, {"seed", 1}};
  body.update(more);
  return body;
}

TEST(Deadlines, EndAnAnswerThatIsNotThereInTime) {
  const RunningService running;
  for (const auto& [headers, more] :
       {std::pair<std::string, Json>{"x-request-timeout: 0.05\r\n", Json::object()},
        std::pair<std::string, Json>{"", Json{{"timeout", 0.05}}},
        std::pair<std::string, Json>{"x-request-timeout: 0.05\r\n", Json{{"timeout", 500}}}}) {
    const HttpAnswer answer =
        running.client().post("/v1/completions", long_body(more).dump(), headers);
    EXPECT_EQ(answer.status, 504) << answer.body;
    EXPECT_THAT(answer.body, HasSubstr("expected the answer within 0.05 s"));
  }
  // Its place is free again at once.
  const Json after = running.post("/v1/completions", {{"prompt", "One"}, {"max_tokens", 1}});
  EXPECT_EQ(after["usage"]["completion_tokens"], 1);
}

int n_times(const std::string& text, std::string_view what) {
  int n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size())
    ++n;
  return n;
}

/// A dialect's stream that goes on for far longer than any test waits.
struct LongStream {
  std::string path;
  Json body;
  std::string piece;              // in each event with text
  std::string error;              // in the event that tells of the end, and in no other
  std::string done;               // what ends a stream, whatever came of it; "": nothing
  std::vector<std::string> ends;  // what says that an answer has come to its end
};

std::vector<LongStream> long_streams() {
  const Json messages = {{{"role", "user"}, {"content", "Count."}}};
  // Where no parameter keeps an answer from ending, its form does.
  const Json schema = {{"type", "object"},
                       {"properties", {{"a", {{"type", "string"}, {"minLength", 9000}}}}},
                       {"required", {"a"}}};
  const Json format = {{"type", "json_schema"}, {"name", "long"}, {"schema", schema}};
  const std::vector<std::string> openai_ends = {R"("finish_reason":"stop")",
                                                R"("finish_reason":"length")"};
  return {
      {"/v1/chat/completions",
       {{"messages", messages}, {"max_tokens", 1900}, {"ignore_eos", true}, {"n", 2}},
       R"("delta")",
       R"({"error":)",
       "data: [DONE]",
       openai_ends},
      {"/v1/completions",
       {{"prompt", {"One", "Two"}}, {"max_tokens", 1900}, {"ignore_eos", true}},
       R"("choices")",
       R"({"error":)",
       "data: [DONE]",
       openai_ends},
      {"/v1/responses",
       {{"input", "Count."}, {"max_output_tokens", 1900}, {"text", {{"format", format}}}},
       "response.output_text.delta",
       "event: response.failed",
       "",
       {"response.completed", "response.incomplete"}},
      {"/v1/messages",
       {{"messages", messages}, {"max_tokens", 1900}, {"output_format", format}},
       "event: content_block_delta",
       "event: error",
       "",
       {"message_stop"}},
      {"/api/chat",
       {{"messages", messages}, {"format", schema}, {"options", {{"num_predict", 1900}}}},
       R"("done":false)",
       R"({"error":)",
       "",
       {R"("done":true)"}},
      {"/api/generate",
       {{"prompt", "Count."}, {"format", schema}, {"options", {{"num_predict", 1900}}}},
       R"("done":false)",
       R"({"error":)",
       "",
       {R"("done":true)"}},
      {"/completion",
       {{"prompt", "One"}, {"n_predict", 1900}, {"ignore_eos", true}},
       R"("stop":false)",
       R"({"error":)",
       "",
       {R"("stop":true)"}},
      {"/generate",
       {{"text", "One"}, {"sampling_params", {{"max_new_tokens", 1900}, {"ignore_eos", true}}}},
       R"("text")",
       R"({"error":)",
       "data: [DONE]",
       {R"("finish_reason":{)"}},
  };
}

// Whatever the dialect: some of the answer, one error, nothing after it, and the connection and the
// engine's places are free for the next request.
TEST(Deadlines, EndAStreamOfEveryDialectOnceAndWithAnError) {
  const RunningService running;
  for (LongStream stream : long_streams()) {
    stream.body["stream"] = true;
    HttpClient client = running.client();
    const HttpAnswer answer =
        client.post(stream.path, stream.body.dump(), "x-request-timeout: 0.1\r\n");
    EXPECT_EQ(answer.status, 200) << stream.path << answer.body;
    EXPECT_TRUE(answer.complete && answer.keep_alive) << stream.path;
    EXPECT_GT(n_times(answer.body, stream.piece), 0) << stream.path << "\n" << answer.body;
    EXPECT_EQ(n_times(answer.body, stream.error), 1) << stream.path;
    EXPECT_EQ(n_times(answer.body, "expected the answer within 0.1 s"), 1) << stream.path;
    for (const std::string& end : stream.ends)
      EXPECT_EQ(n_times(answer.body, end), 0) << stream.path << " " << end;
    const std::string rest =
        answer.body.substr(std::min(answer.body.size(), answer.body.find(stream.error)));
    EXPECT_EQ(n_times(rest, stream.piece), 0) << stream.path << " " << rest;
    if (!stream.done.empty()) {
      EXPECT_EQ(n_times(answer.body, stream.done), 1) << stream.path;
      EXPECT_TRUE(answer.body.ends_with(stream.done + "\n\n")) << stream.path;
    }
    // The same connection takes another, and nothing of the first comes with it.
    const HttpAnswer next =
        client.post("/v1/completions", Json{{"prompt", "One"}, {"max_tokens", 2}}.dump());
    EXPECT_EQ(next.status, 200) << stream.path << next.body;
    EXPECT_EQ(Json::parse(next.body)["usage"]["completion_tokens"], 2) << stream.path;
  }
  const EngineHost& host = running.service.services().hub->find("mini").loaded->host();
  EXPECT_EQ(host.n_open(), 0);
}

// Embeddings and what is made of them, in every dialect that has such.
TEST(Deadlines, EndEmbeddingsToo) {
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = 1;
  const RunningService running(options);
  // One after the other they need longer than what is asked below.
  std::deque<HttpClient> busy;
  for (int i = 0; i < 20; ++i) {
    busy.emplace_back(running.service.port());
    busy.back().send(
        HttpClient::post_text("/v1/completions", long_body({{"stream", true}}).dump()));
  }
  busy.front().read_until("data:");
  const std::vector<std::pair<std::string, Json>> all = {
      {"/v1/embeddings", {{"input", "One"}}},
      {"/score", {{"text_1", "One"}, {"text_2", "Two"}}},
      {"/rerank", {{"query", "One"}, {"documents", {"Two"}}}},
      {"/api/embed", {{"input", "One"}}},
      {"/api/embeddings", {{"prompt", "One"}}},
      {"/embedding", {{"content", "One"}}}};
  for (const auto& [path, given] : all) {
    Json body = given;
    body["timeout"] = 0.05;
    const HttpAnswer late = running.client().post(path, body.dump());
    EXPECT_EQ(late.status, 504) << path;
    EXPECT_THAT(late.body, HasSubstr("expected the answer within 0.05 s")) << path;
    body["timeout"] = 0;
    EXPECT_EQ(running.client().post(path, body.dump()).status, 400) << path;
  }
  busy.clear();
  for (const auto& [path, given] : all) {
    Json body = given;
    body["timeout"] = 60;
    const HttpAnswer answer = running.client().post(path, body.dump());
    EXPECT_EQ(answer.status, 200) << path;
    EXPECT_FALSE(Json::parse(answer.body).contains("warnings")) << path;
  }
}

TEST(Deadlines, SaveNobodyTheQuota) {
  const KeyRing::NewKey made = KeyRing::make("team");
  Json entry = Json::parse(made.entry);
  entry["tokens_per_minute"] = 10;
  const std::string file = ::testing::TempDir() + "deadline_keys.json";
  std::ofstream(file) << Json({{"keys", Json::array({entry})}});
  ServiceOptions options = service_options();
  options.key_file = file;
  const RunningService running(options);
  const std::string key = "Authorization: Bearer " + made.key + "\r\n";
  const auto ask = [&] {
    return running.client()
        .post("/v1/completions", long_body({{"timeout", 0.4}, {"stream", true}}).dump(), key)
        .status;
  };
  EXPECT_EQ(ask(), 200);
  // The engine tells what it computed within its next step.
  int status = 0;
  for (int i = 0; i < 200 && status != 429; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    status = running.client().post("/v1/completions", "{}", key).status;
  }
  EXPECT_EQ(status, 429);
}

TEST(Sizes, OfOneRequestAreLimited) {
  const RunningService running;
  const Json inputs(std::vector<std::string>(2049, "a"));
  const HttpAnswer many = running.client().post("/v1/embeddings", Json({{"input", inputs}}).dump());
  EXPECT_EQ(many.status, 400);
  EXPECT_THAT(many.body, HasSubstr("expected at most 2048 answers"));
  const Json prompts(std::vector<std::string>(300, "a"));
  const HttpAnswer product = running.client().post(
      "/v1/completions", Json({{"prompt", prompts}, {"n", 8}, {"max_tokens", 1}}).dump());
  EXPECT_EQ(product.status, 400);
}

TEST(Deadlines, ThatAreNoneAreRefused) {
  const RunningService running;
  for (const char* text : {"soon", "0", "-1", "1s", "nan", "1e99", ""}) {
    const HttpAnswer answer = running.client().post(
        "/v1/completions", long_body().dump(), std::string("x-request-timeout: ") + text + "\r\n");
    EXPECT_EQ(answer.status, 400) << text;
    EXPECT_THAT(answer.body, HasSubstr("x-request-timeout"));
  }
}

TEST(Deadlines, AnswersInTimeAreNotTouched) {
  const RunningService running;
  const HttpAnswer answer = running.client().post(
      "/v1/completions", Json{{"prompt", "One"}, {"max_tokens", 2}, {"timeout", 60}}.dump());
  EXPECT_EQ(answer.status, 200) << answer.body;
}

// ---- trying again ------------------------------------------------------------------------------

TEST(RetryAfter, FollowsTheQueue) {
  EXPECT_EQ(seconds_until_room(1, 4, 0), 1);
  EXPECT_EQ(seconds_until_room(1, 4, 2), 1);
  EXPECT_EQ(seconds_until_room(6, 4, 10), 15);
  EXPECT_EQ(seconds_until_room(1000, 1, 100), 600);
}

TEST(RetryAfter, ComesWithAFullQueue) {
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = 1;
  options.max_queue = 0;
  const RunningService running(options);
  HttpClient busy = running.client();
  busy.send(HttpClient::post_text("/v1/completions", long_body({{"stream", true}}).dump()));
  busy.read_until("data:");
  const HttpAnswer answer = running.client().post("/v1/completions", long_body().dump());
  EXPECT_EQ(answer.status, 429);
  EXPECT_GE(std::stoi(answer.headers.at("retry-after")), 1);
}

// ---- fairness ----------------------------------------------------------------------------------

// --max-queue bounds what one crowd may have waiting, and locks nobody else out.
TEST(Fairness, AQueueThatOneHasFilledIsOpenToOthers) {
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = 1;
  options.max_queue = 1;
  const RunningService running(options);
  const auto post_text = [](const std::string& user, Json more) {
    more["user"] = user;
    return HttpClient::post_text("/v1/completions", long_body(more).dump());
  };
  // One call, however many prompts it has.
  HttpClient list = running.client(), other = running.client();
  list.send(
      post_text("crowd", {{"prompt", std::vector<std::string>(40, "One")}, {"stream", true}}));
  list.read_until("data:");
  other.send(post_text("crowd", {{"stream", true}}));
  const auto n_calls = [&] {
    return running.service.services().hub->find("mini").loaded->queue().n_calls();
  };
  while (n_calls() != 2)
    std::this_thread::yield();
  const auto status_of = [&](const std::string& user) {
    HttpClient client = running.client();
    client.send(post_text(user, {{"max_tokens", 1}}));
    return client.read().status;
  };
  EXPECT_EQ(status_of("crowd"), 429);
  EXPECT_EQ(status_of("modest"), 200);
  list.close();
  other.close();
  while (n_calls() != 0)
    std::this_thread::yield();
}

// One user's many requests do not keep another's one behind them, though there are no keys.
TEST(Fairness, TellsUsersApartWithoutKeys) {
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = 1;
  const RunningService running(options);
  const auto ask = [&](const std::string& user) {
    return std::async(std::launch::async, [&running, user] {
      running.post("/v1/completions", {{"prompt", "One"},
                                       {"ignore_eos", true},
                                       {"max_tokens", 150},
                                       {"seed", 1},
                                       {"user", user}});
      return std::chrono::steady_clock::now();
    });
  };
  std::vector<std::future<std::chrono::steady_clock::time_point>> many;
  for (int i = 0; i < 8; ++i)
    many.push_back(ask("greedy"));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const auto one = ask("modest").get();
  int n_before = 0;
  for (auto& other : many)
    n_before += other.get() < one ? 1 : 0;
  EXPECT_LE(n_before, 4);
}

}  // namespace
}  // namespace qw::server
