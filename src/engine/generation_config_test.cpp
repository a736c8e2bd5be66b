#include "engine/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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

using Settings = std::vector<std::pair<const char*, const char*>>;

std::vector<std::string> notes_of(const Settings& settings,
                                  std::optional<int64_t> prompt_len = {}) {
  GenerationConfig config;
  for (const auto& [name, value] : settings)
    config.set_text(name, value, kUser);
  config.validate(100);
  return config.without_effect(prompt_len);
}

TEST(GenerationConfig, EveryParameterWithoutEffectIsNamed) {
  struct Case {
    Settings with;     // which the parameter has an effect with
    Settings without;  // and these it has none with
    const char* name;
    const char* value;
    const char* why;
  };
  const std::vector<Case> cases = {
      {{{"do_sample", "true"}}, {}, "temperature", "0.5", "do_sample is false"},
      {{{"do_sample", "true"}}, {}, "top_k", "3", "do_sample is false"},
      {{{"penalty_alpha", "0.6"}}, {}, "top_k", "3", "do_sample is false"},
      {{{"do_sample", "true"}}, {}, "min_p", "0.1", "do_sample is false"},
      {{{"do_sample", "true"}}, {}, "typical_p", "0.9", "do_sample is false"},
      {{{"do_sample", "true"}}, {}, "epsilon_cutoff", "0.1", "do_sample is false"},
      {{{"do_sample", "true"}}, {}, "eta_cutoff", "0.1", "do_sample is false"},
      {{}, {{"do_sample", "true"}}, "epsilon_cutoff", "1", "below 1"},
      {{}, {{"do_sample", "true"}}, "penalty_alpha", "0.5", "do_sample is true"},
      {{{"top_k", "4"}}, {{"top_k", "1"}}, "penalty_alpha", "0.5", "top_k is 1"},
      {{{"num_beams", "2"}}, {}, "length_penalty", "2", "num_beams is 1"},
      {{{"num_beams", "2"}}, {}, "early_stopping", "true", "num_beams is 1"},
      {{{"num_beams", "2"}}, {}, "renormalize_logits", "true", "num_beams is 1"},
      {{{"num_beams", "2"}, {"num_beam_groups", "2"}},
       {{"num_beams", "2"}},
       "diversity_penalty",
       "0.5",
       "num_beam_groups is 1"},
      {{}, {}, "bos_token_id", "5", "as it is"},
      {{{"num_beams", "2"}, {"diversity_penalty", "1"}, {"num_beam_groups", "2"}},
       {{"num_beams", "2"}},
       "pad_token_id",
       "5",
       "padded"},
      {{}, {{"num_beams", "2"}}, "prompt_lookup_num_tokens", "4", "beam search"},
      {{}, {{"penalty_alpha", "0.6"}}, "prompt_lookup_num_tokens", "4", "contrastive"},
      {{}, {{"guidance_scale", "2"}}, "prompt_lookup_num_tokens", "4", "guidance"},
      {{{"prompt_lookup_num_tokens", "4"}}, {}, "max_matching_ngram_size", "3", "is 0"},
      {{{"prompt_lookup_num_tokens", "4"}},
       {},
       "num_assistant_tokens_schedule",
       "constant",
       "no draft model, and"},
      {{}, {{"max_new_tokens", "5"}}, "max_length", "50", "max_new_tokens is set"},
      {{{"stop_strings", "x"}}, {}, "include_stop_str_in_output", "true", "no stop string"},
      {{{"eos_token_id", "7"}}, {}, "ignore_eos", "true", "no end token"},
      {{{"eos_token_id", "7"}}, {}, "min_new_tokens", "3", "no end token"},
      {{}, {{"ignore_eos", "true"}}, "eos_token_id", "7", "ignore_eos is true"},
      {{{"eos_token_id", "7"}}, {}, "min_length", "3", "no end token"},
      {{{"eos_token_id", "7"}}, {}, "exponential_decay_length_penalty", "[2,1.5]", "no end token"},
  };
  const auto names_it = [](const std::vector<std::string>& notes, const char* name) {
    return std::any_of(notes.begin(), notes.end(), [&](const std::string& note) {
      return note.rfind(std::string(name) + " ", 0) == 0;
    });
  };
  for (const Case& one : cases) {
    Settings used = one.with, unused = one.without;
    // Some need the value to be valid at all, so it comes first.
    used.insert(used.begin(), {one.name, one.value});
    unused.insert(unused.begin(), {one.name, one.value});
    const auto notes = notes_of(unused);
    EXPECT_TRUE(names_it(notes, one.name)) << one.name;
    EXPECT_THAT(notes, testing::Contains(HasSubstr(one.why))) << one.name;
    const std::string_view value = one.value;
    if (std::string_view(one.name) == "bos_token_id" || value == "1") continue;  // never has one
    EXPECT_FALSE(names_it(notes_of(used), one.name)) << one.name;
  }
  EXPECT_THAT(notes_of({{"forced_bos_token_id", "3"}}, 4),
              ElementsAre(HasSubstr("one token only")));
  EXPECT_THAT(notes_of({{"forced_bos_token_id", "3"}}, 1), ElementsAre());
  EXPECT_THAT(notes_of({{"eos_token_id", "3"}, {"min_length", "4"}}, 4),
              ElementsAre(HasSubstr("the length of the prompt alone is 4")));
  EXPECT_THAT(notes_of({{"eos_token_id", "3"}, {"min_length", "5"}}, 4), ElementsAre());
}

