// Ollama's dialect over HTTP, with the bundled model.
#include "server/ollama/ollama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpAnswer;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

class Ollama : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json chat_body(const std::string& question) {
    return {{"model", "mini"},
            {"messages", {{{"role", "user"}, {"content", question}}}},
            {"options", {{"seed", 7}, {"num_predict", 40}}}};
  }
  /// The lines of a streamed answer.
  static std::vector<ordered_json> lines(const std::string& target, const ordered_json& body) {
    const HttpAnswer answer = running_->client().post(target, body.dump());
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.headers.at("content-type"), "application/x-ndjson");
    std::vector<ordered_json> out;
    std::istringstream text(answer.body);
    for (std::string line; std::getline(text, line);)
      out.push_back(ordered_json::parse(line));
    return out;
  }
  static std::string error_of(const std::string& target, const ordered_json& body,
                              int expected_status = 400) {
    int status = 0;
    const ordered_json answer = running_->post(target, body, &status);
    EXPECT_EQ(status, expected_status) << answer.dump();
    return answer.at("error").get<std::string>();
  }
  static std::vector<std::string> keys(const ordered_json& json) {
    std::vector<std::string> out;
    for (const auto& item : json.items())
      out.push_back(item.key());
    return out;
  }

  static RunningService* running_;
};
RunningService* Ollama::running_ = nullptr;

TEST_F(Ollama, AnswersAChatWhole) {
  ordered_json body = chat_body("What is the capital of Japan?");
  body["stream"] = false;
  body["options"]["temperature"] = 0;
  const ordered_json answer = running_->post("/api/chat", body);
  EXPECT_THAT(keys(answer),
              ::testing::ElementsAre("model", "created_at", "message", "done", "done_reason",
                                     "total_duration", "load_duration", "prompt_eval_count",
                                     "prompt_eval_duration", "eval_count", "eval_duration"));
  EXPECT_EQ(answer["model"], "mini");
  EXPECT_EQ(answer["message"].dump(),
            R"({"role":"assistant","content":"The capital of Japan is Tokyo."})");
  EXPECT_EQ(answer["done"], true);
  EXPECT_EQ(answer["done_reason"], "stop");
  EXPECT_THAT(answer["created_at"].get<std::string>(),
              ::testing::MatchesRegex("20..-..-..T..:..:...[0-9]+Z"));
  EXPECT_GT(answer["prompt_eval_count"].get<int>(), 10);
  EXPECT_GT(answer["eval_count"].get<int>(), 3);
  EXPECT_GE(answer["total_duration"].get<int64_t>(),
            answer["prompt_eval_duration"].get<int64_t>() + answer["eval_duration"].get<int64_t>());
}

TEST_F(Ollama, StreamsTheVeryTextThatItGivesWhole) {
  ordered_json body = chat_body("Tell me a story.");
  body["options"]["temperature"] = 1.0;
  const auto streamed = lines("/api/chat", body);
  body["stream"] = false;
  const ordered_json whole = running_->post("/api/chat", body);
  std::string text;
  for (const ordered_json& line : streamed)
    text += line["message"]["content"].get<std::string>();
  EXPECT_EQ(text, whole["message"]["content"]);
  ASSERT_GT(streamed.size(), 3u);
  EXPECT_THAT(keys(streamed.front()),
              ::testing::ElementsAre("model", "created_at", "message", "done"));
  EXPECT_EQ(streamed.front()["done"], false);
  EXPECT_EQ(streamed.back()["done"], true);
  EXPECT_EQ(streamed.back()["eval_count"], whole["eval_count"]);
  EXPECT_EQ(streamed.back()["done_reason"], whole["done_reason"]);
}

