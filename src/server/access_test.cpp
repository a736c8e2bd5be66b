#include "server/access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "server/request_error.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

/// A file that goes with the test.
class KeyFile {
 public:
  explicit KeyFile(const std::string& text)
      : path((std::filesystem::temp_directory_path() /
              ("qw_keys_" + std::to_string(::getpid()) + ".json"))
                 .string()) {
    std::ofstream(path) << text;
  }
  ~KeyFile() { std::filesystem::remove(path); }
  const std::string path;
};

std::string key_file_text(const std::string& entry, const std::string& more = "") {
  ordered_json json = ordered_json::parse(entry);
  if (!more.empty()) json.update(ordered_json::parse(more));
  return ordered_json{{"keys", {json}}}.dump();
}

http::Request request_with(std::vector<http::Header> headers) {
  http::Request request;
  request.headers = std::move(headers);
  return request;
}

std::string message_of(const std::string& text) {
  const KeyFile file(text);
  try {
    KeyRing::read(file.path);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
    return error.message();
  }
  return "";
}

TEST(KeyRing, KnowsAKeyByItsHash) {
  const KeyRing::NewKey made = KeyRing::make("team");
  EXPECT_EQ(made.key.size(), 46u);
  EXPECT_THAT(made.entry, ::testing::Not(HasSubstr(made.key)));
  EXPECT_NE(KeyRing::make("team").key, made.key);
  const KeyFile file(key_file_text(made.entry));
  const KeyRing ring = KeyRing::read(file.path);
  EXPECT_EQ(ring.identify(request_with({{"Authorization", "Bearer " + made.key}})).name, "team");
  EXPECT_EQ(ring.identify(request_with({{"x-api-key", made.key}})).name, "team");
  EXPECT_EQ(ring.identify(request_with({{"Authorization", made.key}})).name, "team");
  // A proxy's own credentials are beside the point.
  EXPECT_EQ(ring.identify(request_with(
                              {{"Authorization", "Basic dXNlcjpwYXNz"}, {"x-api-key", made.key}}))
                .name,
            "team");
  for (const auto& headers : std::vector<std::vector<http::Header>>{
           {},
           {{"Authorization", "Bearer "}},
           {{"Authorization", "Basic " + made.key}},
           {{"Authorization", "Bearer x"}, {"x-api-key", made.key}},
           {{"Authorization", "Bearer " + made.key + "x"}}}) {
    try {
      ring.identify(request_with(headers));
      FAIL() << "expected a refusal";
    } catch (const RequestError& error) {
      EXPECT_EQ(error.status(), 401);
    }
  }
}

TEST(KeyRing, RefusesMoreThanAQuotaAndForgivesWithTime) {
  const KeyRing::NewKey made = KeyRing::make("team");
  const KeyFile file(
      key_file_text(made.entry, R"({"requests_per_minute": 3, "tokens_per_minute": 600})"));
  KeyRing ring = KeyRing::read(file.path);
  const Client client{"team"};
  auto now = KeyRing::Clock::now();
  for (int i = 0; i < 3; ++i)
    ring.take_request(client, now);
  EXPECT_THROW(ring.take_request(client, now), RequestError);
  now += 21s;  // one of three a minute
  EXPECT_NO_THROW(ring.take_request(client, now));
  ring.take_tokens(client, 700, now);
  now += 9s;  // 100 below nothing, 10 a second
  EXPECT_THROW(ring.take_request(client, now), RequestError);
  now += 20s;
  EXPECT_NO_THROW(ring.take_request(client, now));
  EXPECT_NO_THROW(ring.take_request(Client{""}, now));
}

TEST(KeyRing, AdmitsOneWhereAQuotaIsLessThanOneAMinute) {
  const KeyFile file(key_file_text(KeyRing::make("team").entry,
                                   R"({"requests_per_minute": 0.5, "tokens_per_minute": 0.25})"));
  KeyRing ring = KeyRing::read(file.path);
  const Client client{"team"};
  auto now = KeyRing::Clock::now();
  EXPECT_NO_THROW(ring.take_request(client, now));
  EXPECT_THROW(ring.take_request(client, now + 60s), RequestError);
  EXPECT_NO_THROW(ring.take_request(client, now + 121s));
  ring.take_tokens(client, 1, now + 121s);
  EXPECT_THROW(ring.take_request(client, now + 242s), RequestError);  // of tokens half of one
  EXPECT_NO_THROW(ring.take_request(client, now + 500s));
}