TEST(GenerationConfig, KnowsWhenADraftModelHasNoEffect) {
  const auto notes = [](const Settings& settings, bool has_draft_model) {
    GenerationConfig config;
    for (const auto& [name, value] : settings)
      config.set_text(name, value, ParameterSource::kUser);
    return config.without_effect(std::nullopt, has_draft_model);
  };
  const Settings all = {{"num_assistant_tokens", "5"},
                        {"num_assistant_tokens_schedule", "constant"},
                        {"assistant_confidence_threshold", "0.4"}};
  EXPECT_THAT(notes(all, true), ElementsAre());
  EXPECT_THAT(
      notes(all, false),
      ElementsAre(HasSubstr("num_assistant_tokens 5 has no effect: there is no draft model"),
                  HasSubstr("assistant_confidence_threshold 0.4"),
                  HasSubstr("num_assistant_tokens_schedule \"constant\"")));
  EXPECT_THAT(notes({{"num_beams", "2"}}, true),
              ElementsAre("draft model has no effect: beam search does not guess ahead"));
  EXPECT_THAT(notes({{"num_assistant_tokens", "0"}}, true),
              ElementsAre("draft model has no effect: num_assistant_tokens is 0"));
  EXPECT_THAT(notes({}, true), ElementsAre());
}

TEST(GenerationConfig, ReadsTheAssistantsParametersOfAFile) {
  GenerationConfig config;
  const auto warnings = config.read_json(
      R"({"num_assistant_tokens":7,"num_assistant_tokens_schedule":"heuristic_transient",
          "assistant_confidence_threshold":0.4,"assistant_early_exit":2})",
      "g.json");
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("assistant_early_exit has no effect here")));
  EXPECT_EQ(config.num_assistant_tokens, 7);
  EXPECT_EQ(config.num_assistant_tokens_schedule, AssistantSchedule::kHeuristicTransient);
  EXPECT_EQ(config.assistant_confidence_threshold, 0.4);
  EXPECT_EQ(config.get("num_assistant_tokens_schedule"), "heuristic_transient");
  EXPECT_EQ(config.without_effect().size(), 0u) << "the file's values are not the user's";
}

TEST(GenerationConfig, EqualAnswersAreRefused) {
  const auto refusal = [](const Settings& settings) {
    return message_of([&] { notes_of(settings); });
  };
  const char* const kWhy = "num_return_sequences: expected 1 without sampling";
  EXPECT_THAT(refusal({{"num_return_sequences", "2"}}), HasSubstr(kWhy));
  EXPECT_THAT(refusal({{"num_return_sequences", "2"}, {"penalty_alpha", "0.6"}}), HasSubstr(kWhy));
  EXPECT_THAT(refusal({{"num_return_sequences", "2"}, {"do_sample", "true"}, {"temperature", "0"}}),
              HasSubstr(kWhy));
  EXPECT_EQ(refusal({{"num_return_sequences", "2"}, {"do_sample", "true"}}), "no error");
  EXPECT_EQ(refusal({{"num_return_sequences", "2"}, {"num_beams", "2"}}), "no error");
}

TEST(GenerationConfig, RefusesWhatIsOutOfRangeAndNamesIt) {
  GenerationConfig config;
  const std::vector<std::pair<const char*, const char*>> bad = {
      {"temperature", "-0.1"},
      {"temperature", "nan"},
      {"temperature", "1e-40"},
      {"temperature", "1e-300"},
      {"temperature", "5e-324"},
      {"temperature", "1e7"},
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
      {"repetition_penalty", "1e-300"},
      {"repetition_penalty", "inf"},
      {"encoder_repetition_penalty", "5e-324"},
      {"max_new_tokens", "x"},
      {"early_stopping", "maybe"},
      {"do_sample", "1"},
      {"eos_token_id", "-5"},
      {"no_repeat_ngram_size", "-3"},
      {"eos_token_id", "99999999999"},
      {"seed", "-1"},
      {"penalty_alpha", "2"},
      {"guidance_scale", "0"},
      {"guidance_scale", "-1.5"},
      {"prompt_lookup_num_tokens", "-1"},
      {"num_assistant_tokens", "-1"},
      {"num_assistant_tokens", "1025"},
      {"num_assistant_tokens_schedule", "always"},
      {"assistant_confidence_threshold", "1.1"},
      {"max_matching_ngram_size", "0"},
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
              HasSubstr("expected the name of a generation parameter, got 'temprature'"));
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
