// Tests of the public API on the bundled model.
#include <gtest/gtest.h>

#include <cmath>

#include "qianwen/qianwen.h"

namespace qw {
namespace {

LanguageModel bundled() {
  return LanguageModel::load(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat");
}

GenerateSettings greedy() {
  GenerateSettings settings;
  settings.do_sample = false;
  settings.max_new_tokens = 64;
  return settings;
}

TEST(LanguageModel, AnswersAndStreamsTheSameText) {
  auto model = bundled();
  std::string streamed;
  const Generation answer = model.chat({{"user", "What is the capital of Japan?"}}, greedy(),
                                       [&](std::string_view piece) {
                                         streamed += piece;
                                         return true;
                                       });
  EXPECT_EQ(answer.text, "The capital of Japan is Tokyo.");
  EXPECT_EQ(streamed, answer.text);
  EXPECT_EQ(answer.finish_reason, "stop");
}

TEST(LanguageModel, GuessingAheadChangesNoToken) {
  auto model = bundled();
  GenerateSettings settings = greedy();
  settings.ignore_eos = true;
  const auto plain = model.complete("one two one two one two", settings);
  settings.prompt_lookup_num_tokens = 8;
  EXPECT_EQ(model.complete("one two one two one two", settings).ids, plain.ids);
  settings.prompt_lookup_num_tokens = -1;
  EXPECT_THROW(model.complete("one two", settings), Error);
}

TEST(LanguageModel, ADraftModelChangesNoToken) {
  LoadSettings with_draft;
  with_draft.draft_model = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  auto model = bundled();
  auto fast = LanguageModel::load(with_draft.draft_model, with_draft);
  GenerateSettings settings = greedy();
  settings.ignore_eos = true;
  const auto plain = model.complete("The capital of", settings);
  for (const int64_t n : {0, 3}) {
    settings.num_assistant_tokens = n;
    EXPECT_EQ(fast.complete("The capital of", settings).ids, plain.ids);
  }
  settings.num_assistant_tokens = -1;
  EXPECT_THROW(fast.complete("The capital of", settings), Error);
  with_draft.draft_model = "/nowhere";
  EXPECT_THROW(LanguageModel::load(with_draft.draft_model, with_draft), Error);
}

TEST(LanguageModel, CancelsWhenTheCallbackSaysSo) {
  auto model = bundled();
  int pieces = 0;
  const Generation answer = model.chat({{"user", "What is 347 + 285?"}}, greedy(),
                                       [&](std::string_view) { return ++pieces < 3; });
  EXPECT_EQ(answer.finish_reason, "cancelled");
  EXPECT_LE(answer.ids.size(), 5u);
}

TEST(LanguageModel, PassesOnWhatTheCallbackThrows) {
  struct Mine {};
  auto model = bundled();
  int pieces = 0;
  const auto thrower = [&](std::string_view) -> bool {
    ++pieces;
    throw Mine{};
  };
  EXPECT_THROW(model.chat({{"user", "What is 347 + 285?"}}, greedy(), thrower), Mine);
  EXPECT_EQ(pieces, 1) << "and is not called again";
  EXPECT_EQ(model.chat({{"user", "What is the capital of Japan?"}}, greedy()).text,
            "The capital of Japan is Tokyo.");
}

template <typename Call>
ErrorKind kind_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.kind();
  }
  ADD_FAILURE() << "was accepted";
  return ErrorKind::kInternal;
}

TEST(LanguageModel, RefusesWhatItCouldOnlyIgnore) {
  auto model = bundled();
  GenerateSettings several = greedy();
  several.do_sample = true;
  several.num_return_sequences = 2;
  EXPECT_EQ(kind_of([&] {
              model.chat({{"user", "Hello!"}}, several);
            }),
            ErrorKind::kInvalidArgument);
  EXPECT_EQ(kind_of([&] { model.complete("Hello", several); }), ErrorKind::kInvalidArgument);
  EXPECT_EQ(model.generate(model.tokenize("Hello"), several).size(), 2u);
  for (const int threads : {-1, 1025, 1 << 30}) {
    LoadSettings settings;
    settings.threads = threads;
    EXPECT_EQ(kind_of([&] { LanguageModel::load("/no/such/model", settings); }),
              ErrorKind::kInvalidArgument);
  }
}

TEST(LanguageModel, TokenizesBothWays) {
  const auto model = bundled();
  const std::string text = "Hello <|im_end|> 千问";
  const auto plain = model.tokenize(text);
  const auto special = model.tokenize(text, true);
  EXPECT_EQ(model.detokenize(plain), text);
  EXPECT_EQ(model.detokenize(special), text);
  EXPECT_GT(plain.size(), special.size());
  EXPECT_EQ(model.detokenize(special, true), "Hello  千问");
  EXPECT_THROW(model.detokenize({1 << 30}), Error);
  EXPECT_THROW(model.tokenize("\xFF"), Error);
}

TEST(LanguageModel, RendersTheTemplate) {
  const auto model = bundled();
  EXPECT_EQ(
      model.render({{"user", "Hi"}}),
      "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
      "<|im_start|>assistant\n");
}

TEST(LanguageModel, ScoresWhatItGenerates) {
  auto model = bundled();
  const auto prompt =
      model.tokenize("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n", true);
  GenerateSettings settings = greedy();
  settings.logprobs = 2;
  settings.repetition_penalty = 1.0;
  const Generation answer = model.generate(prompt, settings).at(0);
  ASSERT_EQ(answer.logprobs.size(), answer.ids.size());
  ASSERT_EQ(answer.top_logprobs.at(0).size(), 2u);
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), answer.ids.begin(), answer.ids.end());
  const auto scores = model.score(all);
  ASSERT_EQ(scores.size(), all.size() - 1);
  for (size_t i = 0; i < answer.ids.size(); ++i) {
    EXPECT_NEAR(scores[prompt.size() - 1 + i], answer.logprobs[i].logprob, 1e-5) << i;
  }
}

TEST(LanguageModel, ReportsErrorsByKind) {
  try {
    LanguageModel::load("/no/such/model");
    FAIL() << "loaded nothing";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
  }
  LoadSettings settings;
  settings.activations = "int3";
  EXPECT_THROW(
      LanguageModel::load(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat", settings),
      Error);
}

}  // namespace
}  // namespace qw