TEST(KeyRing, NamesWhatIsWrongWithAFile) {
  const std::string entry = KeyRing::make("a").entry;
  EXPECT_THAT(message_of("{\"keys\": [nonsense"),
              HasSubstr("file: expected JSON, got an error at byte 12 ("));
  EXPECT_THAT(message_of("[]"), HasSubstr("file: expected {\"keys\": [...]}, got array ("));
  EXPECT_THAT(message_of(R"({"keys": []})"), HasSubstr("at least one key"));
  EXPECT_THAT(message_of("{\"keys\": [" + entry + ", 7]}"),
              HasSubstr("keys[1]: expected an object, got 7"));
  EXPECT_THAT(message_of(R"({"keys": [{"sha256": "00"}]})"),
              HasSubstr("keys[0].name: expected a name, got none"));
  // Not the value: it may be the key itself, pasted where its hash should be.
  EXPECT_THAT(message_of(R"({"keys": [{"name": "a", "sha256": "qw-secret"}]})"),
              HasSubstr("keys[0].sha256: expected 64 hexadecimal digits in lower case, got a "
                        "string of 9 characters ("));
  EXPECT_THAT(message_of(key_file_text(entry, R"({"admin": "yes"})")),
              HasSubstr("keys[0].admin: expected true or false, got a string of 3 characters"));
  EXPECT_THAT(
      message_of(key_file_text(entry, R"({"requests_per_minute": 0})")),
      HasSubstr("keys[0].requests_per_minute: expected a number above 0, at most 1e12, got 0"));
  EXPECT_THAT(message_of(key_file_text(entry, R"({"request_per_minute": 1})")),
              HasSubstr("keys[0]: expected the fields name, sha256, admin, requests_per_minute, "
                        "tokens_per_minute, got 'request_per_minute' too"));
  EXPECT_THAT(message_of("{\"keys\": [], \"keys\": [" + entry + "]}"),
              HasSubstr("keys: expected it once in its object, got it again"));
  EXPECT_THAT(message_of("{\"keys\": [" + entry + "], \"admins\": []}"),
              HasSubstr("expected nothing beside \"keys\", got 'admins'"));
  ordered_json other = ordered_json::parse(entry);
  other["name"] = "b";
  EXPECT_THAT(message_of("{\"keys\": [" + entry + "," + other.dump() + "]}"),
              HasSubstr("keys[1].sha256: expected a key of its own, got that of another entry"));
  EXPECT_THAT(message_of("{\"keys\": [" + entry + "," + entry + "]}"),
              HasSubstr("keys[1].name: expected a name of its own, got that of another key"));
}

TEST(OriginPolicy, KeepsForeignPagesAndReboundNamesOut) {
  OriginPolicy policy;
  const auto allows = [&](const std::string& host, const std::string& origin) {
    std::vector<http::Header> headers = {{"Host", host}};
    if (!origin.empty()) headers.push_back({"Origin", origin});
    return policy.allows(request_with(headers));
  };
  EXPECT_TRUE(allows("127.0.0.1:8000", ""));
  EXPECT_TRUE(allows("[::1]:8000", ""));
  EXPECT_TRUE(allows("localhost:8000", "http://localhost:8000"));
  EXPECT_FALSE(allows("localhost:8000", "http://evil.example"));
  EXPECT_FALSE(allows("evil.example:8000", "http://evil.example:8000"));
  EXPECT_FALSE(allows("evil.example:8000", ""));
  EXPECT_FALSE(allows("localhost:8000", "null"));
  policy.origins = {"https://app.example"};
  EXPECT_TRUE(allows("localhost:8000", "https://app.example"));
  policy.hosts = {"qianwen.lan"};
  EXPECT_TRUE(allows("qianwen.lan:8000", ""));
  policy.loopback_only = false;
  EXPECT_TRUE(allows("any.example", ""));
  EXPECT_FALSE(allows("any.example", "https://evil.example"));
}

// An image's address, a frame's, a link: no origin is told.
TEST(OriginPolicy, WhatForeignPagesEmbedIsKeptOut) {
  OriginPolicy policy;
  const auto allows = [&](const std::string& site, const std::string& dest) {
    return policy.allows(request_with(
        {{"Host", "localhost:8000"}, {"Sec-Fetch-Site", site}, {"Sec-Fetch-Dest", dest}}));
  };
  EXPECT_FALSE(allows("cross-site", "image"));
  EXPECT_FALSE(allows("same-site", "iframe")) << "another port of this machine";
  EXPECT_TRUE(allows("cross-site", "document")) << "a link to the page";
  EXPECT_TRUE(allows("same-origin", "script"));
  EXPECT_TRUE(allows("none", "document")) << "typed by the user";
  policy.origins = {"*"};
  EXPECT_TRUE(allows("cross-site", "image"));
}

