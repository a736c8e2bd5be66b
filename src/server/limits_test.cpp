// What one client can do to the others: lists and texts that would take long, bodies without a key,
// what only administrators may change; and that refusals leave a trace.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <future>
#include <latch>
#include <thread>

#include "server/access.h"
#include "support/running_service.h"
#include "text/tokenizer.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpAnswer;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

class RequestLimits : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService(); }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  /// What a refused request is refused for.
  static std::string param_of(const std::string& target, const ordered_json& body) {
    int status = 0;
    const ordered_json answer = running_->post(target, body, &status);
    EXPECT_EQ(status, 400) << answer.dump().substr(0, 500);
    return answer["error"].value("param", "");
  }
  static RunningService* running_;
};
RunningService* RequestLimits::running_ = nullptr;

TEST_F(RequestLimits, OfLists) {
  ordered_json body = {{"prompt", "Hi"}, {"max_tokens", 1}};
  ordered_json words = ordered_json::array(), ids = ordered_json::array();
  for (int i = 0; i < 5000; ++i) {
    words.push_back(fmt::format("w{}", i));
    ids.push_back(i);
  }
  ordered_json many = body;
  many["bad_words"] = words;
  EXPECT_EQ(param_of("/v1/completions", many), "bad_words");
  many = body;
  many["stop_token_ids"] = ids;
  EXPECT_EQ(param_of("/v1/completions", many), "stop_token_ids");
}

// One automaton for all prompts and answers of a request, and none that takes long to make.
TEST_F(RequestLimits, OfStopStrings) {
  ordered_json body = {{"prompt", "Hi"}, {"max_tokens", 2}, {"stop", std::string(16384, 'x')}};
  EXPECT_EQ(running_->post("/v1/completions", body)["choices"].size(), 1u);
  body["stop"] = {std::string(16000, 'x'), std::string(385, 'y')};
  int status = 0;
  EXPECT_THAT(running_->post("/v1/completions", body, &status).dump(),
              HasSubstr("stop (bytes in all)"));
  EXPECT_EQ(status, 400);
  std::vector<std::string> many;
  for (int i = 0; i < 1000; ++i)
    many.push_back(fmt::format("no such {:07}", i));
  body = {{"prompt", std::vector<std::string>(16, "One")},
          {"n", 32},
          {"stop", many},
          {"temperature", 1.0},
          {"seed", 1},
          {"max_tokens", 2}};
  EXPECT_EQ(running_->post("/v1/completions", body)["choices"].size(), 512u);
}

TEST_F(RequestLimits, OfLogProbabilities) {
  ordered_json body = {{"prompt", "Hi"}, {"max_tokens", 1}, {"logprobs", 257}};
  EXPECT_EQ(param_of("/v1/completions", body), "logprobs");
  body["logprobs"] = 200;
  EXPECT_EQ(running_->post("/v1/completions", body)["choices"][0]["logprobs"]["tokens"].size(), 1u);
  body.erase("logprobs");
  std::string text;
  for (int i = 0; i < 700; ++i)
    text += "word ";
  body["prompt"] = text;
  body["prompt_logprobs"] = 250;
  EXPECT_EQ(param_of("/v1/completions", body), "prompt_logprobs");
  body["prompt_logprobs"] = 2;
  const ordered_json places =
      running_->post("/v1/completions", body)["choices"][0]["prompt_logprobs"];
  EXPECT_GT(places.size(), 700u);
  EXPECT_GE(places[1].size(), 2u);
  EXPECT_LE(places[1].size(), 3u);
  // Each answer repeats them, and several prompts have theirs in one answer.
  body["n"] = 100;
  EXPECT_EQ(param_of("/v1/completions", body), "prompt_logprobs");
  body["n"] = 1;
  body["prompt"] = std::vector<std::string>(100, text);
  EXPECT_EQ(param_of("/v1/completions", body), "prompt_logprobs");
}

TEST_F(RequestLimits, OfTextsThatCannotFit) {
  const std::string text(size_t{4} << 20, 'a');
  EXPECT_EQ(param_of("/v1/completions", {{"prompt", text}}), "prompt");
  EXPECT_EQ(
      param_of("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", text}}}}}),
      "messages");
  EXPECT_EQ(param_of("/v1/responses", {{"input", text}}), "input");
}

