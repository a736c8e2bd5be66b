// OpenAI's dialect over HTTP, with the bundled model.
#include "server/openai/openai.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "support/running_service.h"
#include "text/tokenizer.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

class OpenAi : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json chat_body(const std::string& question) {
    return {{"model", "mini"},
            {"messages", {{{"role", "user"}, {"content", question}}}},
            {"seed", 7},
            {"max_tokens", 40}};
  }
  static std::string joined(const std::vector<ordered_json>& events, int index = 0) {
    std::string text;
    for (const ordered_json& event : events) {
      for (const ordered_json& choice : event["choices"]) {
        if (choice["index"] == index) text += choice["delta"].value("content", "");
      }
    }
    return text;
  }

  static RunningService* running_;
};
RunningService* OpenAi::running_ = nullptr;

TEST_F(OpenAi, AnswersAChat) {
  ordered_json body = chat_body("What is the capital of Japan?");
  body["temperature"] = 0;
  const ordered_json answer = running_->post("/v1/chat/completions", body);
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "mini");
  const ordered_json& choice = answer["choices"].at(0);
  EXPECT_EQ(choice["message"]["content"], "The capital of Japan is Tokyo.");
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(answer["usage"]["total_tokens"], answer["usage"]["prompt_tokens"].get<int>() +
                                                 answer["usage"]["completion_tokens"].get<int>());
  EXPECT_FALSE(answer.contains("warnings"));
}

TEST_F(OpenAi, StreamsTheVeryTextThatItGivesWhole) {
  ordered_json body = chat_body("Tell me a story.");
  body["temperature"] = 1.0;
  body["n"] = 3;
  const ordered_json whole = running_->post("/v1/chat/completions", body);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const auto events = running_->stream("/v1/chat/completions", body);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(joined(events, i), whole["choices"].at(static_cast<size_t>(i))["message"]["content"]);
  EXPECT_NE(joined(events, 0), joined(events, 1));
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
}

// The same bits alone, among others, streamed or not, after others have filled the prefix cache.
TEST_F(OpenAi, AnswersDoNotDependOnWhoElseIsServed) {
  ordered_json body = chat_body("What is 3 + 4?");
  body["temperature"] = 0.9;
  body["logprobs"] = true;
  body["top_logprobs"] = 3;
  const auto content = [](const ordered_json& answer) { return answer["choices"].dump(); };
  const std::string alone = content(running_->post("/v1/chat/completions", body));
  std::vector<std::future<std::string>> others, same;
  for (int i = 0; i < 12; ++i) {
    ordered_json other = chat_body("Tell me about the number " + std::to_string(i));
    other["seed"] = i;
    other["max_tokens"] = 10 + 7 * i;
    others.push_back(std::async(std::launch::async, [other] {
      return running_->post("/v1/chat/completions", other).dump();
    }));
    same.push_back(std::async(std::launch::async, [&, body] {
      return content(running_->post("/v1/chat/completions", body));
    }));
  }
  for (auto& answer : same)
    EXPECT_EQ(answer.get(), alone);
  for (auto& answer : others)
    EXPECT_THAT(answer.get(), HasSubstr("finish_reason"));
}