TEST(Access, LinksOfForeignPagesChangeNothing) {
  RunningService running;
  const auto status_of = [&](const std::string& target, const std::string& site) {
    HttpClient client = running.client();
    client.send("GET " + target + " HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: " + site +
                "\r\nSec-Fetch-Dest: document\r\n\r\n");
    return client.read().status;
  };
  EXPECT_EQ(status_of("/flush_cache", "cross-site"), 403);
  EXPECT_EQ(status_of("/flush_cache", "none"), 200);
  EXPECT_EQ(status_of("/health", "cross-site"), 200);
}

TEST(Access, IsAskedForByTheServer) {
  const KeyRing::NewKey made = KeyRing::make("team");
  const KeyFile file(key_file_text(made.entry, R"({"requests_per_minute": 2})"));
  ServiceOptions options = service_options();
  options.key_file = file.path;
  options.access_log = false;
  options.origins.origins = {"https://app.example"};
  RunningService running(options);
  const std::string body = R"({"prompt": "One", "max_tokens": 1})";
  EXPECT_EQ(running.client().post("/v1/completions", body).status, 401);
  EXPECT_EQ(running.client().get("/health").status, 200);
  const std::string key = "Authorization: Bearer " + made.key + "\r\n";
  // As Anthropic's clients send it.
  EXPECT_EQ(running.client().post("/tokenize", R"({"prompt": "x"})", "x-api-key: wrong\r\n").status,
            401);
  const auto answer =
      running.client().post("/v1/completions", body, key + "Origin: https://app.example\r\n");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.at("access-control-allow-origin"), "https://app.example");
  EXPECT_EQ(running.client().post("/v1/completions", body, key).status, 200);
  const auto refused = running.client().post("/v1/completions", body, key);
  EXPECT_EQ(refused.status, 429);
  // Two a minute: the next is there after 30 s, but for the time that has passed since.
  EXPECT_GE(std::stoi(refused.headers.at("retry-after")), 20);
  EXPECT_LE(std::stoi(refused.headers.at("retry-after")), 30);
  EXPECT_EQ(
      running.client().post("/v1/completions", body, "Origin: https://evil.example\r\n").status,
      403);
  HttpClient preflight = running.client();
  preflight.send(
      "OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n\r\n");
  EXPECT_EQ(preflight.read().status, 204);
}

TEST(Limits, RefuseWhatWouldWaitTooLongAndEndWhatTakesTooLong) {
  ServiceOptions options = service_options();
  options.access_log = false;
  options.max_queue = 0;
  options.models[0].open.engine.n_slots = 1;
  options.models[0].open.engine.ctx = 32768;
  options.request_timeout = 1s;
  RunningService running(options);
  const std::string endless =
      R"({"prompt": "One two", "max_tokens": 32000, "ignore_eos": true, "stream": true})";
  HttpClient busy = running.client();
  busy.send(HttpClient::post_text("/v1/completions", endless));
  EXPECT_THAT(busy.read_until("data: "), HasSubstr("200 OK"));
  const auto refused = running.client().post("/v1/completions", endless);
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.headers.count("retry-after"), 1u);
  EXPECT_THAT(busy.read_until("[DONE]"), HasSubstr("expected the answer within 1 s"));
  // The place is free one step later.
  int status = 0;
  for (int i = 0; i < 100 && status != 200; ++i)
    running.post("/v1/completions", {{"prompt", "One"}, {"max_tokens", 1}}, &status);
  EXPECT_EQ(status, 200);
}

TEST(Metrics, CountWhatHappens) {
  ServiceOptions options = service_options();
  options.access_log = false;
  RunningService running(options);
  running.post("/v1/completions",
               {{"prompt", {1, 2, 3}}, {"max_tokens", 4}, {"ignore_eos", true}, {"nope", 1}});
  const std::string text = running.client().get("/metrics").body;
  for (const char* line : {"vllm:prompt_tokens_total{model_name=\"mini\"} 3\n",
                           "vllm:generation_tokens_total{model_name=\"mini\"} 4\n",
                           "vllm:time_to_first_token_seconds_count{model_name=\"mini\"} 1\n",
                           "vllm:inter_token_latency_seconds_count{model_name=\"mini\"} 3\n",
                           "vllm:num_requests_running{model_name=\"mini\"} 0\n",
                           "finished_reason=\"length\",model_name=\"mini\"} 1\n",
                           "qianwen_ignored_fields_total{path=\"/v1/completions\"} 1\n"})
    EXPECT_THAT(text, HasSubstr(line));
}

}  // namespace
}  // namespace qw::server
