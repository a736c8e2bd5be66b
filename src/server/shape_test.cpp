// Members of objects within fields: what is not known is told, in every dialect, or refused.
#include "server/shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::HttpAnswer;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// ---- the shapes themselves ---------------------------------------------------------------------

ShapePtr parts() {
  Shape shape;
  shape.is_list = true;
  shape.members = {member("type")};
  shape.tag = "type";
  shape.default_kind = "text";
  shape.kinds = {{"text", {member("text"), ignored_member("shrug", "it changes nothing")}},
                 {"call", {member("inner", object_of({member("name")}, "who knows"))}}};
  return std::make_shared<const Shape>(std::move(shape));
}

std::vector<std::string> check(const char* json, bool strict = false) {
  return check_members("parts", Json::parse(json), *parts(), strict);
}

TEST(Shape, TellsEveryMemberByItsPath) {
  EXPECT_THAT(check(R"([{"text": "a"}, {"type": "call", "inner": {"name": 1}}])"), ElementsAre());
  EXPECT_THAT(
      check(R"([{"text": "a"}, {"text": "b", "x": 1}])"),
      ElementsAre("parts[1].x: ignored (unknown field; /compat lists those that are known)"));
  EXPECT_THAT(check(R"({"type": "call", "inner": {"name": 1, "y\n": [0]}})"),
              ElementsAre("parts.inner.y\\x0a: ignored (who knows)"));
  // A member of another kind is none of this one's.
  EXPECT_THAT(check(R"([{"type": "call", "text": "a"}])"),
              ElementsAre(HasSubstr("parts[0].text:")));
  EXPECT_THAT(check(R"("text")"), ElementsAre());
}

TEST(Shape, LetsPassWhatAsksForNothing) {
  EXPECT_THAT(check(R"([{"text": "a", "x": null, "shrug": [], "inner": null}])"), ElementsAre());
  EXPECT_THAT(check(R"([{"text": "a", "shrug": [1]}])"),
              ElementsAre("parts[0].shrug: ignored (it changes nothing)"));
  EXPECT_EQ(check(R"([{"text": "a", "shrug": [1], "x": null}])", true).size(), 1u);
}

TEST(Shape, SaysTheSameOnce) {
  EXPECT_THAT(check(R"([{"x": 1}, {}, {"x": 2, "y": 1}, {"x": 3}])"),
              ElementsAre(HasSubstr("parts[0].x and 2 more like it: ignored"),
                          HasSubstr("parts[2].y: ignored")));
}

TEST(Shape, RefusesInStrictMode) {
  try {
    check(R"([{}, {"type": "call", "inner": {"no": 0}}])", true);
    FAIL();
  } catch (const RequestError& error) {
    EXPECT_EQ(error.field(), "parts[1].inner.no");
    EXPECT_THAT(error.message(), HasSubstr("expected a known field"));
  }
}

TEST(Shape, ListsItsMembers) {
  FieldInfo field;
  field.name = "parts";
  field.shape = parts();
  std::vector<std::string> names;
  for (const FieldInfo& info : members_of(field))
    names.push_back(info.name);
  EXPECT_THAT(names, ElementsAre("parts[].type", "parts[].text", "parts[].shrug", "parts[].inner",
                                 "parts[].inner.name"));
}

// ---- every dialect -----------------------------------------------------------------------------

struct Nested {
  const char* target;
  const char* body;  // with a member that nobody knows
  const char* path;  // of that
};

