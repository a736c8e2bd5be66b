// What a stream says beside the text: the same as the whole answer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;
using ::testing::HasSubstr;

class OpenAiStream : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json chat_body() {
    return {{"messages", {{{"role", "user"}, {"content", "What is the capital of Japan?"}}}},
            {"temperature", 0},
            {"max_tokens", 8}};
  }
  static std::vector<ordered_json> stream(const char* target, ordered_json body) {
    body["stream"] = true;
    return running_->stream(target, body);
  }

  static RunningService* running_;
};
RunningService* OpenAiStream::running_ = nullptr;

TEST_F(OpenAiStream, OfAChatBeginsWithThePromptsLogprobs) {
  ordered_json body = chat_body();
  // The prompt's beginning is kept now, so that one of two answers may begin before the other,
  // which computes the prompt's rows.
  running_->post("/v1/chat/completions", body);
  body["n"] = 2;
  body["temperature"] = 0.9;
  body["seed"] = 3;
  body["prompt_logprobs"] = 1;
  const ordered_json whole = running_->post("/v1/chat/completions", body);
  ASSERT_GT(whole["prompt_logprobs"].size(), 10u);
  const auto chunks = stream("/v1/chat/completions", body);
  EXPECT_EQ(chunks[0]["prompt_logprobs"], whole["prompt_logprobs"]);
  EXPECT_EQ(chunks[0]["choices"][0]["delta"]["role"], "assistant");
  std::string texts[2];
  for (size_t i = 0; i < chunks.size(); ++i) {
    EXPECT_EQ(chunks[i].contains("prompt_logprobs"), i == 0);
    const ordered_json& choice = chunks[i]["choices"][0];
    texts[choice["index"].get<size_t>()] += choice["delta"].value("content", "");
  }
  for (size_t i = 0; i < 2; ++i)
    EXPECT_EQ(texts[i], whole["choices"][i]["message"]["content"]);
}

TEST_F(OpenAiStream, OfACompletionBeginsWithWhatThereIsOfThePrompt) {
  ordered_json body = {{"prompt", {"One two three", "Four five six"}},
                       {"temperature", 0},
                       {"max_tokens", 4},
                       {"prompt_logprobs", 2}};
  const ordered_json whole = running_->post("/v1/completions", body);
  const auto chunks = stream("/v1/completions", body);
  ordered_json seen = ordered_json::object();
  for (const ordered_json& chunk : chunks) {
    const ordered_json& choice = chunk["choices"][0];
    const size_t index = choice["index"];
    const bool is_first = !seen.contains(std::to_string(index));
    seen[std::to_string(index)] = true;
    ASSERT_EQ(choice.contains("prompt_logprobs"), is_first) << chunk;
    if (!is_first) continue;
    EXPECT_EQ(choice["prompt_logprobs"], whole["choices"][index]["prompt_logprobs"]);
  }
  EXPECT_EQ(seen.size(), 2u);
  // With echo as well: they were asked for by name.
  body["echo"] = true;
  EXPECT_EQ(running_->post("/v1/completions", body)["choices"][0]["prompt_logprobs"],
            whole["choices"][0]["prompt_logprobs"]);
}

// The engine takes all prompts of a list before it begins with one: what comes before a stream has
// begun is lost.
TEST_F(OpenAiStream, OfManyPromptsLosesNothing) {
  ordered_json prompts = ordered_json::array();
  for (int i = 0; i < 64; ++i)
    prompts.push_back(std::vector<int>{300 + i});
  for (int run = 0; run < 8; ++run) {
    const auto chunks = stream("/v1/completions", {{"prompt", prompts},
                                                   {"temperature", 0},
                                                   {"max_tokens", 1},
                                                   {"ignore_eos", true},
                                                   {"logprobs", 0}});
    std::vector<int> n_tokens(prompts.size()), n_ends(prompts.size());
    for (const ordered_json& chunk : chunks) {
      const ordered_json& choice = chunk["choices"][0];
      const size_t index = choice["index"];
      if (!choice["logprobs"].is_null()) ++n_tokens.at(index);
      if (!choice["finish_reason"].is_null()) ++n_ends.at(index);
    }
    EXPECT_THAT(n_tokens, ::testing::Each(1)) << run;
    EXPECT_THAT(n_ends, ::testing::Each(1)) << run;
  }
}