// The same bits with guesses ahead, by looking the prompt up and by a draft model, for some of
// those that are computed together, and with a cache so small that sequences lose their pages
// meanwhile.
TEST_F(OpenAi, AnswersDoNotDependOnGuessesNorOnPreemption) {
  server::ServiceOptions options = service_options();
  options.models[0].open.draft_model = options.models[0].path;
  options.models[0].open.engine.kv_tokens = 512;
  options.models[0].open.engine.ctx = 384;
  const RunningService small(options);
  std::vector<ordered_json> bodies;
  for (int i = 0; i < 9; ++i) {
    ordered_json body =
        chat_body("Repeat: one two three, one two three, number " + std::to_string(i));
    body["temperature"] = i % 3 == 0 ? 0.0 : 0.8;
    body["seed"] = i;
    body["max_tokens"] = 150;
    body["ignore_eos"] = true;
    body["logprobs"] = true;
    bodies.push_back(body);
  }
  const auto metric = [](const std::string& text, const std::string& name) {
    const size_t at = text.find(fmt::format("\n{}{{", name));
    return at == std::string::npos ? -1.0 : std::stod(text.substr(text.find("} ", at) + 2));
  };
  std::vector<std::future<std::string>> crowd;
  for (size_t i = 0; i < bodies.size(); ++i) {
    ordered_json body = bodies[i];
    if (i % 2 == 0) body["prompt_lookup_num_tokens"] = 4;
    crowd.push_back(std::async(std::launch::async, [&small, body] {
      return small.post("/v1/chat/completions", body)["choices"].dump();
    }));
  }
  for (size_t i = 0; i < bodies.size(); ++i)
    EXPECT_EQ(crowd[i].get(), running_->post("/v1/chat/completions", bodies[i])["choices"].dump());
  const std::string metrics = small.client().get("/metrics").body;
  EXPECT_GT(metric(metrics, "vllm:num_preemptions_total"), 0) << metrics;
  EXPECT_GT(metric(metrics, "vllm:spec_decode_num_accepted_tokens_total"), 0);
}

// By default a draft model is asked as far as that pays, which one as large as the model never
// does.
TEST_F(OpenAi, ADraftModelIsAskedAsARequestSays) {
  ServiceOptions options = service_options();
  options.models[0].open.draft_model = options.models[0].path;
  const RunningService drafting(options);
  ordered_json body = {{"prompt", "The capital of"}, {"max_tokens", 24}, {"ignore_eos", true},
                       {"temperature", 0.8},         {"seed", 3},        {"logprobs", 2}};
  const std::string plain = running_->post("/v1/completions", body)["choices"].dump();
  const auto n_drafted = [&] {
    const std::string text = drafting.client().get("/metrics").body;
    const size_t at = text.find("\nvllm:spec_decode_num_draft_tokens_total{");
    return at == std::string::npos ? 0.0 : std::stod(text.substr(text.find("} ", at) + 2));
  };
  body["num_assistant_tokens_schedule"] = "constant";
  body["num_assistant_tokens"] = 0;
  EXPECT_EQ(drafting.post("/v1/completions", body)["choices"].dump(), plain);
  EXPECT_EQ(n_drafted(), 0);
  body["num_assistant_tokens"] = 4;
  EXPECT_EQ(drafting.post("/v1/completions", body)["choices"].dump(), plain);
  EXPECT_GT(n_drafted(), 12);
}

TEST_F(OpenAi, GivesLogProbabilitiesOfPromptAndAnswer) {
  const ordered_json answer = running_->post("/v1/completions", {{"prompt", "The capital of"},
                                                                 {"max_tokens", 2},
                                                                 {"temperature", 0},
                                                                 {"echo", true},
                                                                 {"logprobs", 2}});
  const ordered_json& choice = answer["choices"].at(0);
  const ordered_json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 5u);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_LT(logprobs["token_logprobs"][1].get<double>(), 0);
  std::string text;
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(logprobs["text_offset"][i], text.size());
    text += logprobs["tokens"][i].get<std::string>();
  }
  EXPECT_EQ(choice["text"], text);
}

