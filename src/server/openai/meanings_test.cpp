// What single parameters of OpenAI's and vLLM's do to an answer, and what is said of those that do
// nothing, over HTTP with the bundled model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/running_service.h"
#include "support/tiny_checkpoint.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class OpenAiMeanings : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  /// The first choice that follows "The capital of", which is " Australia is Canberra.".
  static ordered_json complete(ordered_json body) {
    if (!body.contains("prompt")) body["prompt"] = "The capital of";
    body["temperature"] = 0;
    const ordered_json answer = running_->post("/v1/completions", body);
    if (!answer.contains("choices")) ADD_FAILURE() << answer.dump();
    return answer.contains("choices") ? answer["choices"][0] : ordered_json::object();
  }
  /// The text of the stream, which must end as the whole answer does.
  static void expect_streamed_alike(ordered_json body) {
    const ordered_json whole = complete(body);
    body["prompt"] = body.value("prompt", "The capital of");
    body["temperature"] = 0;
    body["stream"] = true;
    std::string text;
    ordered_json last, offsets = ordered_json::array();
    for (const ordered_json& event : running_->stream("/v1/completions", body)) {
      last = event["choices"][0];
      text += last["text"];
      if (last["logprobs"].is_object())
        for (const ordered_json& offset : last["logprobs"]["text_offset"])
          offsets.push_back(offset);
    }
    EXPECT_EQ(text, whole["text"]);
    EXPECT_EQ(last["finish_reason"], whole["finish_reason"]);
    EXPECT_EQ(last.value("stop_reason", ordered_json()),
              whole.value("stop_reason", ordered_json()));
    if (whole["logprobs"].is_object()) {
      EXPECT_EQ(offsets, whole["logprobs"]["text_offset"]);
    }
  }
  static std::vector<std::string> warnings_of(const std::string& path, const ordered_json& body) {
    const ordered_json answer = running_->post(path, body);
    EXPECT_FALSE(answer.contains("error")) << answer.dump();
    return answer.value("warnings", std::vector<std::string>());
  }
  static ordered_json error_of(const std::string& path, const ordered_json& body) {
    int status = 0;
    const ordered_json answer = running_->post(path, body, &status);
    EXPECT_EQ(status, 400) << answer.dump();
    return answer.value("error", ordered_json::object());
  }

  static RunningService* running_;
};
RunningService* OpenAiMeanings::running_ = nullptr;

constexpr int kIs = 281;  // " is"

// ---- what changes nothing ----------------------------------------------------------------------

TEST_F(OpenAiMeanings, WhatChangesNothingIsNamed) {
  const ordered_json hi = {{{"role", "user"}, {"content", "Hi"}}};
  struct Case {
    std::string field;  // the beginning of the warning
    ordered_json body;
    std::string why;
  };
  const std::vector<Case> cases = {
      {"documents", {{"documents", {{{"text", "Canberra"}}}}}, "template does not read"},
      {"chat_template_kwargs.thinking",
       {{"chat_template_kwargs", {{"thinking", true}}}},
       "template does not read"},
      {"length_penalty", {{"length_penalty", 2}}, "no beam search"},
      {"length_penalty", {{"length_penalty", 2}, {"use_beam_search", true}}, "n is 1"},
      {"early_stopping", {{"early_stopping", true}}, "no beam search"},
      {"include_stop_str_in_output", {{"include_stop_str_in_output", true}}, "no stop string"},
      {"temperature", {{"temperature", 0.5}, {"use_beam_search", true}}, "use_beam_search is true"},
      {"top_p", {{"top_p", 0.5}, {"use_beam_search", true}, {"n", 2}}, "use_beam_search is true"},
      {"top_p", {{"top_p", 0.5}, {"temperature", 0}}, "temperature is 0"},
      {"top_k", {{"top_k", 5}, {"temperature", 0}}, "temperature is 0"},
      {"min_p", {{"min_p", 0.5}, {"temperature", 0}}, "temperature is 0"},
      {"temperature", {{"temperature", 0.5}, {"do_sample", false}}, "do_sample is false"},
      {"num_assistant_tokens", {{"num_assistant_tokens", 3}}, "no draft model"},
      {"min_tokens", {{"min_tokens", 2}, {"ignore_eos", true}}, "ignore_eos is true"},
      {"stream_options", {{"stream_options", {{"include_usage", true}}}}, "stream"},
      {"guided_whitespace_pattern",
       {{"guided_whitespace_pattern", " ?"}, {"guided_regex", "[a-z]"}},
       "no JSON"},
  };
  for (const Case& one : cases) {
    ordered_json body = one.body;
    body["messages"] = hi;
    body["max_tokens"] = 2;
    const std::vector<std::string> warnings = warnings_of("/v1/chat/completions", body);
    EXPECT_THAT(warnings, ::testing::ElementsAre(
                              AllOf(StartsWith(one.field + ": no effect ("), HasSubstr(one.why))))
        << body.dump();
  }
  EXPECT_THAT(warnings_of("/v1/completions", {{"prompt", "One"},
                                              {"max_tokens", 1},
                                              {"stream_options", {{"include_usage", true}}}}),
              ::testing::ElementsAre(StartsWith("stream_options: no effect (")));
}

