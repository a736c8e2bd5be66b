// Answers with tool calls, in the form of every format.
#include "engine/grammar/tool_grammar.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "engine/grammar/configurations.h"

namespace qw {
namespace {

using nlohmann::ordered_json;

ToolCallStructure weather() {
  ToolCallStructure out;
  out.functions.push_back(
      {"weather", std::make_shared<const ordered_json>(ordered_json::parse(
                      R"({"properties":{"city":{"type":"string"}},"required":["city"],)"
                      R"("additionalProperties":false})"))});
  out.functions.push_back({"weather_now", nullptr});
  out.functions.push_back({"python", nullptr, ToolCallStructure::Arguments::kCodeBlock});
  out.trigger = "✿F:";
  out.open = "✿F: ";
  out.separator = "\n✿A: ";
  out.next = "\n";
  out.end = "\n✿R";
  out.may_repeat = true;
  return out;
}

TEST(ToolGrammar, TextThenCalls) {
  const auto grammar = tool_grammar(weather());
  for (const char* text :
       {"", "Just text, ✿ and ✿F.", "Let me see. ✿F: weather\n✿A: {\"city\": \"Rome\"}",
        "✿F: weather\n✿A: {\"city\":\"Rome\"}\n✿F: weather_now\n✿A: {\"any\":[1]}\n✿R",
        "✿F: python\n✿A: \n```py\nprint(1)\n\n``\n```\n✿R"})
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text :
       {"✿F: weathers", "✿F:weather", "✿F: weather\n✿A: {}", "✿F: weather\n✿A: {\"town\"",
        "✿F: weather_now\n✿A: {}\n✿Rx", "✿F: weather_now\n✿A: {} and text"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
}

TEST(ToolGrammar, ForcedCalls) {
  ToolCallStructure structure = weather();
  structure.must_call = true;
  EXPECT_FALSE(tool_grammar(structure)->accepts("Just text"));
  EXPECT_TRUE(tool_grammar(structure)->accepts("Text ✿F: weather_now\n✿A: {}"));
  structure.text_first = structure.may_repeat = false;
  structure.lead = ": \n";
  const auto grammar = tool_grammar(structure);
  EXPECT_TRUE(grammar->accepts(": \n✿F: weather_now\n✿A: {}\n✿R"));
  EXPECT_FALSE(grammar->accepts_prefix("Text"));
  EXPECT_FALSE(grammar->accepts_prefix(": \n✿F: weather_now\n✿A: {}\n✿F"));
}

TEST(ToolGrammar, WithoutFunctionsTextThatBeginsNoCall) {
  ToolCallStructure structure = weather();
  structure.functions.clear();
  const auto grammar = tool_grammar(structure);
  for (const char* text : {"", "Just text, ✿ and ✿F.", "✿A: ✿R"})
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text : {"✿F:", "Text ✿F: weather"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
}

TEST(ToolGrammar, AnAnswerInAFormOrCalls) {
  ToolCallStructure structure = weather();
  structure.lead = ": ";
  const auto grammar_of = [](const ToolCallStructure& of) {
    GrammarBuilder builder;
    const grammar::Node answer = builder.regex("[0-9]+ degrees");
    return builder.build(tool_grammar_node(of, {}, nullptr, builder, answer));
  };
  const auto grammar = grammar_of(structure);
  EXPECT_TRUE(grammar->accepts(": 21 degrees"));
  EXPECT_TRUE(grammar->accepts(": ✿F: weather_now\n✿A: {}\n✿F: weather_now\n✿A: {}\n✿R"));
  for (const char* text : {": Text", "21 degrees", ": 21 degrees✿", ": 2✿F: weather_now"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
  structure.must_call = true;
  structure.text_first = false;
  EXPECT_FALSE(grammar_of(structure)->accepts_prefix(": 2"));
}

// A format's marks end the text wherever they stand, so JSON within calls has them as escapes.
TEST(ToolGrammar, MarksWithinArgumentsAreEscaped) {
  ToolCallStructure structure = weather();
  structure.functions[0].parameters = std::make_shared<const ordered_json>(ordered_json::parse(
      R"({"type":"object","properties":{"a":{"enum":["x ✿R y"]},"b":{"type":"string"},
          "c":{"type":"string","pattern":"^.{1,3}$"}},"additionalProperties":false})"));
  const auto grammar = tool_grammar(structure);
  const std::string call = "✿F: weather\n✿A: ";
  EXPECT_TRUE(grammar->accepts(call + R"({"a":"x \u273fR y"})"));
  EXPECT_TRUE(grammar->accepts(call + R"({"b":"\u273f é"})"));
  EXPECT_TRUE(grammar->accepts(call + R"({"c":"\u273f"})"));
  for (const char* text : {R"({"a":"x ✿R y"})", R"({"b":"✿"})", R"({"c":"✿"})"})
    EXPECT_FALSE(grammar->accepts(call + text)) << text;
}

TEST(ToolGrammar, SchemasThatNoGrammarCanSay) {
  ToolCallStructure structure = weather();
  structure.functions[1].parameters =
      std::make_shared<const ordered_json>(ordered_json{{"not", ordered_json::object()}});
  try {
    tool_grammar(structure);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("function weather_now"), std::string::npos) << error.message();
  }
  std::vector<std::string> warnings;
  const auto grammar = tool_grammar(structure, {}, &warnings);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_TRUE(grammar->accepts("✿F: weather_now\n✿A: {\"x\":1}"));
  structure.functions[1].parameters =
      std::make_shared<const ordered_json>(ordered_json{{"type", 3}});
  EXPECT_THROW(tool_grammar(structure, {}, &warnings), Error);
}

TEST(ToolGrammar, EveryFormatsStructure) {
  // What each format says of itself is read back by its own parser.
  for (const std::string_view name : tool_format_names()) {
    ToolCallStructure structure = weather();
    const auto messages = ordered_json::parse(R"([{"role":"user","content":"Weather in Rome?"}])");
    const auto tools = ordered_json::parse(
        R"([{"type":"function","function":{"name":"weather","description":"d","parameters":)"
        R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}])");
    ToolChat chat;
    chat.messages = &messages;
    chat.tools = &tools;
    const ToolFormat& format = tool_format(name);
    const ToolPrompt prompt = format.prompt(chat);
    structure = format.structure(prompt);
    const auto grammar = tool_grammar(structure);
    std::string text = structure.text_first ? "I look. " : structure.lead;
    text += structure.open + "weather" + structure.separator;
    EXPECT_TRUE(grammar->accepts_prefix(text)) << name << ": " << text;
    text += "{\"city\": \"Rome\"}" + structure.close;
    EXPECT_TRUE(grammar->accepts(text)) << name << ": " << text;
    ToolAnswer answer;
    const auto parser = format.parser(prompt);
    answer.add(parser->push(text));
    answer.add(parser->finish());
    ASSERT_EQ(answer.calls.size(), 1u) << name << ": " << text;
    EXPECT_EQ(answer.calls[0].name, "weather");
    EXPECT_TRUE(answer.calls[0].valid);
  }
}

// ---- what a grammar allows, its format's parser reads so

/// How a conversation stands.
struct Situation {
  std::string format;
  bool resumes = false, must_call = false;
};

ToolPrompt prompt_of(const Situation& situation) {
  auto messages = ordered_json::parse(R"([{"role":"user","content":"Weather in Rome?"}])");
  if (situation.resumes) {
    messages.push_back(ordered_json::parse(
        R"({"role":"assistant","content":"","tool_calls":[{"id":"a","function":{"name":"get"}}]})"));
    messages.push_back(ordered_json::parse(R"({"role":"tool","tool_call_id":"a","content":"1"})"));
  }
  const auto tools = ordered_json::parse(
      R"([{"function":{"name":"get"}},{"function":{"name":"get_weather","parameters":
          {"type":"object","properties":{"n":{"type":"integer","minimum":7,"maximum":7}},
           "required":["n"],"additionalProperties":false}}},
          {"function":{"name":"code_interpreter","parameters":
          {"type":"object","properties":{"code":{"type":"string"}},"required":["code"],
           "additionalProperties":false}}}])");
  ToolChat chat;
  chat.messages = &messages;
  chat.tools = &tools;
  if (situation.must_call) chat.choice.mode = ToolChoice::Mode::kRequired;
  return tool_format(situation.format).prompt(chat);
}