const Nested kNested[] = {
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi", "foo": 1}], "max_tokens": 1})",
     "messages[0].foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "foo": 1}]}],
         "max_tokens": 1})",
     "messages[0].content[0].foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "tools": [{"type": "function", "foo": 1, "function": {"name": "f"}}]})",
     "tools[0].foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "tools": [{"type": "function", "function": {"name": "f", "strict": true, "foo": 1}}]})",
     "tools[0].function.foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "tools": [{"type": "function", "function": {"name": "f"}}],
         "tool_choice": {"type": "function", "function": {"name": "f"}, "foo": 1}})",
     "tool_choice.foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "response_format": {"type": "text", "foo": 1}})",
     "response_format.foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "response_format":
         {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "foo": 1}}})",
     "response_format.json_schema.foo"},
    {"/v1/chat/completions",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "stream_options": {"include_usage": false, "foo": 1}})",
     "stream_options.foo"},
    {"/v1/completions", R"({"prompt": "Hi", "max_tokens": 1, "stream_options": {"foo": 1}})",
     "stream_options.foo"},
    {"/v1/responses",
     R"({"input": [{"role": "user", "content": "Hi", "id": "a", "foo": 1}],
         "max_output_tokens": 1})",
     "input[0].foo"},
    {"/v1/responses",
     R"({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi", "foo": 1}]}],
         "max_output_tokens": 1})",
     "input[0].content[0].foo"},
    {"/v1/responses", R"({"input": "Hi", "max_output_tokens": 1, "text": {"foo": 1}})", "text.foo"},
    {"/v1/responses",
     R"({"input": "Hi", "max_output_tokens": 1, "text": {"format": {"type": "text", "foo": 1}}})",
     "text.format.foo"},
    {"/v1/responses",
     R"({"input": "Hi", "max_output_tokens": 1,
         "tools": [{"type": "function", "name": "f", "strict": true, "foo": 1}]})",
     "tools[0].foo"},
    {"/v1/messages",
     R"({"messages": [{"role": "user", "content": "Hi", "foo": 1}], "max_tokens": 1})",
     "messages[0].foo"},
    {"/v1/messages",
     R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "foo": 1}]}],
         "max_tokens": 1})",
     "messages[0].content[0].foo"},
    {"/v1/messages",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "system": [{"type": "text", "text": "Hi", "foo": 1}]})",
     "system[0].foo"},
    {"/v1/messages",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "tools": [{"name": "f", "input_schema": {"type": "object"}, "foo": 1}]})",
     "tools[0].foo"},
    {"/v1/messages",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "tools": [{"name": "f", "input_schema": {"type": "object"}}],
         "tool_choice": {"type": "auto", "foo": 1}})",
     "tool_choice.foo"},
    {"/v1/messages",
     R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
         "output_format": {"type": "json_schema", "schema": {}, "foo": 1}})",
     "output_format.foo"},
    {"/api/chat",
     R"({"messages": [{"role": "user", "content": "Hi", "images": [], "foo": 1}], "stream": false,
         "options": {"num_predict": 1}})",
     "messages[0].foo"},
    {"/api/chat",
     R"({"messages": [{"role": "user", "content": "Hi"}], "stream": false,
         "tools": [{"type": "function", "function": {"name": "f", "foo": 1}}],
         "options": {"num_predict": 1}})",
     "tools[0].function.foo"},
    {"/completion", R"({"prompt": {"prompt_string": "Hi", "foo": 1}, "n_predict": 1})",
     "prompt.foo"},
    {"/v1/rerank", R"({"query": "Hi", "documents": [{"text": "Hi", "foo": 1}]})",
     "documents[0].foo"},
    {"/tokenize", R"({"messages": [{"role": "user", "content": "Hi", "foo": 1}]})",
     "messages[0].foo"},
};