// vLLM's return_tokens_as_token_ids: names that tell any two tokens apart.
TEST_F(OpenAi, NamesTokensByTheirIds) {
  ordered_json body = {{"prompt", "The capital of"},
                       {"max_tokens", 2},
                       {"temperature", 0},
                       {"echo", true},
                       {"logprobs", 2},
                       {"return_tokens_as_token_ids", true}};
  const ordered_json answer = running_->post("/v1/completions", body);
  EXPECT_FALSE(answer.contains("warnings")) << answer["warnings"];
  const ordered_json& logprobs = answer["choices"].at(0)["logprobs"];
  const ordered_json ids =
      running_->post("/tokenize", {{"prompt", answer["choices"][0]["text"]}})["tokens"];
  ASSERT_EQ(logprobs["tokens"].size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string name = "token_id:" + ids[i].dump();
    EXPECT_EQ(logprobs["tokens"][i], name);
    if (i == 0) continue;
    EXPECT_TRUE(logprobs["top_logprobs"][i].contains(name)) << i;
  }
  body["stream"] = true;
  std::vector<ordered_json> names;
  for (const ordered_json& event : running_->stream("/v1/completions", body)) {
    const ordered_json lists = event["choices"].at(0).value("logprobs", ordered_json());
    for (const ordered_json& name : lists.is_null() ? lists : lists["tokens"])
      names.push_back(name);
  }
  EXPECT_EQ(ordered_json(names), logprobs["tokens"]);
  ordered_json chat = chat_body("What is the capital of Japan?");
  chat.update({{"logprobs", true}, {"top_logprobs", 1}, {"temperature", 0}});
  const ordered_json by_text = running_->post("/v1/chat/completions", chat);
  chat["return_tokens_as_token_ids"] = true;
  const ordered_json by_id = running_->post("/v1/chat/completions", chat);
  const ordered_json& entry = by_id["choices"][0]["logprobs"]["content"][0];
  EXPECT_THAT(entry["token"].get<std::string>(), ::testing::MatchesRegex("token_id:[0-9]+"));
  EXPECT_EQ(entry["top_logprobs"][0]["token"], entry["token"]);
  EXPECT_EQ(entry["bytes"], by_text["choices"][0]["logprobs"]["content"][0]["bytes"]);
}

TEST_F(OpenAi, TakesSeveralPromptsAndKeepsTheirOrder) {
  const ordered_json one = running_->post(
      "/v1/completions", {{"prompt", "One two three"}, {"seed", 3}, {"n", 2}, {"max_tokens", 5}});
  const ordered_json two = running_->post(
      "/v1/completions",
      {{"prompt", {"Hello there", "One two three"}}, {"seed", 3}, {"n", 2}, {"max_tokens", 5}});
  ASSERT_EQ(two["choices"].size(), 4u);
  EXPECT_EQ(two["choices"][2]["text"], one["choices"][0]["text"]);
  EXPECT_EQ(two["choices"][3]["text"], one["choices"][1]["text"]);
  EXPECT_EQ(two["choices"][3]["index"], 3);
}

TEST_F(OpenAi, GivesTheBestOfMore) {
  const ordered_json all = running_->post(
      "/v1/completions",
      {{"prompt", "The"}, {"seed", 5}, {"n", 4}, {"max_tokens", 6}, {"logprobs", 0}});
  const ordered_json best =
      running_->post("/v1/completions",
                     {{"prompt", "The"}, {"seed", 5}, {"n", 1}, {"best_of", 4}, {"max_tokens", 6}});
  double highest = -1e9;
  std::string text;
  for (const ordered_json& choice : all["choices"]) {
    double sum = 0;
    for (const ordered_json& logprob : choice["logprobs"]["token_logprobs"])
      sum += logprob.get<double>();
    const double mean = sum / static_cast<double>(choice["logprobs"]["token_logprobs"].size());
    if (mean > highest) text = choice["text"].get<std::string>();
    highest = std::max(highest, mean);
  }
  ASSERT_EQ(best["choices"].size(), 1u);
  EXPECT_EQ(best["choices"][0]["text"], text);
}

