// What answers of /v1/responses tell beside their text, over HTTP with the bundled model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;
using ::testing::HasSubstr;

class OpenAiResponses : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json question() {
    return {{"input", "What is the capital of Japan?"}, {"temperature", 0}};
  }
  static ordered_json answer(const ordered_json& body) {
    return running_->post("/v1/responses", body);
  }
  static std::string warnings(const ordered_json& body) {
    const ordered_json all = answer(body);
    return all.contains("warnings") ? all["warnings"].dump() : "";
  }
  static inline RunningService* running_ = nullptr;
};

TEST_F(OpenAiResponses, SayWhatWasInForce) {
  ordered_json body = question();
  body["max_output_tokens"] = 20;
  body["text"]["format"] = {{"type", "json_object"}};
  ordered_json told = answer(body);
  EXPECT_EQ(told["temperature"], 0);
  EXPECT_EQ(told["max_output_tokens"], 20);
  EXPECT_EQ(told["text"], body["text"]);
  EXPECT_EQ(told["truncation"], "disabled");
  EXPECT_EQ(told["store"], false);
  EXPECT_TRUE(told["previous_response_id"].is_null());
  told = answer({{"input", "Hi"}, {"temperature", 0.5}, {"top_p", 0.25}});
  EXPECT_EQ(told["temperature"], 0.5);
  EXPECT_EQ(told["top_p"], 0.25);
  EXPECT_TRUE(told["max_output_tokens"].is_null());
  EXPECT_EQ(told["text"]["format"]["type"], "text");
}

// The chat's, which has them longer.
TEST_F(OpenAiResponses, TellLogProbabilitiesWhereTheyAreAskedFor) {
  EXPECT_EQ(answer(question())["output"][0]["content"][0]["logprobs"], ordered_json::array());
  const ordered_json chat = running_->post(
      "/v1/chat/completions",
      {{"messages", {{{"role", "user"}, {"content", "What is the capital of Japan?"}}}},
       {"temperature", 0},
       {"logprobs", true},
       {"top_logprobs", 2}});
  const ordered_json expected = chat["choices"][0]["logprobs"]["content"];
  ASSERT_GT(expected.size(), 4u);
  ordered_json body = question();
  body["include"] = {"message.output_text.logprobs"};
  body["top_logprobs"] = 2;
  const ordered_json whole = answer(body);
  EXPECT_EQ(whole["output"][0]["content"][0]["logprobs"], expected);
  EXPECT_EQ(whole["top_logprobs"], 2);

  body["stream"] = true;
  ordered_json streamed = ordered_json::array(), done, output;
  for (const ordered_json& event : running_->stream("/v1/responses", body)) {
    if (event["type"] == "response.output_text.delta") {
      for (const ordered_json& entry : event["logprobs"])
        streamed.push_back(entry);
    }
    if (event["type"] == "response.output_text.done") done = event["logprobs"];
    if (event["type"] == "response.completed") output = event["response"]["output"];
  }
  EXPECT_EQ(done, expected);
  EXPECT_EQ(output[0]["content"][0]["logprobs"], expected);
  // The end token comes after the last text.
  ASSERT_LE(streamed.size(), expected.size());
  ASSERT_GE(streamed.size() + 1, expected.size());
  EXPECT_EQ(streamed, ordered_json(expected.begin(),
                                   expected.begin() + static_cast<int64_t>(streamed.size())));
}

TEST_F(OpenAiResponses, NameWhatTheyCannotInclude) {
  ordered_json body = question();
  body["include"] = {"reasoning.encrypted_content"};
  body["top_logprobs"] = 1;
  EXPECT_EQ(warnings(body),
            R"x(["include[0]: no effect (answers have no reasoning.encrypted_content here)",)x"
            R"x("top_logprobs: no effect (include does not name message.output_text.logprobs)"])x");
  body.erase("top_logprobs");
  body["include"] = {"message.output_text.logprobs"};
  body["tools"] = {{{"type", "function"}, {"name", "f"}}};
  EXPECT_THAT(warnings(body), HasSubstr("include: no effect (tools are given)"));
  for (const char* idle : {"max_tool_calls", "prompt_cache_retention"}) {
    body = question();
    body[idle] = 1;
    EXPECT_THAT(warnings(body), HasSubstr(std::string(idle) + ": ignored ("));
    EXPECT_THAT(warnings(body), ::testing::Not(HasSubstr("unknown")));
  }
}

}  // namespace
}  // namespace qw::server
