#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <numeric>

#include "base/rng.h"
#include "engine/logits_math.h"
#include "engine/logits_processors.h"
#include "engine/logits_warpers.h"

namespace qw {
namespace {

std::vector<float> random_row(int64_t n, uint64_t seed, float scale = 3) {
  std::vector<float> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back(scale * static_cast<float>(random_normal(seed, 0, static_cast<uint64_t>(i))));
  return out;
}

TEST(LogitsMath, FastExpIsWithinTwoUlp) {
  for (float x = -87.0f; x <= 0; x += 0.00731f) {
    const double exact = std::exp(static_cast<double>(x));
    EXPECT_NEAR(static_cast<double>(fast_exp(x)) / exact, 1, 2.4e-7) << x;
  }
  EXPECT_EQ(fast_exp(0), 1.0f);
  EXPECT_EQ(fast_exp(-200), 0.0f);
  EXPECT_EQ(fast_exp(kMinusInfinity), 0.0f);
}

TEST(LogitsMath, TopIndicesAgreeWithSorting) {
  for (const int64_t n : {1, 7, 256, 257, 5000}) {
    std::vector<float> row = random_row(n, 3);
    for (float& v : row)
      v = std::round(v * 4);  // many ties
    std::vector<int32_t> order(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; ++i)
      order[static_cast<size_t>(i)] = i;
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
    });
    for (const int64_t k : {1, 2, 20, 300, 6000}) {
      const std::vector<int32_t> want(order.begin(), order.begin() + std::min(k, n));
      EXPECT_EQ(top_indices(row, k), want) << n << " " << k;
      EXPECT_EQ(kth_largest(row, k), row[static_cast<size_t>(want.back())]);
    }
    EXPECT_EQ(argmax(row), order[0]);
  }
}

TEST(LogitsMath, RankAndIndicesFrom) {
  std::vector<float> row = random_row(1000, 4);
  for (float& v : row)
    v = std::round(v);  // many ties
  const std::vector<int32_t> order = top_indices(row, 1000);
  for (size_t rank = 0; rank < order.size(); ++rank)
    ASSERT_EQ(rank_of(row, static_cast<size_t>(order[rank])), static_cast<int64_t>(rank));
  for (const float threshold : {-3.0f, 0.0f, 2.0f, 99.0f}) {
    std::vector<uint32_t> from, above;
    for (uint32_t i = 0; i < row.size(); ++i) {
      if (row[i] >= threshold) from.push_back(i);
      if (row[i] > threshold) above.push_back(i);
    }
    EXPECT_EQ(indices_from(row, threshold), from);
    EXPECT_EQ(indices_above(row, threshold), above);
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOnTies) {
  std::vector<float> values = {1, 5, 5, 2};
  EXPECT_EQ(choose_greedy(LogitsRow(values)), 1);
  std::vector<float> none(4, kMinusInfinity);
  EXPECT_THROW(choose_greedy(LogitsRow(none)), Error);
  EXPECT_THROW(choose_sampled(LogitsRow(none), 0.5), Error);
}

TEST(Sampler, NotFiniteLogitsAreAnError) {
  std::vector<float> values = random_row(1000, 1);
  check_finite(values, 7);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    values[777] = bad;
    EXPECT_THROW(check_finite(values, 7), Error);
  }
}

TEST(LogitsMath, ScoresAreNumbersAndMinusInfinity) {
  std::vector<float> values = random_row(1000, 1);
  values[3] = kMinusInfinity;
  EXPECT_EQ(find_no_score(values), -1);
  for (const float bad : {std::nanf(""), INFINITY}) {
    values[777] = bad;
    EXPECT_EQ(find_no_score(values), 777);
  }
  values = {std::nanf(""), INFINITY, -INFINITY, 2};
  remove_not_finite(values);
  EXPECT_EQ(values, (std::vector<float>{0, 3.402823466e38f, -3.402823466e38f, 2}));
}

