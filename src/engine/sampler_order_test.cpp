// Samplers in another order than Transformers', and those that only llama.cpp has, against values
// worked out by hand.
#include "engine/sampler_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/logits_process.h"
#include "engine/sampler.h"

namespace qw {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Kind = SamplerKind;

constexpr float kBanned = -std::numeric_limits<float>::infinity();

GenerationConfig sampling() {
  GenerationConfig config;
  config.do_sample = true;
  config.top_k = 0;
  return config;
}

std::vector<float> logits_of(const std::vector<float>& probabilities) {
  std::vector<float> out;
  for (const float p : probabilities)
    out.push_back(std::log(p));
  return out;
}

/// The row after all processors, the history being `ids` of which the first is the prompt.
std::vector<float> row_after(const GenerationConfig& config, std::vector<float> values,
                             std::vector<int32_t> ids = {0, 0}) {
  config.validate(0);
  LogitsRow row(values);
  make_pipeline(config, std::span(ids).first(1), 1000, ssize(values)).apply({ids, 1}, row);
  return values;
}

std::vector<int> live_after(const GenerationConfig& config, std::vector<float> values) {
  const std::vector<float> after = row_after(config, std::move(values));
  std::vector<int> out;
  for (int i = 0; i < ssize(after); ++i) {
    if (after[static_cast<size_t>(i)] != kBanned) out.push_back(i);
  }
  return out;
}

TEST(SamplerOrder, TheTemperatureActsWhereItStands) {
  // Roots of these are as 0.379, 0.293, 0.208, 0.120: two reach 0.67, three 0.88.
  const std::vector<float> row = logits_of({0.5f, 0.3f, 0.15f, 0.05f});
  GenerationConfig config = sampling();
  config.temperature = 2;
  config.top_p = 0.75;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1, 2));
  config.sampler_order = {Kind::kTopP, Kind::kTemperature};
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1)) << "0.5 + 0.3 is enough";
  const std::vector<float> after = row_after(config, row);
  EXPECT_FLOAT_EQ(after[0] - after[1], (row[0] - row[1]) / 2) << "and what is left was divided";
}

TEST(SamplerOrder, EachSeesTheProbabilitiesThatItsForerunnersLeave) {
  const std::vector<float> row = logits_of({0.5f, 0.3f, 0.15f, 0.05f});
  GenerationConfig config = sampling();
  config.top_k = 2;
  config.top_p = 0.6;
  EXPECT_THAT(live_after(config, row), ElementsAre(0)) << "0.5 / 0.8 reaches 0.6";
  config.sampler_order = {Kind::kTopP, Kind::kTopK};
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1));
}

TEST(SamplerOrder, LlamaCppsOwnOrder) {
  // top_k leaves 0.4 0.3 0.2; typical_p 0.5 of them 0.3 and 0.4, whose surprises lie nearest the
  // entropy; top_p 0.6 of 0.571 and 0.429 both; min_p 0.8 the first.
  const std::vector<float> row = logits_of({0.4f, 0.3f, 0.2f, 0.06f, 0.04f});
  GenerationConfig config = sampling();
  config.sampler_order = read_sampler_order(
      "sampler_order", "penalties,dry,top_n_sigma,top_k,typical_p,top_p,min_p,xtc,temperature");
  config.top_k = 3;
  config.typical_p = 0.5;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1));
  config.top_p = 0.6;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1));
  config.min_p = 0.8;
  config.temperature = 4;  // before min_p it would have made 0.4 and 0.3 nearly equal
  EXPECT_THAT(live_after(config, row), ElementsAre(0));
  config.typical_p = 1;
  EXPECT_THAT(live_after(config, row), ElementsAre(0));
  config.sampler_order.clear();
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1)) << "0.93 of the likeliest";
}

// The temperature leaves only what top_k could keep where that comes next, and nowhere else.
TEST(SamplerOrder, NothingIsCutBeforeItsTurn) {
  std::vector<float> row(200, 0.0f);
  row[5] = row[6] = row[7] = 0.01f;
  GenerationConfig config = sampling();
  config.temperature = 0.9;
  config.top_k = 3;
  config.top_p = 0.02;  // of 200 nearly equal ones more than three, of three one
  config.sampler_order = {Kind::kTemperature, Kind::kTopP, Kind::kTopK};
  EXPECT_THAT(live_after(config, row), ElementsAre(5, 6, 7));
  config.sampler_order = {Kind::kTemperature, Kind::kTopK, Kind::kTopP};
  EXPECT_THAT(live_after(config, row), ElementsAre(7));
}