TEST_F(OpenAi, SearchesWithBeamsAsTheEngineDoes) {
  const ServiceOptions options = service_options();
  const auto loaded = open_model(options.models[0].path, options.models[0].open);
  const auto engine = loaded->make_engine();
  const auto beams = [&](std::vector<int32_t> prompt, GenerationConfig config, int64_t num_beams,
                         int64_t n) {
    Request request;
    request.prompt = std::move(prompt);
    request.config = std::move(config);
    request.config.do_sample = false;
    request.config.num_beams = num_beams;
    request.config.num_return_sequences = n;
    request.config.max_new_tokens = 8;
    std::vector<std::string> texts;
    for (const Completion& completion : engine->generate(request).completions)
      texts.push_back(completion.text);
    return texts;
  };
  const auto texts_of = [](const std::string& target, ordered_json body) {
    body["use_beam_search"] = true;
    body["max_tokens"] = 8;
    const ordered_json answer = running_->post(target, body);
    EXPECT_FALSE(answer.contains("warnings")) << answer;
    std::vector<std::string> texts;
    for (const ordered_json& choice : answer.value("choices", ordered_json::array()))
      texts.push_back(choice.contains("text") ? choice["text"] : choice["message"]["content"]);
    return texts;
  };
  const std::vector<int32_t> prompt = loaded->tokenizer->encode("The capital of", {});
  const std::vector<std::string> wide = beams(prompt, loaded->generation, 5, 2);
  ASSERT_EQ(wide.size(), 2u);
  EXPECT_NE(wide[0], wide[1]);
  EXPECT_NE(wide, beams(prompt, loaded->generation, 2, 2)) << "more beams find something else";
  EXPECT_EQ(texts_of("/v1/completions", {{"prompt", "The capital of"}, {"n", 2}, {"best_of", 5}}),
            wide);
  EXPECT_EQ(texts_of("/v1/completions", {{"prompt", "The capital of"}, {"n", 3}}),
            beams(prompt, loaded->generation, 3, 3));

  ChatInput chat;
  chat.messages = std::make_shared<const ordered_json>(chat_body("Tell me a story.")["messages"]);
  const std::vector<int32_t> chat_prompt = loaded->encode_chat(chat).ids;
  ordered_json body = chat_body("Tell me a story.");
  body.erase("seed");
  body["best_of"] = 4;
  EXPECT_EQ(texts_of("/v1/chat/completions", body),
            beams(chat_prompt, loaded->chat_generation(), 4, 1));
  body["n"] = 2;
  EXPECT_EQ(texts_of("/v1/chat/completions", body),
            beams(chat_prompt, loaded->chat_generation(), 4, 2));
}

TEST_F(OpenAi, GivesTheBestOfMoreInAChat) {
  ordered_json body = chat_body("Tell me a story.");
  body["temperature"] = 1.5;
  body["max_tokens"] = 6;
  body["n"] = 4;
  body["logprobs"] = true;
  const ordered_json all = running_->post("/v1/chat/completions", body);
  double highest = -1e9;
  std::string text;
  for (const ordered_json& choice : all["choices"]) {
    double sum = 0;
    for (const ordered_json& entry : choice["logprobs"]["content"])
      sum += entry["logprob"].get<double>();
    const double mean = sum / static_cast<double>(choice["logprobs"]["content"].size());
    if (mean > highest) text = choice["message"]["content"].get<std::string>();
    highest = std::max(highest, mean);
  }
  body["n"] = 1;
  body["best_of"] = 4;
  const ordered_json best = running_->post("/v1/chat/completions", body);
  ASSERT_EQ(best["choices"].size(), 1u) << best;
  EXPECT_EQ(best["choices"][0]["message"]["content"], text);
  body["stream"] = true;
  int status = 0;
  running_->post("/v1/chat/completions", body, &status);
  EXPECT_EQ(status, 400);
}

