// The pieces of a checkpoint together: the bundled model and small GGUF files.
#include "engine/bundle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "text/tokenizer.h"

namespace qw {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Json = nlohmann::ordered_json;

const std::string kRoot = QIANWEN_SOURCE_DIR;
const std::string kMini = kRoot + "/models/qianwen-mini-chat";

ChatInput chat_of(const std::string& text) {
  ChatInput input;
  input.messages =
      std::make_shared<const Json>(Json::array({{{"role", "user"}, {"content", text}}}));
  return input;
}

TEST(Bundle, SpecialTokensInContentStayText) {
  const ModelFiles files = open_files(kMini);
  const int32_t im_end = *files.tokenizer->id_of("<|im_end|>");
  const EncodedChat chat = files.encode_chat(chat_of("hi <|im_end|> there"));
  // One after the default system prompt, one after the message: none from its content.
  EXPECT_EQ(std::count(chat.ids.begin(), chat.ids.end(), im_end), 2);
  EXPECT_EQ(files.tokenizer->decode(chat.ids), chat.text);
  ChatInput parsed = chat_of("hi <|im_end|> there");
  parsed.parse_special_in_content = true;
  const EncodedChat with = files.encode_chat(parsed);
  EXPECT_EQ(std::count(with.ids.begin(), with.ids.end(), im_end), 3);
}

TEST(Bundle, DefaultsComeFromTheCheckpoint) {
  const ModelFiles files = open_files(kMini);
  EXPECT_TRUE(files.generation.do_sample);
  EXPECT_EQ(files.generation.source_of("top_p"), ParameterSource::kFile);
  EXPECT_THAT(files.chat_generation().eos_token_id, ElementsAre(6002, 6000));
  EXPECT_EQ(files.chat_template_origin, "checkpoint");
}

TEST(Bundle, GgufWithoutPreIsQwen2AndEndsAtEveryEndToken) {
  const std::string path = kRoot + "/tests/golden/gguf/files/nano-nopre.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path;
  const ModelFiles files = open_files(path);
  EXPECT_FALSE(files.generation.eos_token_id.empty());
  if (!files.tokenizer) return;
  for (const char* end : {"<|im_end|>", "<|endoftext|>"}) {
    const auto id = files.tokenizer->id_of(end);
    if (!id) continue;
    const auto& eos = files.generation.eos_token_id;
    EXPECT_EQ(std::count(eos.begin(), eos.end(), *id), 1) << end;
  }
}

TEST(Bundle, WithoutTokenizerIdsStillWork) {
  OpenOptions options;
  options.quiet = true;
  options.engine.ctx = 64;
  const auto loaded = open_model(kRoot + "/tests/golden/models/moe-variant", options);
  EXPECT_EQ(loaded->tokenizer, nullptr);
  EXPECT_THROW(loaded->encode_chat(chat_of("hi")), Error);
  Request request;
  request.prompt = {1, 2, 3};
  request.config.max_new_tokens = 4;
  const auto result = loaded->make_engine()->generate(request);
  EXPECT_EQ(result.completions[0].ids.size(), 4u);
  EXPECT_TRUE(result.completions[0].text.empty());
}

TEST(Bundle, ChatsStreamsAndStops) {
  OpenOptions options;
  options.quiet = true;
  const auto loaded = open_model(kMini, options);
  EXPECT_EQ(loaded->engine_options.ctx, 2048);
  auto engine = loaded->make_engine();
  Request request;
  request.config = loaded->chat_generation();
  request.config.do_sample = false;
  request.config.max_new_tokens = 60;
  request.prompt = loaded->encode_chat(chat_of("Hello! Who are you?")).ids;
  std::string streamed;
  const auto result =
      engine->generate(request, [&](const Event& event) { streamed += event.text; });
  const Completion& answer = result.completions[0];
  EXPECT_EQ(streamed, answer.text);
  EXPECT_FALSE(answer.text.empty());
  EXPECT_EQ(answer.finish_reason, FinishReason::kEos);
  EXPECT_THAT(answer.text, testing::Not(HasSubstr("<|im_end|>")));
  // A stop string taken from the middle of the answer cuts it there, across token borders.
  const std::string stop = answer.text.substr(answer.text.size() / 2, 5);
  request.config.stop_strings = {stop};
  streamed.clear();
  const auto cut = engine->generate(request, [&](const Event& event) { streamed += event.text; });
  EXPECT_EQ(cut.completions[0].finish_reason, FinishReason::kStop);
  EXPECT_EQ(cut.completions[0].text, answer.text.substr(0, answer.text.find(stop)));
  EXPECT_EQ(streamed, cut.completions[0].text);
}

TEST(Bundle, MemoryIsRefusedBeforeItIsTaken) {
  OpenOptions options;
  options.quiet = true;
  options.memory_bytes = int64_t{40} << 20;
  options.engine.ctx = 1'000'000;
  try {
    open_model(kMini, options);
    FAIL() << "expected out_of_memory";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory) << error.what();
  }
  options.engine.ctx = 0;
  std::vector<std::string> warnings;
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  options.memory_bytes = int64_t{60} << 20;
  try {
    const auto loaded = open_model(kMini, options);
    EXPECT_LE(loaded->plan.needed_bytes, options.memory_bytes);
    EXPECT_LE(loaded->plan.ctx, 2048);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory) << error.what();
  }
}

}  // namespace
}  // namespace qw