TEST(SamplerOrder, NamedTwiceAppliesTwice) {
  GenerationConfig config = sampling();
  config.temperature = 2;
  config.sampler_order = {Kind::kTemperature, Kind::kTemperature};
  EXPECT_THAT(row_after(config, {8, 4, 0}), ElementsAre(2, 1, 0));
  config.temperature = 1;
  config.presence_penalty = 1;
  config.sampler_order = {Kind::kPenalties, Kind::kPenalties};
  EXPECT_THAT(row_after(config, {8, 4, 0}), ElementsAre(6, 4, 0));
}

TEST(SamplerOrder, WhatIsNotNamedFollowsAndPenaltiesComeFirst) {
  GenerationConfig config = sampling();
  EXPECT_THAT(config.samplers(),
              ElementsAre(Kind::kPenalties, Kind::kDry, Kind::kTopNSigma, Kind::kTemperature,
                          Kind::kTopK, Kind::kTopP, Kind::kMinP, Kind::kTypicalP,
                          Kind::kEpsilonCutoff, Kind::kEtaCutoff, Kind::kXtc));
  config.sampler_order = {Kind::kMinP, Kind::kTemperature};
  EXPECT_THAT(config.samplers(),
              ElementsAre(Kind::kPenalties, Kind::kDry, Kind::kMinP, Kind::kTemperature,
                          Kind::kTopNSigma, Kind::kTopK, Kind::kTopP, Kind::kTypicalP,
                          Kind::kEpsilonCutoff, Kind::kEtaCutoff, Kind::kXtc));
}

TEST(SamplerOrder, PenaltiesAfterWarpersMeetWhatThoseLeave) {
  const std::vector<float> row = {3, 2.9f, 0};  // 0 was said
  GenerationConfig config = sampling();
  config.repetition_penalty = 2;
  config.top_k = 1;
  EXPECT_THAT(row_after(config, row), ElementsAre(kBanned, 2.9f, kBanned));
  config.sampler_order = {Kind::kTopK, Kind::kPenalties};
  EXPECT_THAT(row_after(config, row), ElementsAre(1.5f, kBanned, kBanned));
  // A warper that changes nothing does not stand before anything.
  config.top_k = 0;
  EXPECT_THAT(sampler_chain(config).penalties, ElementsAre(Kind::kPenalties));
  EXPECT_THAT(sampler_chain(config).warpers, IsEmpty());
}

TEST(SamplerOrder, OfPenaltiesMattersWithoutSamplingToo) {
  std::vector<float> row = {3, 2.9f, 0};
  GenerationConfig config;
  config.repetition_penalty = 2;
  config.temperature = 0;
  const auto choice = [&] {
    const std::vector<float> after = row_after(config, row);
    return std::max_element(after.begin(), after.end()) - after.begin();
  };
  EXPECT_EQ(choice(), 1);
  config.sampler_order = {Kind::kTopK, Kind::kPenalties, Kind::kTemperature};
  config.top_k = 2;
  EXPECT_EQ(choice(), 1);
  EXPECT_THAT(config.without_effect(), IsEmpty()) << "top_k says what may be penalised";
  config.top_k = 1;
  EXPECT_EQ(choice(), 0);
  config.top_k = 0;
  config.sampler_order = {Kind::kTemperature, Kind::kPenalties};
  EXPECT_EQ(choice(), 0) << "at temperature 0 only the likeliest is left to be penalised";
  row = {2, 3, 3};
  EXPECT_EQ(choice(), 1) << "of equal ones the lowest id";
  config.top_k = 4;
  config.penalty_alpha = 0.6;  // contrastive search has warpers of its own
  EXPECT_THAT(sampler_chain(config).penalties, ElementsAre(Kind::kPenalties));
  EXPECT_THAT(sampler_chain(config).warpers, IsEmpty());
  config.penalty_alpha = 0;
  config.top_k = 0;
  config.temperature = 1;  // nothing warps where nothing is drawn
  row = {3, 2.9f, 0};
  EXPECT_EQ(choice(), 1);
}

TEST(SamplerOrder, LatePenaltiesMustLeaveNumbers) {
  GenerationConfig config = sampling();
  config.repetition_penalty = 1e-6;
  config.top_k = 2;
  config.sampler_order = {Kind::kTopK, Kind::kPenalties, Kind::kTopP};
  config.top_p = 0.5;
  try {
    row_after(config, {3e38f, 1, 0});
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    EXPECT_THAT(error.message(), HasSubstr("scores: expected"));
  }
}

