// qianwen quantize with a budget: better files than llama-quantize's recipes of the same size, and
// what is promised of sizes and divergences is kept.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <ranges>

#include "base/mapped_file.h"
#include "support/cli_fixture.h"
#include "support/golden.h"
#include "support/tiny_checkpoint.h"

namespace qw::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kMeasured = "KL divergence predicted";

/// The bundled model; texts of the kind that it was made for, some to measure with, others to judge
/// by.
class CliBudget : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    std::ifstream in(std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/mini/test_items.jsonl");
    std::string calibration, judged;
    size_t n = 0;
    for (std::string line; std::getline(in, line) && n < 120; ++n) {
      const json item = json::parse(line);
      const std::string text =
          item["prompt"].get<std::string>() + item["expected"].get<std::string>() + "<|im_end|>\n";
      if (n % 3 == 0) {
        judged += text;
      } else {
        calibration += json{{"text", text}}.dump() + "\n";
      }
    }
    calibration_ = write("items.jsonl", calibration);
    judged_ = write("judged.txt", judged);
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  static RunOptions patient() {
    RunOptions options;  // the model is run some fifty times
    options.timeout_s = 600;
    return options;
  }
  Ran quantize(const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled, "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return qianwen(args, patient());
  }
  /// With a budget, on the calibration; what it said.
  json budget(const std::string& name, const std::vector<std::string>& more) {
    const Ran ran = qianwen(with_budget(name, more), patient());
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out, nullptr, false);
  }
  std::vector<std::string> with_budget(const std::string& name,
                                       const std::vector<std::string>& more) const {
    std::vector<std::string> args = {"quantize", kBundled, "--json"};
    args.insert(args.end(), more.begin(), more.end());
    for (const std::string& flag :
         {std::string("--calibration"), calibration_, std::string("--sensitivity-tokens"),
          std::string("256"), std::string("--output"), path(name)})
      args.push_back(flag);
    return args;
  }
  double judge(const std::string& name) {
    const Ran ran = qianwen({"compare", kBundled, path(name), "--file", judged_, "--json"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out)["kl"]["mean"].get<double>();
  }
  int64_t size(const std::string& name) const {
    return static_cast<int64_t>(std::filesystem::file_size(path(name)));
  }

  std::string calibration_, judged_;
};

TEST_F(CliBudget, BeatsTheRecipesOfTheSameSize) {
  ASSERT_EQ(
      qianwen({"imatrix", kBundled, "--calibration", calibration_, "--output", path("i.gguf")})
          .code,
      0);
  // With the same importances, so that what is compared is the choice of types alone.
  ASSERT_EQ(
      quantize({"--to", "q3_k_m", "--imatrix", path("i.gguf"), "--output", path("a.gguf")}).code,
      0);
  const json said = budget(
      "b.gguf", {"--max-bytes", std::to_string(size("a.gguf")), "--imatrix", path("i.gguf")});
  EXPECT_LE(size("b.gguf"), size("a.gguf"));
  EXPECT_GE(size("b.gguf"), 0.98 * static_cast<double>(size("a.gguf")));
  EXPECT_LT(judge("b.gguf"), 0.8 * judge("a.gguf"));
  // The prediction is of the right size.
  const double measured = said["measured_kl"], predicted = said["predicted_kl"];
  EXPECT_GT(predicted, 0.4 * measured);
  EXPECT_LT(predicted, 2.5 * measured);
}

TEST_F(CliBudget, KeepsADivergence) {
  const json kl = budget("kl.gguf", {"--max-kl", "0.02"});
  EXPECT_LE(kl["measured_kl"], 0.02);
  EXPECT_GE(kl["measured_kl"], 0.015);
  EXPECT_EQ(kl["tensors"].size(), 43u);
}