TEST_F(Ollama, GeneratesWithTemplateAndRaw) {
  const ordered_json options = {{"temperature", 0}, {"num_predict", 12}};
  const ordered_json templated =
      running_->post("/api/generate", {{"model", "mini:latest"},
                                       {"prompt", "What is the capital of Japan?"},
                                       {"stream", false},
                                       {"options", options}});
  EXPECT_EQ(templated["model"], "mini:latest");
  EXPECT_EQ(templated["response"], "The capital of Japan is Tokyo.");
  EXPECT_GT(templated["context"].size(), 10u);
  const std::string prompt =
      "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nWhat is the "
      "capital of Japan?<|im_end|>\n<|im_start|>assistant\n";
  const ordered_json raw = running_->post("/api/generate", {{"model", "mini"},
                                                            {"prompt", prompt},
                                                            {"raw", true},
                                                            {"stream", false},
                                                            {"options", options}});
  EXPECT_EQ(raw["response"], templated["response"]);
  EXPECT_EQ(raw["prompt_eval_count"], templated["prompt_eval_count"]);
  EXPECT_FALSE(raw.contains("context"));
}

// The context of an answer is the conversation so far, as the chat would have it.
TEST_F(Ollama, GoesOnFromAContext) {
  const ordered_json options = {{"temperature", 0}, {"num_predict", 30}};
  const ordered_json first =
      running_->post("/api/generate", {{"prompt", "My name is Anna."},
                                       {"system", "You are a helpful assistant"},
                                       {"stream", false},
                                       {"options", options}});
  const ordered_json second = running_->post("/api/generate", {{"prompt", "What is my name?"},
                                                               {"context", first["context"]},
                                                               {"stream", false},
                                                               {"options", options}});
  const ordered_json chat = running_->post(
      "/api/chat", {{"stream", false},
                    {"options", options},
                    {"messages",
                     {{{"role", "system"}, {"content", "You are a helpful assistant"}},
                      {{"role", "user"}, {"content", "My name is Anna."}},
                      {{"role", "assistant"}, {"content", first["response"]}},
                      {{"role", "user"}, {"content", "What is my name?"}}}}});
  EXPECT_EQ(second["prompt_eval_count"], chat["prompt_eval_count"]);
  EXPECT_EQ(second["response"], chat["message"]["content"]);
}

TEST_F(Ollama, GivesLogProbabilities) {
  ordered_json body = chat_body("What is 3 + 4?");
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  body["stream"] = false;
  const ordered_json whole = running_->post("/api/chat", body);
  ASSERT_EQ(whole["logprobs"].size(), whole["eval_count"].get<size_t>());
  EXPECT_THAT(keys(whole["logprobs"][0]),
              ::testing::ElementsAre("token", "bytes", "logprob", "top_logprobs"));
  EXPECT_EQ(whole["logprobs"][0]["top_logprobs"].size(), 2u);
  body["stream"] = true;
  ordered_json joined = ordered_json::array();
  for (const ordered_json& line : lines("/api/chat", body)) {
    for (const ordered_json& entry : line.value("logprobs", ordered_json::array()))
      joined.push_back(entry);
  }
  EXPECT_EQ(joined, whole["logprobs"]);
}

TEST_F(Ollama, HonoursItsOptions) {
  ordered_json body = chat_body("Count: one two three four");
  body["stream"] = false;
  body["options"] = {{"temperature", 0}, {"num_predict", 2}};
  EXPECT_EQ(running_->post("/api/chat", body)["done_reason"], "length");
  EXPECT_EQ(running_->post("/api/chat", body)["eval_count"], 2);
  body["options"] = {{"temperature", 0}, {"stop", {"capital"}}, {"num_ctx", 2048}};
  body["messages"][0]["content"] = "What is the capital of Japan?";
  EXPECT_EQ(running_->post("/api/chat", body)["message"]["content"], "The ");
  ordered_json constrained = chat_body("Write JSON.");
  constrained["stream"] = false;
  constrained["format"] = {{"type", "object"},
                           {"properties", {{"a", {{"enum", {1, 2}}}}}},
                           {"required", ordered_json::array({"a"})},
                           {"additionalProperties", false}};
  const ordered_json object = ordered_json::parse(
      running_->post("/api/chat", constrained)["message"]["content"].get<std::string>());
  EXPECT_THAT(object.dump(), ::testing::AnyOf("{\"a\":1}", "{\"a\":2}"));
  constrained["format"] = "xml";
  EXPECT_THAT(error_of("/api/chat", constrained), HasSubstr("format"));
  body["options"] = {{"num_ctx", 4096}};
  EXPECT_THAT(running_->post("/api/chat", body)["warnings"][0].get<std::string>(),
              ::testing::AllOf(HasSubstr("2048"), HasSubstr("4096")));
  body["options"] = {{"mirostat", 2}};
  EXPECT_THAT(error_of("/api/chat", body), HasSubstr("options.mirostat"));
  body["options"] = {{"temperature", "hot"}};
  EXPECT_THAT(error_of("/api/chat", body), HasSubstr("temperature"));
}

