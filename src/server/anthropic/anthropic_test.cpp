// Anthropic's dialect over HTTP, with the bundled model.
#include "server/anthropic/anthropic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using ::testing::HasSubstr;

class Anthropic : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json body_of(const std::string& question) {
    return {{"model", "mini"},
            {"max_tokens", 40},
            {"messages", {{{"role", "user"}, {"content", question}}}}};
  }
  static ordered_json error_of(const ordered_json& body, int expected_status = 400) {
    int status = 0;
    const ordered_json answer = running_->post("/v1/messages", body, &status);
    EXPECT_EQ(status, expected_status) << answer.dump();
    EXPECT_EQ(answer.at("type"), "error");
    return answer.at("error");
  }

  static RunningService* running_;
};
RunningService* Anthropic::running_ = nullptr;

TEST_F(Anthropic, AnswersWhole) {
  ordered_json body = body_of("What is the capital of Japan?");
  body["temperature"] = 0;
  const ordered_json answer = running_->post("/v1/messages", body);
  EXPECT_THAT(answer["id"].get<std::string>(), ::testing::StartsWith("msg_"));
  EXPECT_EQ(answer["type"], "message");
  EXPECT_EQ(answer["role"], "assistant");
  EXPECT_EQ(answer["model"], "mini");
  EXPECT_EQ(answer["content"].dump(),
            R"([{"type":"text","text":"The capital of Japan is Tokyo."}])");
  EXPECT_EQ(answer["stop_reason"], "end_turn");
  EXPECT_TRUE(answer["stop_sequence"].is_null());
  const ordered_json count = running_->post("/v1/messages/count_tokens",
                                            {{"model", "mini"}, {"messages", body["messages"]}});
  const ordered_json& usage = answer["usage"];
  EXPECT_EQ(count["input_tokens"].get<int>(),
            usage["input_tokens"].get<int>() + usage["cache_read_input_tokens"].get<int>());
  EXPECT_GT(usage["output_tokens"].get<int>(), 3);
}