// In the client's words, with the code that frameworks branch on.
TEST_F(RequestLimits, OfTheContext) {
  std::string text;
  for (int i = 0; i < 2500; ++i)
    text += "word ";
  ordered_json body = {{"messages", {{{"role", "user"}, {"content", text}}}}};
  int status = 0;
  ordered_json error = running_->post("/v1/chat/completions", body, &status)["error"];
  EXPECT_EQ(status, 400);
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["param"], "messages");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("2048"));
  body["messages"][0]["content"] = "Hi";
  body["max_tokens"] = 2048;
  error = running_->post("/v1/chat/completions", body, &status)["error"];
  EXPECT_EQ(error["param"], "max_tokens");
  EXPECT_EQ(error["code"], "context_length_exceeded");
  error = running_->post("/completion", {{"prompt", text}}, &status)["error"];
  EXPECT_EQ(error["type"], "exceed_context_size_error");
}

TEST_F(RequestLimits, OfBodiesAreToldInTheDialectsForm) {
  HttpClient client = running_->client();
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n{");
  const HttpAnswer answer = client.read();
  EXPECT_EQ(answer.status, 413);
  EXPECT_THAT(ordered_json::parse(answer.body)["error"]["message"].get<std::string>(),
              HasSubstr("body: expected at most 16777216 bytes"));
}

TEST_F(RequestLimits, OfTheirFormAreToldInTheDialectsForm) {
  for (const auto& [head, status, word] :
       {std::tuple("POST /v1/completions HTTP/1.1\r\n\r\n", 400, "one Host header"),
        {"POST /v1/comple%ions HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "percent-encoded"},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
         "Content-Length: 2\r\n\r\n{}",
         415, "Content-Encoding: expected none, got gzip"}}) {
    HttpClient client = running_->client();
    client.send(head);
    const HttpAnswer answer = client.read();
    EXPECT_EQ(answer.status, status) << head;
    EXPECT_EQ(answer.headers.at("x-request-id").size(), 32u) << head;
    EXPECT_THAT(ordered_json::parse(answer.body)["error"]["message"].get<std::string>(),
                HasSubstr(word));
  }
  HttpClient plain = running_->client();
  EXPECT_EQ(plain.post("/tokenize", R"({"prompt": "a"})", "Content-Encoding: Identity\r\n").status,
            200);
}

TEST(RequestBodies, OfAllTogetherAreToldInTheDialectsForm) {
  ServiceOptions options = qw::testing::service_options();
  options.http.max_bodies_bytes = 2000;
  const RunningService running(options);
  HttpClient client = running.client();
  client.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n" +
              std::string(3900, ' '));
  const HttpAnswer answer = client.read();
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.headers.at("retry-after"), "1");
  EXPECT_THAT(ordered_json::parse(answer.body)["error"]["message"].get<std::string>(),
              HasSubstr("room for its body"));
}

TEST_F(RequestLimits, RefusalsHaveANumberAndAreCounted) {
  const HttpAnswer nowhere = running_->client().get("/nowhere");
  EXPECT_EQ(nowhere.status, 404);
  EXPECT_EQ(nowhere.headers.at("x-request-id").size(), 32u);
  const HttpAnswer method = running_->client().get("/v1/chat/completions");
  EXPECT_EQ(method.status, 405);
  EXPECT_EQ(method.headers.at("allow"), "POST, OPTIONS");
  EXPECT_THAT(running_->client().get("/metrics").body,
              ::testing::AllOf(HasSubstr("path=\"-\",status=\"404\"}"),
                               HasSubstr("path=\"-\",status=\"405\"}")));
}

