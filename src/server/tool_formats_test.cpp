// The tool format of a request and of a model, in every dialect that takes tools.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/generation/tools.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;
using ::testing::Not;

ordered_json weather_schema() {
  return ordered_json::parse(
      R"({"type":"object","properties":{"city":{"type":"string","maxLength":20}},
          "required":["city"],"additionalProperties":false})");
}

/// A question with a tool, as /v1/chat/completions, /api/chat, /apply-template and /tokenize have
/// it.
ordered_json question() {
  return {{"messages", {{{"role", "user"}, {"content", "hi"}}}},
          {"tools",
           {{{"type", "function"},
             {"function",
              {{"name", "get_weather"},
               {"description", "Get the current weather in a city"},
               {"parameters", weather_schema()}}}}}}};
}

ordered_json anthropic_question() {
  return {{"messages", {{{"role", "user"}, {"content", "hi"}}}},
          {"max_tokens", 200},
          {"temperature", 0},
          {"tools",
           {{{"name", "get_weather"},
             {"description", "Get the current weather in a city"},
             {"input_schema", weather_schema()}}}}};
}

ordered_json responses_question() {
  return {{"input", "hi"},
          {"max_output_tokens", 200},
          {"temperature", 0},
          {"tools",
           {{{"type", "function"},
             {"name", "get_weather"},
             {"description", "Get the current weather in a city"},
             {"parameters", weather_schema()}}}}};
}

TEST(ToolFormats, EveryDialectLetsARequestChoose) {
  const RunningService running;
  const auto with = [](ordered_json body, const char* format) {
    body["tool_format"] = format;
    return body;
  };
  const std::pair<const char*, const char*> signs[] = {
      {"qwen", "✿FUNCTION✿"}, {"react", "Action Input"}, {"hermes", "<tool_call>"}};
  for (const auto& [format, sign] : signs) {
    SCOPED_TRACE(format);
    const ordered_json body = with(question(), format);
    EXPECT_THAT(running.post("/apply-template", body)["prompt"].get<std::string>(),
                HasSubstr(sign));
    const ordered_json n_tokens = running.post("/tokenize", body)["count"];
    ordered_json chat = body;
    chat["max_tokens"] = 1;
    EXPECT_EQ(running.post("/v1/chat/completions", chat)["usage"]["prompt_tokens"], n_tokens);
    ordered_json ollama = body;
    ollama["stream"] = false;
    ollama["options"] = {{"num_predict", 1}};
    EXPECT_EQ(running.post("/api/chat", ollama)["prompt_eval_count"], n_tokens);
    ordered_json count = with(anthropic_question(), format);
    for (const char* other : {"max_tokens", "temperature"})
      count.erase(other);
    EXPECT_EQ(running.post("/v1/messages/count_tokens", count)["input_tokens"], n_tokens);

    // Calls are read as they are told.
    ordered_json anthropic = with(anthropic_question(), format);
    anthropic["tool_choice"] = {{"type", "any"}};
    const ordered_json message = running.post("/v1/messages", anthropic);
    EXPECT_EQ(message["stop_reason"], "tool_use") << message;
    EXPECT_EQ(message["content"].back()["type"], "tool_use") << message;
    ordered_json responses = with(responses_question(), format);
    responses["tool_choice"] = "required";
    const ordered_json response = running.post("/v1/responses", responses);
    EXPECT_EQ(response["output"].back()["type"], "function_call") << response;
    EXPECT_EQ(response["usage"]["input_tokens"], n_tokens);
  }
  for (const char* target : {"/apply-template", "/tokenize", "/v1/chat/completions", "/api/chat",
                             "/v1/messages", "/v1/responses"}) {
    const bool is_responses = std::string_view(target) == "/v1/responses";
    const bool is_anthropic = std::string_view(target) == "/v1/messages";
    int status = 0;
    const ordered_json error = running.post(target,
                                            with(is_responses   ? responses_question()
                                                 : is_anthropic ? anthropic_question()
                                                                : question(),
                                                 "xml"),
                                            &status);
    EXPECT_EQ(status, 400) << target;
    EXPECT_THAT(error.dump(), HasSubstr("tool_format: expected qwen, react or hermes")) << target;
  }
  const ordered_json none = {{"messages", question()["messages"]}, {"max_tokens", 1}};
  EXPECT_THAT(running.post("/v1/chat/completions", with(none, "react"))["warnings"].at(0),
              HasSubstr("tool_format: no effect"));
}

TEST(ToolFormats, AModelHasOneOfItsOwn) {
  ServiceOptions options = service_options();
  options.models.front().tool_format = "react";
  const RunningService running(options);
  ordered_json body = question();
  EXPECT_THAT(running.post("/apply-template", body)["prompt"].get<std::string>(),
              HasSubstr("Action Input"));
  body["tool_format"] = "qwen";
  EXPECT_THAT(running.post("/apply-template", body)["prompt"].get<std::string>(),
              HasSubstr("✿FUNCTION✿"));
}