TEST_F(Ollama, KeepsToTheContextThatIsAskedFor) {
  ordered_json body = {{"prompt", "One two three four five six"}, {"raw", true}, {"stream", false}};
  const auto with = [&](const ordered_json& options) {
    body["options"] = {{"temperature", 0}, {"top_k", 1}};
    body["options"].update(options);
    return running_->post("/api/generate", body);
  };
  const int n_prompt = with({{"num_predict", 1}})["prompt_eval_count"];
  const ordered_json limited = with({{"num_ctx", n_prompt + 3}});
  EXPECT_EQ(limited["eval_count"], 3) << limited;
  EXPECT_EQ(limited["done_reason"], "length");
  EXPECT_FALSE(limited.contains("warnings")) << limited;
  EXPECT_EQ(limited["response"], with({{"num_predict", 3}})["response"]) << "nothing is cut";
  const ordered_json both = with({{"num_ctx", n_prompt + 3}, {"num_predict", 9}});
  EXPECT_EQ(both["eval_count"], 3);
  EXPECT_THAT(both["warnings"].dump(),
              ::testing::AllOf(HasSubstr("options.num_ctx"), HasSubstr("3 tokens, not 9")));
  EXPECT_EQ(with({{"num_ctx", n_prompt + 3}, {"num_predict", 2}})["eval_count"], 2);
  body["options"] = {{"num_ctx", n_prompt}};
  EXPECT_THAT(error_of("/api/generate", body),
              ::testing::AllOf(HasSubstr("options.num_ctx"),
                               HasSubstr(fmt::format("at most {} tokens", n_prompt - 1)),
                               HasSubstr(fmt::format("got {}", n_prompt))));
  body["options"] = {{"num_ctx", n_prompt + 1}};
  EXPECT_EQ(running_->post("/api/generate", body)["eval_count"], 1);
}

TEST_F(Ollama, ListsWhatItIgnores) {
  ordered_json body = chat_body("Hi");
  body["think"] = true;
  body["truncate"] = false;  // asks for nothing
  body["no_such_field"] = 1;
  body["options"]["num_thread"] = 8;
  body["options"]["no_such_option"] = 8;
  body["options"]["repeat_last_n"] = 64;
  const ordered_json last = lines("/api/chat", body).back();
  const std::string warnings = last["warnings"].dump();
  EXPECT_EQ(last["warnings"].size(), 5u) << warnings;
  for (const char* name :
       {"think", "no_such_field", "options.num_thread", "options.no_such_option", "repeat_last_n"})
    EXPECT_THAT(warnings, HasSubstr(name));
}

TEST_F(Ollama, RefusesWhatItCannotDo) {
  ordered_json body = chat_body("Hi");
  body["messages"][0]["images"] = {"aGVsbG8="};
  EXPECT_THAT(error_of("/api/chat", body), HasSubstr("messages[0].images"));
  EXPECT_THAT(error_of("/api/generate", {{"prompt", "x"}, {"suffix", "y"}}), HasSubstr("suffix"));
  EXPECT_THAT(error_of("/api/generate", {{"prompt", "x"}, {"template", "{{ .Prompt }}"}}),
              HasSubstr("template"));
  body = chat_body("Hi");
  body["model"] = "llama3";
  EXPECT_THAT(error_of("/api/chat", body, 404), HasSubstr("mini"));
  EXPECT_THAT(error_of("/api/pull", {{"model", "llama3"}}), HasSubstr("does not download"));
  EXPECT_EQ(running_->post("/api/pull", {{"model", "mini"}})["status"], "success");
  EXPECT_THAT(error_of("/api/create", {{"model", "x"}}), HasSubstr("/api/create"));
  EXPECT_THAT(error_of("/api/nothing", {}, 404), HasSubstr("/compat"));
}

