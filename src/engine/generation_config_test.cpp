#include "engine/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr auto kUser = ParameterSource::kUser;

std::string message_of(const std::function<void()>& call,
                       ErrorKind kind = ErrorKind::kInvalidArgument) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(GenerationConfig, ReadsAPublishedFileAndNamesItsSource) {
  GenerationConfig config;
  const auto warnings = config.read_json(
      R"({"bos_token_id":151643,"pad_token_id":151643,"do_sample":true,"eos_token_id":[151645,151643],
          "repetition_penalty":1.05,"temperature":0.7,"top_k":20,"top_p":0.8,"transformers_version":"4.37.0"})",
      "generation_config.json");
  EXPECT_TRUE(warnings.empty());
  EXPECT_THAT(config.eos_token_id, ElementsAre(151645, 151643));
  EXPECT_DOUBLE_EQ(config.top_p, 0.8);
  config.set_text("temperature", "0.3", kUser);
  const Json applied = config.applied();
  EXPECT_EQ(applied["top_p"], (Json{{"value", 0.8}, {"source", "file"}}));
  EXPECT_EQ(applied["temperature"], (Json{{"value", 0.3}, {"source", "user"}}));
  EXPECT_FALSE(applied.contains("min_p"));
  config.num_beams = 2;  // assigned in code: the caller's choice
  EXPECT_EQ(config.applied()["num_beams"]["source"], "user");
}

TEST(GenerationConfig, NothingIsIgnoredInSilence) {
  GenerationConfig config;
  const auto warnings = config.read_json(
      R"({"chat_format":"chatml","use_cache":false,"max_time":3,"top_p":null,"cache_implementation":null})",
      "g.json");
  ASSERT_EQ(warnings.size(), 3u);
  EXPECT_THAT(warnings[0], HasSubstr("unknown field chat_format"));
  EXPECT_THAT(warnings[1], HasSubstr("use_cache has no effect"));
  EXPECT_THAT(warnings[2], HasSubstr("max_time has no effect"));

  config.set_text("top_p", "0.5", kUser);
  config.set_text("length_penalty", "2", kUser);
  EXPECT_THAT(config.without_effect(),
              ElementsAre(HasSubstr("top_p 0.5 has no effect: do_sample is false"),
                          HasSubstr("length_penalty 2.0 has no effect: num_beams is 1")));
  config.set_text("do_sample", "true", kUser);
  config.set_text("num_beams", "2", kUser);
  EXPECT_TRUE(config.without_effect().empty());
}

TEST(GenerationConfig, OnlyTheUsersOwnParametersAreSaidToBeWithoutEffect) {
  GenerationConfig config;
  config.read_json(R"({"do_sample":true,"temperature":0.7,"top_k":20,"top_p":0.8})", "g.json");
  config.set_text("temperature", "0", kUser);
  EXPECT_THAT(config.without_effect(), ElementsAre()) << "the file's top_p and top_k";
  config.set_text("top_p", "0.8", kUser);
  EXPECT_THAT(config.without_effect(),
              ElementsAre(HasSubstr("top_p 0.8 has no effect: temperature is 0")));
  config.min_p = 0.1;  // assigned in code: the caller's choice
  EXPECT_EQ(config.without_effect().size(), 2u);
}

TEST(GenerationConfig, RefusesWhatIsOutOfRangeAndNamesIt) {
  GenerationConfig config;
  const std::vector<std::pair<const char*, const char*>> bad = {
      {"temperature", "-0.1"},
      {"temperature", "nan"},
      {"top_k", "-1"},
      {"top_p", "1.5"},
      {"min_p", "-0.5"},
      {"typical_p", "0"},
      {"num_beams", "0"},
      {"num_beams", "100000"},
      {"num_return_sequences", "0"},
      {"max_new_tokens", "0"},
      {"repetition_penalty", "0"},
      {"repetition_penalty", "-2"},
      {"max_new_tokens", "x"},
      {"early_stopping", "maybe"},
      {"do_sample", "1"},
      {"eos_token_id", "-5"},
      {"no_repeat_ngram_size", "-3"},
      {"eos_token_id", "99999999999"},
      {"seed", "-1"},
      {"penalty_alpha", "2"},
      {"bad_words_ids", "[[]]"},
      {"stop_strings", ""},
      {"top_k", "2.5"},
      {"exponential_decay_length_penalty", "[1]"}};
  for (const auto& [name, value] : bad) {
    EXPECT_THAT(message_of([&, n = name, v = value] { config.set_text(n, v, kUser); }),
                HasSubstr(name))
        << value;
  }
  EXPECT_THAT(message_of([&] { config.set_text("temprature", "1", kUser); }),
              HasSubstr("temprature: no such"));
  // A refused value changes nothing.
  EXPECT_TRUE(config.applied().empty());
  EXPECT_THAT(
      message_of([&] { config.read_json(R"({"top_p":-1})", "g.json"); }, ErrorKind::kCorrupt),
      HasSubstr("g.json"));
}