TEST(Sampler, HugeBiasesOverSmallTemperaturesStayScores) {
  for (const double temperature : {1e-6, 0.01, 1e6}) {
    for (const bool sparse : {false, true}) {
      std::vector<float> values = {1, 3e38f, kMinusInfinity, 2e38f, -3e38f};
      LogitsRow row(values);
      if (sparse) row.keep_only({0, 1, 3});
      Temperature(temperature).process({}, row);
      EXPECT_EQ(find_no_score(values), -1) << temperature;
      EXPECT_EQ(choose_sampled(row, 0.9), 1) << temperature;
    }
  }
  std::vector<float> small = {1, 3};
  LogitsRow row(small);
  Temperature(0.5).process({}, row);
  EXPECT_EQ(small, (std::vector<float>{2, 6})) << "no shift without need";
}

TEST(Sampler, TopPKeepsAllOfEqualValuesWhenItAsksForAll) {
  // So many times 1 / n add up to a little less than one.
  for (const size_t n : {size_t{514}, size_t{520}, size_t{526}}) {
    std::vector<float> values(n, 1.5f);
    LogitsRow row(values);
    TopP(std::nextafter(1.0, 0.0), 1).process({}, row);
    EXPECT_EQ(row.live().size(), n);
  }
}

TEST(Sampler, AGrowingEndTokenStopsAtTheLargestFloat) {
  std::vector<float> values = {-3, 5, 0, 1e30f};
  const std::vector<int32_t> history(200, 0);
  LogitsRow row(values);
  ExponentialDecayLength(0, 1e6, {0, 1, 2, 3}).process({history, 1}, row);
  EXPECT_EQ(find_no_score(values), -1);
  EXPECT_EQ(values[0], std::numeric_limits<float>::max());
  EXPECT_EQ(values[1], std::numeric_limits<float>::max());
  EXPECT_EQ(values[2], 0);
}

TEST(Sampler, InverseCdfFollowsTheDistribution) {
  std::vector<float> values = {std::log(0.1f), kMinusInfinity, std::log(0.6f), std::log(0.3f)};
  const LogitsRow row(values);
  EXPECT_EQ(choose_sampled(row, 0.0), 0);
  EXPECT_EQ(choose_sampled(row, 0.099), 0);
  EXPECT_EQ(choose_sampled(row, 0.101), 2);
  EXPECT_EQ(choose_sampled(row, 0.699), 2);
  EXPECT_EQ(choose_sampled(row, 0.701), 3);
  EXPECT_EQ(choose_sampled(row, 1 - 1e-16), 3);
  GenerationConfig config;
  config.do_sample = true;
  config.seed = 11;
  std::map<int32_t, int> counts;
  for (int64_t position = 0; position < 20000; ++position)
    ++counts[choose_token(row, config, 0, position)];
  EXPECT_NEAR(counts[0], 2000, 200);
  EXPECT_NEAR(counts[2], 12000, 300);
  EXPECT_NEAR(counts[3], 6000, 300);
  config.temperature = 0;
  EXPECT_EQ(choose_token(row, config, 0, 0), 2);
}

TEST(Sampler, PaddingIsNeverChosen) {
  GenerationConfig config;
  config.do_sample = true;
  config.remove_invalid_values = true;  // would lift -infinity to a number
  std::vector<int32_t> ids = {1};
  for (int64_t position = 0; position < 50; ++position) {
    std::vector<float> values(100, 0.0f);
    for (size_t i = 90; i < 100; ++i)
      values[i] = 50;
    LogitsRow row(values);
    make_pipeline(config, ids, 1000, 90).apply({ids, 1}, row);
    EXPECT_LT(choose_token(row, config, 0, position), 90);
  }
}

TEST(Sampler, ProbabilityIsAmongTheLiveTokens) {
  std::vector<float> values = {0, std::log(2.0f), std::log(5.0f), kMinusInfinity};
  LogitsRow row(values);
  EXPECT_NEAR(probability_of(row, 1), 2.0 / 8, 1e-6);
  EXPECT_EQ(probability_of(row, 3), 0);
  row.keep_only({1, 2});
  EXPECT_NEAR(probability_of(row, 2), 5.0 / 7, 1e-6);
}

