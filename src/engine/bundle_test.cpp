// The pieces of a checkpoint together: the bundled model and small GGUF files.
#include "engine/bundle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/cancel.h"
#include "base/error.h"
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

// A template is written by whoever made the checkpoint: it can take long before there is any text.
TEST(Bundle, RenderingEndsWhenItIsCancelled) {
  const ModelFiles files = open_files(kMini);
  ChatInput input = chat_of("hi");
  Json messages = *input.messages;
  for (int i = 0; i < 20'000; ++i)
    messages.push_back({{"role", i % 2 ? "user" : "assistant"}, {"content", ""}});
  input.messages = std::make_shared<const Json>(messages);
  CancelFlag cancel;
  cancel.cancel();
  input.cancel = &cancel;
  try {
    files.encode_chat(input);
    FAIL() << "expected the rendering to end";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCancelled);
    EXPECT_THAT(error.what(), HasSubstr("the template"));
  }
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

OpenOptions quiet() {
  OpenOptions options;
  options.quiet = true;
  options.on_warning = [](const std::string&) {};
  return options;
}

TEST(Bundle, ADraftModelMayBeTheSameCheckpoint) {
  OpenOptions options = quiet();
  options.engine.ctx = 256;
  const auto plain = open_model(kMini, options);
  options.draft_model = kMini;
  const auto loaded = open_model(kMini, options);
  ASSERT_NE(loaded->draft_model, nullptr);
  EXPECT_GT(loaded->plan.draft_bytes, loaded->plan.weights_bytes);
  EXPECT_EQ(loaded->plan.needed_bytes - loaded->plan.draft_bytes,
            loaded->plan.weights_bytes + loaded->plan.kv_bytes + loaded->plan.activations_bytes +
                loaded->plan.logits_bytes + loaded->plan.working_bytes +
                loaded->plan.program_bytes);
  EXPECT_EQ(loaded->plan.kv_bytes_per_token, 2 * plain->plan.kv_bytes_per_token);
  EXPECT_EQ(loaded->make_engine()->kv_bytes(), 2 * plain->make_engine()->kv_bytes());

  Request request;
  request.config = plain->chat_generation();
  request.config.do_sample = false;
  request.config.max_new_tokens = 40;
  request.config.ignore_eos = true;
  request.config.num_assistant_tokens_schedule = AssistantSchedule::kConstant;
  request.prompt = plain->encode_chat(chat_of("Hello! Who are you?")).ids;
  const auto want = plain->make_engine()->generate(request);
  const auto got = loaded->make_engine()->generate(request);
  EXPECT_EQ(got.completions[0].ids, want.completions[0].ids);
  EXPECT_EQ(got.timings.n_accepted, got.timings.n_drafted);
  EXPECT_GT(got.timings.n_accepted, 30);
}

std::string refusal_of_draft(const std::string& model, const std::string& draft) {
  OpenOptions options = quiet();
  options.engine.ctx = 64;
  options.draft_model = draft;
  try {
    open_model(model, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return error.message();
  }
  return "no error";
}

TEST(Bundle, ADraftModelOfAnotherVocabularyIsRefused) {
  const std::string goldens = kRoot + "/tests/golden/models/";
  const std::string moe = goldens + "moe-variant", dense = goldens + "dense-f16";
  // Without tokenizers the sizes are all that is known.
  EXPECT_THAT(refusal_of_draft(moe, dense),
              testing::AllOf(HasSubstr("expected that of the model, 512, got 768"), HasSubstr(moe),
                             HasSubstr(dense)));
  EXPECT_EQ(refusal_of_draft(goldens + "sliding-window", moe), "no error");
}

TEST(Bundle, ErrorsOfADraftModelsFilesSayWhoseTheyAre) {
  OpenOptions options = quiet();
  options.draft_model = "/no/such/draft";
  try {
    open_model(kMini, options);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
    EXPECT_EQ(error.message(),
              "[draft model] model: expected a directory or a weight file, got no such path "
              "(/no/such/draft)");
  }
}

/// A tokenizer of the given tokens beside a config of `vocab` rows.
struct Vocabulary {
  Vocabulary(const std::string& path, std::vector<std::string> tokens, int64_t vocab) {
    TokenizerSpec spec;
    spec.source = path;
    spec.alphabet = TokenAlphabet::kByteFallback;
    spec.split = SplitPattern::kNone;
    spec.tokens = std::move(tokens);
    for (int byte = 0; byte < 256; ++byte)
      spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    auto checkpoint = std::make_shared<Checkpoint>();
    checkpoint->path = path;
    files.checkpoint = std::move(checkpoint);
    files.tokenizer = std::make_shared<const Tokenizer>(spec);
    config.vocab = vocab;
  }
  ModelFiles files;
  ModelConfig config;
};

TEST(Bundle, VocabulariesMayDifferInPaddingOnly) {
  const Vocabulary model("big", {"a", "b", "c"}, 320);
  const auto refusal = [&](const Vocabulary& draft) -> std::string {
    try {
      check_draft_vocabulary(draft.files, draft.config, model.files, model.config);
    } catch (const Error& error) {
      return error.message();
    }
    return "no error";
  };
  EXPECT_EQ(refusal({"small", {"a", "b", "c"}, 320}), "no error");
  EXPECT_EQ(refusal({"small", {"a", "b", "c"}, 259}), "no error");
  EXPECT_EQ(refusal({"small", {"a", "b", "c"}, 1000}), "no error");
  EXPECT_EQ(refusal({"small", {"a", "b", "c", "d"}, 320}),
            "[draft model] vocabulary: expected that of the model, 259 tokens, got 260 tokens "
            "(small; model big)");
  EXPECT_EQ(refusal({"small", {"a", "x", "c"}, 320}),
            "[draft model] token 1: expected that of the model, 'b', got 'x' (small; model big)");
}

TEST(Bundle, ADraftModelThatDoesNotFitIsRefused) {
  OpenOptions options = quiet();
  options.engine.ctx = 2048;
  const auto fits = [&](int64_t memory_bytes) -> std::string {
    options.memory_bytes = memory_bytes;
    try {
      open_model(kMini, options);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
      return error.message();
    }
    return "fits";
  };
  const ModelFiles files = open_files(kMini);
  const auto backend = make_backend("cpu", {});
  const auto plan = [&](const Checkpoint* draft) {
    return plan_memory(*files.checkpoint, ModelConfig::from_checkpoint(*files.checkpoint), *backend,
                       options, false, draft);
  };
  // What the process holds counts, and changes from call to call by a few MiB.
  const auto between = [&] {
    const MemoryPlan alone = plan(nullptr), both = plan(files.checkpoint.get());
    EXPECT_GT(both.draft_bytes, alone.weights_bytes + alone.kv_bytes) << "weights and cache twice";
    EXPECT_GT(both.draft_bytes, int64_t{24} << 20);
    EXPECT_EQ(both.needed_bytes - both.program_bytes - both.draft_bytes,
              alone.needed_bytes - alone.program_bytes);
    return (alone.needed_bytes + both.needed_bytes) / 2;
  };
  EXPECT_EQ(fits(between()), "fits");
  options.draft_model = kMini;
  EXPECT_THAT(fits(between()),
              HasSubstr("draft model for 2048 tokens x 1 slots: expected to need"));
  EXPECT_EQ(fits(between() + (int64_t{40} << 20)), "fits");
  // Where the context is free, it is the largest that both fit.
  options.memory_bytes = between();
  options.engine.ctx = 0;
  const MemoryPlan shorter = plan(files.checkpoint.get());
  EXPECT_LE(shorter.needed_bytes, options.memory_bytes);
  EXPECT_LT(shorter.ctx, 2048);
  EXPECT_GT(shorter.ctx, 64);
}

TEST(Bundle, DamagedPackedWeightsAreOneWarningAndTheSameAnswer) {
  namespace fs = std::filesystem;
  const std::string directory = testing::TempDir() + "bundle_packed";
  fs::remove_all(directory);
  OpenOptions options = quiet();
  options.engine.ctx = 256;
  options.backend.packed_cache = directory;
  std::string said;
  const auto answer = [&] {
    testing::internal::CaptureStderr();
    const auto loaded = open_model(kMini, options);
    said = testing::internal::GetCapturedStderr();
    Request request;
    request.prompt = {1, 2, 3};
    request.config.max_new_tokens = 8;
    request.config.do_sample = false;
    return loaded->make_engine()->generate(request).completions[0].ids;
  };
  const std::vector<int32_t> expected = answer();
  EXPECT_EQ(said, "");
  size_t n_files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() != ".packed") continue;
    ++n_files;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(entry) / 2));
    file << "damaged";
  }
  ASSERT_GT(n_files, 10u);
  EXPECT_EQ(answer(), expected);
  EXPECT_THAT(said, HasSubstr(fmt::format("{0} of {0} files could not be used", n_files)));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_EQ(answer(), expected);
  EXPECT_EQ(said, "");
  fs::remove_all(directory);
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