TEST(GenerationConfig, ValidatesAgainstTheVocabulary) {
  GenerationConfig config;
  config.suppress_tokens = {3, 100};
  EXPECT_THAT(message_of([&] { config.validate(100); }),
              HasSubstr("suppress_tokens: expected token ids from 0 to 99, got 100"));
  config.validate(101);
  config.num_beams = 4;
  config.num_beam_groups = 3;
  EXPECT_THAT(message_of([&] { config.validate(101); }), HasSubstr("num_beam_groups"));
  config.num_beam_groups = 1;
  config.num_return_sequences = 5;
  EXPECT_THAT(message_of([&] { config.validate(101); }), HasSubstr("num_return_sequences"));
  config.num_return_sequences = 1;
  config.num_beams = 1;
  config.set_text("force_words_ids", "[[1,2],[[3],[4,5]]]", kUser);
  ASSERT_EQ(config.force_words_ids.size(), 2u);
  EXPECT_EQ(config.force_words_ids[1].forms, (std::vector<std::vector<int32_t>>{{3}, {4, 5}}));
  EXPECT_EQ(config.applied()["force_words_ids"]["value"].dump(), "[[1,2],[[3],[4,5]]]");
  EXPECT_THAT(message_of([&] { config.validate(101); }),
              HasSubstr("num_beams: expected at least 2 with force_words_ids"));
  config.num_beams = 2;
  config.validate(101);
  config.do_sample = true;
  EXPECT_THAT(message_of([&] { config.validate(101); }), HasSubstr("do_sample"));
  EXPECT_THAT(message_of([&] { config.set_text("force_words_ids", "[[[3],[3,4]]]", kUser); }),
              HasSubstr("none begins another, got [3]"));
  EXPECT_THAT(message_of([&] { config.set_text("force_words_ids", "[[]]", kUser); }),
              HasSubstr("force_words_ids"));
}

TEST(GenerationConfig, TextFormsOfLists) {
  GenerationConfig config;
  config.set_text("eos_token_id", "5,6", kUser);
  EXPECT_THAT(config.eos_token_id, ElementsAre(5, 6));
  config.set_text("eos_token_id", "7", kUser);
  EXPECT_THAT(config.eos_token_id, ElementsAre(7));
  config.set_text("bad_words_ids", "[[1,2],[3]]", kUser);
  EXPECT_EQ(config.bad_words_ids.size(), 2u);
  config.set_text("logit_bias", R"({"5": -100, "6": 1.5})", kUser);
  EXPECT_EQ(config.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {6, 1.5f}}));
  config.set_text("early_stopping", "never", kUser);
  EXPECT_EQ(config.early_stopping, EarlyStopping::kNever);
  config.set_text("stop_strings", "5", kUser);
  config.set_text("stop_strings", "[\"", kUser);
  EXPECT_THAT(config.stop_strings, ElementsAre("5", "[\""));
  config.set_text("seed", "18446744073709551615", kUser);
  EXPECT_EQ(config.seed, ~uint64_t{0});
  config.set_text("max_new_tokens", "5", kUser);
  config.set("max_new_tokens", nullptr, kUser);
  EXPECT_FALSE(config.max_new_tokens.has_value());
}

TEST(GenerationConfig, EveryNameRoundTrips) {
  const GenerationConfig defaults;
  EXPECT_GE(GenerationConfig::names().size(), 45u);
  for (const std::string& name : GenerationConfig::names()) {
    GenerationConfig config;
    config.set(name, nullptr, kUser);
    const Json value = config.applied().at(name)["value"];
    if (!value.is_null()) config.set(name, value, kUser);
    EXPECT_EQ(config.applied().at(name)["value"], value) << name;
    EXPECT_EQ(config.applied().size(), 1u) << name;
  }
}

}  // namespace
}  // namespace qw