// Greedily, the bundled model ends its thought of "hi" with a final answer, unless it may not.
TEST(ToolFormats, ReactCallsWhereItMust) {
  const RunningService running;
  ordered_json body = question();
  body["tool_format"] = "react";
  body["temperature"] = 0;
  body["max_tokens"] = 200;
  const ordered_json free = running.post("/v1/chat/completions", body)["choices"][0];
  EXPECT_FALSE(free["message"].contains("tool_calls")) << free;
  const ordered_json named = {{"type", "function"}, {"function", {{"name", "get_weather"}}}};
  for (const ordered_json& choice : {ordered_json("required"), named}) {
    body["tool_choice"] = choice;
    const ordered_json answer = running.post("/v1/chat/completions", body)["choices"][0];
    EXPECT_EQ(answer["finish_reason"], "tool_calls") << answer;
    ASSERT_TRUE(answer["message"].contains("tool_calls")) << answer;
    const auto arguments = ordered_json::parse(
        answer["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>());
    EXPECT_TRUE(arguments.size() == 1 && arguments.contains("city")) << arguments;
  }
}

// What ends an answer with tools by the server's own wish is no stop string of the client's.
TEST(ToolFormats, StopReasonIsTheClientsOwn) {
  const RunningService running;
  ordered_json body = question();
  body["guided_choice"] = ordered_json::array({"No. ✿RESULT✿"});
  body["temperature"] = 0;
  body["logit_bias"] = ordered_json::object();
  const ordered_json ids = running.post("/tokenize", {{"content", "No"}})["tokens"];
  for (const ordered_json& id : ids)
    body["logit_bias"][std::to_string(id.get<int>())] = 100;
  const auto last = [&](const char* target) {
    ordered_json streamed = body;
    streamed["stream"] = true;
    return running.stream(target, streamed).back()["choices"][0];
  };
  const ordered_json own = running.post("/v1/chat/completions", body)["choices"][0];
  EXPECT_EQ(own["message"]["content"], "No. ") << own;
  EXPECT_EQ(own["finish_reason"], "stop");
  EXPECT_FALSE(own.contains("stop_reason")) << own;
  EXPECT_FALSE(last("/v1/chat/completions").contains("stop_reason"));
  body["stop"] = {"something else", "✿RESULT✿"};
  EXPECT_EQ(running.post("/v1/chat/completions", body)["choices"][0]["stop_reason"], "✿RESULT✿");
  EXPECT_EQ(last("/v1/chat/completions")["stop_reason"], "✿RESULT✿");
}

TEST(ToolFormats, ThoughtsWithoutAPlaceOfTheirOwnAreText) {
  ToolPrompt prompt;
  const auto none = std::make_shared<const ordered_json>(ordered_json::object());
  prompt.functions.push_back({"get", "", none, none});
  prompt.may_repeat = false;
  const std::string final = "Thought: I know it.\nFinal Answer: Warm.";
  const std::string call = "Thought: I look.\nAction: get\nAction Input: {}";
  EXPECT_EQ(ToolStreams(tool_format("react"), prompt).parse(final, false).thought, "I know it.");
  ToolStreams streams(tool_format("react"), prompt, true);
  ToolAnswer streamed;
  for (const char c : final)
    streamed.add(streams.push(0, std::string(1, c)));
  streamed.add(streams.finish(0, false));
  for (const ToolAnswer& answer : {streamed, streams.parse(final, false)}) {
    EXPECT_EQ(answer.text, "I know it.\n\nWarm.");
    EXPECT_EQ(answer.thought, "");
  }
  const ToolAnswer called = streams.parse(call, false);
  EXPECT_EQ(called.text, "I look.");
  EXPECT_EQ(called.calls.size(), 1u);
}

// Told apart in chat completions, one text in the others: of the same prompt, greedily.
TEST(ToolFormats, EveryDialectShowsThoughts) {
  const RunningService running;
  const auto react = [](ordered_json body) {
    body["tool_format"] = "react";
    return body;
  };
  ordered_json chat = react(question());
  chat["temperature"] = 0;
  chat["max_tokens"] = 200;
  const ordered_json message = running.post("/v1/chat/completions", chat)["choices"][0]["message"];
  ASSERT_TRUE(message.contains("reasoning_content")) << message;
  const std::string text = message["reasoning_content"].get<std::string>() + "\n\n" +
                           message["content"].get<std::string>();
  ordered_json ollama = react(question());
  ollama["stream"] = false;
  ollama["options"] = {{"temperature", 0}, {"num_predict", 200}};
  EXPECT_EQ(running.post("/api/chat", ollama)["message"]["content"], text);
  EXPECT_EQ(running.post("/v1/messages", react(anthropic_question()))["content"][0]["text"], text);
  EXPECT_EQ(
      running.post("/v1/responses", react(responses_question()))["output"][0]["content"][0]["text"],
      text);
  ordered_json streamed = react(responses_question());
  streamed["stream"] = true;
  std::string deltas;
  for (const ordered_json& event : running.stream("/v1/responses", streamed)) {
    if (event["type"] == "response.output_text.delta") deltas += event["delta"].get<std::string>();
  }
  EXPECT_EQ(deltas, text);
}

}  // namespace
}  // namespace qw::server