/// Whether the metrics say it, soon: an answer is counted after it was sent.
bool metrics_say(const RunningService& running, const std::string& line) {
  for (int i = 0; i < 100; ++i) {
    if (running.client().get("/metrics").body.find(line) != std::string::npos) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

TEST(NestedMembers, AreToldInEveryDialect) {
  const RunningService running;
  for (const Nested& nested : kNested) {
    int status = 0;
    const Json answer = running.post(nested.target, Json::parse(nested.body), &status);
    EXPECT_EQ(status, 200) << nested.path << answer;
    const Json warnings = answer.value("warnings", Json::array());
    ASSERT_EQ(warnings.size(), 1u) << nested.path << answer;
    EXPECT_THAT(warnings[0].get<std::string>(),
                ::testing::StartsWith(std::string(nested.path) + ": ignored (unknown field"));
  }
  EXPECT_TRUE(metrics_say(running, "ignored_fields_total{path=\"/v1/responses\"} 5"));
}

TEST(NestedMembers, AreErrorsInStrictMode) {
  ServiceOptions options = service_options();
  options.strict = true;
  const RunningService running(options);
  for (const Nested& nested : kNested) {
    const HttpAnswer answer = running.client().post(nested.target, nested.body);
    EXPECT_EQ(answer.status, 400) << nested.path << answer.body;
    EXPECT_THAT(answer.body, HasSubstr(std::string("] ") + nested.path + ": expected a known"));
  }
}

// What published clients send of themselves, in answers that they send back and elsewhere.
TEST(NestedMembers, OfPublishedClientsAreKnown) {
  ServiceOptions options = service_options();
  options.strict = true;
  const RunningService running(options);
  const auto warnings_of = [&](const char* target, const char* body) {
    int status = 0;
    const Json answer = running.post(target, Json::parse(body), &status);
    EXPECT_EQ(status, 200) << answer;
    return answer.value("warnings", Json::array());
  };
  EXPECT_EQ(warnings_of("/v1/chat/completions", R"({"max_tokens": 1, "messages": [
      {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "a"},
      {"role": "assistant", "content": "Hi", "refusal": null, "annotations": [], "audio": null,
       "function_call": null, "tool_calls": null},
      {"role": "user", "content": "Hi"}]})"),
            Json::array());
  EXPECT_EQ(warnings_of("/v1/chat/completions", R"({"max_tokens": 1, "messages": [
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": "Hi", "reasoning_content": "a", "refusal": "b"},
      {"role": "user", "content": "Hi"}]})")
                .size(),
            2u);
  EXPECT_EQ(warnings_of("/v1/responses", R"({"max_output_tokens": 1, "input": [
      {"role": "user", "content": "Hi"},
      {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
        {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]},
      {"role": "user", "content": "Hi"}]})"),
            Json::array());
  const Json warnings = warnings_of("/v1/messages", R"({"max_tokens": 1, "system": [
      {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}], "messages": [
      {"role": "user", "content": [{"type": "text", "text": "Hi", "citations": null}]},
      {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hm", "signature": "abc"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1",
                                    "is_error": true}]}]})");
  ASSERT_EQ(warnings.size(), 3u) << warnings;
  EXPECT_THAT(warnings[0].get<std::string>(), HasSubstr("system[0].cache_control"));
  EXPECT_THAT(warnings[1].get<std::string>(), HasSubstr("messages[1].content[0].thinking"));
  EXPECT_THAT(warnings[2].get<std::string>(), HasSubstr("messages[2].content[0].is_error"));
}

// The form of the API's first year is the same conversation.
TEST(NestedMembers, FunctionCallsAreToolCalls) {
  const RunningService running;
  const char* older = R"({"temperature": 0, "max_tokens": 4, "messages": [
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
      {"role": "function", "name": "f", "content": "1"}]})";
  const char* newer = R"({"temperature": 0, "max_tokens": 4, "messages": [
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": null,
       "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
      {"role": "tool", "name": "f", "content": "1"}]})";
  const Json answer = running.post("/v1/chat/completions", Json::parse(older));
  const Json same = running.post("/v1/chat/completions", Json::parse(newer));
  EXPECT_EQ(answer["choices"], same["choices"]);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], same["usage"]["prompt_tokens"]);
  EXPECT_FALSE(answer.contains("warnings")) << answer;
}

// ---- where warnings stand ----------------------------------------------------------------------

TEST(Warnings, ComeInListsAndInAHeader) {
  const RunningService running;
  const auto post = [&](const char* target, const char* body) {
    return running.client().post(target, body);
  };
  const auto header_of = [](const HttpAnswer& answer) {
    const auto found = answer.headers.find("x-qianwen-warnings");
    return found == answer.headers.end() ? Json() : Json::parse(found->second);
  };
  for (const auto& [target, body] :
       {std::pair{"/generate", R"({"text": ["a", "b"], "x\u00e9": 1,
                                   "sampling_params": {"max_new_tokens": 1}})"},
        std::pair{"/completion", R"({"prompt": ["a", "b"], "x\u00e9": 1, "n_predict": 1})"},
        std::pair{"/embedding", R"({"content": ["a", "b"], "x\u00e9": 1})"}}) {
    const HttpAnswer answer = post(target, body);
    const Json list = Json::parse(answer.body);
    ASSERT_EQ(list.size(), 2u) << answer.body;
    EXPECT_FALSE(list[0].contains("warnings")) << answer.body;
    ASSERT_EQ(list[1].value("warnings", Json::array()).size(), 1u) << answer.body;
    EXPECT_THAT(list[1]["warnings"][0].get<std::string>(), HasSubstr("x\u00e9: ignored"));
    EXPECT_EQ(header_of(answer), list[1]["warnings"]);
    EXPECT_THAT(answer.headers.find("x-qianwen-warnings")->second, HasSubstr("x\\u00e9"));
  }
  const HttpAnswer stream = post("/v1/completions", R"({"prompt": "a", "max_tokens": 1, "x": 1,
                                                        "stream": true})");
  EXPECT_EQ(header_of(stream).size(), 1u);
  EXPECT_EQ(header_of(post("/v1/completions", R"({"prompt": "a", "max_tokens": 1})")), Json());
  // An error's answer, too; and what no table reads.
  const HttpAnswer slots = post("/slots/0?action=save", R"({"filename": "a", "x": 1})");
  EXPECT_EQ(slots.status, 501);
  EXPECT_THAT(header_of(slots).dump(), HasSubstr("x: ignored (unknown field"));
}

