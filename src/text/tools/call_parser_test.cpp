// Calls out of generated text: what is a call, what is text, and that cutting changes nothing.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "base/utf8.h"
#include "text/tools/tool_format.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ToolEvent::Kind;

ToolPrompt prompt_of(std::vector<std::string> names, bool resumes = false) {
  ToolPrompt prompt;
  for (std::string& name : names) {
    prompt.functions.push_back({std::move(name), "", std::make_shared<const Json>(Json::object()),
                                std::make_shared<const Json>(Json::object())});
  }
  prompt.resumes_after_result = resumes;
  return prompt;
}

const std::vector<std::string> kNames = {"get", "get_weather", "calc", "天气"};

struct Outcome {
  ToolAnswer answer;
  std::vector<ToolEvent> events;  // text of a kind joined
  bool done = false;
};

void join(std::vector<ToolEvent>& all, const std::vector<ToolEvent>& more) {
  for (const ToolEvent& event : more) {
    const bool joins = event.kind != Kind::kCallBegin && event.kind != Kind::kCallEnd;
    if (joins && !all.empty() && all.back().kind == event.kind)
      all.back().text += event.text;
    else
      all.push_back(event);
  }
}

Outcome read(const std::string& format, const ToolPrompt& prompt,
             const std::vector<std::string>& pieces, bool truncated = false) {
  const auto parser = tool_format(format).parser(prompt);
  Outcome out;
  for (const std::string& piece : pieces)
    join(out.events, parser->push(piece));
  out.done = parser->done();
  join(out.events, parser->finish(truncated));
  out.answer.add(out.events);
  return out;
}

ToolAnswer read(const std::string& format, const std::string& text, bool resumes = false,
                bool truncated = false) {
  return read(format, prompt_of(kNames, resumes), {text}, truncated).answer;
}

using Calls = std::vector<ToolAnswer::Call>;

ToolAnswer answer_of(std::string text, Calls calls = {}, std::string thought = "") {
  ToolAnswer answer;
  answer.text = std::move(text);
  answer.calls = std::move(calls);
  answer.thought = std::move(thought);
  return answer;
}

}  // namespace

void PrintTo(const ToolAnswer& answer, std::ostream* stream) {
  std::ostream& out = *stream;
  out << "text '" << answer.text << "' thought '" << answer.thought << "'";
  for (const auto& call : answer.calls)
    out << " call '" << call.name << "' '" << call.arguments << "' " << call.valid;
}