TEST_F(OpenAi, NamesTheFieldThatIsWrong) {
  const auto error_of = [](const ordered_json& body, int expected_status = 400) {
    int status = 0;
    const ordered_json answer = running_->post("/v1/chat/completions", body, &status);
    EXPECT_EQ(status, expected_status) << answer.dump();
    return answer.at("error");
  };
  ordered_json body = chat_body("Hi");
  body["temperature"] = "hot";
  EXPECT_EQ(error_of(body)["param"], "temperature");
  body = chat_body("Hi");
  body["temperature"] = -1;
  EXPECT_EQ(error_of(body)["param"], "temperature");
  body = chat_body("Hi");
  body["messages"][0]["content"] = {{{"type", "image_url"}, {"image_url", {{"url", "x"}}}}};
  EXPECT_EQ(error_of(body)["param"], "messages[0].content");
  body = chat_body("Hi");
  body["functions"] = {{{"name", "f"}}};
  EXPECT_THAT(error_of(body)["message"], HasSubstr("use tools"));
  body = chat_body("Hi");
  body["model"] = "gpt-4";
  EXPECT_EQ(error_of(body, 404)["code"], "model_not_found");
  body = chat_body("Hi");
  body["max_tokens"] = 100'000;
  EXPECT_THAT(error_of(body)["message"], HasSubstr("2048"));
  body.erase("messages");
  EXPECT_EQ(error_of(body)["param"], "messages");
  EXPECT_EQ(error_of(ordered_json::array())["param"], "body");
  for (const char* text : {"{", R"({"temperature": 1e999})"}) {  // no JSON; no number
    const qw::testing::HttpAnswer answer = running_->client().post("/v1/chat/completions", text);
    EXPECT_EQ(answer.status, 400) << answer.body;
    EXPECT_EQ(ordered_json::parse(answer.body)["error"]["param"], "body");
  }
}

TEST_F(OpenAi, ListsWhatItIgnores) {
  ordered_json body = chat_body("Hi");
  body["no_such_field"] = 1;
  body["verbosity"] = "low";
  body["store"] = false;  // asks for nothing
  const ordered_json answer = running_->post("/v1/chat/completions", body);
  ASSERT_EQ(answer["warnings"].size(), 2u) << answer.dump();
  EXPECT_THAT(answer["warnings"][0], HasSubstr("no_such_field"));
  EXPECT_THAT(answer["warnings"][1], HasSubstr("verbosity"));
}

TEST_F(OpenAi, TokenizesAndBack) {
  const ordered_json ids = running_->post("/tokenize", {{"prompt", "Hello 你好"}});
  EXPECT_EQ(running_->post("/detokenize", {{"tokens", ids["tokens"]}})["prompt"], "Hello 你好");
  const ordered_json chat =
      running_->post("/tokenize", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}});
  EXPECT_GT(chat["count"].get<int>(), ids["count"].get<int>());
}

