// The bench command, smoked: it runs, says what it promises, and its logits do not depend on the
// number of threads. How fast it is, no test can say.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/process.h"

namespace qw::test {

namespace {

using nlohmann::json;

const std::string kRoot = QIANWEN_SOURCE_DIR;
const std::string kMini = kRoot + "/models/qianwen-mini-chat";

/// A line of JSON per test.
std::vector<json> bench(const std::string& model, std::vector<std::string> args) {
  args.insert(args.begin(), {"bench", model, "--json"});
  const Ran ran = qianwen(args);
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
  const std::vector<std::string> args = {"-p", "8", "-n", "4", "-r", "1", "--threads"};
  const auto with_threads = [&](const char* n) {
    std::vector<std::string> all = args;
    all.emplace_back(n);
    return bench(kMini, all);
  };
  const std::vector<json> one = with_threads("1"), two = with_threads("2");
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

TEST(Bench, ListsGiveATestEach) {
  std::vector<std::string> names;
  for (const json& line :
       bench(kMini, {"-p", "2,1", "-p", "3", "-n", "0,2", "-b", "1,2", "-r", "1"}))
    names.push_back(line.at("test").get<std::string>() + "x" + line.at("batch").dump());
  EXPECT_EQ(names, (std::vector<std::string>{"pp2x1", "pp1x1", "pp3x1", "tg2x1", "pp2x2", "pp1x2",
                                             "pp3x2", "tg2x2"}));
}

TEST(Bench, RefusesACacheThatIsTooLargeBeforeItPrintsOrAllocates) {
  const Ran ran =
      qianwen({"bench", kMini, "-p", "4", "-n", "0", "-d", "0,1048576", "-b", "1,4096"});
  EXPECT_EQ(ran.code, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_NE(ran.err.find("KV cache: expected at most 2147483647 tokens"), std::string::npos)
      << ran.err;
}

TEST(Bench, TheProfileOfAMixtureCountsItAmongTheLinearLayers) {
  const std::string moe = kRoot + "/tests/golden/models/moe";
  const std::vector<std::string> args = {"-p", "8", "-n", "0", "-r", "2", "--profile"};
  int n_moe = 0;
  double linear_calls = 0;
  const std::vector<json> lines = bench(moe, args);
  for (const json& record : lines.at(0).at("profile")) {
    const std::string kernel = record.at("kernel");
    if (!kernel.empty()) linear_calls += record.at("calls").get<double>();
    if (record.at("operation") != "moe_ffn") continue;
    ++n_moe;
    EXPECT_EQ(record.at("calls"), 2) << "of the repetitions only";
    EXPECT_NE(kernel, "");
    expect_positive(record.at("gb_per_second"), "gb_per_second");
    expect_positive(record.at("gop_per_second"), "gop_per_second");
  }
  EXPECT_GT(n_moe, 0);
  std::vector<std::string> all = {"bench", moe};
  all.insert(all.end(), args.begin(), args.end());
  const Ran ran = qianwen(all);
  const size_t at = ran.out.find("\n  linear layers");
  ASSERT_NE(at, std::string::npos) << ran.out;
  EXPECT_EQ(std::stod(ran.out.substr(at + 16)), linear_calls) << ran.out;
}

}  // namespace

}  // namespace qw::test