TEST(SamplerOrder, AnOrderThatIsTheUsualOneChangesNoBit) {
  GenerationConfig config = sampling();
  config.temperature = 0.7;
  config.top_k = 5;
  config.top_p = 0.9;
  config.repetition_penalty = 1.1;
  std::vector<float> row;
  for (int i = 0; i < 200; ++i)
    row.push_back(std::sin(static_cast<float>(i * i)) * 4);
  const std::vector<float> usual = row_after(config, row);
  config.sampler_order = config.samplers();
  EXPECT_EQ(row_after(config, row), usual);
}

TEST(SamplerOrder, IsReadInBothForms) {
  GenerationConfig config;
  const auto user = ParameterSource::kUser;
  config.set_text("sampler_order", "top_k,top_p,temperature", user);
  EXPECT_THAT(config.sampler_order, ElementsAre(Kind::kTopK, Kind::kTopP, Kind::kTemperature));
  EXPECT_EQ(config.get("sampler_order").dump(), R"(["top_k","top_p","temperature"])");
  config.set_text("sampler_order", R"(["min_p"])", user);
  EXPECT_THAT(config.sampler_order, ElementsAre(Kind::kMinP));
  for (const char* bad : {"luck", "top_k,,top_p", "5", "[1]", "{}"}) {
    try {
      config.set_text("sampler_order", bad, user);
      FAIL() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_THAT(error.message(), HasSubstr("sampler_order: expected a list")) << bad;
    }
  }
  EXPECT_THAT(config.sampler_order, ElementsAre(Kind::kMinP));
  std::vector<std::string> many(GenerationConfig::kMaxSamplerOrder, "top_k");
  config.set("sampler_order", many, user);
  many.emplace_back("top_k");
  EXPECT_THROW(config.set("sampler_order", many, user), Error);
}

TEST(SamplerOrder, DryIsAPenaltyToo) {
  GenerationConfig config = sampling();
  config.dry_multiplier = 2;
  config.dry_allowed_length = 1;
  config.dry_sequence_breakers = {};
  // "0 1 0": 1 would go on with a repetition of one token.
  const std::vector<int32_t> ids = {0, 1, 0};
  EXPECT_THAT(row_after(config, {2, 3, 0}, ids), ElementsAre(2, 1, 0));
  config.top_k = 1;
  config.sampler_order = {Kind::kTopK, Kind::kDry};
  EXPECT_THAT(row_after(config, {2, 3, 0}, ids), ElementsAre(kBanned, 1, kBanned));
  config.sampler_order = {Kind::kDry, Kind::kTopK};
  EXPECT_THAT(row_after(config, {2, 3, 0}, ids), ElementsAre(2, kBanned, kBanned));
  config.do_sample = false;
  EXPECT_THAT(row_after(config, {2, 3, 0}, ids), ElementsAre(2, 1, 0)) << "without sampling too";
  config.dry_penalty_last_n = 0;
  EXPECT_THAT(row_after(config, {2, 3, 0}, ids), ElementsAre(2, 3, 0));
  config.dry_penalty_last_n = -1;
  config.dry_sequence_breakers = {"."};
  EXPECT_THROW(row_after(config, {2, 3, 0}, ids), Error) << "texts need a tokenizer";
}

TEST(SamplerOrder, SaysWhatOfDryHasNoEffect) {
  GenerationConfig config = sampling();
  config.set_text("dry_base", "2", ParameterSource::kUser);
  EXPECT_THAT(config.without_effect(), ElementsAre(HasSubstr("dry_base 2.0 has no effect")));
  config.set_text("dry_multiplier", "1", ParameterSource::kUser);
  EXPECT_THAT(config.without_effect(), IsEmpty());
  config.set_text("dry_penalty_last_n", "0", ParameterSource::kUser);
  EXPECT_THAT(config.without_effect(), ElementsAre(HasSubstr("dry_multiplier 1.0 has no effect")));
  for (const auto& [name, bad] :
       std::vector<std::pair<const char*, const char*>>{{"dry_base", "0.9"},
                                                        {"dry_multiplier", "-1"},
                                                        {"dry_allowed_length", "-1"},
                                                        {"dry_penalty_last_n", "-2"},
                                                        {"dry_sequence_breakers", "[\"\"]"}}) {
    EXPECT_THROW(config.set_text(name, bad, ParameterSource::kUser), Error) << name;
  }
}