TEST_F(Anthropic, StreamsTheVeryTextThatItGivesWhole) {
  ordered_json body = body_of("Tell me a story.");
  body["temperature"] = 1.0;
  body["seed"] = 7;
  const ordered_json streamless = body, whole = running_->post("/v1/messages", body);
  body["stream"] = true;
  const auto events = running_->stream("/v1/messages", body);
  std::string text, types;
  for (const ordered_json& event : events) {
    if (event["type"] == "content_block_delta") {
      text += event["delta"]["text"].get<std::string>();
    } else {
      types += event["type"].get<std::string>() + " ";
    }
  }
  EXPECT_EQ(
      types,
      "message_start ping content_block_start content_block_stop message_delta message_stop ");
  EXPECT_EQ(text, whole["content"][0]["text"]);
  const ordered_json& start = events[0]["message"];
  EXPECT_EQ(start["content"], ordered_json::array());
  EXPECT_TRUE(start["stop_reason"].is_null());
  const ordered_json& delta = events[events.size() - 2];
  EXPECT_EQ(delta["delta"]["stop_reason"], whole["stop_reason"]);
  EXPECT_EQ(delta["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
  // What is said of the prompt is the same at both ends and in a whole answer; the answer's tokens
  // come at the end.
  ordered_json usage = start["usage"];
  EXPECT_EQ(usage["output_tokens"], 0);
  EXPECT_GT(usage["cache_read_input_tokens"], 0) << "it was asked before";
  usage["output_tokens"] = whole["usage"]["output_tokens"];
  EXPECT_EQ(delta["usage"], usage);
  EXPECT_EQ(running_->post("/v1/messages", streamless)["usage"], usage);
  body["max_tokens"] = 1;
  EXPECT_THAT(running_->client().post("/v1/messages", body.dump()).body,
              ::testing::StartsWith("event: message_start\ndata: {\"type\":\"message_start\","));
}

// A prompt that takes long is not silence to proxies and clients that give up.
TEST(AnthropicStreams, PingWhileNothingComes) {
  ServiceOptions options = qw::testing::service_options();
  options.ping_after = std::chrono::milliseconds(50);
  options.models[0].open.engine.chunk_tokens = 16;
  const RunningService running(options);
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += " one two three";
  ordered_json body = {{"max_tokens", 2}, {"stream", true}};
  body["messages"] = {{{"role", "user"}, {"content", text}}};
  HttpClient client = running.client();
  client.send(HttpClient::post_text("/v1/messages", body.dump()));
  std::string answer = client.read_until("\r\n\r\n");
  std::promise<void> release;
  const std::shared_ptr<ServedModel> model = running.service.services().hub->find("mini").loaded;
  model->host().run([&](Engine&) { release.get_future().wait(); });
  answer += client.read_until("event: ping\ndata: {\"type\":\"ping\"}\n\n");
  EXPECT_THAT(answer, ::testing::Not(HasSubstr("message_start"))) << "amid the prompt";
  release.set_value();
  EXPECT_THAT(client.read_until("message_stop"), HasSubstr("event: message_start"));
}

TEST_F(Anthropic, StopsAtSequencesAndLimits) {
  ordered_json body = body_of("What is the capital of Japan?");
  body["temperature"] = 0;
  body["stop_sequences"] = {" of Japan"};
  ordered_json answer = running_->post("/v1/messages", body);
  EXPECT_EQ(answer["content"][0]["text"], "The capital");
  EXPECT_EQ(answer["stop_reason"], "stop_sequence");
  EXPECT_EQ(answer["stop_sequence"], " of Japan");
  body.erase("stop_sequences");
  body["max_tokens"] = 2;
  answer = running_->post("/v1/messages", body);
  EXPECT_EQ(answer["stop_reason"], "max_tokens");
  EXPECT_EQ(answer["usage"]["output_tokens"], 2);
}

TEST_F(Anthropic, ReadsBlocksAndGoesOnWithAnAssistant) {
  ordered_json plain = body_of("What is the capital of Japan?");
  plain["temperature"] = 0;
  plain["system"] = "You are a helpful assistant";
  ordered_json blocks = plain;
  blocks["system"] = {{{"type", "text"}, {"text", "You are a "}},
                      {{"type", "text"},
                       {"text", "helpful assistant"},
                       {"cache_control", {{"type", "ephemeral"}}}}};
  blocks["messages"][0]["content"] = {
      {{"type", "text"}, {"text", "What is the capital of Japan?"}}};
  const ordered_json answer = running_->post("/v1/messages", plain);
  EXPECT_EQ(running_->post("/v1/messages", blocks)["content"], answer["content"]);
  plain["messages"].push_back({{"role", "assistant"}, {"content", "The capital of"}});
  EXPECT_EQ(running_->post("/v1/messages", plain)["content"][0]["text"], " Japan is Tokyo.");
}

ordered_json weather_tools() {
  return ordered_json::array({{{"name", "get_weather"},
                               {"description", "Get the weather of a city"},
                               {"input_schema",
                                {{"type", "object"},
                                 {"properties", {{"city", {{"type", "string"}}}}},
                                 {"required", ordered_json::array({"city"})}}}}});
}

TEST_F(Anthropic, CallsToolsAndReadsTheirResults) {
  ordered_json body = body_of("What is the weather in Paris?");
  body["temperature"] = 0;
  body["max_tokens"] = 100;
  body["tools"] = weather_tools();
  const ordered_json first = running_->post("/v1/messages", body);
  EXPECT_EQ(first["stop_reason"], "tool_use") << first.dump();
  EXPECT_TRUE(first["stop_sequence"].is_null());
  const ordered_json call = first["content"].back();
  EXPECT_EQ(call["type"], "tool_use");
  EXPECT_EQ(call["name"], "get_weather");
  EXPECT_EQ(call["input"].dump(), R"({"city":"Paris"})");
  // The same streamed.
  ordered_json streamed = body;
  streamed["stream"] = true;
  std::string json;
  ordered_json begun;
  for (const ordered_json& event : running_->stream("/v1/messages", streamed)) {
    if (event["type"] == "content_block_start" && event["content_block"]["type"] == "tool_use")
      begun = event["content_block"];
    if (event["type"] == "content_block_delta" && event["delta"]["type"] == "input_json_delta")
      json += event["delta"]["partial_json"].get<std::string>();
    if (event["type"] == "message_delta") {
      EXPECT_EQ(event["delta"]["stop_reason"], "tool_use");
    }
  }
  EXPECT_EQ(begun["name"], "get_weather");
  EXPECT_EQ(ordered_json::parse(json), call["input"]);
  // And its result.
  body["messages"].push_back({{"role", "assistant"}, {"content", first["content"]}});
  body["messages"].push_back(
      {{"role", "user"},
       {"content",
        ordered_json::array({{{"type", "tool_result"},
                              {"tool_use_id", call["id"]},
                              {"content", R"({"temperature": 21, "condition": "sunny"})"}}})}});
  const ordered_json second = running_->post("/v1/messages", body);
  EXPECT_EQ(second["stop_reason"], "end_turn");
  EXPECT_THAT(second["content"][0]["text"].get<std::string>(), HasSubstr("21"));
  int status = 0;
  const ordered_json count =
      running_->post("/v1/messages/count_tokens",
                     {{"messages", body["messages"]}, {"tools", body["tools"]}}, &status);
  EXPECT_EQ(count["input_tokens"].get<int>(),
            second["usage"]["input_tokens"].get<int>() +
                second["usage"]["cache_read_input_tokens"].get<int>());
}

// As Anthropic's: what was whole of the input, nothing that was never said.
TEST_F(Anthropic, SaysOfACallThatItWasCut) {
  ordered_json body = body_of("What is the weather in Paris?");
  body["temperature"] = 0;
  body["tools"] = weather_tools();
  body["max_tokens"] = 11;
  const ordered_json whole = running_->post("/v1/messages", body);
  EXPECT_EQ(whole["stop_reason"], "max_tokens");
  EXPECT_EQ(whole["content"].back()["type"], "tool_use");
  EXPECT_EQ(whole["content"].back()["input"], ordered_json::object());
  EXPECT_THAT(whole["warnings"].at(0), HasSubstr("get_weather"));
  body["max_tokens"] = 100;
  body["stop_sequences"] = {"Par"};
  const ordered_json stopped = running_->post("/v1/messages", body);
  EXPECT_EQ(stopped["stop_reason"], "stop_sequence");
  EXPECT_EQ(stopped["stop_sequence"], "Par");
  EXPECT_EQ(stopped["content"].back()["input"], ordered_json::object());
  body.erase("stop_sequences");
  body["max_tokens"] = 11;
  body["stream"] = true;
  std::string json, reason;
  for (const ordered_json& event : running_->stream("/v1/messages", body)) {
    if (event["type"] == "content_block_delta") json += event["delta"].value("partial_json", "");
    if (event["type"] == "message_delta") reason = event["delta"]["stop_reason"];
  }
  EXPECT_EQ(reason, "max_tokens");
  EXPECT_EQ(json, R"({"city": ")");
}

TEST_F(Anthropic, ACallThatIsWholeWhereTheAnswerIsCutMayNotBeTheLast) {
  ordered_json body = body_of("What is the weather in Paris?");
  body["temperature"] = 0;
  body["tools"] = weather_tools();
  const ordered_json whole = running_->post("/v1/messages", body);
  EXPECT_EQ(whole["stop_reason"], "tool_use");
  ordered_json cut;
  for (int n = 11; n < 40 && cut.is_null(); ++n) {
    body["max_tokens"] = n;
    cut = running_->post("/v1/messages", body);
    if (cut["content"].back()["input"] != whole["content"].back()["input"]) cut = nullptr;
  }
  ASSERT_FALSE(cut.is_null());
  EXPECT_EQ(cut["stop_reason"], "max_tokens");
}

// LangChain's client sent -1 for what it leaves open.
TEST_F(Anthropic, MinusOneIsNothing) {
  ordered_json body = body_of("Tell me a story.");
  body["seed"] = 3;
  body["max_tokens"] = 20;
  const ordered_json plain = running_->post("/v1/messages", body);
  body["top_p"] = -1;
  body["top_k"] = -1;
  EXPECT_EQ(running_->post("/v1/messages", body)["content"], plain["content"]);
  int status = 0;
  body["top_k"] = -2;
  running_->post("/v1/messages", body, &status);
  EXPECT_EQ(status, 400);
}

TEST_F(Anthropic, ForcesToolsAndFormats) {
  ordered_json body = body_of("Hello!");
  body["max_tokens"] = 100;
  body["tools"] = weather_tools();
  body["tool_choice"] = {{"type", "tool"}, {"name", "get_weather"}};
  const ordered_json forced = running_->post("/v1/messages", body);
  EXPECT_EQ(forced["content"].back()["name"], "get_weather") << forced.dump();
  body["tool_choice"] = {{"type", "tool"}, {"name", "other"}};
  error_of(body);
  body["tools"] = ordered_json::array({{{"type", "bash_20250124"}, {"name", "bash"}}});
  EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("tools[0]"));
  body.erase("tools");
  body.erase("tool_choice");
  body["output_format"] = {{"type", "json_schema"},
                           {"schema", {{"enum", ordered_json::array({7})}}}};
  EXPECT_EQ(running_->post("/v1/messages", body)["content"][0]["text"], "7");
}

TEST_F(Anthropic, RefusesAChoiceAmongNoTools) {
  ordered_json body = body_of("Hi");
  body["max_tokens"] = 1;
  for (const ordered_json& choice :
       {ordered_json{{"type", "any"}}, ordered_json{{"type", "tool"}, {"name", "get_weather"}}}) {
    body["tool_choice"] = choice;
    EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("tool_choice"));
  }
  for (const char* harmless : {"auto", "none"}) {
    body["tool_choice"] = {{"type", harmless}};
    EXPECT_FALSE(running_->post("/v1/messages", body).contains("warnings"));
  }
  body["tool_choice"]["disable_parallel_tool_use"] = true;
  EXPECT_THAT(running_->post("/v1/messages", body)["warnings"].at(0),
              HasSubstr("disable_parallel_tool_use"));
}