TEST_F(OpenAiStream, EchoesWithLogprobs) {
  for (const char* prompt : {"One two three", "a"}) {
    const ordered_json body = {{"prompt", prompt}, {"temperature", 0}, {"max_tokens", 4},
                               {"echo", true},     {"logprobs", 2},    {"n", 2}};
    const ordered_json whole = running_->post("/v1/completions", body)["choices"][1];
    std::string text;
    ordered_json lists = {{"tokens", ordered_json::array()},
                          {"token_logprobs", ordered_json::array()},
                          {"top_logprobs", ordered_json::array()},
                          {"text_offset", ordered_json::array()}};
    for (const ordered_json& chunk : stream("/v1/completions", body)) {
      const ordered_json& choice = chunk["choices"][0];
      if (choice["index"] != 1) continue;
      if (text.empty()) {
        EXPECT_EQ(choice["text"], prompt);
      }
      text += choice["text"].get<std::string>();
      if (choice["logprobs"].is_null()) continue;
      for (auto& [name, list] : lists.items()) {
        for (const ordered_json& item : choice["logprobs"][name])
          list.push_back(item);
      }
    }
    EXPECT_EQ(text, whole["text"]);
    EXPECT_EQ(lists, whole["logprobs"]);
    EXPECT_TRUE(lists["token_logprobs"][0].is_null());
  }
}

TEST_F(OpenAiStream, SaysWhatStoppedIt) {
  ordered_json body = chat_body();
  body["max_tokens"] = 40;
  body["stop"] = {"no such words", "is"};
  EXPECT_EQ(running_->post("/v1/chat/completions", body)["choices"][0]["stop_reason"], "is");
  EXPECT_EQ(stream("/v1/chat/completions", body).back()["choices"][0]["stop_reason"], "is");
  const ordered_json completion = {
      {"prompt", "Once upon a time"}, {"temperature", 0}, {"max_tokens", 40}, {"stop", "e"}};
  const ordered_json whole = running_->post("/v1/completions", completion)["choices"][0];
  EXPECT_EQ(stream("/v1/completions", completion).back()["choices"][0].value("stop_reason", ""),
            whole.value("stop_reason", ""));
  EXPECT_EQ(whole.value("stop_reason", ""), "e");
  body["stop"] = "no such words";
  EXPECT_FALSE(stream("/v1/chat/completions", body).back()["choices"][0].contains("stop_reason"));
}

TEST_F(OpenAiStream, TellsWhatHasNoEffect) {
  ordered_json body = chat_body();
  body["max_completion_tokens"] = 2;
  for (const bool newer_first : {false, true}) {
    if (newer_first) {
      body.erase("max_tokens");
      body["max_tokens"] = 8;
    }
    const ordered_json answer = running_->post("/v1/chat/completions", body);
    EXPECT_EQ(answer["usage"]["completion_tokens"], 2);
    ASSERT_EQ(answer["warnings"].size(), 1u) << answer;
    EXPECT_THAT(answer["warnings"][0].get<std::string>(), HasSubstr("max_tokens: ignored"));
  }
  body["max_tokens"] = 2;
  EXPECT_FALSE(running_->post("/v1/chat/completions", body).contains("warnings"));
  body["echo"] = true;
  EXPECT_THAT(running_->post("/v1/chat/completions", body)["warnings"][0].get<std::string>(),
              HasSubstr("echo: ignored"));
  body["messages"].push_back({{"role", "assistant"}, {"content", "The"}});
  body["continue_final_message"] = true;
  EXPECT_FALSE(running_->post("/v1/chat/completions", body).contains("warnings"));
}

}  // namespace
}  // namespace qw::server