// What clients send without being asked, and what does have an effect.
TEST_F(OpenAiMeanings, WhatAsksForNothingIsNotNamed) {
  const ordered_json hi = {{{"role", "user"}, {"content", "Hi"}}};
  const std::vector<ordered_json> bodies = {
      {{"temperature", 0}, {"top_p", 1}, {"n", 1}, {"seed", 3}, {"min_p", 0}, {"top_k", 0}},
      {{"temperature", 0}, {"top_k", -1}, {"presence_penalty", 0}, {"stop", nullptr}},
      {{"temperature", 0}, {"top_k", 1}},
      {{"documents", ordered_json::array()}, {"chat_template_kwargs", ordered_json::object()}},
      {{"chat_template_kwargs", {{"thinking", nullptr}}}},
      {{"stream_options", {{"include_usage", false}}}, {"stream", false}},
      {{"min_tokens", 1}, {"ignore_eos", true}, {"stop", "x"}},
      {{"min_tokens", 1}, {"ignore_eos", true}, {"stop_token_ids", {kIs}}},
      {{"include_stop_str_in_output", true}, {"stop_token_ids", {kIs}}},
      {{"length_penalty", 2}, {"use_beam_search", true}, {"n", 2}},
      {{"guided_whitespace_pattern", " ?"}, {"guided_json", {{"type", "boolean"}}}},
      {{"top_p", 0.5}, {"temperature", 0.5}, {"do_sample", true}},
  };
  for (ordered_json body : bodies) {
    body["messages"] = hi;
    body["max_tokens"] = 4;
    EXPECT_THAT(warnings_of("/v1/chat/completions", body), ::testing::IsEmpty()) << body.dump();
  }
}

// In strict mode only what is not understood is an error.
TEST_F(OpenAiMeanings, WhatChangesNothingIsNoErrorInStrictMode) {
  server::ServiceOptions options = service_options();
  options.strict = true;
  const RunningService strict(options);
  const ordered_json answer =
      strict.post("/v1/completions",
                  {{"prompt", "One"}, {"max_tokens", 1}, {"temperature", 0}, {"top_p", 0.5}});
  EXPECT_THAT(answer.value("warnings", std::vector<std::string>()),
              ::testing::ElementsAre(StartsWith("top_p: no effect")));
}

TEST_F(OpenAiMeanings, AnEmptyConstraintIsRefused) {
  for (const std::string field : {"guided_regex", "guided_json", "guided_grammar"}) {
    const ordered_json error =
        error_of("/v1/completions", {{"prompt", "One"}, {"max_tokens", 1}, {field, ""}});
    EXPECT_EQ(error.value("param", ordered_json()), field);
    EXPECT_THAT(error.value("message", ""), HasSubstr("empty text"));
  }
}

// ---- where an answer ends ----------------------------------------------------------------------

TEST_F(OpenAiMeanings, StopTokensEndTheAnswerUnderIgnoreEos) {
  const ordered_json body = {{"max_tokens", 6}, {"stop_token_ids", {kIs}}, {"ignore_eos", true}};
  const ordered_json choice = complete(body);
  EXPECT_EQ(choice["text"], " Australia");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], kIs);
  expect_streamed_alike(body);
  // SGLang has them ignored with the end tokens.
  const ordered_json coupled = running_->post("/generate", {{"text", "The capital of"},
                                                            {"sampling_params",
                                                             {{"temperature", 0},
                                                              {"max_new_tokens", 4},
                                                              {"stop_token_ids", {kIs}},
                                                              {"ignore_eos", true}}}});
  EXPECT_EQ(coupled["text"], " Australia is Canberra.");
  EXPECT_THAT(coupled.value("warnings", std::vector<std::string>()),
              ::testing::ElementsAre(HasSubstr("sampling_params.ignore_eos is true")));
}