TEST_F(Anthropic, NamesTheFieldThatIsWrong) {
  ordered_json body = body_of("Hi");
  body.erase("max_tokens");
  EXPECT_EQ(error_of(body)["type"], "invalid_request_error");
  EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("max_tokens"));
  body = body_of("Hi");
  body["messages"][0]["content"] = {{{"type", "image"}, {"source", {{"type", "base64"}}}}};
  EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("messages[0].content[0]"));
  body = body_of("Hi");
  body["messages"][0]["role"] = "system";
  EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("messages[0].role"));
  // As it was sent: with the system's text apart, results and calls within messages.
  const ordered_json tools = {{{"name", "f"}, {"input_schema", ordered_json::object()}}};
  const ordered_json call = {
      {"type", "tool_use"}, {"id", "a"}, {"name", "f"}, {"input", ordered_json::object()}};
  const ordered_json text = {{"type", "text"}, {"text", "Hi"}};
  const ordered_json result = {{"type", "tool_result"}, {"tool_use_id", "b"}, {"content", "1"}};
  const auto is_told = [&](const ordered_json& assistant, const ordered_json& user,
                           const std::string& where) {
    body = body_of("Hi");
    body["system"] = "Be kind.";
    body["tools"] = tools;
    body["messages"].push_back({{"role", "assistant"}, {"content", assistant}});
    body["messages"].push_back({{"role", "user"}, {"content", user}});
    EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("] " + where + ": "));
  };
  is_told({text, call}, ordered_json::array({text}), "messages[1].content[1]");
  is_told({text, call}, {text, result}, "messages[2].content[1]");
  ordered_json unnamed = call;
  unnamed["name"] = "no name";
  is_told({text, unnamed}, ordered_json::array({result}), "messages[1].content[1].name");
  body["tools"][0]["name"] = "no name";
  body["messages"].erase(1);
  body["messages"].erase(1);
  EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("] tools[0].name: "));
  body = body_of("Hi");
  body["model"] = "claude-opus";
  EXPECT_EQ(error_of(body, 404)["type"], "not_found_error");
  body = body_of("Hi");
  body["max_tokens"] = 100'000;
  EXPECT_THAT(error_of(body)["message"].get<std::string>(), HasSubstr("2048"));
}

