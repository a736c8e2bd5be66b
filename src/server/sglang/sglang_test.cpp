// SGLang's native dialect over HTTP, with the bundled model.
#include "server/sglang/sglang.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;
using ::testing::HasSubstr;

class Sglang : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json generate(const ordered_json& body) {
    return running_->post("/generate", body);
  }
  static std::string error_of(const ordered_json& body) {
    int status = 0;
    const ordered_json answer = running_->post("/generate", body, &status);
    EXPECT_EQ(status, 400) << answer.dump();
    return answer.at("error").at("message").get<std::string>();
  }

  static RunningService* running_;
};
RunningService* Sglang::running_ = nullptr;

TEST_F(Sglang, GeneratesWhole) {
  const ordered_json answer =
      generate({{"text", "The capital of"},
                {"rid", "mine"},
                {"sampling_params", {{"temperature", 0}, {"max_new_tokens", 4}}}});
  EXPECT_FALSE(answer["text"].get<std::string>().empty());
  EXPECT_EQ(answer["output_ids"].size(), 4u);
  const ordered_json& meta = answer["meta_info"];
  EXPECT_EQ(meta["id"], "mine");
  EXPECT_EQ(meta["finish_reason"].dump(), R"({"type":"length","length":4})");
  EXPECT_EQ(meta["prompt_tokens"], 3);
  EXPECT_EQ(meta["completion_tokens"], 4);
  EXPECT_GT(meta["e2e_latency"].get<double>(), 0);
  const ordered_json ids = running_->post("/tokenize", {{"prompt", "The capital of"}})["tokens"];
  EXPECT_EQ(generate({{"input_ids", ids},
                      {"sampling_params", {{"temperature", 0}, {"max_new_tokens", 4}}}})["text"],
            answer["text"]);
}

TEST_F(Sglang, Encodes) {
  const ordered_json one = running_->post("/encode", {{"text", "Hello"}, {"rid", "mine"}});
  EXPECT_EQ(one["meta_info"]["id"], "mine");
  EXPECT_EQ(one["meta_info"]["prompt_tokens"], 1);
  const ordered_json openai = running_->post("/v1/embeddings", {{"input", "Hello"}});
  EXPECT_EQ(one["embedding"], openai["data"][0]["embedding"]);
  const ordered_json two = running_->post("/encode", {{"text", {"Hello", "One two"}}});
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(two[0]["embedding"], one["embedding"]);
  EXPECT_GT(two[1]["meta_info"]["prompt_tokens"].get<int>(), 1);
  const ordered_json ids = running_->post("/tokenize", {{"prompt", "Hello"}})["tokens"];
  EXPECT_EQ(running_->post("/encode", {{"input_ids", ids}})["embedding"], one["embedding"]);
  for (const ordered_json& wrong :
       {ordered_json{{"text", "a"}, {"input_ids", {1}}}, ordered_json{{"input_ids", {6016}}},
        ordered_json::object(), ordered_json{{"input_ids", ordered_json::array()}}}) {
    int status = 0;
    running_->post("/encode", wrong, &status);
    EXPECT_EQ(status, 400) << wrong;
  }
}

TEST_F(Sglang, StreamsTheWholeTextSoFar) {
  ordered_json body = {
      {"text", "One two three"},
      {"sampling_params", {{"temperature", 1.0}, {"max_new_tokens", 16}, {"sampling_seed", 7}}}};
  const ordered_json whole = generate(body);
  body["stream"] = true;
  const auto events = running_->stream("/generate", body);
  ASSERT_GT(events.size(), 3u);
  std::string before;
  for (const ordered_json& event : events) {
    const std::string text = event["text"];
    EXPECT_THAT(text, ::testing::StartsWith(before));
    before = text;
  }
  EXPECT_EQ(before, whole["text"]);
  EXPECT_TRUE(events.front()["meta_info"]["finish_reason"].is_null());
  EXPECT_EQ(events.back()["meta_info"]["finish_reason"], whole["meta_info"]["finish_reason"]);
  EXPECT_EQ(events.back()["output_ids"], whole["output_ids"]);
  EXPECT_THAT(running_->client().post("/generate", body.dump()).body,
              ::testing::EndsWith("data: [DONE]\n\n"));
}

TEST_F(Sglang, AnswersListsInOrder) {
  const ordered_json params = {{"temperature", 0}, {"max_new_tokens", 3}};
  const ordered_json all =
      generate({{"text", {"Hello", "The capital of"}}, {"sampling_params", params}});
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[1]["text"],
            generate({{"text", "The capital of"}, {"sampling_params", params}})["text"]);
  EXPECT_EQ(
      generate({{"text", ordered_json::array({"Hello"})}, {"sampling_params", params}}).size(), 1u);
  ordered_json two = params;
  two["n"] = 2;
  two["temperature"] = 1;
  EXPECT_EQ(generate({{"text", "Hello"}, {"sampling_params", two}}).size(), 2u);
}