/// What a client gets of a generated text, which ends at the first of the format's stop strings.
ToolAnswer answer_of(const Situation& situation, const ToolPrompt& prompt,
                     const std::string& generated) {
  const ToolFormat& format = tool_format(situation.format);
  size_t end = generated.size();
  for (const std::string& stop : format.stop_strings())
    end = std::min(end, generated.find(stop));
  const auto parser = format.parser(prompt);
  ToolAnswer answer;
  answer.add(parser->push(generated.substr(0, end)));
  answer.add(parser->finish());
  return answer;
}

bool fits_schema(const ToolAnswer::Call& call) {
  if (!call.valid) return false;
  const auto arguments = ordered_json::parse(call.arguments);
  if (call.name == "get") return arguments == ordered_json::object();
  if (call.name == "get_weather") return arguments == ordered_json{{"n", 7}};
  return call.name == "code_interpreter" && arguments.size() == 1 &&
         arguments.value("code", ordered_json()).is_string();
}

const std::vector<std::string> kPieces = {"get",        "get_weather", "code_interpreter",
                                          "fly",        "{\"n\": 7}",  "{\"n\":7}",
                                          "{\"n\": 8}", "{}",          "{\"code\": \"1\"}",
                                          "{\"n\": ",   "7}",          "x",
                                          "天",         " ",           "\n",
                                          "\t",         "\n```py\n",   "1",
                                          "\n```"};
