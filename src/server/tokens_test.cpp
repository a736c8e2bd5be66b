// /tokenize, /detokenize and /apply-template as each system's clients use them.
#include "server/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;

TEST(Tokens, UnderstandsEverySystemsForm) {
  RunningService running;
  const ordered_json vllm = running.post("/tokenize", {{"prompt", "Hello 千问"}});
  EXPECT_EQ(vllm.dump(), R"({"count":4,"max_model_len":2048,"tokens":[2789,220,2651,940]})");
  const ordered_json sglang = running.post("/tokenize", {{"prompt", {"Hello 千问", "Hello"}}});
  EXPECT_EQ(sglang["tokens"].dump(), "[[2789,220,2651,940],[2789]]");
  EXPECT_EQ(sglang["count"].dump(), "[4,1]");
  const ordered_json llama = running.post("/tokenize", {{"content", "Hello 千问"}});
  EXPECT_EQ(llama.dump(), R"({"tokens":[2789,220,2651,940]})");
  const ordered_json pieces =
      running.post("/tokenize", {{"content", "a\xC3\xBF"}, {"with_pieces", true}});
  EXPECT_EQ(pieces["tokens"][0]["piece"], "a");
  EXPECT_EQ(running.post("/tokenize", {{"content", "<|im_end|>"}})["tokens"].dump(), "[6002]");
  EXPECT_GT(
      running.post("/tokenize", {{"content", "<|im_end|>"}, {"parse_special", false}})["tokens"]
          .size(),
      1u);
  EXPECT_EQ(running.post("/detokenize", {{"tokens", llama["tokens"]}}).dump(),
            R"({"prompt":"Hello 千问","content":"Hello 千问","text":"Hello 千问"})");
  const ordered_json messages = {{{"role", "user"}, {"content", "Hi"}}};
  const ordered_json prompt = running.post("/apply-template", {{"messages", messages}});
  EXPECT_EQ(prompt["prompt"],
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
            "Hi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(running.post("/tokenize", {{"content", prompt["prompt"]}})["tokens"],
            running.post("/tokenize", {{"messages", messages}})["tokens"]);
  int status = 0;
  const ordered_json error =
      running.post("/tokenize", {{"content", "a"}, {"prompt", "b"}}, &status);
  EXPECT_EQ(status, 400);
  EXPECT_EQ(error["error"]["type"], "invalid_request_error");
  EXPECT_EQ(error["error"]["code"], 400);
}

TEST(Tokens, ShowWhatAModelHearsOfTools) {
  RunningService running;
  const ordered_json body = {
      {"messages", {{{"role", "user"}, {"content", "Hi"}}}},
      {"tools", {{{"type", "function"}, {"function", {{"name", "get_weather"}}}}}}};
  const std::string prompt = running.post("/apply-template", body)["prompt"];
  EXPECT_THAT(prompt, ::testing::HasSubstr("### get_weather"));
  const ordered_json tokens = running.post("/tokenize", body)["tokens"];
  EXPECT_EQ(running.post("/tokenize", {{"content", prompt}})["tokens"], tokens);
  ordered_json chat = body;
  chat["max_tokens"] = 1;
  EXPECT_EQ(running.post("/v1/chat/completions", chat)["usage"]["prompt_tokens"], tokens.size());
  ordered_json wrong = body;
  wrong["tools"][0]["function"].erase("name");
  int status = 0;
  EXPECT_EQ(running.post("/apply-template", wrong, &status)["error"]["param"],
            "tools[0].function.name");
  EXPECT_EQ(status, 400);
}

TEST(Tokens, NameFieldsWithoutEffect) {
  RunningService running;
  const auto warnings = [&](const std::string& path, const ordered_json& body) {
    const ordered_json answer = running.post(path, body);
    return answer.contains("warnings") ? answer["warnings"].dump() : "";
  };
  const ordered_json messages = {{{"role", "user"}, {"content", "Hi"}}};
  const ordered_json variables = {{"mood", "bright"}, {"nothing", nullptr}};
  for (const char* path : {"/apply-template", "/tokenize"}) {
    EXPECT_EQ(
        warnings(path, {{"messages", messages}, {"chat_template_kwargs", variables}}),
        R"x(["chat_template_kwargs.mood: no effect (the model's template does not read mood)"])x")
        << path;
  }
  const ordered_json tool = {{"type", "function"}, {"function", {{"name", "f"}}}};
  EXPECT_EQ(warnings("/tokenize", {{"prompt", "a"},
                                   {"chat_template_kwargs", variables},
                                   {"tools", {tool}},
                                   {"continue_final_message", true},
                                   {"add_generation_prompt", false},
                                   {"with_pieces", true}}),
            R"x(["chat_template_kwargs: no effect (there are no messages)",)x"
            R"x("tools: no effect (there are no messages)",)x"
            R"x("continue_final_message: no effect (there are no messages)",)x"
            R"x("add_generation_prompt: no effect (there are no messages)",)x"
            R"x("with_pieces: no effect (there is no content)"])x");
  EXPECT_EQ(warnings("/tokenize", {{"content", "a"}, {"return_token_strs", true}}),
            R"x(["return_token_strs: no effect (content has with_pieces)"])x");
  EXPECT_EQ(warnings("/tokenize", {{"messages", messages}, {"parse_special", false}}),
            R"x(["parse_special: no effect (messages are rendered, not text)"])x");
  // What asks for nothing.
  EXPECT_EQ(warnings("/tokenize", {{"prompt", "a"},
                                   {"chat_template_kwargs", ordered_json::object()},
                                   {"tools", ordered_json::array()},
                                   {"with_pieces", false}}),
            "");
}

TEST(Tokens, UnknownIdsAreNoText) {
  RunningService running;
  const std::string range = "0 to 6002";
  for (const int64_t id : {int64_t{6003}, int64_t{2147483647}, int64_t{1} << 40, int64_t{-1}}) {
    int status = 0;
    const ordered_json answer = running.post("/detokenize", {{"tokens", {1, id}}}, &status);
    EXPECT_EQ(status, 400) << answer;
    EXPECT_EQ(answer["error"]["param"], "tokens");
    if (id == 6003) {
      EXPECT_THAT(answer["error"]["message"], ::testing::HasSubstr(range));
    }
  }
  int status = 0;
  running.post("/detokenize", {{"tokens", {6002}}}, &status);
  EXPECT_EQ(status, 200);
}

}  // namespace
}  // namespace qw::server
