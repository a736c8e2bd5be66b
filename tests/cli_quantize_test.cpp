// qianwen quantize, convert and compare: files that run, refusals, and figures that know the same
// model from another.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "quantize/importance.h"
#include "support/adapter_writer.h"
#include "support/cli_fixture.h"
#include "support/golden.h"

namespace qw::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class CliQuantize : public CliTest {
 protected:
  std::string path(const char* name) const { return (folder_ / name).string(); }
  json compare(const std::string& a, const std::string& b) const {
    const Ran ran = qianwen({"compare", a, b, "--file", text_, "--json", "--layers"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out);
  }
  const std::string text_ = std::string(QIANWEN_SOURCE_DIR) + "/models/README.md";
};

TEST_F(CliQuantize, MakesFilesThatRun) {
  const Ran made =
      qianwen({"quantize", kBundled, "--to", "Q8_0", "--output", path("q8.gguf"), "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_NEAR(json::parse(made.out)["bits_per_weight"], 8.5, 1e-9);
  const json result = compare(kBundled, path("q8.gguf"));
  EXPECT_GT(result["kl"]["mean"], 1e-6);
  EXPECT_LT(result["kl"]["mean"], 0.01);
  EXPECT_GT(result["same_top1"]["mean"], 0.9);
  EXPECT_GT(result["layer_errors"].back(), 0.001);
  const json coarse = compare(kBundled, [&] {
    qianwen({"quantize", kBundled, "--to", "q2_k", "--output", path("q2.gguf")});
    return path("q2.gguf");
  }());
  EXPECT_GT(coarse["kl"]["mean"], 10 * result["kl"]["mean"].get<double>());
}

TEST_F(CliQuantize, ConvertsWithoutLoss) {
  const Ran made = qianwen({"convert", kBundled, "--to", "gguf", "--output", path("mini.gguf")});
  ASSERT_EQ(made.code, 0) << made.err;
  const json result = compare(kBundled, path("mini.gguf"));
  EXPECT_EQ(result["kl"]["mean"], 0);
  EXPECT_EQ(result["kl_max"], 0);
  EXPECT_EQ(result["same_top10"]["mean"], 1);
  EXPECT_EQ(result["a"], result["b"]);
  for (const double error : result["layer_errors"].get<std::vector<double>>())
    EXPECT_EQ(error, 0);
  // By another command, on the same windows.
  const Ran other =
      qianwen({"perplexity", path("mini.gguf"), "--file", text_, "--window", "512", "--json"});
  EXPECT_NEAR(result["a"]["nll"], json::parse(other.out)["nll"], 1e-5);
}

TEST_F(CliQuantize, RefusesWhatWouldBeLostOrCannotBe) {
  const std::string file = write("there.gguf", "mine");
  expect_failure(qianwen({"quantize", kBundled, "--to", "q8_0", "--output", file}), 2, "--force");
  expect_failure(qianwen({"quantize", kBundled, "--to", "q9", "--output", path("a")}), 2, "Q4_K_M");
  expect_failure(qianwen({"quantize", kBundled, "--to", "q8_0"}), 2, "--output");
  expect_failure(qianwen({"quantize", kBundled, "--to", "iq2_xxs", "--output", path("a")}), 2,
                 "importance matrix");
  expect_failure(
      qianwen({"quantize", kBundled, "--to", "q8_0", "--dry-run", "--tensor-type", "(=q8_0"}), 2,
      "regular expression");
  expect_failure(qianwen({"quantize", kBundled, "--to", "q8_0", "--output", path("no/where.gguf")}),
                 3, "directory");
  EXPECT_FALSE(std::filesystem::exists(path("a")));
  const Ran dry = qianwen({"quantize", kBundled, "--to", "q4_k_s", "--tensor-type", "ffn_down=q8_0",
                           "--dry-run", "--json"});
  EXPECT_EQ(json::parse(dry.out)["tensors"]["blk.0.ffn_down.weight"], "q8_0");
  EXPECT_EQ(json::parse(dry.out)["tensors"]["blk.0.ffn_up.weight"], "q4_k");
}

TEST_F(CliQuantize, WritesGgufInFiles) {
  const auto split = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {
        "convert",      kBundled,           "--to",    "gguf",  "--output",
        path("m.gguf"), "--max-shard-size", "3000000", "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return qianwen(args);
  };
  const Ran made = split({});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto files = json::parse(made.out)["files"].get<std::vector<std::string>>();
  ASSERT_EQ(files.size(), 6u);
  EXPECT_FALSE(std::filesystem::exists(path("m.gguf")));
  EXPECT_EQ(compare(kBundled, files.front())["kl_max"], 0);
  expect_failure(split({}), 2, "m-00001-of-00006.gguf");
  EXPECT_EQ(split({"--force"}).code, 0);
  const Ran layered = qianwen({"quantize", kBundled, "--to", "gptq-int4", "--max-shard-tensors",
                               "3", "--output", path("a")});
  expect_failure(layered, 2, "--max-shard-tensors: expected it with --to a GGUF type");
}

TEST_F(CliQuantize, DrawsComparisons) {
  const auto draw = [&](const char* name) {
    return qianwen({"compare", kBundled, kBundled, "--file", text_, "--chart", path(name)});
  };
  ASSERT_EQ(draw("c.svg").code, 0);
  ASSERT_EQ(draw("c.html").code, 0);
  EXPECT_TRUE(std::filesystem::exists(path("c.svg")));
  EXPECT_TRUE(std::filesystem::exists(path("c.html")));
  EXPECT_THAT(draw("c.png").err, HasSubstr("expected a name in .svg or .html"));
  // Before B, which is not there, is looked for.
  const auto refused = [&](const std::string& chart, int code, const char* part) {
    expect_failure(
        qianwen({"compare", kBundled, path("no-such"), "--file", text_, "--chart", chart}), code,
        part);
  };
  refused(path("c.svg"), 2, "--force");
  refused(path("no/where.svg"), 3, "where.svg");
  refused("/proc/c.svg", 3, "/proc/c.svg");
  std::filesystem::create_directory(path("d.svg"));
  refused(path("d.svg"), 2, "got a directory");
  write("c.svg", "mine");
  EXPECT_EQ(read_text_file(path("c.svg")), "mine");
  ASSERT_EQ(
      qianwen({"compare", kBundled, kBundled, "--file", text_, "--chart", path("c.svg"), "--force"})
          .code,
      0);
  EXPECT_THAT(read_text_file(path("c.svg")), HasSubstr("<svg"));
  // A chart that fails in the end costs no figures.
  const Ran lost = run_program(
      "/bin/sh",
      {"-c", "ulimit -f 0; exec \"$0\" compare \"$1\" \"$1\" --file \"$2\" --chart \"$3\"",
       QIANWEN_PROGRAM, kBundled, text_, path("e.svg")});
  expect_failure(lost, 7, "e.svg");
  EXPECT_THAT(lost.out, HasSubstr("KL divergence, mean"));
  EXPECT_FALSE(std::filesystem::exists(path("e.svg")));
}

TEST_F(CliQuantize, MakesDirectoriesOfFilesAndMergesAdapters) {
  ASSERT_EQ(qianwen({"convert", kBundled, "--to", "gguf", "--output", path("m.gguf")}).code, 0);
  const Ran made =
      qianwen({"convert", path("m.gguf"), "--to", "safetensors", "--output", path("hf"), "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(json::parse(made.out)["warnings"], json::array());
  const json same = compare(kBundled, path("hf"));
  EXPECT_EQ(same["kl"]["mean"], 0);
  EXPECT_EQ(same["b"], same["a"]);
  EXPECT_THAT(qianwen({"convert", kBundled, "--to", "safetensors", "--output", path("hf")}).err,
              HasSubstr("not there yet"));
  EXPECT_THAT(
      qianwen({"convert", kBundled, "--to", "safetensors", "--output", path("x"), "--force"}).err,
      HasSubstr("--force: expected it with --to gguf, got it with safetensors"));

  EXPECT_THAT(qianwen({"merge", kBundled, "--output", path("merged")}).err,
              HasSubstr("--adapter: expected one at least"));
  Adapter adapter;
  adapter.add("model.layers.2.self_attn.q_proj.lora_A.weight", {3, 256});
  adapter.add("model.layers.2.self_attn.q_proj.lora_B.weight", {256, 3});
  const Ran merged =
      qianwen({"merge", kBundled, "--adapter", adapter.write_peft() + ":0.5", "--type", "f32",
               "--output", path("merged"), "--file", text_, "--json"});
  ASSERT_EQ(merged.code, 0) << merged.err;
  const json result = json::parse(merged.out);
  EXPECT_EQ(result["modules_changed"], 1);
  EXPECT_EQ(result["rounding_to_change"], 0);
  // Beside the live adapter, whose base is rounded as bf16 is.
  EXPECT_LT(result["comparison"]["kl"]["mean"],
            0.02 * compare(kBundled, path("merged"))["kl"]["mean"].get<double>());
}

TEST_F(CliQuantize, MergesInTheFormatThatItHas) {
  const std::string q4 = path("q4.gguf");
  ASSERT_EQ(qianwen({"quantize", kBundled, "--to", "q4_0", "--output", q4}).code, 0);
  Adapter adapter;
  for (const char* module :
       {"model.layers.1.self_attn.o_proj", "model.layers.2.self_attn.q_proj"}) {
    adapter.add(std::string(module) + ".lora_A.weight", {3, 256});
    adapter.add(std::string(module) + ".lora_B.weight", {256, 3});
  }
  const std::string with = adapter.write_peft() + ":0.1";
  std::vector<std::string> command = {"merge",         q4,     "--adapter", with,
                                      "--type",        "same", "--output",  path("merged.gguf"),
                                      "--calibration", text_,  "--json"};
  const Ran merged = qianwen(command);
  ASSERT_EQ(merged.code, 0) << merged.err;
  const json result = json::parse(merged.out);
  EXPECT_EQ(result["recoded"], 2);
  EXPECT_LT(result["merge"]["lost"], 0.9 * result["merge"]["lost_by_plain_rounding"].get<double>());
  EXPECT_LT(result["comparison"]["kl"]["mean"],
            0.3 * result["comparison_without_adapters"]["kl"]["mean"].get<double>());
  EXPECT_THAT(merged.err, Not(HasSubstr("further from the live adapters")));
  EXPECT_EQ(std::filesystem::file_size(path("merged.gguf")), std::filesystem::file_size(q4));

  EXPECT_THAT(qianwen(command).err, HasSubstr("expected a path where nothing is yet"));
  command[1] = kBundled;  // floats, rounded to their type: no calibration
  command[7] = path("merged");
  const Ran dense = qianwen(command);
  ASSERT_EQ(dense.code, 0) << dense.err;
  EXPECT_EQ(json::parse(dense.out)["recoded"], 0);
  EXPECT_THAT(qianwen({"merge", q4, "--adapter", with, "--output", path("x"), "--damp", "0.1"}).err,
              HasSubstr("--damp: expected it with --type same, got it with bf16"));
  EXPECT_THAT(qianwen({"merge", q4, "--adapter", with, "--output", path("x"), "--no-compare"}).err,
              HasSubstr("--no-compare: expected it with --type same"));
  Adapter other;  // of a wider model
  other.add("model.layers.1.self_attn.o_proj.lora_A.weight", {3, 512});
  other.add("model.layers.1.self_attn.o_proj.lora_B.weight", {512, 3});
  const Ran refused = qianwen(
      {"merge", q4, "--adapter", other.write_peft(), "--type", "same", "--output", path("x")});
  EXPECT_NE(refused.code, 0);
  EXPECT_THAT(refused.err, HasSubstr("o_proj"));
  EXPECT_FALSE(std::filesystem::exists(path("x")));
}

/// Texts of the kind that the bundled model was made for: 7 of 8 items to calibrate with, the rest
/// to judge by.
struct Items {
  std::string calibration, judged;
};
Items items() {
  std::ifstream in(std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/mini/test_items.jsonl");
  Items out;
  size_t n = 0;
  for (std::string line; std::getline(in, line) && n < 320; ++n) {
    const json item = json::parse(line);
    const std::string text =
        item["prompt"].get<std::string>() + item["expected"].get<std::string>() + "<|im_end|>\n";
    if (n % 8 == 0) {
      out.judged += text;
    } else {
      out.calibration += json{{"text", text}}.dump() + "\n";
    }
  }
  return out;
}

/// Quantises the bundled model on one part of its items; how far it is away on the rest.
class CliCalibrated : public CliQuantize {
 protected:
  void SetUp() override {
    CliQuantize::SetUp();
    const Items made = items();
    calibration_ = write("items.jsonl", made.calibration);
    judged_ = write("judged.txt", made.judged);
  }
  double kl_of(const std::string& to, const std::string& name,
               const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled,           "--to",
                                     to,         "--calibration",    calibration_,
                                     "--output", path(name.c_str()), "--json"};
    args.insert(args.end(), more.begin(), more.end());
    const Ran ran = qianwen(args);
    EXPECT_EQ(ran.code, 0) << ran.err;
    const json said = json::parse(ran.out);
    EXPECT_EQ(said["layers"].size(), 6u);
    EXPECT_EQ(said["matrices"], 42);
    EXPECT_EQ(said["calibration"]["samples"], 280);
    EXPECT_THAT(ran.err, testing::HasSubstr("tokens of 280 samples"));
    const Ran compared =
        qianwen({"compare", kBundled, path(name.c_str()), "--file", judged_, "--json"});
    EXPECT_EQ(compared.code, 0) << compared.err;
    return json::parse(compared.out)["kl"]["mean"].get<double>();
  }

  std::string calibration_, judged_;
};

TEST_F(CliCalibrated, GptqIsBetterThanAutoGptqsWay) {
  const double better = kl_of("gptq-int4", "better", {});
  const double reference = kl_of("gptq-int4", "reference", {"--gptq-mode", "reference"});
  EXPECT_LT(better, 0.9 * reference);
  EXPECT_LT(better, 0.08);
  const double fine =
      kl_of("gptq-int4", "fine", {"--group-size", "32", "--no-sym", "--v2", "--desc-act"});
  EXPECT_LT(fine, better);
}

TEST_F(CliCalibrated, AwqIsBetterThanAutoAwqsWay) {
  // AutoAWQ's search is slow: few tokens for both.
  const std::vector<std::string> few = {"--calibration-tokens", "4000"};
  const double better = kl_of("awq", "better", few);
  EXPECT_LT(better, 0.08);
  const double reference = kl_of("awq", "reference", {few[0], few[1], "--awq-mode", "reference"});
  EXPECT_LT(better, 0.8 * reference);
}

TEST_F(CliCalibrated, Nf4IsBetterThanBitsandbytesWay) {
  const auto kl = [&](const char* name, const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled,   "--to",  "nf4",
                                     "--output", path(name), "--json"};
    args.insert(args.end(), more.begin(), more.end());
    const Ran ran = qianwen(args);
    EXPECT_EQ(ran.code, 0) << ran.err;
    const json said = json::parse(ran.out);
    EXPECT_EQ(said["matrices"], 42);
    EXPECT_FALSE(said.contains("calibration"));
    const Ran compared = qianwen({"compare", kBundled, path(name), "--file", judged_, "--json"});
    EXPECT_EQ(compared.code, 0) << compared.err;
    return json::parse(compared.out)["kl"]["mean"].get<double>();
  };
  const double better = kl("better", {}), reference = kl("reference", {"--nf4-mode", "reference"});
  EXPECT_LT(better, 0.92 * reference);
  EXPECT_LT(better, 0.12);
  EXPECT_LT(kl("double", {"--double-quant"}), 1.05 * better);
  EXPECT_GT(kl("wide", {"--block-size", "1024"}), better);
}

TEST_F(CliQuantize, Nf4SaysWhatItCannotDo) {
  const auto nf4 = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled, "--to", "nf4", "--output", path("n")};
    args.insert(args.end(), more.begin(), more.end());
    return qianwen(args);
  };
  expect_failure(nf4({"--block-size", "48"}), 2, "32, 64, 128");
  expect_failure(nf4({"--group-size", "64"}), 2, "gptq-int4 and its like, or awq");
  expect_failure(nf4({"--calibration", "x"}), 2, "gptq-int4 and its like, or awq");
  expect_failure(nf4({"--pure"}), 2, "--pure");
  expect_failure(
      qianwen({"quantize", kBundled, "--to", "awq", "--double-quant", "--output", path("n")}), 2,
      "expected it with --to nf4");
  EXPECT_FALSE(std::filesystem::exists(path("n")));
}

TEST_F(CliQuantize, AwqSaysWhatItCannotDo) {
  const auto awq = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled, "--to", "awq", "--output", path("a")};
    args.insert(args.end(), more.begin(), more.end());
    return qianwen(args);
  };
  const Ran unknown = awq({"--version", "marlin"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, ::testing::HasSubstr("gemv_fast"));
  expect_failure(awq({"--group-size", "48"}), 5, "whole groups");
  expect_failure(awq({"--group-size", "16", "--version", "gemv"}), 5, "gemm holds any");
  expect_failure(awq({"--no-sym"}), 2, "expected it with --to gptq-int4 and its like");
  expect_failure(awq({"--pure"}), 2, "--pure");
  expect_failure(awq({"--calibration", write("short.txt", "Too short.")}), 2, "128 tokens");
  expect_failure(qianwen({"quantize", kBundled, "--to", "gptq-int4", "--version", "gemm",
                          "--output", path("a")}),
                 2, "expected it with --to awq");
  expect_failure(
      qianwen({"quantize", kBundled, "--to", "q4_0", "--damp", "0.1", "--output", path("a")}), 2,
      "or awq");
  const Ran dry = awq({"--dry-run", "--json"});
  EXPECT_EQ(dry.code, 0) << dry.err;
  EXPECT_NEAR(json::parse(dry.out)["bits_per_weight"].get<double>(), 4.16, 0.01);
  EXPECT_FALSE(std::filesystem::exists(path("a")));
}

TEST_F(CliQuantize, GptqReadsChatsIdsAndTextAndSaysWhatIsWrong) {
  const auto gptq = [&](const std::string& calibration, const std::string& output) {
    return qianwen({"quantize", kBundled, "--to", "gptq-int8", "--calibration", calibration,
                    "--output", path(output.c_str())});
  };
  std::string lines;
  for (int i = 0; i < 20; ++i)
    lines += "{\"messages\": [{\"role\": \"user\", \"content\": \"3 + 4?\"}]}\n\n";
  lines += "{\"ids\": [1, 2, 3]}\n{\"text\": \"The end.\"}\n";
  const Ran ran = gptq(write("mixed.jsonl", lines), "out");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.err, testing::HasSubstr("of 22 samples"));
  expect_failure(gptq(write("mixed.jsonl", lines), "out"), 2, "not there yet");
  expect_failure(gptq(write("empty.txt", ""), "a"), 2, "got 0 in 1 samples");
  expect_failure(gptq(write("short.jsonl", "{\"text\": \"Too short.\"}"), "a"), 2, "128 tokens");
  expect_failure(gptq(write("odd.jsonl", "{\"txt\": 1}"), "a"), 2, "(line 1)");
  expect_failure(gptq(write("bad.jsonl", "{\"text\": \"a\"}\n{"), "a"), 2, "(line 2)");
  expect_failure(gptq(write(
                          "ids.jsonl", "{\"ids\": [" +
                                           [] {
                                             std::string ids = "99999";
                                             for (int i = 0; i < 200; ++i)
                                               ids += ",1";
                                             return ids;
                                           }() +
                                           "]}"),
                      "a"),
                 2, "99999");
  expect_failure(gptq(path("none.txt"), "a"), 3, "none.txt");
  expect_failure(qianwen({"quantize", kBundled, "--to", "gptq-int5", "--output", path("a")}), 2,
                 "gptq-int3");
  expect_failure(
      qianwen({"quantize", kBundled, "--to", "q8_0", "--damp", "0.1", "--output", path("a")}), 2,
      "--damp");
  expect_failure(
      qianwen({"quantize", kBundled, "--to", "gptq-int4", "--pure", "--output", path("a")}), 2,
      "--pure");
  EXPECT_FALSE(std::filesystem::exists(path("a")));
}