TEST_F(OpenAiMeanings, StopTokensAreShownAndNamed) {
  ordered_json body = {
      {"max_tokens", 6}, {"stop_token_ids", {kIs}}, {"include_stop_str_in_output", true}};
  const ordered_json choice = complete(body);
  EXPECT_EQ(choice["text"], " Australia is");
  EXPECT_EQ(choice["stop_reason"], kIs);
  expect_streamed_alike(body);
  body = {{"max_tokens", 20}, {"include_stop_str_in_output", true}};
  EXPECT_FALSE(complete(body).contains("stop_reason")) << "an end token of the model's own";
  // And in a chat, whole and streamed.
  ordered_json chat = {
      {"messages", {{{"role", "user"}, {"content", "What is the capital of Japan?"}}}},
      {"temperature", 0},
      {"stop_token_ids", {kIs}},
      {"max_tokens", 20}};
  const ordered_json whole = running_->post("/v1/chat/completions", chat)["choices"][0];
  EXPECT_EQ(whole["stop_reason"], kIs) << whole.dump();
  EXPECT_EQ(whole["message"]["content"], "The capital of Japan");
  chat["stream"] = true;
  EXPECT_EQ(running_->stream("/v1/chat/completions", chat).back()["choices"][0]["stop_reason"],
            kIs);
}

// They are words like others: a grammar does not forbid them, a ban does.
TEST_F(OpenAiMeanings, StopTokensAreNoEndOfAGrammar) {
  ordered_json body = {{"max_tokens", 8}, {"guided_regex", "[A-Za-z ]+\\."}};
  EXPECT_EQ(complete(body)["text"], " Australia is Canberra.");
  body["stop_token_ids"] = {kIs};
  EXPECT_EQ(complete(body)["text"], " Australia");
  expect_streamed_alike(body);
}

TEST_F(OpenAiMeanings, StopTokensCanBeBanned) {
  const int australia = running_->post("/tokenize", {{"prompt", " Australia"}})["tokens"][0];
  const ordered_json choice =
      complete({{"max_tokens", 3}, {"bad_words", {" Australia"}}, {"stop_token_ids", {australia}}});
  EXPECT_THAT(choice["text"].get<std::string>(), ::testing::Not(HasSubstr("Australia")));
  EXPECT_NE(choice["text"], "") << "it goes on with another word";
  EXPECT_FALSE(choice.contains("stop_reason")) << choice.dump();
}

TEST_F(OpenAiMeanings, StopStringsWaitForMinTokens) {
  ordered_json body = {{"max_tokens", 8}, {"ignore_eos", true}};
  const std::string all = complete(body)["text"];  // " Australia", " is", " Canberra", ...
  ASSERT_THAT(all, StartsWith(" Australia is Canberra."));
  body["stop"] = {"r"};
  EXPECT_EQ(complete(body)["text"], " Aust");
  body["min_tokens"] = 2;
  const ordered_json choice = complete(body);
  EXPECT_EQ(choice["text"], " Australia is Canbe");
  EXPECT_EQ(choice["stop_reason"], "r");
  expect_streamed_alike(body);
  body["min_tokens"] = 8;
  EXPECT_EQ(complete(body)["text"], all);
  expect_streamed_alike(body);
  body["stop"] = {"s Canb"};  // begins within them, ends beyond
  body["min_tokens"] = 2;
  EXPECT_EQ(complete(body)["text"], " Australia i");
  expect_streamed_alike(body);
}

// ---- log-probabilities of completions ----------------------------------------------------------