TEST(TopNSigma, IsItsDefinition) {
  // Mean 2.5, standard deviation sqrt(1.25) = 1.118.
  GenerationConfig config = sampling();
  config.top_n_sigma = 1;
  EXPECT_THAT(live_after(config, {1, 2, 3, 4}), ElementsAre(2, 3));
  config.top_n_sigma = 0.8;
  EXPECT_THAT(live_after(config, {1, 2, 3, 4}), ElementsAre(3));
  config.top_n_sigma = 2;
  EXPECT_THAT(live_after(config, {1, 2, 3, 4}), ElementsAre(1, 2, 3));
  config.top_n_sigma = 1;
  config.suppress_tokens = {4};
  EXPECT_THAT(live_after(config, {1, 2, 3, 4, 900}), ElementsAre(2, 3)) << "banned ones count not";
  config.suppress_tokens = {};
  config.temperature = 50;
  EXPECT_THAT(live_after(config, {1, 2, 3, 4}), ElementsAre(2, 3)) << "whatever the temperature";
  config.sampler_order = {Kind::kTemperature, Kind::kTopNSigma};
  EXPECT_THAT(live_after(config, {1, 2, 3, 4}), ElementsAre(2, 3));
  EXPECT_THAT(live_after(config, {1, 1, 1}), ElementsAre(0, 1, 2));
  config.num_beams = 3;
  config.eos_token_id = {0};
  config.top_n_sigma = 0.1;
  EXPECT_THAT(live_after(config, {1, 2, 3, 4}), ElementsAre(2, 3)) << "as many as beams need";
}

TEST(Xtc, LeavesTheLeastLikelyOfTheTopChoices) {
  const std::vector<float> row = logits_of({0.1f, 0.4f, 0.205f, 0.295f});
  GenerationConfig config = sampling();
  config.xtc_probability = 1;
  config.xtc_threshold = 0.2;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 2));
  config.xtc_threshold = 0.25;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 2, 3));
  config.xtc_threshold = 0.3;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1, 2, 3)) << "there is one top choice";
  config.xtc_threshold = 0.6;
  EXPECT_THAT(live_after(config, row), ElementsAre(0, 1, 2, 3));
  config.xtc_threshold = 0.4;
  EXPECT_THAT(live_after(config, logits_of({0.5f, 0.5f})), ElementsAre(1)) << "the highest id";
  config.xtc_threshold = 0.25;
  config.top_k = 2;  // 0.4 and 0.295 are all that is left
  EXPECT_THAT(live_after(config, row), ElementsAre(3));
  config.num_beams = 2;
  EXPECT_THAT(live_after(config, row), ElementsAre(1, 3)) << "beams need two";
}

TEST(Xtc, DrawsByAnswerAndPositionAsOftenAsItShould) {
  GenerationConfig config = sampling();
  config.xtc_probability = 0.3;
  config.xtc_threshold = 0.2;
  config.seed = 5;
  const std::vector<int32_t> ids(4000, 0);
  const auto pipeline = make_pipeline(config, std::span(ids).first(1), 10000, 2);
  const auto is_drawn = [&](size_t position, uint64_t stream) {
    std::vector<float> values = logits_of({0.7f, 0.3f});
    LogitsRow row(values);
    pipeline.apply({std::span(ids).first(position), 1, stream}, row);
    return values[0] == kBanned;
  };
  int n = 0, n_both = 0;
  for (size_t position = 1; position < ids.size(); ++position) {
    const bool first = is_drawn(position, 0);
    EXPECT_EQ(first, is_drawn(position, 0));
    n += first ? 1 : 0;
    n_both += first && is_drawn(position, 1) ? 1 : 0;
  }
  EXPECT_NEAR(n, 1200, 90);
  EXPECT_NEAR(n_both, 360, 70) << "answers draw apart";
}

TEST(Xtc, SaysWhatHasNoEffect) {
  const auto notes = [](const char* threshold, const char* probability) {
    GenerationConfig config = sampling();
    config.set_text("xtc_threshold", threshold, ParameterSource::kUser);
    config.set_text("xtc_probability", probability, ParameterSource::kUser);
    return config.without_effect();
  };
  EXPECT_THAT(notes("0.2", "0"), ElementsAre(HasSubstr("xtc_threshold 0.2 has no effect")));
  EXPECT_THAT(notes("0.6", "1"), ElementsAre(HasSubstr("xtc_probability 1.0 has no effect")));
  EXPECT_THAT(notes("0.2", "1"), IsEmpty());
}

}  // namespace
}  // namespace qw