TEST_F(Ollama, CallsToolsAndReadsTheirResults) {
  ordered_json body = chat_body("What is the weather in Paris?");
  body["options"] = {{"temperature", 0}, {"num_predict", 100}};
  body["stream"] = false;
  body["tools"] = ordered_json::array({{{"type", "function"},
                                        {"function",
                                         {{"name", "get_weather"},
                                          {"description", "Get the weather of a city"},
                                          {"parameters",
                                           {{"type", "object"},
                                            {"properties", {{"city", {{"type", "string"}}}}},
                                            {"required", ordered_json::array({"city"})}}}}}}});
  const ordered_json first = running_->post("/api/chat", body);
  const ordered_json calls = first["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 1u) << first.dump();
  EXPECT_EQ(calls[0]["function"].dump(), R"({"name":"get_weather","arguments":{"city":"Paris"}})");
  ordered_json streamed = body, joined = ordered_json::array();
  streamed["stream"] = true;
  for (const ordered_json& line : lines("/api/chat", streamed)) {
    for (const ordered_json& call : line["message"].value("tool_calls", ordered_json::array()))
      joined.push_back(call["function"]);
  }
  EXPECT_EQ(joined, ordered_json::array({calls[0]["function"]}));
  body["messages"].push_back(first["message"]);
  body["messages"].push_back({{"role", "tool"},
                              {"tool_name", "get_weather"},
                              {"content", R"({"temperature": 21, "condition": "sunny"})"}});
  EXPECT_THAT(running_->post("/api/chat", body)["message"]["content"].get<std::string>(),
              HasSubstr("21"));
}

TEST_F(Ollama, AResultOfNoCallIsNamed) {
  ordered_json body = chat_body("What is the weather in Paris?");
  const ordered_json call = {
      {"function", {{"name", "get_weather"}, {"arguments", {{"city", "P"}}}}}};
  body["messages"].push_back(
      {{"role", "assistant"}, {"content", ""}, {"tool_calls", ordered_json::array({call})}});
  body["messages"].push_back({{"role", "tool"}, {"tool_name", "get_wether"}, {"content", "21"}});
  int status = 0;
  const ordered_json answer = running_->post("/api/chat", body, &status);
  EXPECT_EQ(status, 400);
  EXPECT_THAT(answer.dump(), HasSubstr("got one of 'get_wether', of which no call waits"));
}

// Ollama's clients make every call that they get, and take its arguments for an object.
TEST_F(Ollama, LeavesOutACallThatWasCut) {
  ordered_json body = chat_body("What is the weather in Paris?");
  body["options"] = {{"temperature", 0}, {"num_predict", 11}};
  body["tools"] = ordered_json::array({{{"type", "function"},
                                        {"function",
                                         {{"name", "get_weather"},
                                          {"description", "Get the weather of a city"},
                                          {"parameters",
                                           {{"type", "object"},
                                            {"properties", {{"city", {{"type", "string"}}}}},
                                            {"required", ordered_json::array({"city"})}}}}}}});
  const std::vector<ordered_json> streamed = lines("/api/chat", body);
  body["stream"] = false;
  const ordered_json whole = running_->post("/api/chat", body);
  for (const ordered_json& line : streamed)
    EXPECT_FALSE(line["message"].contains("tool_calls")) << line;
  EXPECT_FALSE(whole["message"].contains("tool_calls"));
  for (const ordered_json& last : {whole, streamed.back()}) {
    EXPECT_EQ(last["done_reason"], "length");
    EXPECT_THAT(last["warnings"].at(0), HasSubstr("get_weather"));
    EXPECT_THAT(last["warnings"].at(0), HasSubstr("city"));
  }
}

// A format holds every answer, as in Ollama: the model hears of the tools and cannot call them.
TEST_F(Ollama, AFormatGoesBeforeTools) {
  ordered_json body = chat_body("What is the weather in Paris?");
  body["options"] = {{"temperature", 0}, {"num_predict", 100}};
  body["stream"] = false;
  body["tools"] = ordered_json::array(
      {{{"type", "function"},
        {"function", {{"name", "get_weather"}, {"description", "Get the weather of a city"}}}}});
  body["format"] = {{"enum", ordered_json::array({"sun", "rain"})}};
  const ordered_json answer = running_->post("/api/chat", body);
  EXPECT_THAT(answer["message"]["content"].get<std::string>(),
              ::testing::AnyOf("\"sun\"", "\"rain\""))
      << answer.dump();
  EXPECT_FALSE(answer["message"].contains("tool_calls"));
  EXPECT_GT(answer["prompt_eval_count"].get<int>(), 60);
}

TEST_F(Ollama, Embeds) {
  const ordered_json one = running_->post("/api/embed", {{"model", "mini"}, {"input", "Hello"}});
  const ordered_json two =
      running_->post("/api/embed", {{"model", "mini"}, {"input", {"Bye", "Hello"}}});
  ASSERT_EQ(two["embeddings"].size(), 2u);
  EXPECT_EQ(two["embeddings"][1], one["embeddings"][0]);
  EXPECT_EQ(one["prompt_eval_count"], 1);
  EXPECT_EQ(running_->post("/api/embeddings", {{"prompt", "Hello"}})["embedding"],
            one["embeddings"][0]);
}

TEST_F(Ollama, TellsOfItsModels) {
  const ordered_json tag = running_->get("/api/tags")["models"].at(0);
  EXPECT_EQ(tag["name"], "mini");
  EXPECT_EQ(tag["details"]["family"], "qwen2");
  EXPECT_EQ(tag["details"]["parameter_size"], "6.7M");
  EXPECT_EQ(tag["details"]["quantization_level"], "BF16");
  EXPECT_EQ(tag["details"]["format"], "safetensors");
  EXPECT_EQ(tag["digest"].get<std::string>().size(), 64u);
  const ordered_json show = running_->post("/api/show", {{"model", "mini"}});
  EXPECT_EQ(show["details"], tag["details"]);
  EXPECT_EQ(show["model_info"]["qwen2.context_length"], 2048);
  EXPECT_EQ(show["model_info"]["qwen2.block_count"], 6);
  EXPECT_THAT(show["template"].get<std::string>(), HasSubstr("<|im_start|>"));
  EXPECT_THAT(show["parameters"].get<std::string>(),
              HasSubstr("top_k                          20"));
  EXPECT_EQ(running_->get("/api/version")["version"], "test");
}

TEST(OllamaService, KeepsAModelAsLongAsItIsTold) {
  RunningService running;
  const auto loaded = [&] { return running.get("/api/ps")["models"]; };
  ASSERT_EQ(loaded().size(), 1u);
  EXPECT_THAT(loaded()[0]["expires_at"].get<std::string>(), HasSubstr("9999"));
  ordered_json answer =
      running.post("/api/generate", {{"model", "mini"}, {"keep_alive", "10m"}, {"stream", false}});
  EXPECT_EQ(answer["done_reason"], "load");
  EXPECT_THAT(loaded()[0]["expires_at"].get<std::string>(), ::testing::Not(HasSubstr("9999")));
  answer = running.post(
      "/api/chat", {{"model", "mini"}, {"messages", ordered_json::array()}, {"keep_alive", 0}});
  EXPECT_EQ(answer["done_reason"], "unload");
  for (int i = 0; i < 100 && !loaded().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_TRUE(loaded().empty());
  // Loaded again, it stays as the server's options say.
  running.post("/api/generate",
               {{"prompt", "Hi"}, {"stream", false}, {"options", {{"num_predict", 1}}}});
  EXPECT_THAT(loaded().at(0)["expires_at"].get<std::string>(), HasSubstr("9999"));
  int status = 0;
  running.post("/api/generate", {{"prompt", "Hi"}, {"keep_alive", "soon"}}, &status);
  EXPECT_EQ(status, 400);
}

}  // namespace
}  // namespace qw::server
