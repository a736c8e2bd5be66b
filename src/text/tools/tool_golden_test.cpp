// Prompts and answers against the programs that the formats come from (tests/golden/tool_calls).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/tools/tool_format.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;

const std::string kFolder = std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/tool_calls/";

Json conversations() {
  std::ifstream in(kFolder + "conversations.json");
  return Json::parse(in);
}

std::vector<Json> rows_of(const std::string& name) {
  std::ifstream in(kFolder + name);
  std::vector<Json> rows;
  for (std::string line; std::getline(in, line);)
    rows.push_back(Json::parse(line));
  return rows;
}

TEST(ToolGolden, PromptsAreThoseOfTheReferences) {
  const Json all = conversations();
  const std::vector<Json> rows = rows_of("prompts.jsonl");
  ASSERT_GT(rows.size(), 100U);
  for (const Json& row : rows) {
    SCOPED_TRACE(row["id"].get<std::string>());
    ToolChat chat;
    chat.messages = &all["messages"][row["messages"].get<std::string>()];
    chat.tools = &all["tools"][row["tools"].get<std::string>()];
    if (row["tool_choice"] == "none") chat.choice.mode = ToolChoice::Mode::kNone;
    if (row.contains("parallel_tool_calls")) chat.parallel_tool_calls = row["parallel_tool_calls"];
    const ToolPrompt prompt = tool_format(row["format"].get<std::string>()).prompt(chat);
    EXPECT_EQ(prompt.messages->dump(1), row["expected"].dump(1));
    const bool in_turn = row["expected"].back()["role"] == "assistant";
    EXPECT_EQ(prompt.continue_final_message, in_turn);
    EXPECT_EQ(prompt.resumes_after_result, in_turn);
    EXPECT_NE(prompt.add_generation_prompt, in_turn);
  }
}

TEST(ToolGolden, AnswersAreReadAsByTheReferences) {
  const Json all = conversations();
  const Json messages = Json::parse(R"([{"role": "user", "content": "x"}])");
  Json tools = all["tools"]["two"];
  tools.insert(tools.end(), all["tools"]["other"].begin(), all["tools"]["other"].begin() + 2);
  const std::vector<Json> rows = rows_of("answers.jsonl");
  ASSERT_GT(rows.size(), 10U);
  for (const Json& row : rows) {
    const std::string text = row["text"];
    SCOPED_TRACE(text);
    ToolChat chat;
    chat.messages = &messages;
    chat.tools = &tools;
    const ToolFormat& format = tool_format(row["format"].get<std::string>());
    ToolPrompt prompt = format.prompt(chat);
    prompt.resumes_after_result = text.starts_with(':');
    const auto parser = format.parser(prompt);
    ToolAnswer answer;
    answer.add(parser->push(text));
    answer.add(parser->finish());
    std::string content = row["content"];
    content.erase(content.find_last_not_of('\n') + 1);
    if (row["format"] == "react" && answer.text.empty()) answer.text = answer.thought;
    EXPECT_EQ(answer.text, content);
    ASSERT_EQ(answer.calls.size(), row["calls"].size());
    for (size_t i = 0; i < answer.calls.size(); ++i) {
      EXPECT_EQ(answer.calls[i].name, row["calls"][i]["name"]);
      // The reference leaves code as a block, which is no JSON.
      const Json expected = row["calls"][i]["arguments"];
      const bool code = expected == "```py\nprint(1)\n```";
      EXPECT_EQ(answer.calls[i].arguments, code ? R"j({"code": "print(1)"})j" : expected);
      EXPECT_TRUE(answer.calls[i].valid);
    }
  }
}

}  // namespace
}  // namespace qw