TEST_F(OpenAiMeanings, NoLogprobIsLostAndOffsetsCountCharacters) {
  const ordered_json body = {
      {"prompt", "北京的"}, {"max_tokens", 6}, {"logprobs", 50}, {"ignore_eos", true}};
  const ordered_json choice = complete(body);
  const ordered_json& lists = choice["logprobs"];
  size_t n_parts = 0;
  for (const ordered_json& top : lists["top_logprobs"]) {
    EXPECT_GE(top.size(), 50u);
    for (const auto& [name, value] : top.items())
      n_parts += name.starts_with("bytes:\\x") ? 1 : 0;
  }
  EXPECT_GT(n_parts, 0u);
  expect_streamed_alike(body);

  // With the prompt's own, whose characters are several tokens.
  ordered_json echoed = body;
  echoed["echo"] = true;
  const ordered_json both = complete(echoed);
  const ordered_json ids = running_->post("/tokenize", {{"prompt", "北京的"}})["tokens"];
  const auto tokenizer =
      load_tokenizer_directory(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat");
  std::string bytes;
  std::vector<size_t> expected;
  for (const ordered_json& id : ids) {
    size_t n = 0;  // of characters that are whole
    for (size_t i = 0; i + 3 <= bytes.size(); i += 3)
      ++n;
    expected.push_back(n);
    bytes += tokenizer->token_bytes(id);
  }
  ASSERT_EQ(bytes, "北京的");
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(both["logprobs"]["text_offset"][i], expected[i]);
  for (size_t i = 0; i < lists["text_offset"].size(); ++i)
    EXPECT_EQ(both["logprobs"]["text_offset"][expected.size() + i],
              lists["text_offset"][i].get<size_t>() + 3);
  expect_streamed_alike(echoed);
}

TEST_F(OpenAiMeanings, TokensThatAreNotShownMoveNoOffset) {
  ordered_json body = {
      {"prompt", "One"}, {"max_tokens", 3}, {"logprobs", 1}, {"logit_bias", {{"6000", 100}}}};
  const int end = running_->post("/tokenize", {{"prompt", "<|im_start|>"}})["tokens"][0];
  body["logit_bias"] = {{std::to_string(end), 100}};
  EXPECT_EQ(complete(body)["logprobs"]["text_offset"].dump(), "[0,0,0]");
  body["skip_special_tokens"] = false;
  EXPECT_EQ(complete(body)["logprobs"]["text_offset"].dump(), "[0,12,24]");
  expect_streamed_alike(body);
}

// ---- others ------------------------------------------------------------------------------------

TEST_F(OpenAiMeanings, EchoStandsBeforeCalls) {
  ordered_json body = {
      {"messages",
       {{{"role", "user"}, {"content", "What is the weather in Paris?"}},
        {{"role", "assistant"}, {"content", "The"}}}},
      {"continue_final_message", true},
      {"add_generation_prompt", false},
      {"echo", true},
      {"temperature", 0},
      {"max_tokens", 60},
      {"tool_choice", "required"},
      {"tools",
       ordered_json::array(
           {{{"type", "function"},
             {"function",
              {{"name", "get_weather"},
               {"parameters",
                {{"type", "object"}, {"properties", {{"city", {{"enum", {"Paris"}}}}}}}}}}}})}};
  const ordered_json whole = running_->post("/v1/chat/completions", body)["choices"][0]["message"];
  EXPECT_EQ(whole.value("tool_calls", ordered_json()).size(), 1u) << whole.dump();
  body["stream"] = true;
  std::string streamed;
  for (const ordered_json& event : running_->stream("/v1/chat/completions", body))
    streamed += event["choices"][0]["delta"].value("content", "");
  EXPECT_EQ(whole["content"], streamed);
  EXPECT_THAT(streamed, StartsWith("The"));
}

TEST_F(OpenAiMeanings, ErrorsNameTheFieldAndWhatIsAllowed) {
  ordered_json error = error_of("/v1/completions", {{"prompt", ""}});
  EXPECT_EQ(error["param"], "prompt");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("at least one token"));
  EXPECT_EQ(error_of("/v1/embeddings", {{"input", ""}})["param"], "input");
  error = error_of("/v1/completions", {{"prompt", "a"}, {"seed", 18446744073709551615u}});
  EXPECT_EQ(error["param"], "seed");
  EXPECT_THAT(error["message"].get<std::string>(),
              HasSubstr("from -9223372036854775808 to 9223372036854775807"));
}

// Ids are taken there, so it is not they that are at fault.
TEST(OpenAiMeaningsWithoutTokenizer, ErrorsNameWhatNeedsOne) {
  const qw::test::TinyCheckpoint tiny;
  ServiceOptions options = service_options();
  options.models[0].path = tiny.write();
  options.models[0].open.engine.ctx = 64;
  const RunningService running(options);
  const ordered_json plain = {{"prompt", {1, 2, 3}}, {"max_tokens", 2}};
  ASSERT_TRUE(running.post("/v1/completions", plain).contains("choices"));
  const std::vector<std::pair<std::string, ordered_json>> fields = {
      {"logprobs", 1}, {"echo", true}, {"stop", "x"}, {"bad_words", {"x"}}};
  for (const auto& [field, value] : fields) {
    ordered_json body = plain;
    body[field] = value;
    int status = 0;
    const ordered_json answer = running.post("/v1/completions", body, &status);
    EXPECT_EQ(status, 400) << field;
    const ordered_json error = answer.value("error", ordered_json::object());
    EXPECT_EQ(error.value("param", ordered_json()), field) << answer.dump();
    EXPECT_THAT(error.value("message", ""), HasSubstr("expected a model with a tokenizer"));
  }
}

}  // namespace
}  // namespace qw::server