// JSON leaves open what a second value means: readers differ, so it is told.
TEST(Warnings, NameKeysThatComeTwice) {
  const std::string body = R"({"prompt": "a", "max_tokens": 9, "max_tokens": 1, "n": 1,
                               "response_format": {"type": "text", "type": "text", "n": null}})";
  ServiceOptions options = service_options();
  const RunningService running(options);
  const HttpAnswer answer = running.client().post("/v1/completions", body);
  const Json json = Json::parse(answer.body);
  EXPECT_EQ(json["usage"]["completion_tokens"], 1);
  ASSERT_EQ(json["warnings"].size(), 2u) << json["warnings"];
  EXPECT_EQ(json["warnings"][0],
            "max_tokens: ignored (it comes again in the same object, where the last one counts)");
  EXPECT_THAT(json["warnings"][1].get<std::string>(), HasSubstr("response_format.type: ignored"));
  options.strict = true;
  const RunningService strict(options);
  const HttpAnswer refused = strict.client().post("/v1/completions", body);
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("max_tokens: expected it once in its object"));
}

TEST(Warnings, SayWhereAKeyComesTwiceAndHowManyDo) {
  const RunningService running;
  std::string tools = R"([{"type": "function", "function": {"name": "f", "parameters": {}}},
      {"type": "function", "function": {"name": "g", "name": "g", "parameters": {}}}])";
  const auto warnings_of = [&](const std::string& more) {
    const HttpAnswer answer = running.client().post(
        "/v1/chat/completions",
        R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "tool_choice": "none",
            "tools": )" +
            more + "}");
    EXPECT_EQ(answer.status, 200) << answer.body;
    return Json::parse(answer.body)["warnings"];
  };
  EXPECT_THAT(warnings_of(tools)[0].get<std::string>(),
              HasSubstr("tools[1].function.name: ignored (it comes again"));
  std::string many;
  for (int i = 0; i < 50; ++i)
    many += R"("type": "function", )";
  const Json warnings = warnings_of("[{" + many + R"("function": {"name": "f"}}])");
  EXPECT_EQ(warnings.size(), 33u);
  EXPECT_EQ(warnings.back(), "and 1 more");
  EXPECT_THAT(warnings[31].get<std::string>(), HasSubstr("tools[0].type"));
}

TEST(Warnings, AreBounded) {
  const RunningService running;
  Json body = {{"prompt", "a"}, {"max_tokens", 1}};
  for (int i = 0; i < 1000; ++i)
    body[std::string(100, 'x') + std::to_string(i)] = 1;
  const HttpAnswer answer = running.client().post("/v1/completions", body.dump());
  const Json warnings = Json::parse(answer.body)["warnings"];
  ASSERT_EQ(warnings.size(), 33u);
  EXPECT_EQ(warnings.back(), "and 968 more");
  const auto header = answer.headers.find("x-qianwen-warnings");
  ASSERT_NE(header, answer.headers.end());
  EXPECT_LT(header->second.size(), 2100u);
  EXPECT_THAT(Json::parse(header->second).back().get<std::string>(),
              ::testing::MatchesRegex("and [0-9]+ more"));
  EXPECT_TRUE(metrics_say(running, "ignored_fields_total{path=\"/v1/completions\"} 1000"));
}

}  // namespace
}  // namespace qw::server