TEST(Sampler, TokenLogprobs) {
  const std::vector<float> values = {1, 3, 2, 3};
  const TokenLogprobs out = token_logprobs(values, 3, 2);
  const double sum = std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0));
  EXPECT_NEAR(out.chosen.logprob, 3 - sum, 1e-6);
  EXPECT_EQ(out.rank, 1);
  ASSERT_EQ(out.top.size(), 2u);
  EXPECT_EQ(out.top[0].id, 1);
  EXPECT_EQ(out.top[1].id, 3);
}

/// The definition: sort, add up, cut.
std::vector<int32_t> top_p_by_sorting(std::span<const float> values, double p, int64_t min_keep) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const float va = values[static_cast<size_t>(a)], vb = values[static_cast<size_t>(b)];
    return va != vb ? va > vb : a > b;
  });
  const double log_sum = log_sum_exp(values);
  std::vector<int32_t> kept;
  double above = 0;
  for (const int32_t id : order) {
    const float value = values[static_cast<size_t>(id)];
    if ((above >= p && ssize(kept) >= min_keep) || value == kMinusInfinity) break;
    kept.push_back(id);
    above += std::exp(static_cast<double>(value) - log_sum);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

TEST(Sampler, TopPAgreesWithSorting) {
  uint64_t seed = 0;
  for (const int64_t n : {1, 5, 500, 3000, 40000}) {
    for (const float scale : {0.0f, 0.01f, 1.0f, 4.0f, 40.0f}) {
      for (const double p : {0.0, 0.1, 0.8, 0.97, 0.99999}) {
        for (const bool banned : {false, true}) {
          std::vector<float> values = random_row(n, ++seed, scale);
          if (seed % 3 == 0) {
            for (float& v : values)
              v = std::round(v);  // ties
          }
          for (size_t i = 1; banned && i < values.size(); i += 2)
            values[i] = kMinusInfinity;
          const int64_t min_keep = seed % 2 == 0 ? 1 : 3;
          const auto want = top_p_by_sorting(values, p, min_keep);
          LogitsRow row(values);
          TopP(p, min_keep).process({}, row);
          const std::span<const int32_t> got = row.live();
          // A sum in another order may reach p one token sooner or later.
          EXPECT_NEAR(static_cast<double>(got.size()), static_cast<double>(want.size()), 1)
              << n << " tokens, scale " << scale << ", p " << p;
          if (got.size() == want.size()) {
            EXPECT_TRUE(std::equal(got.begin(), got.end(), want.begin()));
          }
        }
      }
    }
  }
}

/// Neighbours that dividing may round to the same number.
std::vector<float> row_of_near_ties(int64_t n, uint64_t seed, float scale) {
  std::vector<float> row = random_row(n, seed, scale);
  for (size_t i = 0; i + 2 < row.size(); i += 3) {
    row[i + 1] = std::nextafter(row[i], 1e38f);
    row[i + 2] = std::nextafter(row[i], -1e38f);
  }
  return row;
}

TEST(Sampler, TemperatureMayCutWhatTopKWouldAndNothingElse) {
  uint64_t seed = 0;
  for (const float scale : {0.0f, 1e-38f, 1e-6f, 1.0f, 30.0f, 1e30f, 1e37f}) {
    for (const double temperature : {1e-38, 1e-4, 0.3, 0.7, 1.7, 9e3, 1e38}) {
      for (const int64_t k : {1, 2, 3, 20, 700}) {
        std::vector<float> plain = row_of_near_ties(1500, ++seed, scale);
        if (seed % 4 == 0) std::fill(plain.begin() + 2, plain.end(), kMinusInfinity);
        if (seed % 4 == 1) std::fill(plain.begin() + 2, plain.end(), -3e38f);
        std::vector<float> cut = plain;
        LogitsRow plain_row(plain), cut_row(cut);
        Temperature(temperature).process({}, plain_row);
        TopK(k, 1).process({}, plain_row);
        Temperature(temperature, k).process({}, cut_row);
        TopK(k, 1).process({}, cut_row);
        ASSERT_EQ(cut, plain) << scale << " " << temperature << " " << k;
      }
    }
  }
  std::vector<float> values = random_row(40000, 1);
  LogitsRow row(values);
  Temperature(0.7, 20).process({}, row);
  ASSERT_TRUE(row.is_sparse());
  EXPECT_LT(row.live().size(), 30u);
}

TEST(Sampler, PenaltiesCountTheHistory) {
  std::vector<int32_t> ids = {7, 7, 9};  // the prompt
  for (uint64_t i = 0; i < 3000; ++i)
    ids.push_back(static_cast<int32_t>(random_bits(1, 0, i) % 1000));
  const std::vector<float> raw = random_row(1200, 2);
  std::vector<float> expected = raw, repeated = raw, values = raw, penalised = raw;
  std::map<int32_t, int> counts;
  for (size_t i = 3; i < ids.size(); ++i)
    ++counts[ids[i]];
  for (const auto& [id, count] : counts)
    expected[static_cast<size_t>(id)] -= 0.3f * static_cast<float>(count) + 0.7f;
  LogitsRow row(values);
  PresenceFrequencyPenalty(0.7, 0.3).process({ids, 3}, row);
  EXPECT_EQ(values, expected);

  for (int32_t id = 0; id < 1200; ++id) {
    float& v = repeated[static_cast<size_t>(id)];
    if (std::find(ids.begin(), ids.end(), id) != ids.end()) v = v < 0 ? v * 1.5f : v / 1.5f;
  }
  LogitsRow penalised_row(penalised);
  RepetitionPenalty(1.5).process({ids, 3}, penalised_row);
  EXPECT_EQ(penalised, repeated);
}

TEST(Sampler, MinPIsItsDefinition) {
  for (const uint64_t seed : {1, 2, 3, 4, 5, 6}) {
    const std::vector<float> raw = random_row(5000, seed);
    const float max = *std::max_element(raw.begin(), raw.end());
    std::vector<float> e(raw.size());
    const double scale = 1 / exp_all(raw, max, e.data());
    // Also a limit that some token just reaches, and its neighbours.
    const auto reached = static_cast<double>(e[seed * 31]);
    for (const double min_p :
         {1e-6, 0.1, 1.0, reached, std::nextafter(reached, 1), std::nextafter(reached, 0)}) {
      for (const int64_t min_keep : {1, 40}) {
        std::vector<float> want = raw, got = raw;
        const float always = kth_largest(raw, min_keep);
        for (size_t i = 0; i < raw.size(); ++i) {
          if (static_cast<double>(e[i]) * scale < min_p * scale && raw[i] < always)
            want[i] = kMinusInfinity;
        }
        LogitsRow row(got);
        MinP(min_p, min_keep).process({}, row);
        ASSERT_EQ(got, want) << seed << " " << min_p << " " << min_keep;
      }
    }
  }
}

TEST(Sampler, TypicalPIsItsDefinition) {
  uint64_t seed = 0;
  for (const float scale : {0.0f, 1.0f, 5.0f, 80.0f}) {
    for (const double mass : {0.05, 0.5, 0.9, 0.999}) {
      for (const int64_t min_keep : {1, 5}) {
        const std::vector<float> raw = row_of_near_ties(3000, ++seed, scale);
        const double log_sum = log_sum_exp(raw);
        double entropy = 0;
        for (const float v : raw)
          entropy -=
              (static_cast<double>(v) - log_sum) * std::exp(static_cast<double>(v) - log_sum);
        std::vector<std::pair<float, size_t>> order;
        for (size_t i = 0; i < raw.size(); ++i) {
          const double surprise = log_sum - static_cast<double>(raw[i]);
          order.push_back({static_cast<float>(std::abs(surprise - entropy)), i});
        }
        std::sort(order.begin(), order.end());
        std::vector<float> want(raw.size(), kMinusInfinity), got = raw;
        double sum = 0;
        float limit = kMinusInfinity;  // of the distances once the mass is reached
        int64_t n = 0;
        for (const auto& [distance, i] : order) {
          if (sum >= mass && distance > limit && n >= min_keep) break;
          if (sum < mass) limit = distance;
          sum += std::exp(static_cast<double>(raw[i]) - log_sum);
          want[i] = raw[i];
          ++n;
        }
        LogitsRow row(got);
        TypicalP(mass, min_keep).process({}, row);
        ASSERT_EQ(got, want) << scale << " " << mass << " " << min_keep;
      }
    }
  }
  // Of equally typical ones that only min_keep asks for, the lower ids.
  std::vector<float> values = {0, 0, 9, 0};
  LogitsRow row(values);
  TypicalP(0.1, 3).process({}, row);
  EXPECT_EQ(values, (std::vector<float>{0, 0, 9, kMinusInfinity}));
}

// Not a check of speed, which depends on the machine: the numbers are printed for whoever looks.
TEST(Sampler, TimeOfTheQwenChain) {
  constexpr int64_t kVocab = 151936;
  const std::vector<float> raw = random_row(kVocab, 5);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 2000; ++i)
    ids.push_back(i * 7);
  const auto time = [&](const char* name, const GenerationConfig& config) {
    const auto pipeline = make_pipeline(config, ids, 1 << 30, kVocab - 290);
    std::vector<double> times;
    for (int repeat = 0; repeat < 15; ++repeat) {
      std::vector<float> values = raw;
      const auto start = std::chrono::steady_clock::now();
      check_finite(values, 0);
      LogitsRow row(values);
      pipeline.apply({ids, ssize(ids)}, row);
      EXPECT_LT(choose_token(row, config, 0, repeat), kVocab - 290);
      times.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
              .count());
    }
    std::sort(times.begin(), times.end());
    std::printf("  %s: %.0f us a token (median of 15)\n", name, times[times.size() / 2]);
  };
  GenerationConfig greedy;
  time("greedy", greedy);
  GenerationConfig qwen;
  qwen.do_sample = true;
  qwen.repetition_penalty = 1.05;
  qwen.temperature = 0.7;
  qwen.top_p = 0.8;
  qwen.top_k = 20;
  time("Qwen chain", qwen);
  qwen.top_k = 0;
  time("top_p alone", qwen);
  qwen.temperature = 10;  // nearly flat: 0.8 of the mass is most of the vocabulary
  time("top_p alone, flat", qwen);
}