TEST_F(RequestLimits, AreToldInTheClientsWords) {
  const auto error_of = [](const std::string& target, const ordered_json& body) {
    int status = 0;
    ordered_json error = running_->post(target, body, &status)["error"];
    EXPECT_EQ(status, 400) << error;
    return error;
  };
  ordered_json error = error_of("/v1/completions", {{"prompt", {1, 6016}}, {"max_tokens", 1}});
  EXPECT_EQ(error["param"], "prompt");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("0 to 6015"));
  error = error_of("/v1/embeddings", {{"input", {1, 6016}}});
  EXPECT_EQ(error["param"], "input");
  error = error_of("/v1/completions", {{"prompt", "a"}, {"logit_bias", {{"6016", 1}}}});
  EXPECT_EQ(error["param"], "logit_bias");
  error = error_of("/v1/completions", {{"prompt", "a"}, {"stop_token_ids", {6016}}});
  EXPECT_EQ(error["param"], "stop_token_ids");
  error = error_of("/v1/completions", {{"prompt", "a"}, {"max_tokens", 2}, {"min_tokens", 3}});
  EXPECT_EQ(error["param"], "min_tokens");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("min_tokens: expected 0 to 2"));
  error = error_of("/v1/completions", {{"prompt", "a"}, {"max_tokens", -2}});
  EXPECT_EQ(error["param"], "max_tokens");
  EXPECT_THAT(error["message"].get<std::string>(), ::testing::Not(HasSubstr("max_new_tokens")));
  error = error_of("/v1/responses", {{"input", ordered_json::array()}});
  EXPECT_EQ(error["param"], "input");
  error =
      error_of("/v1/completions", {{"prompt", "a"}, {"guided_regex", "abc"}, {"min_tokens", 20}});
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("min_tokens"));
  EXPECT_THAT(error["message"].get<std::string>(), ::testing::Not(HasSubstr("min_new_tokens")));
  error = error_of("/api/generate", {{"prompt", "a"}, {"context", {1, 99999}}});
  EXPECT_THAT(error.get<std::string>(), HasSubstr("context: expected token ids"));
  error = error_of("/generate", {{"text", "a"}, {"input_ids", {1}}});
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("input_ids"));
  error = error_of("/v1/embeddings", {{"input", std::vector<int>(2049, 1)}});
  EXPECT_EQ(error["param"], "input");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("at most 2048 tokens"));
  int status = 0;
  running_->post("/v1/embeddings", {{"input", std::vector<int>(2048, 1)}}, &status);
  EXPECT_EQ(status, 200) << "no answer needs a place";
}

TEST_F(RequestLimits, APromptIsCutToWhatFits) {
  ordered_json body = {{"prompt", std::vector<int>(3000, 7)}, {"max_tokens", 8}};
  body["truncate_prompt_tokens"] = -1;
  body["ignore_eos"] = true;
  const ordered_json usage = running_->post("/v1/completions", body)["usage"];
  EXPECT_EQ(usage["prompt_tokens"], 2040);
  EXPECT_EQ(usage["completion_tokens"], 8);
  const ordered_json embedded =
      running_->post("/v1/embeddings", {{"input", body["prompt"]}, {"truncate_prompt_tokens", -1}});
  EXPECT_EQ(embedded["usage"]["prompt_tokens"], 2048);
  body["truncate_prompt_tokens"] = 0;
  int status = 0;
  EXPECT_EQ(running_->post("/v1/completions", body, &status)["error"]["param"],
            "truncate_prompt_tokens");
  EXPECT_EQ(status, 400);
}

TEST_F(RequestLimits, WhatAQueryAsksForIsKnownOrTold) {
  const HttpAnswer told = running_->client().get("/v1/models?page=2");
  EXPECT_EQ(told.status, 200);
  EXPECT_THAT(ordered_json::parse(told.body)["warnings"].at(0).get<std::string>(),
              HasSubstr("page: ignored"));
  EXPECT_EQ(running_->client().get("/props?model=").headers.count("x-qianwen-warnings"), 0u);
  ServiceOptions options = qw::testing::service_options();
  options.strict = true;
  RunningService strict(options);
  EXPECT_EQ(strict.client().get("/v1/models?page=2").status, 400);
  EXPECT_EQ(strict.client().get("/health?page=2").status, 200);
}

