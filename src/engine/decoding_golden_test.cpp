// Whole generations against Transformers: beams, diverse beams, contrastive search, greedy, stop
// strings, on a tiny real checkpoint with the reference backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/bundle.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;
const std::string kGolden = std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/";

Json load(const std::string& name) {
  std::ifstream in(kGolden + "generation/" + name);
  return Json::parse(in);
}

const LoadedModel& model(const std::string& device) {
  static std::map<std::string, std::unique_ptr<LoadedModel>> loaded;
  auto& entry = loaded[device];
  if (!entry) {
    OpenOptions options;
    options.device = device;
    options.quiet = true;
    options.engine.ctx = 128;
    options.engine.kv_type = "f32";  // the golden's arithmetic is float32 throughout
    options.engine.n_slots = 8;
    options.engine.check_integrity = true;
    options.backend.activations = ActivationMode::kF32;
    entry = open_model(kGolden + "models/dense-mha-tied", options);
  }
  return *entry;
}

/// The golden's arguments are those of generate(), over no generation_config.
Request request_of(const Json& run) {
  Request request;
  request.prompt = run["prompt"].get<std::vector<int32_t>>();
  request.config.pad_token_id = 1021;
  for (const auto& [key, value] : run["args"].items()) {
    if (!value.is_null()) request.config.set(key, value, ParameterSource::kUser);
  }
  return request;
}

class Decoding : public testing::TestWithParam<std::string> {};

TEST_P(Decoding, EqualsTransformers) {
  const Json golden = load("decoding.json");
  auto engine = model(GetParam()).make_engine();
  for (const Json& run : golden["runs"]) {
    const std::string where = run["name"].get<std::string>() + " " + run["args"].dump() +
                              " prompt of " + std::to_string(run["prompt"].size());
    Request request = request_of(run);
    const auto max_new = static_cast<size_t>(*request.config.max_new_tokens);
    const RequestResult result = engine->generate(std::move(request));
    ASSERT_EQ(result.completions.size(), run["generated"].size()) << where;
    for (size_t i = 0; i < result.completions.size(); ++i) {
      std::vector<int32_t> want = run["generated"][i].get<std::vector<int32_t>>();
      std::vector<int32_t> ids = result.completions[i].ids;
      ids.resize(std::max(ids.size(), want.size()), 1021);
      EXPECT_EQ(ids, want) << where << " answer " << i;
      EXPECT_LE(result.completions[i].ids.size(), max_new);
      if (!run.contains("sequences_scores")) continue;
      const double score = run["sequences_scores"][i];
      ASSERT_TRUE(result.completions[i].score.has_value());
      EXPECT_NEAR(*result.completions[i].score, score, 1e-4 * std::max(1.0, std::abs(score)))
          << where << " answer " << i;
    }
    EXPECT_EQ(engine->free_pages(), engine->n_pages()) << where;
  }
}

TEST_P(Decoding, LeftPaddedBatchEqualsEachAlone) {
  const Json golden = load("decoding.json")["left_padded_batch"];
  auto engine = model(GetParam()).make_engine();
  std::map<RequestId, size_t> index;
  for (size_t i = 0; i < golden["prompts"].size(); ++i) {
    Request request;
    request.prompt = golden["prompts"][i].get<std::vector<int32_t>>();
    request.config.max_new_tokens = static_cast<int64_t>(golden["generated"][i].size());
    index[engine->submit(std::move(request))] = i;
  }
  size_t ended = 0;
  while (!engine->idle()) {
    for (const Event& event : engine->step()) {
      if (event.kind != Event::Kind::kRequest) continue;
      ++ended;
      EXPECT_EQ(event.result->completions[0].ids,
                golden["generated"][index.at(event.request)].get<std::vector<int32_t>>());
    }
  }
  EXPECT_EQ(ended, golden["prompts"].size());
}

INSTANTIATE_TEST_SUITE_P(Backends, Decoding, testing::Values("reference", "cpu"),
                         [](const auto& device) { return device.param; });

/// A tokenizer whose token i has the golden's text i. Texts that several ids share are given to the
/// first of them only, so these ids must not be generated (the test checks that).
std::shared_ptr<const Tokenizer> made_up_tokenizer(const Json& golden,
                                                   std::vector<int32_t>& without_text) {
  TokenizerSpec spec;
  spec.source = "made up";
  spec.alphabet = TokenAlphabet::kByteFallback;
  spec.split = SplitPattern::kNone;
  std::set<std::string> seen;
  for (const Json& value : golden["vocabulary"]) {
    std::string text = value.get<std::string>();
    const bool first = seen.insert(text).second;
    if (!first) without_text.push_back(static_cast<int32_t>(spec.tokens.size()));
    for (size_t at = 0; (at = text.find(' ', at)) != std::string::npos;)
      text.replace(at, 1, "\u2581");
    spec.tokens.push_back(first ? text : "<copy " + std::to_string(spec.tokens.size()) + ">");
  }
  for (int byte = 0; byte < 256; ++byte)
    spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
  return std::make_shared<const Tokenizer>(spec);
}

TEST(StopStringGolden, EqualsTransformers) {
  const Json golden = load("stop_strings.json");
  std::vector<int32_t> without_text;
  const std::shared_ptr<const Tokenizer> tokenizer = made_up_tokenizer(golden, without_text);
  Engine engine(*model("reference").model, tokenizer, model("reference").engine_options);
  for (const Json& run : golden["runs"]) {
    Request request;
    request.prompt = run["prompt"].get<std::vector<int32_t>>();
    request.config.stop_strings = run["stop_strings"].get<std::vector<std::string>>();
    request.config.max_new_tokens = 24;
    std::string streamed;
    const RequestResult result =
        engine.generate(request, [&](const Event& event) { streamed += event.text; });
    const Completion& completion = result.completions[0];
    for (const int32_t id : completion.ids) {
      ASSERT_EQ(std::count(without_text.begin(), without_text.end(), id), 0) << id;
    }
    EXPECT_EQ(streamed, completion.text);
    const bool stopped = run["stop_string_lies_in_generated_text"];
    // Where Transformers finds the stop string partly in the prompt, we go on by design.
    if (run["stopped"].get<bool>() != stopped) {
      EXPECT_GT(completion.ids.size(), run["generated"].size());
      continue;
    }
    EXPECT_EQ(completion.finish_reason, stopped ? FinishReason::kStop : FinishReason::kLength)
        << run.dump();
    EXPECT_EQ(completion.ids, run["generated"].get<std::vector<int32_t>>());
    std::string text = run["text"];
    if (stopped) text.resize(text.find(completion.stop_string));
    EXPECT_EQ(completion.text, text);
  }
}

}  // namespace
}  // namespace qw