// Passing over whole blocks finds the very id that adding one by one finds, at the borders too.
TEST(Sampler, DrawsFromLongRowsAsOneByOne) {
  for (const int n : {1, 255, 256, 257, 1000, 4096}) {
    std::vector<float> row(static_cast<size_t>(n));
    for (size_t i = 0; i < row.size(); ++i)
      row[i] = i % 7 == 3 ? -std::numeric_limits<float>::infinity()
                          : static_cast<float>(random_normal(3, static_cast<uint64_t>(n), i)) * 4;
    std::vector<float> terms(row.size());
    const double sum = exp_all(row, row[static_cast<size_t>(argmax(row))], terms.data());
    for (int k = 0; k <= 400; ++k) {
      const double u = k == 400 ? std::nextafter(1.0, 0.0) : k / 400.0;
      double cumulated = 0;
      size_t expected = 0;
      for (size_t i = 0; i < terms.size(); ++i) {
        if (terms[i] <= 0) continue;
        cumulated += static_cast<double>(terms[i]);
        expected = i;
        if (cumulated > u * sum) break;
      }
      std::vector<float> copy = row;
      EXPECT_EQ(choose_sampled(LogitsRow(copy), u), static_cast<int32_t>(expected))
          << n << " values, u " << u;
    }
  }
}

}  // namespace
}  // namespace qw