namespace {

const std::string kCall = "✿FUNCTION✿: get_weather\n✿ARGS✿: {\"city\": \"Oslo\"}";

TEST(QwenParser, CallsAndText) {
  EXPECT_EQ(read("qwen", "Hi."), answer_of("Hi."));
  EXPECT_EQ(read("qwen", ""), answer_of(""));
  EXPECT_EQ(read("qwen", kCall), answer_of("", {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
  EXPECT_EQ(read("qwen", "A b.\n\n" + kCall + "\n"),
            answer_of("A b.", {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
  EXPECT_EQ(read("qwen", kCall + "\n" + kCall),
            answer_of("", {{"get_weather", "{\"city\": \"Oslo\"}", true},
                           {"get_weather", "{\"city\": \"Oslo\"}", true}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: 天气\n✿ARGS✿: {\"城\": \"海\"}"),
            answer_of("", {{"天气", "{\"城\": \"海\"}", true}}));
  EXPECT_EQ(read("qwen", kCall + " and more\n"),
            answer_of("and more\n", {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
}

TEST(QwenParser, TheColonAfterAResultIsNoText) {
  EXPECT_EQ(read("qwen", ": Fine.", true), answer_of("Fine."));
  EXPECT_EQ(read("qwen", ":Fine.", true), answer_of("Fine."));
  EXPECT_EQ(read("qwen", "Fine: x", true), answer_of("Fine: x"));
  EXPECT_EQ(read("qwen", ": Fine.", false), answer_of(": Fine."));
  EXPECT_EQ(read("qwen", ": \n" + kCall, true),
            answer_of("", {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
}

TEST(QwenParser, WhatIsNotWellFormedIsNotLost) {
  // Of no tool.
  const std::string unknown = " x\n✿FUNCTION✿: get_news\n✿ARGS✿: {\"a\": 1}\n";
  EXPECT_EQ(read("qwen", unknown), answer_of(unknown));
  EXPECT_EQ(read("qwen", unknown + kCall),
            answer_of(" x\n✿FUNCTION✿: get_news\n✿ARGS✿: {\"a\": 1}",
                      {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get me one\n"), answer_of("✿FUNCTION✿: get me one\n"));
  // Without colon, or half a marker.
  EXPECT_EQ(read("qwen", "✿FUNCTION✿ get\n ✿ FUNC ✿FUNCT"),
            answer_of("✿FUNCTION✿ get\n ✿ FUNC ✿FUNCT"));
  EXPECT_EQ(read("qwen", "✿ARGS✿: {}"), answer_of("✿ARGS✿: {}"));
  // Without arguments.
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n"), answer_of("", {{"get", "{}", true}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: \n"), answer_of("", {{"get", "{}", true}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n" + kCall),
            answer_of("", {{"get", "{}", true}, {"get_weather", "{\"city\": \"Oslo\"}", true}}));
  // No JSON.
  EXPECT_EQ(
      read("qwen", "✿FUNCTION✿: get\n✿ARGS✿:  Oslo, now \n" + kCall),
      answer_of("", {{"get", "Oslo, now", false}, {"get_weather", "{\"city\": \"Oslo\"}", true}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: {\"a\": 1]} x"),
            answer_of("", {{"get", "{\"a\": 1]} x", false}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: {'a': 1}"),
            answer_of("", {{"get", "{'a': 1}", false}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: [1]"), answer_of("", {{"get", "[1]", false}}));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: {\"a\": "),
            answer_of("", {{"get", "{\"a\": ", false}}));
}

TEST(QwenParser, ACutAnswerMakesNoCallWithoutArguments) {
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get", false, true), answer_of("✿FUNCTION✿: get"));
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: {\"a", false, true),
            answer_of("", {{"get", "{\"a", false}}));
}

TEST(QwenParser, MarkersInStringsAreTheStrings) {
  const std::string arguments =
      R"({"t": "✿FUNCTION✿: calc\n✿ARGS✿: {} ✿RESULT✿ \" ✿RETURN✿", "u": ["}"]})";
  const Outcome out = read("qwen", prompt_of(kNames), {"✿FUNCTION✿: get\n✿ARGS✿: " + arguments});
  EXPECT_EQ(out.answer, answer_of("", {{"get", arguments, true}}));
  EXPECT_FALSE(out.done);
  // A line break in a string is no JSON, but does not end the string either.
  EXPECT_EQ(read("qwen", "✿FUNCTION✿: get\n✿ARGS✿: {\"t\": \"a\n✿FUNCTION✿: calc\"}"),
            answer_of("", {{"get", "{\"t\": \"a\n✿FUNCTION✿: calc\"}", false}}));
}

TEST(QwenParser, EndsWhereAResultBegins) {
  for (const char* marker : {"\n✿RESULT✿", "\n✿RETURN✿"}) {
    const Outcome call = read("qwen", prompt_of(kNames), {kCall + marker, ": invented"});
    EXPECT_EQ(call.answer, answer_of("", {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
    EXPECT_TRUE(call.done);
    const Outcome text = read("qwen", prompt_of(kNames), {std::string("Hi") + marker + ": x"});
    EXPECT_EQ(text.answer, answer_of("Hi\n"));
    EXPECT_TRUE(text.done);
  }
}

TEST(QwenParser, OneCallWhereOneIsAllowed) {
  ToolPrompt prompt = prompt_of(kNames);
  prompt.may_repeat = false;
  const Outcome out = read("qwen", prompt, {kCall + "\n" + kCall});
  EXPECT_EQ(out.answer, answer_of("", {{"get_weather", "{\"city\": \"Oslo\"}", true}}));
  EXPECT_TRUE(out.done);
}

TEST(QwenParser, WithoutToolsEverythingIsText) {
  for (const char* format : {"qwen", "react", "hermes"}) {
    const std::string text = "Thought: x\nAction: get\nFinal Answer: y " + kCall +
                             "\n✿RESULT✿ <tool_call>{}</tool_call>\nObservation: z\n";
    EXPECT_EQ(read(format, prompt_of({}), {text}).answer, answer_of(text));
  }
}

TEST(QwenParser, ShowsArgumentsAsTheyCome) {
  const auto parser = tool_format("qwen").parser(prompt_of(kNames));
  EXPECT_TRUE(parser->push("✿FUNCTION✿: get").empty());  // may become get_weather
  EXPECT_TRUE(parser->push("\n✿ARGS✿").empty());
  EXPECT_EQ(parser->push(":"), (std::vector<ToolEvent>{{Kind::kCallBegin, 0, "get", false}}));
  EXPECT_EQ(parser->push(" {\"a"), (std::vector<ToolEvent>{{Kind::kArguments, 0, "{\"a", false}}));
  EXPECT_EQ(parser->push("\": 1}"), (std::vector<ToolEvent>{{Kind::kArguments, 0, "\": 1}", false},
                                                            {Kind::kCallEnd, 0, "", true}}));
  EXPECT_TRUE(parser->push("\n").empty());
  EXPECT_TRUE(parser->finish().empty());
}

TEST(QwenParser, ShowsTextAsSoonAsItCannotBeAMarker) {
  const auto parser = tool_format("qwen").parser(prompt_of(kNames));
  EXPECT_EQ(parser->push("Hi \n"), (std::vector<ToolEvent>{{Kind::kText, 0, "Hi", false}}));
  EXPECT_TRUE(parser->push("✿FUNCTION✿").empty());
  EXPECT_EQ(parser->push("!"), (std::vector<ToolEvent>{{Kind::kText, 0, " \n✿FUNCTION✿!", false}}));
  EXPECT_TRUE(parser->push("✿FUNCTION✿: ").empty());
  EXPECT_EQ(parser->push("go"),
            (std::vector<ToolEvent>{{Kind::kText, 0, "✿FUNCTION✿: go", false}}));
}

TEST(QwenParser, InventsNoArgumentsForACallThatWasCut) {
  const std::string begun = "✿FUNCTION✿: get\n✿ARGS✿:";
  EXPECT_EQ(read("qwen", begun, false, true), answer_of("", {{"get", "", false}}));
  EXPECT_EQ(read("qwen", begun + " {\"a", false, true), answer_of("", {{"get", "{\"a", false}}));
  EXPECT_EQ(read("qwen", begun + " {}", false, true), answer_of("", {{"get", "{}", true}}));
  EXPECT_EQ(read("qwen", begun + "\n✿RESULT✿", false, true), answer_of("", {{"get", "{}", true}}));
  EXPECT_EQ(read("qwen", begun), answer_of("", {{"get", "{}", true}}));
}

TEST(QwenParser, CodeIsAnObjectToClients) {
  const auto code = [](const std::string& text) {
    return read("qwen", prompt_of({"code_interpreter", "get"}),
                {"✿FUNCTION✿: code_interpreter\n✿ARGS✿: \n" + text})
        .answer;
  };
  const auto answer = [](const std::string& arguments, bool valid) {
    return answer_of("", {{"code_interpreter", arguments, valid}});
  };
  EXPECT_EQ(code("```py\nprint(\"1\")\n\n```\n"), answer(R"({"code": "print(\"1\")\n"})", true));
  EXPECT_EQ(code("```\n```"), answer(R"({"code": ""})", true));
  EXPECT_EQ(code("```py\nx = '✿FUNCTION✿: get\\n✿ARGS✿: {}'\n```\n✿RESULT✿"),
            answer(R"({"code": "x = '✿FUNCTION✿: get\\n✿ARGS✿: {}'"})", true));
  EXPECT_EQ(code(R"({"code": "1"})"), answer(R"({"code": "1"})", true));
  EXPECT_EQ(code("```py\nprint(1)"), answer("```py\nprint(1)", false));
  EXPECT_EQ(code("print(1)\n"), answer("print(1)", false));
  EXPECT_EQ(code(""), answer("{}", true));
  EXPECT_EQ(code("```py\n1\n```\n✿ARGS✿: ```py\n2\n```"),
            answer_of("", {{"code_interpreter", R"({"code": "1"})", true},
                           {"code_interpreter", R"({"code": "2"})", true}}));
}

const std::string kHermes =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

TEST(HermesParser, CallsAndText) {
  const ToolAnswer::Call call = {"get_weather", "{\"city\": \"Oslo\"}", true};
  EXPECT_EQ(read("hermes", "a < b"), answer_of("a < b"));
  EXPECT_EQ(read("hermes", kHermes), answer_of("", {call}));
  EXPECT_EQ(read("hermes", "Hi.\n" + kHermes + "\n" + kHermes + "\n"),
            answer_of("Hi.", {call, call}));
  EXPECT_EQ(read("hermes", kHermes + "\nDone."), answer_of("Done.", {call}));
  // Other orders and forms of the same.
  EXPECT_EQ(read("hermes",
                 "<tool_call>{ \"arguments\" : {\"city\": \"Oslo\"},\"name\":\"get_weather\"}"
                 "</tool_call>"),
            answer_of("", {call}));
  EXPECT_EQ(read("hermes",
                 "<tool_call>{\"name\": \"get_weather\", \"arguments\": "
                 "\"{\\\"city\\\": \\\"Oslo\\\"}\"}</tool_call>"),
            answer_of("", {call}));
  EXPECT_EQ(read("hermes", "<tool_call>{\"name\": \"get\"}</tool_call>"),
            answer_of("", {{"get", "{}", true}}));
  EXPECT_EQ(read("hermes", "<tool_call>{\"name\": \"get\"}</tool_call>" + kHermes + "x"),
            answer_of("x", {{"get", "{}", true}, call}));
  EXPECT_EQ(read("hermes",
                 "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": "
                 "\"Oslo\"}}"),
            answer_of("", {call}));
}

TEST(HermesParser, WhatIsNotWellFormedIsNotLost) {
  for (const std::string text :
       {"<tool_call>\n{\"name\": \"news\", \"arguments\": {}}\n</tool_call>",
        "x\n<tool_call>\nget the weather\n</tool_call>", "<tool_call>",
        "<tool_call>\n{\"name\": ", "<tool_call>\n{\"nome\": 1}\n</tool_call>", "</tool_call>",
        "<tool_call", "<tool_call>\n{\"name\": \"get\", \"arguments\": "}) {
    EXPECT_EQ(read("hermes", text), answer_of(text));
  }
  EXPECT_EQ(read("hermes", "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1, \"b"),
            answer_of("", {{"get", "{\"a\": 1, \"b", false}}));
  EXPECT_EQ(
      read("hermes", "<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": x] \n</tool_call>Hi"),
      answer_of("Hi", {{"get", "{\"a\": x]", false}}));
  const std::string tag = R"({"t": "</tool_call><tool_call>"})";
  EXPECT_EQ(
      read("hermes", "<tool_call>{\"name\": \"get\", \"arguments\": " + tag + "}</tool_call>"),
      answer_of("", {{"get", tag, true}}));
}

TEST(ReactParser, ThoughtsCallsAndAnswers) {
  const ToolAnswer::Call call = {"get_weather", "{\"city\": \"Oslo\"}", true};
  const std::string step =
      "Thought: I should look.\nAction: get_weather\nAction Input: {\"city\": \"Oslo\"}\n";
  EXPECT_EQ(read("react", step), answer_of("", {call}, "I should look."));
  EXPECT_EQ(read("react", step + "Observation: warm\nThought: x"),
            answer_of("", {call}, "I should look."));
  EXPECT_EQ(read("react", step.substr(8), true), answer_of("", {call}, "I should look."));
  EXPECT_EQ(read("react", "Action: get\nAction Input: now\nObservation:"),
            answer_of("", {{"get", "now", false}}));
  EXPECT_EQ(read("react", "Action: get\n"), answer_of("", {{"get", "{}", true}}));
  EXPECT_EQ(read("react", "Thought: I now know\nFinal Answer: Warm.\nAction: none"),
            answer_of("Warm.\nAction: none", {}, "I now know"));
  EXPECT_EQ(read("react", " I now know\nFinal Answer: Warm.", true),
            answer_of("Warm.", {}, "I now know"));
  EXPECT_EQ(read("react", "It is warm.\nFinal Answer: Warm.\nAction: get"),
            answer_of("It is warm.\nFinal Answer: Warm.\nAction: get"));
  EXPECT_EQ(read("react", "Thoughts are free. Action: get"),
            answer_of("Thoughts are free. Action: get"));
  EXPECT_EQ(read("react", "Thought: x\nAction: fly\nAction Input: {}"),
            answer_of("\nAction: fly\nAction Input: {}", {}, "x"));
  const Outcome out = read("react", prompt_of(kNames), {step});
  EXPECT_TRUE(out.done);
}

/// Texts made of the pieces that matter, in any order.
std::string random_text(std::mt19937& random, const std::vector<std::string>& pieces) {
  std::string text;
  const size_t n = random() % 14;
  for (size_t i = 0; i < n; ++i)
    text += pieces[random() % pieces.size()];
  return text;
}

std::vector<std::string> cut(std::mt19937& random, const std::string& text) {
  std::vector<std::string> pieces(1);
  for (size_t i = 0; i < text.size();) {
    const size_t length = decode_utf8(std::string_view(text).substr(i)).length;
    pieces.back() += text.substr(i, length);
    i += length;
    while (random() % 3 == 0)  // empty pieces, too
      pieces.emplace_back();
  }
  return pieces;
}

std::string without_space(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(" \t\r\n").find(c) == std::string_view::npos) out += c;
  }
  return out;
}

TEST(CallParser, CuttingChangesNothingAndNothingIsLost) {
  const std::vector<std::string> words = {"✿FUNCTION✿: ",
                                          "✿FUNCTION✿",
                                          "✿ARGS✿: ",
                                          "✿RESULT✿",
                                          "✿RETURN✿: ",
                                          "✿",
                                          "get",
                                          "get_weather",
                                          "calc",
                                          "天气",
                                          "海",
                                          "\n",
                                          " ",
                                          ": ",
                                          "{\"a\": 1}",
                                          "{",
                                          "}",
                                          "\"",
                                          "\\",
                                          "[1, ",
                                          "]",
                                          "x",
                                          "Thought: ",
                                          "\nAction: ",
                                          "Action Input: ",
                                          "\nObservation:",
                                          "\nFinal Answer: ",
                                          "<tool_call>",
                                          "</tool_call>",
                                          "<",
                                          "{\"name\": \"get\", \"arguments\": ",
                                          "{\"arguments\": {}, \"name\": \"calc\"}",
                                          ",",
                                          "```py\n",
                                          "\n```",
                                          "`",
                                          kCall,
                                          kHermes,
                                          "\nAction: get\nAction Input: {\"b\": \"c\"}\n"};
  std::mt19937 random(7);
  size_t n_calls = 0;
  for (int i = 0; i < 15000; ++i) {
    const std::string format = std::vector<std::string>{"qwen", "react", "hermes"}[random() % 3];
    ToolPrompt prompt = prompt_of(kNames, random() % 2 == 0);
    prompt.may_repeat = random() % 4 != 0;
    const std::string text = random_text(random, words);
    const bool truncated = random() % 2 == 0;
    const Outcome whole = read(format, prompt, {text}, truncated);
    const Outcome pieces = read(format, prompt, cut(random, text), truncated);
    ASSERT_EQ(whole.events.size(), pieces.events.size()) << format << ": " << text;
    for (size_t k = 0; k < whole.events.size(); ++k)
      ASSERT_EQ(whole.events[k], pieces.events[k]) << format << ": " << text;
    ASSERT_EQ(whole.done, pieces.done) << format << ": " << text;
    n_calls += whole.answer.calls.size();
    // Every byte of text and arguments stands in what was generated, in this order; what lies
    // between is markers, names and white space.
    std::string flat = without_space(text);
    size_t at = 0;
    for (const ToolEvent& event : whole.events) {
      const std::string part = without_space(event.text);
      if (event.kind == Kind::kCallBegin) continue;                   // more arguments repeat it
      if (event.kind == Kind::kArguments && part == "{}") continue;   // there were none
      if (format == "hermes" && event.kind != Kind::kText) continue;  // may be rewritten
      const size_t found = flat.find(part, at);
      ASSERT_NE(found, std::string::npos) << format << ": " << text << "\nlost: " << part;
      at = found + part.size();
    }
    // What has no call at all, and does not end early, is all there.
    if (format == "qwen" && whole.answer.calls.empty() && !whole.done &&
        !prompt.resumes_after_result) {
      ASSERT_EQ(whole.answer.text, text);
    }
  }
  EXPECT_GT(n_calls, 1500U);
}

}  // namespace
}  // namespace qw