/// Types that hold the codes of a quantised model cost nothing.
TEST_F(CliBudget, KnowsThatCodesCanBeKept) {
  const auto blocks = find_golden("gguf/files/nano-q4_0.gguf");
  if (!blocks) GTEST_SKIP() << "no golden gguf/files/nano-q4_0.gguf";
  const std::string model = path("gptq");
  ASSERT_EQ(
      qianwen({"convert", *blocks, "--to", "gptq", "--max-error", "0.01", "--output", model}).code,
      0);
  const Ran ran = qianwen({"quantize", model, "--budget", "5bpw", "--calibration", calibration_,
                           "--calibration-tokens", "512", "--sensitivity-tokens", "256", "--output",
                           path("m.gguf"), "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json said = json::parse(ran.out);
  int n_kept = 0;
  for (const json& tensor : said["tensors"])
    n_kept += tensor["type"] == "q4_0" && tensor["damage"] == 0 ? 1 : 0;
  EXPECT_GE(n_kept, 14) << said["tensors"];
  for (const json& tensor : said["weights"]["tensors"]) {
    if (tensor["from"].get<std::string>().starts_with("int4")) {
      EXPECT_EQ(tensor["exact"], true) << tensor;
    }
  }
}

/// Of a GPTQ directory.
TEST_F(CliBudget, SharesOutTheBitsOfGptq) {
  const auto weights = [&](const std::string& name) {
    return static_cast<int64_t>(
        std::filesystem::file_size(std::filesystem::path(path(name)) / "model.safetensors"));
  };
  ASSERT_EQ(
      quantize({"--to", "gptq-int4", "--calibration", calibration_, "--output", path("a")}).code,
      0);
  const json said = budget("b", {"--to", "gptq", "--max-bytes", std::to_string(weights("a"))});
  EXPECT_LE(weights("b"), weights("a"));
  EXPECT_GE(weights("b"), 0.98 * static_cast<double>(weights("a")));
  EXPECT_EQ(said["groups"].size(), 24u);
  EXPECT_LT(judge("b"), 0.95 * judge("a"));
  const double measured = said["measured_kl"], predicted = said["predicted_kl"];
  EXPECT_GT(predicted, 0.25 * measured);
  EXPECT_LT(predicted, 2.5 * measured);

  // Interrupted while bits are written that come after others were measured.
  const std::vector<std::string> asked = {"--to", "gptq", "--max-kl", "0.1"};
  const auto count = [&](const Ran& ran) {
    return std::ranges::distance(ran.err | std::views::split(kMeasured)) - 1;
  };
  RunOptions interrupt;
  interrupt.timeout_s = 600;
  interrupt.signal_after_output = SIGINT;
  interrupt.signal_after = kMeasured;
  const Ran ended = qianwen(with_budget("c", asked), interrupt);
  EXPECT_EQ(ended.code, 130) << ended.err;
  EXPECT_EQ(count(ended), 1) << ended.err;
  EXPECT_TRUE(std::filesystem::exists(path("c.work/job.json")));
  EXPECT_FALSE(std::filesystem::exists(path("c")));
  const size_t at = ended.err.find(kMeasured);
  const std::string first = ended.err.substr(at, ended.err.find('\n', at) - at);
  const Ran rest = qianwen(with_budget("c", asked), patient());
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_THAT(rest.err, Not(HasSubstr(first))) << "measured again";
  EXPECT_THAT(rest.err, HasSubstr("6 of 6 were measured by a run that was interrupted"));
  EXPECT_GE(count(rest), 1);
  const json kl = json::parse(rest.out);
  EXPECT_LE(kl["measured_kl"], 0.1);
  EXPECT_GE(kl["measured_kl"], 0.06);
  for (const char* left : {"c.work", "c.unproven", "c.attempts.json", "c.measured"})
    EXPECT_FALSE(std::filesystem::exists(path(left))) << left;
  expect_failure(quantize({"--to", "gptq", "--output", path("d")}), 2, "--budget");
  expect_failure(
      quantize({"--to", "gptq", "--budget", "4", "--imatrix", "i", "--output", path("d")}), 2,
      "--imatrix");
}

TEST_F(CliBudget, SaysWhatItWouldDoAndWhatItCannot) {
  const std::vector<std::string> few = {"--calibration", calibration_, "--sensitivity-tokens",
                                        "256"};
  const auto with = [&](std::vector<std::string> args) {
    args.insert(args.end(), few.begin(), few.end());
    return quantize(args);
  };
  const Ran dry = with({"--budget", "4.25bpw", "--dry-run"});
  ASSERT_EQ(dry.code, 0) << dry.err;
  const json said = json::parse(dry.out);
  EXPECT_FALSE(said.contains("measured_kl"));
  EXPECT_TRUE(said["output"].is_null());
  EXPECT_LE(said["bits_per_weight"], 4.25);
  EXPECT_GE(said["bits_per_weight"], 4.2);
  double damage = 0;
  for (const json& tensor : said["tensors"])
    damage += tensor["damage"].get<double>();
  EXPECT_NEAR(damage, said["predicted_kl"].get<double>(), 1e-9);
  EXPECT_FALSE(std::filesystem::exists(path("a")));

  expect_failure(with({"--budget", "4.25bpx", "--dry-run"}), 2, "4.25bpw");
  // Before anything is measured.
  for (const std::vector<std::string>& too_small :
       {std::vector<std::string>{"--max-bytes", "1000000"},
        {"--budget", "1"},
        {"--to", "gptq", "--max-bytes", "1000000"},
        {"--to", "gptq", "--budget", "2"}}) {
    std::vector<std::string> args = too_small;
    args.push_back("--dry-run");
    const Ran refused = with(args);
    expect_failure(refused, 2, ": expected at least");
    EXPECT_THAT(refused.last_error_line(), HasSubstr(", got " + args[args.size() - 2]));
    EXPECT_THAT(refused.last_error_line(), HasSubstr(args[args.size() - 3] + ": expected"));
    EXPECT_THAT(refused.err, Not(HasSubstr("measuring")));
  }
  expect_failure(with({"--max-kl", "1e-12", "--to", "q8_0", "--dry-run"}), 2, "--to");
  expect_failure(with({"--budget", "4", "--pure", "--dry-run"}), 2, "--pure");
  expect_failure(with({"--budget", "4", "--group-size", "64", "--dry-run"}), 2, "--group-size");
  expect_failure(quantize({"--dry-run"}), 2, "--budget");
  expect_failure(quantize({"--to", "q8_0", "--sensitivity-tokens", "500", "--dry-run"}), 2,
                 "--sensitivity-tokens");
}

/// A network of no sense, which is measured in a moment.
class CliTinyBudget : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    namespace fs = std::filesystem;
    tiny_.write();
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"})
      fs::copy(fs::path(kBundled) / name, fs::path(tiny_.path()) / name);
    std::string lines;
    for (int line = 0; line < 8; ++line) {
      json ids = json::array();
      for (int i = 0; i < 32; ++i)
        ids.push_back((line * 977 + i * i * 131) % 6000);
      lines += json{{"ids", ids}}.dump() + "\n";
    }
    calibration_ = write("ids.jsonl", lines);
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  /// Ended by `signal` once it has said `after`.
  Ran quantize(const std::string& name, const std::vector<std::string>& asked, int signal = 0,
               const std::string& after = "") const {
    std::vector<std::string> args = {
        "quantize", tiny_.path(), "--log-level", "debug", "--calibration",        calibration_,
        "--output", path(name),   "--threads",   "1",     "--sensitivity-tokens", "128"};
    args.insert(args.end(), asked.begin(), asked.end());
    RunOptions options;
    options.signal_after_output = signal;
    options.signal_after = after;
    return qianwen(args, options);
  }
  static ptrdiff_t count(const Ran& ran, std::string_view what) {
    return std::ranges::distance(ran.err | std::views::split(what)) - 1;
  }
  /// Of a file, or of all in a directory.
  std::map<std::string, std::string> bytes_of(const std::string& name) const {
    namespace fs = std::filesystem;
    if (!fs::is_directory(path(name))) return {{"", read_text_file(path(name))}};
    std::map<std::string, std::string> out;
    for (const auto& entry : fs::directory_iterator(path(name)))
      out[entry.path().filename().string()] = read_text_file(entry.path().string());
    return out;
  }
  /// Run without an end of its own, and ended by `signal` after `after`, it measures each of what
  /// it tells with `measured` once, and writes the same bytes. `kept`: the files beside the output.
  void expect_goes_on(const std::vector<std::string>& asked, int signal, const std::string& after,
                      std::string_view measured, const std::vector<std::string>& kept) {
    const Ran straight = quantize("straight", asked);
    ASSERT_EQ(straight.code, 0) << straight.err;
    EXPECT_FALSE(std::filesystem::exists(path("straight.measured")));
    const Ran ended = quantize("out", asked, signal, after);
    EXPECT_EQ(ended.code, 128 + signal) << ended.err;
    EXPECT_FALSE(std::filesystem::exists(path("out")));
    for (const std::string& name : kept)
      EXPECT_TRUE(std::filesystem::exists(path("out.measured/" + name))) << name;
    std::vector<std::string> other = asked;
    other.insert(other.end(), {"--calibration-length", "16"});
    expect_failure(quantize("out", other), 2, "another's (remove " + path("out.measured"));
    const Ran rest = quantize("out", asked);
    ASSERT_EQ(rest.code, 0) << rest.err;
    EXPECT_THAT(rest.err, HasSubstr("were measured by a run that was interrupted"));
    const auto n = count(straight, measured), n_before = count(ended, measured);
    EXPECT_GE(n_before, 1);
    // One may have been noted and not told.
    EXPECT_GE(n_before + count(rest, measured), n - 1);
    EXPECT_LE(n_before + count(rest, measured), n);
    EXPECT_EQ(bytes_of("out"), bytes_of("straight"));
    EXPECT_FALSE(std::filesystem::exists(path("out.measured")));
  }

  TinyCheckpoint tiny_{
      TinyShape{.tied = true, .hidden = 64, .intermediate = 96, .vocab = 6016, .n_layers = 3}};
  std::string calibration_;
};

TEST_F(CliTinyBudget, GoesOnAfterErrorsThatWereMeasured) {
  expect_goes_on({"--budget", "5bpw"}, SIGKILL, "measured 7 of 44", ": measured ",
                 {"journal.jsonl", "imatrix.gguf"});
}

TEST_F(CliTinyBudget, GoesOnAfterDivergencesThatWereMeasured) {
  expect_goes_on({"--budget", "5bpw"}, SIGINT, "measured 29 of 44", "KL divergence with ",
                 {"journal.jsonl", "imatrix.gguf"});
}

TEST_F(CliTinyBudget, GoesOnWithASearch) {
  expect_goes_on({"--max-kl", "0.001"}, SIGKILL, "KL divergence with 22 ", "KL divergence with ",
                 {"journal.jsonl", "imatrix.gguf"});
}

TEST_F(CliTinyBudget, GoesOnAfterLayersOfGptqThatWereMeasured) {
  expect_goes_on({"--to", "gptq", "--budget", "4bpw", "--group-size", "32"}, SIGKILL,
                 "measured 1 of 3", ": measured ",
                 {"job.json", "layer-00000.safetensors", "hidden.safetensors"});
}

}  // namespace
}  // namespace qw::test