TEST_F(CliQuantize, GptqGoesOnAfterAnInterruption) {
  const Ran straight = qianwen({"quantize", kBundled, "--to", "gptq-int3", "--output", path("a")});
  ASSERT_EQ(straight.code, 0) << straight.err;
  std::vector<std::string> args = {"quantize",  kBundled,   "--to",
                                   "gptq-int3", "--output", path("b")};
  RunOptions interrupt;
  interrupt.signal_after_output = SIGINT;
  const Ran ended = qianwen(args, interrupt);
  EXPECT_EQ(ended.code, 130) << ended.err;
  EXPECT_FALSE(std::filesystem::exists(path("b")));
  EXPECT_TRUE(std::filesystem::exists(path("b.work/job.json")));
  const Ran rest = qianwen(args);
  ASSERT_EQ(rest.code, 0) << rest.err;
  const auto text = [&](const char* name) { return read_text_file(path(name)); };
  EXPECT_EQ(text("a/model.safetensors"), text("b/model.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(path("b.work")));
}

TEST_F(CliQuantize, ImportancesAreLlamaImatrixs) {
  const auto model = find_golden("gguf/files/mini-f16.gguf");
  const auto text = find_golden("gguf/calib.txt");
  const auto golden = find_golden("gguf/imatrix-mini.gguf");
  if (!model || !text || !golden) GTEST_SKIP() << "without the shared goldens";
  const Ran ran = qianwen({"imatrix", *model, "--calibration", *text, "--calibration-length", "128",
                           "--output", path("ours.gguf"), "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto ours = quantize::read_importance(path("ours.gguf"));
  const auto theirs = quantize::read_importance(*golden);
  EXPECT_EQ(theirs.n_chunks, 26);
  EXPECT_GE(ours.n_chunks, 26);  // and the rest of the text
  for (const auto& [name, entry] : theirs.entries) {
    if (!name.starts_with("blk.")) continue;
    const auto k = static_cast<int64_t>(entry.sums.size());
    const std::vector<float> a = ours.weights(name, 0, 1, k), b = theirs.weights(name, 0, 1, k);
    ASSERT_EQ(a.size(), b.size()) << name;
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference += std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      size += static_cast<double>(b[i]);
    }
    EXPECT_LT(difference, 0.03 * size) << name;
  }
}

/// Files of llama-quantize, made with the same importances: ours are no further from the model.
TEST_F(CliQuantize, GridTypesAreAsNearAsLlamaCpps) {
  const auto model = find_golden("gguf/files/mini-f16.gguf");
  const auto text = find_golden("gguf/ppl.txt");
  const auto importances = find_golden("gguf/imatrix-mini.gguf");
  if (!model || !text || !importances) GTEST_SKIP() << "without the shared goldens";
  const auto kl_of = [&](const std::string& file) {
    const Ran ran = qianwen({"compare", *model, file, "--file", *text, "--json"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out)["kl"]["mean"].get<double>();
  };
  for (const auto& [name, recipe] :
       {std::pair{"iq1_s", "iq1_s"}, std::pair{"iq1_m", "iq1_m"}, std::pair{"iq2_xxs", "iq2_xxs"},
        std::pair{"iq2_xs", "iq2_xs"}, std::pair{"iq2_s", "iq2_m"}, std::pair{"iq3_xxs", "iq3_xxs"},
        std::pair{"iq3_s", "iq3_s"}}) {
    const auto theirs = find_golden(fmt::format("gguf/files/mini-{}.gguf", name));
    ASSERT_TRUE(theirs) << name;
    std::vector<std::string> args = {
        "quantize", *model, "--to", recipe, "--pure", "--output", path("ours.gguf"), "--force"};
    if (recipe != std::string_view("iq3_s"))  // llama.cpp's was made without
      args.insert(args.end(), {"--imatrix", *importances});
    const Ran made = qianwen(args);
    ASSERT_EQ(made.code, 0) << made.err;
    EXPECT_EQ(std::filesystem::file_size(path("ours.gguf")) / 1024,
              std::filesystem::file_size(*theirs) / 1024)
        << name;
    const double ours = kl_of(path("ours.gguf")), yardstick = kl_of(*theirs);
    fmt::print("{:8} KL {:.4f} {:.4f}\n", name, ours, yardstick);
    EXPECT_LE(ours, yardstick) << name;
  }
}

TEST_F(CliQuantize, GridTypesWantImportances) {
  const Ran planned = qianwen({"quantize", kBundled, "--to", "iq2_xxs", "--dry-run"});
  EXPECT_EQ(planned.code, 0) << planned.err;
  expect_failure(qianwen({"quantize", kBundled, "--to", "iq2_xxs", "--output", path("a.gguf")}), 2,
                 "blk.0.attn_k.weight");
  EXPECT_FALSE(std::filesystem::exists(path("a.gguf")));
  const Ran mild = qianwen({"quantize", kBundled, "--to", "iq3_s", "--output", path("a.gguf")});
  EXPECT_EQ(mild.code, 0) << mild.err;
  ASSERT_EQ(qianwen({"imatrix", kBundled, "--output", path("i.gguf")}).code, 0);
  const auto made_with = [&](const char* threads) {
    const Ran made = qianwen({"quantize", kBundled, "--to", "iq2_xxs", "--imatrix", path("i.gguf"),
                              "--threads", threads, "--output", path("b.gguf"), "--force"});
    EXPECT_EQ(made.code, 0) << made.err;
    return read_text_file(path("b.gguf"));
  };
  EXPECT_EQ(made_with("1"), made_with("3"));
  const Ran ran = qianwen({"generate", path("b.gguf"), "-p", "1 + 1 =", "--max-new-tokens", "2"});
  EXPECT_EQ(ran.code, 0) << ran.err;
}

TEST_F(CliQuantize, FeedbackMakesTheSameFileWithBetterCodes) {
  const auto quantize = [&](const std::string& name, std::vector<std::string> more) {
    for (const char* flag : {"--to", "q4_0", "--json", "--output"})
      more.push_back(flag);
    more.insert(more.begin(), {"quantize", kBundled});
    more.push_back(path(name.c_str()));
    return qianwen(more);
  };
  const std::vector<std::string> few = {"--feedback", "--calibration-tokens", "512"};
  const Ran ran = quantize("a.gguf", few);
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json said = json::parse(ran.out);
  EXPECT_LT(said["loss_beside_plain"], 0.6);
  EXPECT_EQ(said["layers"].size(), 6u);
  EXPECT_GT(said["calibration"]["tokens"], 400);
  const Ran again = qianwen({"generate", path("a.gguf"), "-p", "1 + 1 =", "--max-new-tokens", "2"});
  EXPECT_EQ(again.code, 0) << again.err;
  expect_failure(quantize("a.gguf", few), 2, "--output");
  expect_failure(quantize("b.gguf", {"--calibration-tokens", "512"}), 2, "--feedback");
  expect_failure(quantize("b.gguf", {"--feedback", "--group-size", "64"}), 2, "--group-size");
  expect_failure(
      qianwen({"quantize", kBundled, "--to", "gptq-int4", "--feedback", "--output", path("b")}), 2,
      "--feedback");
  expect_failure(
      qianwen({"quantize", kBundled, "--max-kl", "0.1", "--feedback", "--output", path("b.gguf")}),
      2, "--feedback");
}

TEST_F(CliQuantize, ImportancesHelpAndTheirFilesAreChecked) {
  const Items made = items();
  const std::string calibration = write("items.jsonl", made.calibration);
  const std::string judged = write("judged.txt", made.judged);
  const Ran ran = qianwen(
      {"imatrix", kBundled, "--calibration", calibration, "--output", path("i.dat"), "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out)["entries"], 43);
  expect_failure(qianwen({"imatrix", kBundled, "--output", path("i.dat")}), 2, "--force");
  const Ran rewritten = qianwen({"imatrix", "--from", path("i.dat"), "--output", path("i.gguf")});
  EXPECT_EQ(rewritten.code, 0) << rewritten.err;
  const auto kl_with = [&](const std::string& name, const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled,   "--to",
                                     "q2_k",     "--output", path(name.c_str())};
    args.insert(args.end(), more.begin(), more.end());
    const Ran quantised = qianwen(args);
    EXPECT_EQ(quantised.code, 0) << quantised.err;
    const Ran compared =
        qianwen({"compare", kBundled, path(name.c_str()), "--file", judged, "--json"});
    return json::parse(compared.out)["kl"]["mean"].get<double>();
  };
  const double plain = kl_with("plain.gguf", {});
  const double helped = kl_with("helped.gguf", {"--imatrix", path("i.gguf")});
  EXPECT_LT(helped, 0.95 * plain);
  EXPECT_EQ(kl_with("dat.gguf", {"--imatrix", path("i.dat")}), helped);
  expect_failure(qianwen({"quantize", kBundled, "--to", "q2_k", "--imatrix", judged, "--output",
                          path("a.gguf")}),
                 4, "judged.txt");
  expect_failure(qianwen({"quantize", kBundled, "--to", "gptq-int4", "--imatrix", path("i.dat"),
                          "--output", path("a")}),
                 2, "--imatrix");
}

}  // namespace
}  // namespace qw::test