TEST_F(OpenAi, EmbedsScoresAndRanks) {
  const ordered_json answer = running_->post(
      "/v1/embeddings", {{"input", {"What is the capital of Japan?", "Tell me a story."}}});
  const auto first = answer["data"][0]["embedding"].get<std::vector<double>>();
  const auto second = answer["data"][1]["embedding"].get<std::vector<double>>();
  double length = 0, dot = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    length += first[i] * first[i];
    dot += first[i] * second[i];
  }
  EXPECT_NEAR(length, 1, 1e-6);
  EXPECT_EQ(answer["data"][1]["index"], 1);
  const ordered_json short_one = running_->post(
      "/v1/embeddings",
      {{"input", "Tell me a story."}, {"dimensions", 2}, {"encoding_format", "base64"}});
  EXPECT_EQ(short_one["data"][0]["embedding"].get<std::string>().size(), 12u);  // 8 bytes

  const ordered_json score =
      running_->post("/score", {{"text_1", "What is the capital of Japan?"},
                                {"text_2", {"Tell me a story.", "What is the capital of Japan?"}}});
  EXPECT_NEAR(score["data"][0]["score"].get<double>(), dot, 1e-5);
  EXPECT_NEAR(score["data"][1]["score"].get<double>(), 1, 1e-5);
  const ordered_json ranks = running_->post(
      "/v1/rerank", {{"query", "What is the capital of Japan?"},
                     {"documents", {"Tell me a story.", "What is the capital of Japan?"}},
                     {"top_n", 1}});
  ASSERT_EQ(ranks["results"].size(), 1u);
  EXPECT_EQ(ranks["results"][0]["index"], 1);
  for (const char* path : {"/rerank", "/v2/rerank", "/reranking", "/v1/reranking"}) {
    const ordered_json same =
        running_->post(path, {{"query", "What is the capital of Japan?"},
                              {"documents", {"Tell me a story.", "What is the capital of Japan?"}},
                              {"top_n", 1}});
    EXPECT_EQ(same["results"], ranks["results"]) << path;
  }
  int status = 0;
  running_->post("/v1/embeddings", {{"input", "x"}, {"dimensions", 100'000}}, &status);
  EXPECT_EQ(status, 400);
}

TEST_F(OpenAi, PoolsAsItEmbeds) {
  ordered_json body = {{"input", {"What is the capital of Japan?", "Tell me a story."}}};
  const ordered_json vectors = running_->post("/v1/embeddings", body);
  body["task"] = "embed";
  const ordered_json pooled = running_->post("/pooling", body);
  EXPECT_EQ(pooled["object"], "list");
  EXPECT_EQ(pooled["model"], "mini");
  EXPECT_THAT(pooled["id"].get<std::string>(), HasSubstr("pool-"));
  ASSERT_EQ(pooled["data"].size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(pooled["data"][i]["object"], "pooling");
    EXPECT_EQ(pooled["data"][i]["index"], i);
    EXPECT_EQ(pooled["data"][i]["data"], vectors["data"][i]["embedding"]);
  }
  EXPECT_EQ(pooled["usage"], vectors["usage"]);
  body["encoding_format"] = "base64";
  EXPECT_EQ(
      running_->post("/pooling", body)["data"][1]["data"],
      running_->post("/v1/embeddings", {{"input", "Tell me a story."},
                                        {"encoding_format", "base64"}})["data"][0]["embedding"]);
  body["task"] = "token_embed";
  int status = 0;
  const ordered_json refused = running_->post("/pooling", body, &status);
  EXPECT_EQ(status, 400);
  EXPECT_THAT(refused.dump(), HasSubstr("task: expected embed, got 'token_embed'"));
}

TEST_F(OpenAi, ListsItsModels) {
  EXPECT_EQ(running_->get("/v1/models")["data"][0]["id"], "mini");
  EXPECT_EQ(running_->get("/v1/models/mini")["max_model_len"], 2048);
  int status = 0;
  running_->get("/v1/models/other", &status);
  EXPECT_EQ(status, 404);
}

// What has many numbers is written elsewhere, and says the same; a stream's first chunk as well.
void large_answers_keep_nobody_waiting(bool streams) {
  ServiceOptions options = qw::testing::service_options();
  const RunningService running(options);
  ordered_json prompt = ordered_json::array();
  for (int i = 0; i < 200; ++i)
    prompt.push_back(300 + i);
  ordered_json body = {{"prompt", prompt}, {"max_tokens", 3}, {"temperature", 0}};
  body["prompt_logprobs"] = 5;
  const ordered_json few = running.post("/v1/completions", body);
  body["prompt_logprobs"] = 100;  // 20,000 numbers
  body["stream"] = streams;
  const ordered_json small = few["choices"][0]["prompt_logprobs"];
  // The engine waits until nobody works: what is made there waits, and the server answers others.
  std::promise<void> begin, release;
  const std::shared_future<void> released = release.get_future().share();
  const auto& services = running.service.services();
  EngineHost& host = services.hub->find("mini").loaded->host();
  host.run([&](Engine&) { begin.get_future().wait(); });
  HttpClient client = running.client();
  client.send(HttpClient::post_text("/v1/completions", body.dump()));
  while (host.n_open() == 0)
    std::this_thread::yield();
  for (int i = 0; i < services.options.n_workers; ++i)
    services.workers->post([released] { released.wait(); });
  begin.set_value();
  const std::string ended = "qianwen_ended_requests_total{model_name=\"mini\"} 2";
  while (running.client().get("/metrics").body.find(ended) == std::string::npos)
    std::this_thread::yield();
  EXPECT_EQ(running.client().get("/health").status, 200);
  if (streams) client.read_until("\r\n\r\n");
  EXPECT_EQ(client.available(), 0u) << "it is not written yet";
  release.set_value();
  std::string text, answer;
  if (streams) {
    const std::string events = client.read_until("[DONE]");
    std::vector<ordered_json> chunks;
    for (size_t at = 0; (at = events.find("data: {", at)) != std::string::npos; ++at) {
      const size_t from = at + std::string_view("data: ").size();
      chunks.push_back(ordered_json::parse(events.substr(from, events.find("\n\n", at) - from)));
      text += chunks.back()["choices"][0]["text"].get<std::string>();
    }
    ASSERT_GE(chunks.size(), 2u) << events;
    answer = chunks[0].dump();
  } else {
    answer = client.read().body;
    text = ordered_json::parse(answer)["choices"][0]["text"].get<std::string>();
  }
  EXPECT_EQ(text, few["choices"][0]["text"]);
  const ordered_json large = ordered_json::parse(answer)["choices"][0]["prompt_logprobs"];
  ASSERT_EQ(large.size(), small.size());
  for (size_t i = 1; i < small.size(); ++i) {
    for (const auto& [id, entry] : small[i].items())
      EXPECT_EQ(large[i].at(id), entry);
    EXPECT_GE(large[i].size(), 100u);
  }
}

TEST(OpenAiService, LargeAnswersKeepNobodyWaiting) {
  large_answers_keep_nobody_waiting(false);
}

TEST(OpenAiService, LargeBeginningsOfStreamsKeepNobodyWaiting) {
  large_answers_keep_nobody_waiting(true);
}

// A client that goes frees its place: without that the last of these would wait for minutes.
TEST(OpenAiService, ClientsThatGoFreeTheirPlaces) {
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = 1;
  options.models[0].open.engine.ctx = 32768;
  RunningService running(options);
  const ordered_json endless = {
      {"prompt", "One two three"}, {"max_tokens", 32000}, {"ignore_eos", true}, {"stream", true}};
  for (int i = 0; i < 4; ++i) {
    HttpClient client = running.client();
    client.send(HttpClient::post_text("/v1/completions", endless.dump()));
    EXPECT_THAT(client.read_until("data: "), HasSubstr("200 OK"));
    client.close();
  }
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(running.post("/v1/completions",
                         {{"prompt", "One"}, {"max_tokens", 1}})["usage"]["completion_tokens"],
            1);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(OpenAiService, IsStrictWhenToldTo) {
  ServiceOptions options = service_options();
  options.strict = true;
  RunningService running(options);
  int status = 0;
  const ordered_json answer =
      running.post("/v1/completions", {{"prompt", "One"}, {"no_such_field", 1}}, &status);
  EXPECT_EQ(status, 400);
  EXPECT_EQ(answer["error"]["param"], "no_such_field");
}

TEST(OpenAiService, LoadsAModelWhenItIsAskedForAndUnloadsIt) {
  ServiceOptions options = service_options();
  options.models.push_back(options.models[0]);
  options.models[1].name = "second";
  options.models[1].keep_alive = std::chrono::seconds(0);
  RunningService running(options);
  EXPECT_EQ(running.get("/v1/models/second")["loaded"], false);
  const ordered_json body = {{"prompt", "One"}, {"max_tokens", 3}, {"seed", 1}};
  ordered_json other = body;
  other["model"] = "second";
  EXPECT_EQ(running.post("/v1/completions", other)["choices"],
            running.post("/v1/completions", body)["choices"]);
  for (int i = 0; i < 100 && running.get("/v1/models/second")["loaded"] == true; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(running.get("/v1/models/second")["loaded"], false);
  EXPECT_EQ(running.get("/v1/models/mini")["loaded"], true);
}

}  // namespace
}  // namespace qw::server