TEST_F(Anthropic, RefusesOtherMethodsInItsForm) {
  int status = 0;
  EXPECT_EQ(running_->get("/v1/messages", &status)["type"], "error");
  EXPECT_EQ(status, 405);
}

TEST_F(Anthropic, ListsWhatItIgnores) {
  ordered_json body = body_of("Hi");
  body["metadata"] = {{"user_id", "somebody"}};  // tells clients apart
  body["service_tier"] = "auto";
  body["thinking"] = {{"type", "disabled"}};  // asks for nothing
  EXPECT_EQ(running_->post("/v1/messages", body)["warnings"].size(), 1u);
  body["thinking"] = {{"type", "enabled"}, {"budget_tokens", 1024}};
  EXPECT_EQ(running_->post("/v1/messages", body)["warnings"].size(), 2u);
}

TEST_F(Anthropic, ListsModelsInItsFormForWhoSaysItsVersion) {
  const auto get = [](const std::string& target, const std::string& headers,
                      int* status = nullptr) {
    qw::testing::HttpClient client = running_->client();
    client.send("GET " + target + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n");
    const qw::testing::HttpAnswer answer = client.read();
    if (status != nullptr) *status = answer.status;
    return ordered_json::parse(answer.body);
  };
  const std::string version = "anthropic-version: 2023-06-01\r\n";
  const ordered_json list = get("/v1/models", version);
  ASSERT_EQ(list["data"].size(), 1u) << list;
  const ordered_json& model = list["data"][0];
  EXPECT_EQ(model["type"], "model");
  EXPECT_EQ(model["id"], "mini");
  EXPECT_EQ(model["display_name"], "mini");
  EXPECT_THAT(model["created_at"].get<std::string>(),
              ::testing::MatchesRegex("20..-..-..T..:..:..Z"));
  EXPECT_EQ(list["has_more"], false);
  EXPECT_EQ(list["first_id"], "mini");
  EXPECT_EQ(list["last_id"], "mini");
  EXPECT_EQ(get("/v1/models/mini", version), model);
  EXPECT_TRUE(get("/v1/models?after_id=mini", version)["data"].empty());
  EXPECT_TRUE(get("/v1/models?before_id=mini", version)["first_id"].is_null());
  const ordered_json none = get("/v1/models?after_id=mini&before_id=mini", version);
  EXPECT_TRUE(none["data"].empty());
  EXPECT_EQ(none["has_more"], false);
  int status = 0;
  EXPECT_EQ(get("/v1/models?limit=0", version, &status)["type"], "error");
  EXPECT_EQ(status, 400);
  EXPECT_EQ(get("/v1/models/none", version, &status)["error"]["type"], "not_found_error");
  EXPECT_EQ(status, 404);
  // Without it, OpenAI's.
  EXPECT_EQ(get("/v1/models", "")["object"], "list");
  EXPECT_EQ(get("/v1/models/mini", "")["object"], "model");
}

}  // namespace
}  // namespace qw::server