const std::vector<std::string> kPiecesOf[] = {
    {"✿FUNCTION✿: ", "\n✿ARGS✿: ", "✿FUNCTION✿:", "✿FUNCTION✿", "✿", "\n✿RESULT✿", "✿RETURN✿", ": ",
     ":"},
    {"\nAction: ", "Action: ", "Action:", "\nAction:", "\nAction Input: ", "Action Input:",
     "\nObservation:", "Observation:", "\nFinal Answer: ", "Final Answer:", "Thought: ",
     "\nThought:"},
    {"<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>", "<tool_call>",
     "</tool_call>", "<"}};

/// A text of pieces that the grammar allows; "": none was found.
std::string random_answer(grammar::Configurations& configs, std::mt19937& random,
                          const std::vector<std::string>& pieces) {
  std::string text;
  grammar::ConfigId at = configs.start();
  const auto after = [&](const std::string& piece) {
    grammar::ConfigId to = at;
    for (const char byte : piece)
      to = configs.step(to, static_cast<uint8_t>(byte));
    return to;
  };
  for (int i = 0; i < 30; ++i) {
    if (configs.accepts(at) && random() % 4 == 0) return text;
    std::string piece;
    for (int tries = 0; tries < 200; ++tries) {
      piece = pieces[random() % pieces.size()];
      if (after(piece) != grammar::kDead) break;
      piece.clear();
    }
    if (piece.empty()) break;
    at = after(piece);
    text += piece;
  }
  return configs.accepts(at) ? text : "";
}

TEST(ToolGrammar, ParsersReadWhatGrammarsAllow) {
  std::mt19937 random(7);
  const std::vector<std::string> formats = {"qwen", "react", "hermes"};
  for (size_t f = 0; f < formats.size(); ++f) {
    std::vector<std::string> pieces = kPieces;
    for (int copies = 0; copies < 2; ++copies)
      pieces.insert(pieces.end(), kPiecesOf[f].begin(), kPiecesOf[f].end());
    for (const bool resumes : {false, true}) {
      for (const bool must_call : {false, true}) {
        const Situation situation = {formats[f], resumes, must_call};
        const ToolPrompt prompt = prompt_of(situation);
        const auto grammar = tool_grammar(tool_format(formats[f]).structure(prompt));
        grammar::Configurations configs(grammar->fsm());
        int n_with_calls = 0, n_texts = 0;
        for (int i = 0; i < 3000; ++i) {
          const std::string text = random_answer(configs, random, pieces);
          if (text.empty()) continue;
          ++n_texts;
          const ToolAnswer answer = answer_of(situation, prompt, text);
          n_with_calls += answer.calls.empty() ? 0 : 1;
          ASSERT_TRUE(!must_call || !answer.calls.empty())
              << formats[f] << " resumes " << resumes << ": " << text;
          for (const ToolAnswer::Call& call : answer.calls) {
            ASSERT_TRUE(fits_schema(call)) << formats[f] << " resumes " << resumes << " must call "
                                           << must_call << ": " << text;
          }
        }
        EXPECT_GT(n_with_calls, 100) << formats[f] << " resumes " << resumes << " must call "
                                     << must_call << " texts " << n_texts;
      }
    }
  }
}

// The answer's beginning is a line's beginning, and behind the final answer's mark all is text.
TEST(ToolGrammar, WhatReactsParserTakesForText) {
  const auto grammar_of = [](bool resumes, bool must_call) {
    return tool_grammar(tool_format("react").structure(prompt_of({"react", resumes, must_call})));
  };
  const std::string call = "Action: get_weather\nAction Input: {\"n\": 7}";
  const auto grammar = grammar_of(false, false);
  const std::vector<std::string> answers = {"Final Answer: x\nAction: fly\nAction Input: {}",
                                            "Thought: I know.\nFinal Answer:\nAction: fly",
                                            "Hi.\nFinal Answer: no " + call,
                                            "It is no Action: fly",
                                            call,
                                            " \n" + call,
                                            "Thought: x\n" + call + "\nObservation:"};
  for (const std::string& text : answers)
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text : {"Action: fly", "\t Action: fly", "x\nAction: fly",
                           "Action: get_weather\nAction Input: {\"n\": 8", "Action:get"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
  // Behind a result the answer goes on in a line.
  EXPECT_TRUE(grammar_of(true, false)->accepts("Action: fly"));
  EXPECT_TRUE(grammar_of(true, true)->accepts("Final Answer: \n" + call));
  for (const bool resumes : {false, true}) {
    for (const char* text : {"\nFinal Answer:", "\nObservation:", "I know.\nFinal Answer:"})
      EXPECT_FALSE(grammar_of(resumes, true)->accepts_prefix(text)) << text;
  }
  EXPECT_FALSE(grammar_of(false, true)->accepts_prefix(" Final Answer:"));
  EXPECT_TRUE(grammar_of(false, true)->accepts("The Final Answer: no.\n" + call));
}

}  // namespace
}  // namespace qw
