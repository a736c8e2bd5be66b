// Where an answer ends: end tokens, stop tokens and stop strings, and what of them is shown.
#include "engine/answer.h"

#include <gtest/gtest.h>

#include "engine/fake_model.h"

namespace qw {
namespace {

struct Ended {
  std::string streamed;
  Completion completion;
};

/// Tokens "a" to "f" (ids 0 to 5) until the answer ends.
Ended answer_of(Request request, const std::string& letters) {
  const auto tokenizer = fake_tokenizer({"a", "b", "c", "d", "e", "f"});
  request.prompt = {0};
  if (!request.config.stop_strings.empty())
    request.stop = std::make_shared<const StopStrings>(request.config.stop_strings);
  Answer answer(0, request, 64, tokenizer);
  Ended out;
  for (const char letter : letters) {
    const Answer::Piece piece = answer.push(letter - 'a', std::nullopt);
    out.streamed += piece.text;
    if (piece.finished) break;
  }
  out.streamed += answer.finish(FinishReason::kLength);
  out.completion = answer.take();
  EXPECT_EQ(out.streamed, out.completion.text);
  return out;
}

TEST(Answer, StopStringsWaitForSoManyTokens) {
  Request request;
  request.config.stop_strings = {"bc"};
  EXPECT_EQ(answer_of(request, "abcabc").completion.text, "a");
  request.stop_after = 2;
  EXPECT_EQ(answer_of(request, "abcabc").completion.text, "a") << "it ends with the third token";
  request.stop_after = 3;
  const Completion second = answer_of(request, "abcabc").completion;
  EXPECT_EQ(second.text, "abca");
  EXPECT_EQ(second.stop_string, "bc");
  request.stop_after = 6;
  const Completion none = answer_of(request, "abcabc").completion;
  EXPECT_EQ(none.text, "abcabc");
  EXPECT_EQ(none.finish_reason, FinishReason::kLength);
}

TEST(Answer, WhatEndsATurnWaitsForNothing) {
  Request request;
  request.config.stop_strings = {"de", "bc"};
  request.n_turn_ends = 1;
  request.stop_after = 20;
  const Completion answer = answer_of(request, "abcadef").completion;
  EXPECT_EQ(answer.text, "abca");
  EXPECT_EQ(answer.stop_string, "de");
}

TEST(Answer, AStopTokenEndsItAndIsNamed) {
  Request request;
  request.config.eos_token_id = {5};
  request.config.stop_token_ids = {2, 5};
  request.config.ignore_eos = true;
  Completion answer = answer_of(request, "abcd").completion;
  EXPECT_EQ(answer.text, "ab");
  EXPECT_EQ(answer.ids.size(), 3u);
  EXPECT_EQ(answer.finish_reason, FinishReason::kEos);
  EXPECT_EQ(answer.stop_token, 2);
  EXPECT_EQ(answer_of(request, "af").completion.stop_token, 5);
  request.config.include_stop_str_in_output = true;
  EXPECT_EQ(answer_of(request, "abcd").completion.text, "abc");
  request.config.ignore_eos = false;
  EXPECT_EQ(answer_of(request, "af").completion.stop_token, std::nullopt) << "the model's own end";
  EXPECT_EQ(answer_of(request, "af").completion.text, "a");
  // Its text may complete a stop string, which then is what ended the answer.
  request.config.stop_strings = {"bc"};
  answer = answer_of(request, "abcd").completion;
  EXPECT_EQ(answer.text, "abc");
  EXPECT_EQ(answer.finish_reason, FinishReason::kStop);
}

}  // namespace
}  // namespace qw
