// The bench command, smoked: it runs, says what it promises, and its logits do not depend on the
// number of threads. How fast it is, no test can say.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/process.h"

namespace qw::test {

namespace {

using nlohmann::json;

/// A line of JSON per test: a prefill of 8 tokens, then 4 decoded ones.
std::vector<json> bench(int threads) {
  const Ran ran =
      qianwen({"bench", std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat", "-p", "8",
               "-n", "4", "-r", "1", "--json", "--threads", std::to_string(threads)});
  EXPECT_EQ(ran.code, 0) << ran.err;
  std::vector<json> lines;
  std::istringstream text(ran.out);
  for (std::string line; std::getline(text, line);)
    lines.push_back(json::parse(line));
  return lines;
}

void expect_positive(const json& value, const std::string& field) {
  ASSERT_TRUE(value.is_number()) << field << " is " << value;
  EXPECT_GT(value.get<double>(), 0) << field;
}

TEST(Bench, SaysWhatItPromisesAndLogitsDoNotDependOnThreads) {
  const std::vector<json> one = bench(1), two = bench(2);
  ASSERT_EQ(one.size(), 2u);
  ASSERT_EQ(two.size(), 2u);
  for (const auto& [lines, threads] : {std::pair(&one, 1), std::pair(&two, 2)}) {
    for (const json& line : *lines) {
      EXPECT_EQ(line.at("threads"), threads);
      EXPECT_EQ(line.at("batch"), 1);
      EXPECT_EQ(line.at("depth"), 0);
      for (const char* field : {"median", "p10", "p90"})
        expect_positive(line.at("tokens_per_second").at(field), field);
      for (const char* field :
           {"gb_per_second", "gop_per_second", "read_bandwidth_fraction", "compute_fraction"})
        expect_positive(line.at(field), field);
      for (const char* field : {"read_gb_per_second", "compute_gop_per_second"})
        expect_positive(line.at("limits").at(field), field);
      EXPECT_FALSE(line.at("isa").get<std::string>().empty());
      EXPECT_FALSE(line.at("limits").at("compute_kind").get<std::string>().empty());
    }
    const json& prefill = lines->at(0);
    const json& decode = lines->at(1);
    EXPECT_EQ(prefill.at("test"), "pp8");
    EXPECT_EQ(prefill.at("n_prompt"), 8);
    EXPECT_EQ(prefill.at("n_gen"), 0);
    EXPECT_EQ(decode.at("test"), "tg4");
    EXPECT_EQ(decode.at("n_prompt"), 0);
    EXPECT_EQ(decode.at("n_gen"), 4);
  }
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_GE(one[i].at("logits_hash").get<std::string>().size(), 8u);
    EXPECT_EQ(one[i].at("logits_hash"), two[i].at("logits_hash")) << one[i].at("test");
  }
  EXPECT_NE(one[0].at("logits_hash"), one[1].at("logits_hash")) << "a hash of what?";
}

}  // namespace

}  // namespace qw::test