TEST_F(RequestLimits, EveryAddressSaysItsMethods) {
  const auto allowed = [](const std::string& path) {
    qw::testing::HttpClient client = running_->client();
    client.send("OPTIONS " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    return client.read().headers.at("allow");
  };
  EXPECT_EQ(allowed("/v1/completions"), "POST, OPTIONS");
  EXPECT_EQ(allowed("/v1/models"), "GET, HEAD, OPTIONS");
  EXPECT_EQ(allowed("/nowhere"), "OPTIONS");
}

// Where nobody works, what is answered at once is answered all the same.
TEST(LimitsOfWorkers, DoNotConcernHealth) {
  ServiceOptions options = qw::testing::service_options();
  options.n_workers = 0;
  const RunningService running(options);
  for (const char* path : {"/health", "/v1/health", "/ready", "/version", "/metrics"})
    EXPECT_EQ(running.client().get(path).status, 200) << path;
}

// What has not ended in time ends with an error that its client can read.
TEST(Draining, TellsWhomItCuts) {
  ServiceOptions options = qw::testing::service_options();
  options.models[0].open.engine.ctx = 32768;
  options.drain_timeout = std::chrono::seconds(1);
  RunningService running(options);
  const std::string endless =
      R"({"prompt": "One two", "max_tokens": 32000, "ignore_eos": true, "stream": true})";
  const std::string whole = R"({"prompt": "One two", "max_tokens": 32000, "ignore_eos": true})";
  HttpClient stream = running.client(), waiting = running.client();
  stream.send(HttpClient::post_text("/v1/completions", endless));
  EXPECT_THAT(stream.read_until("data: "), HasSubstr("200 OK"));
  waiting.send(HttpClient::post_text("/v1/completions", whole));
  const std::string both = "vllm:num_requests_running{model_name=\"mini\"} 2";
  while (running.client().get("/metrics").body.find(both) == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  running.service.drain();
  EXPECT_THAT(stream.read_until("[DONE]"), HasSubstr("before the server's end"));
  const HttpAnswer answer = waiting.read();
  EXPECT_EQ(answer.status, 503);
  EXPECT_THAT(answer.body, HasSubstr("before the server's end"));
}

// A request that was begun before the end is answered, and that it is refused is no fault of ours.
TEST(Draining, NobodyIsReady) {
  RunningService running;
  HttpClient probe = running.client();
  probe.send(
      "GET /ready HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
      "Content-Length: 1\r\n\r\n");
  EXPECT_THAT(probe.read_until("\r\n\r\n"), HasSubstr("100 Continue"));
  ::testing::internal::CaptureStderr();
  running.service.drain();
  probe.send("x");
  const HttpAnswer answer = probe.read();
  EXPECT_EQ(answer.status, 503);
  EXPECT_THAT(answer.body, HasSubstr("the server's end"));
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::Not(HasSubstr("error")));
}

// Who has its whole answer and only keeps its connection is not waited for, nor cut.
TEST(Draining, EndsWhenTheAnswersHave) {
  ServiceOptions options = qw::testing::service_options();
  options.drain_timeout = std::chrono::seconds(0);
  RunningService running(options);
  HttpClient client = running.client();
  client.send("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(client.read().status, 200);
  ::testing::internal::CaptureStderr();
  running.service.drain();
  running.wait();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::Not(HasSubstr("cut")));
}

class Keys : public ::testing::Test {
 protected:
  Keys() : user_(KeyRing::make("user")), admin_(KeyRing::make("admin", true)) {
    path_ = fmt::format("{}limits_keys_{}.json", ::testing::TempDir(), ::getpid());
    std::ofstream(path_) << R"({"keys": [)" << user_.entry << "," << admin_.entry << "]}";
    ServiceOptions options = qw::testing::service_options();
    options.key_file = path_;
    running_ = std::make_unique<RunningService>(options);
  }
  ~Keys() override { std::filesystem::remove(path_); }

  HttpAnswer post(const std::string& target, const std::string& body, const std::string& key) {
    HttpClient client = running_->client();
    client.send("POST " + target + " HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + key +
                "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    return client.read();
  }

  KeyRing::NewKey user_, admin_;
  std::string path_;
  std::unique_ptr<RunningService> running_;
};

TEST_F(Keys, OfAdministratorsMayChangeWhatOthersGet) {
  for (const char* target : {"/lora-adapters", "/flush_cache", "/v1/load_lora_adapter",
                             "/v1/unload_lora_adapter", "/slots/0?action=erase"}) {
    const HttpAnswer refused = post(target, "[]", user_.key);
    EXPECT_EQ(refused.status, 403) << target;
    EXPECT_THAT(refused.body, HasSubstr("admin"));
    EXPECT_NE(post(target, "[]", admin_.key).status, 403) << target;
  }
  EXPECT_EQ(post("/v1/completions", R"({"prompt": "Hi", "max_tokens": 1})", user_.key).status, 200);
}

TEST_F(Keys, OfAdministratorsSayHowLongAModelStays) {
  const std::string body = R"({"model": "mini", "keep_alive": 0})";
  const auto is_loaded = [&] {
    return running_->service.services().hub->find("mini").loaded != nullptr;
  };
  const auto refused = ordered_json::parse(post("/api/generate", body, user_.key).body);
  EXPECT_EQ(refused["done_reason"], "load");
  EXPECT_THAT(refused["warnings"].at(0).get<std::string>(), HasSubstr("keep_alive: ignored"));
  EXPECT_TRUE(is_loaded());
  EXPECT_EQ(ordered_json::parse(post("/api/generate", body, admin_.key).body)["done_reason"],
            "unload");
  for (int i = 0; i < 500 && is_loaded(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(is_loaded());
}

TEST_F(Keys, AreAskedForBeforeABodyIsRead) {
  HttpClient client = running_->client();
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-api-key: qw-no\r\n"
      "Content-Length: 10000000\r\n\r\n{");
  const HttpAnswer answer = client.read();
  EXPECT_EQ(answer.status, 401);
  EXPECT_EQ(answer.headers.at("www-authenticate"), R"(Bearer realm="qianwen")");
  EXPECT_THAT(answer.body, HasSubstr("got another"));
}

TEST(Limits, AnEndAskedForWhileTheModelIsLoadedIsNotKeptWaiting) {
  CancelFlag stop;
  stop.cancel();
  auto options = service_options();
  options.stop_asked = &stop;
  Service service(options);
  EXPECT_FALSE(service.load_default());
  EXPECT_EQ(service.services().hub->find("").loaded, nullptr);
  // And one that comes amid it: nobody who waits is left without an answer.
  service.services().hub->stop_loading();
  stop.reset();
  try {
    service.load_default();
    FAIL() << "expected loading to fail";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCancelled);
  }
}

TEST(Limits, NobodyIsReadyBeforeTheModelIsLoaded) {
  Service service(service_options());
  std::thread thread([&service] { service.run(); });
  const auto status_of = [&](const std::string& target) {
    return HttpClient(service.port()).get(target).status;
  };
  EXPECT_EQ(status_of("/health"), 200);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(status_of("/ready"), 503);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::Not(HasSubstr("error")))
      << "that a probe comes early is no fault";
  const HttpAnswer early =
      HttpClient(service.port()).post("/v1/completions", R"({"prompt": "a", "max_tokens": 1})");
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(early.headers.at("retry-after"), "2");
  EXPECT_THAT(early.body, HasSubstr("got it still loading"));
  EXPECT_TRUE(service.load_default());
  EXPECT_EQ(status_of("/ready"), 200);
  service.stop();
  thread.join();
}

/// Waits until so many grammars are being compiled.
void wait_until_under_way(const ServedModel& model, size_t n) {
  while (model.grammars_held().n < n)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

std::string optional_properties(int n) {
  nlohmann::ordered_json schema = {{"type", "object"}};
  for (int i = 0; i < n; ++i)
    schema["properties"][fmt::format("property_{}", i)] = {{"type", "integer"}};
  return nlohmann::ordered_json{{"prompt", "One"}, {"max_tokens", 2}, {"guided_json", schema}}
      .dump();
}

// Who wants a grammar that takes long keeps nobody waiting who wants none, or one that is known.
TEST(Compilers, AreNobodyElsesAffair) {
  const RunningService running;
  const auto with_regex = [](const char* pattern) {
    return nlohmann::ordered_json{{"prompt", "One"}, {"max_tokens", 2}, {"guided_regex", pattern}};
  };
  int status = 0;
  running.post("/v1/completions", with_regex("[a-z]{2}"), &status);
  EXPECT_EQ(status, 200);
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  for (int i = 0; i < 8; ++i)
    running.service.services().compilers->post([released] { released.wait(); });
  HttpClient waiting = running.client();
  waiting.send(HttpClient::post_text("/v1/completions", with_regex("[0-9]{2}").dump()));
  const HttpAnswer late = running.client().post("/v1/completions", with_regex("[x-z]{2}").dump(),
                                                "x-request-timeout: 0.3\r\n");
  EXPECT_EQ(late.status, 504) << "it has to be compiled, and nobody does";
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(running.client().post("/tokenize", R"({"prompt": "a"})").status, 200);
  running.post("/v1/completions", with_regex("[a-z]{2}"), &status);
  EXPECT_EQ(status, 200) << "known";
  release.set_value();
  EXPECT_EQ(waiting.read().status, 200);
}

/// Returns once all threads of a pool have come to it, each done with what it did.
void meet_all(Workers& workers, int n_threads) {
  const auto all =
      std::make_shared<std::latch>(n_threads);  // threads may look at it after this one
  for (int i = 0; i < n_threads; ++i)
    workers.post([all] { all->arrive_and_wait(); });
  all->wait();
}

// A grammar that was compiled is kept: what is not kept was ended before. (How soon after the flag
// is set is the grammars' own test: CompileWork.)
TEST(Compilers, EndWithTheirClientsAndWithTheServer) {
  const std::string slow = optional_properties(1500), other = optional_properties(1501);
  std::optional<HttpClient> last;  // stays until the server has gone
  RunningService running;
  const auto& services = running.service.services();
  const std::shared_ptr<ServedModel> model = services.hub->find("").loaded;
  ASSERT_NE(model, nullptr);
  {
    HttpClient one = running.client(), two = running.client();
    one.send(HttpClient::post_text("/v1/completions", slow));
    two.send(HttpClient::post_text("/v1/completions", other));
    wait_until_under_way(*model, 2);
  }
  meet_all(*services.compilers, kCompilers);
  EXPECT_EQ(model->grammars_held().n, 0u) << "nobody waited for them";
  last.emplace(running.service.port());
  last->send(HttpClient::post_text("/v1/completions", slow));
  wait_until_under_way(*model, 1);
  running.service.stop();
  meet_all(*services.compilers, kCompilers);
  EXPECT_EQ(model->grammars_held().n, 0u) << "the server would wait for it";
}

TEST(Compilers, RefuseWhatTakesTooManySteps) {
  const RunningService running;
  const HttpAnswer answer = HttpClient(running.service.port(), std::chrono::seconds(120))
                                .post("/v1/completions", optional_properties(6000));
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("expected to be compiled in at most"));
  EXPECT_THAT(answer.body, HasSubstr("guided_json"));
}

// Nor does a text that nobody waits for keep the server: it takes a small part of the processor's
// time that the whole text takes.
TEST(Workers, EndATextWhoseTimeIsOver) {
  std::string text;  // one piece, which is never cut
  for (size_t i = 0; i < (size_t{12} << 20); ++i)
    text += static_cast<char>('a' + (i * i / 7 + i) % 26);
  const std::string body = nlohmann::ordered_json{{"prompt", text}}.dump();
  const auto cpu_seconds = [] {
    return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;  // of all threads
  };
  const RunningService running;
  const auto& services = running.service.services();
  // Its time is over before a worker comes to it: what it takes then does not depend on when.
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  for (int i = 0; i < services.options.n_workers; ++i)
    services.workers->post([released] { released.wait(); });
  const HttpAnswer late = running.client().post("/tokenize", body, "x-request-timeout: 0.05\r\n");
  EXPECT_EQ(late.status, 504);
  const double over = cpu_seconds();
  release.set_value();
  meet_all(*services.workers, services.options.n_workers);
  const double after = cpu_seconds() - over, begin = cpu_seconds();
  services.hub->find("").loaded->tokenizer().encode(text);
  const double whole = cpu_seconds() - begin;
  EXPECT_LT(after, whole / 5) << "of " << whole << " s";
}

// The clock of a request runs while all workers are busy with others.
TEST(Limits, DeadlinesHoldWhereAllWorkersAreBusy) {
  const RunningService running;
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  const int n_workers = running.service.services().options.n_workers;
  for (int i = 0; i < n_workers; ++i)
    running.service.services().workers->post([released] { released.wait(); });
  const HttpAnswer late = running.client().post(
      "/v1/completions", R"({"prompt": "One", "max_tokens": 1})", "x-request-timeout: 0.05\r\n");
  EXPECT_EQ(late.status, 504);
  EXPECT_THAT(late.body, HasSubstr("expected the answer within 0.05 s"));
  release.set_value();
  int status = 0;
  running.post("/v1/completions", {{"prompt", "One"}, {"max_tokens", 1}}, &status);
  EXPECT_EQ(status, 200);
}

}  // namespace
}  // namespace qw::server