// How SGLang's front end chooses between texts: prompts are only read.
TEST_F(Sglang, ReadsPromptsOnly) {
  ordered_json body = {{"text", "The capital of"},
                       {"return_logprob", true},
                       {"logprob_start_len", 1},
                       {"sampling_params", {{"temperature", 0}, {"max_new_tokens", 0}}}};
  const ordered_json read = generate(body);
  EXPECT_EQ(read["text"], "");
  EXPECT_TRUE(read["output_ids"].empty());
  EXPECT_TRUE(read["meta_info"]["output_token_logprobs"].empty());
  EXPECT_EQ(read["meta_info"]["completion_tokens"], 0);
  EXPECT_EQ(read["meta_info"]["finish_reason"].dump(), R"({"type":"length","length":0})");
  body["sampling_params"]["max_new_tokens"] = 2;
  const ordered_json more = generate(body);
  EXPECT_EQ(more["meta_info"]["input_token_logprobs"], read["meta_info"]["input_token_logprobs"]);
  EXPECT_EQ(more["output_ids"].size(), 2u);
  body["sampling_params"]["max_new_tokens"] = 0;
  body["stream"] = true;
  const auto events = running_->stream("/generate", body);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0]["text"], "");
}

TEST_F(Sglang, GivesLogProbabilities) {
  const ordered_json meta =
      generate({{"text", "The capital of"},
                {"return_logprob", true},
                {"logprob_start_len", 0},
                {"top_logprobs_num", 2},
                {"return_text_in_logprobs", true},
                {"sampling_params", {{"temperature", 0}, {"max_new_tokens", 2}}}})["meta_info"];
  ASSERT_EQ(meta["input_token_logprobs"].size(), 3u);
  EXPECT_TRUE(meta["input_token_logprobs"][0][0].is_null());
  EXPECT_EQ(meta["input_token_logprobs"][1][2], " capital");
  EXPECT_LT(meta["input_token_logprobs"][1][0].get<double>(), 0);
  EXPECT_TRUE(meta["input_top_logprobs"][0].is_null());
  EXPECT_EQ(meta["input_top_logprobs"][1].size(), 2u);
  ASSERT_EQ(meta["output_token_logprobs"].size(), 2u);
  EXPECT_EQ(meta["output_token_logprobs"][0], meta["output_top_logprobs"][0][0]);
}

TEST_F(Sglang, NamesTheFieldThatIsWrong) {
  EXPECT_THAT(error_of({{"sampling_params", {{"temperature", 0}}}}), HasSubstr("text"));
  EXPECT_THAT(error_of({{"text", "x"}, {"sampling_params", {{"structural_tag", "a"}}}}),
              HasSubstr("sampling_params.structural_tag"));
  EXPECT_THAT(error_of({{"text", "x"}, {"sampling_params", {{"regex", "a("}}}}),
              HasSubstr("regex"));
  EXPECT_THAT(generate({{"text", "x"}, {"sampling_params", {{"regex", "ab?c{2}"}}}})["text"]
                  .get<std::string>(),
              ::testing::MatchesRegex("ab?cc"));
  EXPECT_THAT(error_of({{"text", "x"}, {"sampling_params", {1}}}), HasSubstr("sampling_params"));
  EXPECT_THAT(error_of({{"text", "x"}, {"image_data", "x.png"}}), HasSubstr("image_data"));
  EXPECT_THAT(error_of({{"text", "x"}, {"priority", 1001}}), HasSubstr("priority"));
  for (const std::vector<int>& ids : {std::vector<int>{6016}, std::vector<int>(5000, 1)}) {
    EXPECT_THAT(error_of({{"text", "x"}, {"sampling_params", {{"stop_token_ids", ids}}}}),
                HasSubstr("] sampling_params.stop_token_ids: expected"));
  }
  EXPECT_THAT(error_of({{"text", "x"}, {"sampling_params", {{"max_new_tokens", 100000}}}}),
              HasSubstr("2048"));
  const ordered_json answer = generate({{"text", "x"},
                                        {"log_metrics", true},
                                        {"sampling_params", {{"max_new_tokens", 1}, {"b", 1}}}});
  EXPECT_EQ(answer["warnings"].size(), 2u) << answer.dump();
}

TEST_F(Sglang, TellsItsStateAndForgetsPrefixes) {
  EXPECT_EQ(running_->get("/get_model_info")["is_generation"], true);
  const auto cached = [] { return running_->get("/get_server_info")["internal_states"][0]; };
  EXPECT_EQ(running_->client().get("/health_generate").status, 200);
  const ordered_json body = {{"text", std::string(600, 'a')},
                             {"sampling_params", {{"max_new_tokens", 1}}}};
  generate(body);
  EXPECT_GT(generate(body)["meta_info"]["cached_tokens"].get<int>(), 10);
  EXPECT_GT(cached()["num_cached_tokens"].get<int>(), 0);
  EXPECT_EQ(running_->client().post("/flush_cache", "").status, 200);
  EXPECT_EQ(generate(body)["meta_info"]["cached_tokens"], 0);
  const auto odd = running_->client().post("/flush_cache", R"({"depth": 3})");
  EXPECT_EQ(odd.status, 200);
  ASSERT_TRUE(odd.headers.contains("x-qianwen-warnings")) << "what is unknown is named";
  EXPECT_THAT(odd.headers.at("x-qianwen-warnings"), HasSubstr("depth"));
  const auto plain = running_->client().post("/flush_cache", "{}");
  EXPECT_EQ(plain.status, 200);
  EXPECT_FALSE(plain.headers.contains("x-qianwen-warnings"));
}

TEST(SglangStrict, FlushingTakesNoUnknownMembers) {
  ServiceOptions options = qw::testing::service_options();
  options.strict = true;
  const RunningService running(options);
  const auto odd = running.client().post("/flush_cache", R"({"depth": 3})");
  EXPECT_EQ(odd.status, 400);
  EXPECT_THAT(odd.body, HasSubstr("depth"));
  EXPECT_EQ(running.client().post("/flush_cache", "{}").status, 200);
}

}  // namespace
}  // namespace qw::server
