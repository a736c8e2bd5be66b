// What quantising commands refuse before they work for it, and what they leave alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/adapter_writer.h"
#include "support/cli_fixture.h"
#include "support/tiny_checkpoint.h"

namespace qw::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class CliQuantizeRefusals : public CliTest {
 protected:
  using Args = std::vector<std::string>;

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  /// Of the bundled model, without writing anything.
  static Ran dry(Args more) {
    more.insert(more.begin(), {"quantize", kBundled, "--dry-run", "--json"});
    return qianwen(more);
  }
  static std::string type_of(const Ran& ran, const char* tensor) {
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.code == 0 ? json::parse(ran.out)["tensors"][tensor].get<std::string>() : "";
  }
};

TEST_F(CliQuantizeRefusals, AdaptersAreMergedFirst) {
  for (const Args& command : {Args{"quantize", kBundled, "--to", "q8_0", "--output", path("a")},
                              {"quantize", kBundled, "--budget", "5", "--output", path("a")},
                              {"convert", kBundled, "--to", "gguf", "--output", path("a")},
                              {"imatrix", kBundled, "--output", path("a")},
                              {"extract", kBundled, "--base", kBundled, "--output", path("a")}}) {
    Args args = command;
    args.insert(args.end(), {"--adapter", "nosuch"});
    expect_failure(qianwen(args), 2, "--adapter: expected none");
  }
  EXPECT_FALSE(std::filesystem::exists(path("a")));
}

TEST_F(CliQuantizeRefusals, PatternsThatDecideNothing) {
  for (const char* pattern : {"FFN_DOWN=q6_k", "nomatch=q4_0", "output_norm=q4_0"})
    expect_failure(dry({"--to", "q4_k_m", "--tensor-type", pattern}), 2,
                   std::string(pattern).substr(0, std::string(pattern).find('=')));
  expect_failure(dry({"--to", "q4_k_m", "--tensor-type", "ffn_down=q6_k,attn_v=q8_0"}), 2,
                 "'ffn_down=q6_k,attn_v'");
  // The second finds only what the first has decided; the third is as good as the first.
  expect_failure(dry({"--to", "q4_k_m", "--tensor-type", "ffn=q6_k", "--tensor-type",
                      "ffn_down=q8_0", "--tensor-type", "attn_v=q8_0"}),
                 2, "got 'ffn_down'");
}

TEST_F(CliQuantizeRefusals, TiedModelsHaveOneTypeForBothEnds) {
  constexpr const char* kEmbedding = "token_embd.weight";
  EXPECT_EQ(type_of(dry({"--to", "q4_k_m", "--output-type", "q8_0"}), kEmbedding), "q8_0");
  EXPECT_EQ(type_of(dry({"--to", "q4_k_m", "--embedding-type", "f16"}), kEmbedding), "f16");
  EXPECT_EQ(type_of(dry({"--to", "q4_k_m"}), kEmbedding), "q6_k");
  expect_failure(dry({"--to", "q4_k_m", "--output-type", "q8_0", "--embedding-type", "f16"}), 2,
                 "output type");
}

TEST_F(CliQuantizeRefusals, TypesThatNoProgramRuns) {
  for (const char* type : {"q8_k", "q8_1", "f64"})
    expect_failure(dry({"--to", "q8_0", "--tensor-type", std::string("ffn_down=") + type}), 2,
                   std::string("got ") + type);
}

TEST_F(CliQuantizeRefusals, NamesAreKnownInAnyCase) {
  EXPECT_EQ(dry({"--to", "GPTQ-Int4"}).code, 0);
  EXPECT_EQ(dry({"--to", "AWQ"}).code, 0);
  const Ran typo = dry({"--to", "gtpq-int4"});
  expect_failure(typo, 2, "gptq-int4");
  EXPECT_THAT(typo.err, HasSubstr("nf4"));
  EXPECT_THAT(typo.err, HasSubstr("Q4_K_M"));
  expect_failure(dry({"--to", "gptq", "--budget", "4", "--force"}), 2,
                 "--force: expected it with a GGUF file, got it with a budget for gptq");
}

/// A calibration of ids, below `n_ids`.
std::string ids_line(int n, int n_ids) {
  json ids = json::array();
  for (int i = 0; i < n; ++i)
    ids.push_back(i * 1237 % n_ids);
  return json{{"ids", ids}}.dump();
}

/// A small untied network of the bundled model's vocabulary.
const TinyShape kSmall{.hidden = 64, .intermediate = 96, .vocab = 6016};

/// Writes it with the bundled model's tokenizer.
std::string write_with_tokenizer(const TinyCheckpoint& tiny) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(kBundled + "/" + name, tiny.path() + "/" + name,
                               std::filesystem::copy_options::overwrite_existing);
  }
  return tiny.write();
}

/// Types are known, and flags checked, before the model is run.
TEST_F(CliQuantizeRefusals, FeedbackIsPlannedWithoutRunningTheModel) {
  TinyCheckpoint tiny(kSmall);
  for (float& weight : tiny.tensors.at("model.layers.0.self_attn.o_proj.weight").values)
    weight = std::nanf("");
  const std::string ids = write("ids.jsonl", ids_line(200, 40));
  const auto ran = [&](const char* how, const std::string& value) {
    return qianwen({"quantize", write_with_tokenizer(tiny), "--to", "q4_0", "--feedback",
                    "--calibration", ids, how, value});
  };
  const Ran table = ran("--dry-run", "--json=false");
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("blk.0.attn_k.weight"));
  EXPECT_THAT(table.out, HasSubstr("nothing was written"));
  EXPECT_NE(ran("--output", path("a.gguf")).code, 0) << "the model cannot be run";
  const Ran said = dry({"--to", "q4_k_m", "--feedback"});
  EXPECT_EQ(type_of(said, "blk.0.attn_k.weight"), "q4_k");
  EXPECT_FALSE(json::parse(said.out).contains("layers"));
  for (const char* damp : {"0", "-1", "nan"})
    expect_failure(dry({"--to", "q4_0", "--feedback", "--damp", damp}), 2, "damp: expected more");
}

/// An embedding that is only looked up has no importances: of a file that is worth a warning.
TEST_F(CliQuantizeRefusals, OwnImportancesLackNothing) {
  TinyCheckpoint tiny(kSmall);
  const std::string ids = write("ids.jsonl", ids_line(200, 40));
  const auto ran = [&](const Args& command) {
    Args args = {command[0], write_with_tokenizer(tiny), "--output", path(command[1])};
    args.insert(args.end(), command.begin() + 2, command.end());
    Ran made = qianwen(args);
    EXPECT_EQ(made.code, 0) << made.err;
    return made;
  };
  const Args feedback = {"quantize", "a.gguf", "--to", "q4_0", "--feedback", "--calibration", ids};
  const Ran own = ran(feedback);
  EXPECT_THAT(own.err, Not(HasSubstr("not in the importance matrix")));
  EXPECT_THAT(own.out, HasSubstr("14 matrices: "));
  ran({"imatrix", "i.gguf", "--calibration", ids});
  Args given = feedback;
  given[1] = "b.gguf";
  given.insert(given.end(), {"--imatrix", path("i.gguf")});
  EXPECT_THAT(ran(given).err, HasSubstr("such as token_embd.weight"));
}

/// Before the model is run: what the very files would replace, and what is in OUTPUT.work.
TEST_F(CliQuantizeRefusals, FeedbackLooksAtItsFilesFirst) {
  TinyCheckpoint tiny(kSmall);
  const std::string ids = write("ids.jsonl", ids_line(200, 40));
  const auto ran = [&](const char* type, const Args& more) {
    Args args = {"quantize",      tiny.path(), "--to",     type,          "--feedback",
                 "--calibration", ids,         "--output", path("a.gguf")};
    args.insert(args.end(), more.begin(), more.end());
    return qianwen(args);
  };
  write_with_tokenizer(tiny);
  const Ran split = ran("q4_0", {"--max-shard-tensors", "20", "--json"});
  ASSERT_EQ(split.code, 0) << split.err;
  const auto files = json::parse(split.out)["files"].get<Args>();
  ASSERT_EQ(files.size(), 2u);
  expect_failure(ran("q4_0", {"--max-shard-tensors", "20"}), 2, "a-00001-of-00002.gguf");
  EXPECT_EQ(ran("q4_0", {"--max-shard-tensors", "20", "--force"}).code, 0);
  // A layer that cannot be quantised: its importances stay.
  TinyCheckpoint broken(kSmall);
  for (float& weight : broken.tensors.at("model.layers.1.mlp.down_proj.weight").values)
    weight = std::nanf("");
  const auto with_broken = [&](const char* damp) {
    return qianwen({"quantize", broken.path(), "--to", "q4_0", "--feedback", "--damp", damp,
                    "--calibration", ids, "--output", path("b.gguf")});
  };
  write_with_tokenizer(broken);
  EXPECT_NE(with_broken("0.01").code, 0);
  EXPECT_TRUE(std::filesystem::exists(path("b.gguf.work/imatrix/layer-00000.safetensors")));
}

TEST_F(CliQuantizeRefusals, FeedbackWithoutCodesToChoose) {
  const std::string q8 = path("q8.gguf");
  ASSERT_EQ(qianwen({"quantize", kBundled, "--to", "q8_0", "--output", q8}).code, 0);
  for (const Args& command : {Args{"quantize", kBundled, "--to", "f16"},
                              {"quantize", kBundled, "--to", "tq1_0", "--pure"},
                              {"quantize", q8, "--to", "q8_0"}}) {
    Args args = command;
    args.insert(args.end(), {"--feedback", "--output", path("a.gguf")});
    const Ran ran = qianwen(args);
    expect_failure(ran, 2, "a code for each weight");
    EXPECT_THAT(ran.err, Not(HasSubstr("calibration:")));
  }
}

TEST_F(CliQuantizeRefusals, DirectoriesInThePlaceOfFiles) {
  std::filesystem::create_directory(path("d"));
  const auto refused = [&](const Args& command, const std::string& output, const char* part) {
    Args args = command;
    args.insert(args.end(), {"--output", output});
    const Ran ran = qianwen(args);
    expect_failure(ran, 2, part);
    EXPECT_THAT(ran.err, Not(HasSubstr("calibration:")));
  };
  for (const Args& command : {Args{"imatrix", kBundled, "--force"},
                              {"quantize", kBundled, "--to", "q4_0", "--force"},
                              {"quantize", kBundled, "--to", "q4_0", "--feedback", "--force"}}) {
    refused(command, path("d"), "expected a file, got a directory");
    refused(command, path("x.gguf/"), "expected a file, got a name that ends as a directory's");
  }
}

TEST_F(CliQuantizeRefusals, DampIsCheckedBeforeAnythingIsRead) {
  Adapter adapter;
  adapter.add("model.layers.2.self_attn.q_proj.lora_A.weight", {3, 256});
  adapter.add("model.layers.2.self_attn.q_proj.lora_B.weight", {256, 3});
  const std::string q4 = path("q4.gguf");
  ASSERT_EQ(qianwen({"quantize", kBundled, "--to", "q4_0", "--output", q4}).code, 0);
  for (const Args& command : {Args{"quantize", kBundled, "--to", "q4_0", "--feedback"},
                              {"quantize", kBundled, "--budget", "4", "--feedback"},
                              {"quantize", kBundled, "--to", "awq"},
                              {"quantize", kBundled, "--to", "gptq-int4"},
                              {"merge", q4, "--adapter", adapter.write_peft(), "--type", "same"}}) {
    Args args = command;
    args.insert(args.end(), {"--damp", "0", "--output", path("a")});
    const Ran ran = qianwen(args);
    expect_failure(ran, 2, "damp: expected more than 0");
    EXPECT_THAT(ran.err, Not(HasSubstr("calibration:")));
    EXPECT_FALSE(std::filesystem::exists(path("a.work")));
  }
}

/// What a command's help lists before the flags without effect.
TEST_F(CliQuantizeRefusals, HelpListsWhatHasAnEffect) {
  constexpr const char* kWithout = "Flags of every command; without effect in this one:";
  const auto check = [&](const char* command, const Args& used, const Args& unused) {
    const std::string help = qianwen({command, "--help"}).out;
    const size_t heading = help.find(kWithout);
    ASSERT_NE(heading, std::string::npos) << command;
    for (const std::string& flag : used)
      EXPECT_LT(help.find("  " + flag + " "), heading) << command << " " << flag;
    for (const std::string& flag : unused) {
      EXPECT_GT(help.find("  " + flag + " "), heading) << command << " " << flag;
      EXPECT_NE(help.find("  " + flag + " "), std::string::npos) << command << " " << flag;
    }
    const bool takes_adapters = std::ranges::find(used, "--adapter") != used.end();
    EXPECT_EQ(help.find("--adapter") != std::string::npos, takes_adapters) << command;
  };
  const Args layered = {"--threads", "--isa", "--device", "--activations"};
  const Args rest = {"--kv-type", "--ctx", "--chunk", "--packed-cache", "--seed"};
  check("quantize", layered, rest);
  check("imatrix", layered, rest);
  for (const char* command : {"convert", "extract"})
    check(command, {"--threads"}, {"--isa", "--device", "--activations", "--kv-type", "--seed"});
  for (const char* command : {"compare", "merge"}) {
    check(command, {"--threads", "--kv-type", "--ctx", "--chunk", "--packed-cache", "--adapter"},
          {"--seed", "--prefix-cache-dir", "--no-prefix-cache"});
  }
  EXPECT_THAT(qianwen({"compare", "--help"}).out, Not(HasSubstr("default: the bundled model")));
}

TEST_F(CliQuantizeRefusals, FlagsThatWouldBeIgnored) {
  expect_failure(dry({"--to", "awq", "--awq-mode", "reference", "--damp", "0.02"}), 2,
                 "--damp: expected it with --awq-mode better");
  EXPECT_EQ(dry({"--to", "awq", "--damp", "0.02"}).code, 0);
  const std::string matrix = path("i.gguf");
  ASSERT_EQ(qianwen({"imatrix", "--output", matrix, "--calibration-tokens", "512"}).code, 0);
  expect_failure(qianwen({"imatrix", kBundled, "--from", matrix, "--output", path("i.dat")}), 2,
                 "MODEL excludes --from");
  EXPECT_EQ(qianwen({"imatrix", "--from", matrix, "--output", path("i.dat")}).code, 0);
  Adapter adapter;
  adapter.add("model.layers.2.self_attn.q_proj.lora_A.weight", {3, 256});
  adapter.add("model.layers.2.self_attn.q_proj.lora_B.weight", {256, 3});
  const Args merge = {"merge", kBundled, "--adapter",    adapter.write_peft(), "--type",
                      "same",  "--file", path("no.txt"), "--output",           path("m")};
  Args twice = merge, dry_run = merge;
  twice.push_back("--no-compare");
  expect_failure(qianwen(twice), 2, "--file excludes --no-compare");
  dry_run.push_back("--dry-run");
  expect_failure(qianwen(dry_run), 3, "no.txt");
}

TEST_F(CliQuantizeRefusals, TooFewTokensToCalibrateWith) {
  expect_failure(dry({"--to", "gptq-int4", "--calibration-tokens", "10"}), 2, "at least 128");
}

/// Before anything is measured.
TEST_F(CliQuantizeRefusals, OutputsThatBudgetsWouldReplace) {
  const std::string file = write("there.gguf", "mine"), inner = write("there/mine", "mine");
  write("b.gguf.unproven/thesis", "mine");
  write("c.unproven/thesis", "mine");
  const auto refused = [&](Args args, const char* part) {
    args.insert(args.begin(), {"quantize", kBundled});
    const Ran ran = qianwen(args);
    expect_failure(ran, 2, part);
    for (const char* work : {"measuring", "layers", "quantising", "writing"})
      EXPECT_THAT(ran.err, Not(HasSubstr(work)));
    EXPECT_THAT(ran.err, Not(HasSubstr("predicted")));
  };
  refused({"--budget", "5", "--output", file}, "--force");
  refused({"--max-kl", "0.01", "--output", file}, "--force");
  refused({"--to", "gptq", "--budget", "5", "--output", path("there")}, "not there yet");
  refused({"--to", "gptq", "--max-kl", "0.05", "--output", path("there")}, "not there yet");
  refused({"--max-kl", "0.01", "--output", path("b.gguf")}, "b.gguf.unproven");
  // A limit may leave one file or several, and how many is not known before measuring.
  const std::string piece = write("s-00001-of-00003.gguf", "mine");
  for (const Args& limit : {Args{"--max-shard-size", "2000000"}, {"--max-shard-tensors", "20"}}) {
    for (Args what :
         {Args{"--budget", "5"}, {"--max-kl", "0.01"}, {"--to", "q4_0", "--feedback"}}) {
      what.insert(what.end(), limit.begin(), limit.end());
      Args one = what;
      one.insert(one.end(), {"--output", file});
      refused(one, "there.gguf");
      what.insert(what.end(), {"--output", path("s.gguf")});
      refused(what, "s-00001-of-00003.gguf");
    }
  }
  refused({"--to", "gptq", "--max-kl", "0.05", "--output", path("c")}, "c.unproven");
  for (const char* name : {"there.gguf", "there/mine", "b.gguf.unproven/thesis",
                           "c.unproven/thesis", "s-00001-of-00003.gguf"})
    EXPECT_TRUE(std::filesystem::exists(path(name))) << name;
}

TEST_F(CliQuantizeRefusals, FilesLargerThanTheLimitOfTheShell) {
  const Ran ran = run_program(
      "/bin/sh", {"-c", "ulimit -f 2000; exec \"$0\" convert \"$1\" --to gguf --output \"$2\"",
                  QIANWEN_PROGRAM, kBundled, path("m.gguf")});
  expect_failure(ran, 7, "File too large");
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(CliQuantizeRefusals, DirectoriesMayEndInASlash) {
  const Ran made = qianwen({"convert", kBundled, "--to", "safetensors", "--output", path("hf/")});
  EXPECT_EQ(made.code, 0) << made.err;
  EXPECT_TRUE(std::filesystem::exists(path("hf/config.json")));
  EXPECT_FALSE(std::filesystem::exists(path("hf/.qianwen-partial")));
}

TEST_F(CliQuantizeRefusals, TextsThatAMergeIsToBeComparedOn) {
  Adapter adapter;
  adapter.add("model.layers.2.self_attn.q_proj.lora_A.weight", {3, 256});
  adapter.add("model.layers.2.self_attn.q_proj.lora_B.weight", {256, 3});
  for (const char* type : {"bf16", "same"}) {
    expect_failure(qianwen({"merge", kBundled, "--adapter", adapter.write_peft(), "--type", type,
                            "--output", path("m"), "--file", path("no.txt")}),
                   3, "no.txt");
  }
  expect_failure(qianwen({"merge", kBundled, "--adapter", adapter.write_peft(), "--output",
                          path("m"), "--file", write("empty.txt", "")}),
                 2, "at least 2 tokens");
  const std::string beyond = write("beyond.json", "{\"ids\": [1, 2, 99999]}");
  for (const char* type : {"bf16", "same"}) {
    const Ran ran = qianwen({"merge", kBundled, "--adapter", adapter.write_peft(), "--type", type,
                             "--output", path("m"), "--file", beyond});
    expect_failure(ran, 2, "got 99999 as number 2");
    EXPECT_THAT(ran.err, Not(HasSubstr("writing"))) << type;
    EXPECT_THAT(ran.err, Not(HasSubstr("merging"))) << type;
  }
  EXPECT_FALSE(std::filesystem::exists(path("m")));
}

/// A change far below a step of two bits, with inputs unlike those of any text.
TEST_F(CliQuantizeRefusals, MergesThatDoHarmAreTold) {
  const std::string q2 = path("q2.gguf");
  ASSERT_EQ(qianwen({"quantize", kBundled, "--to", "q2_k", "--output", q2}).code, 0);
  Adapter adapter;
  for (const char* module :
       {"model.layers.1.self_attn.o_proj", "model.layers.2.self_attn.q_proj"}) {
    adapter.add(std::string(module) + ".lora_A.weight", {3, 256});
    adapter.add(std::string(module) + ".lora_B.weight", {256, 3});
  }
  json ids = json::array();
  for (int i = 0; i < 200; ++i)
    ids.push_back(300 + i * 1237 % 4700);
  const Ran ran =
      qianwen({"merge", q2, "--adapter", adapter.write_peft() + ":0.003", "--type", "same",
               "--calibration", write("ids.jsonl", json{{"ids", ids}}.dump()), "--file",
               kBundled + "/../README.md", "--output", path("m.gguf"), "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json said = json::parse(ran.out);
  const double merged = said["comparison"]["kl"]["mean"],
               without = said["comparison_without_adapters"]["kl"]["mean"];
  EXPECT_GT(merged, without);
  EXPECT_THAT(said["warnings"].dump(), HasSubstr("further from the live adapters"));
  EXPECT_THAT(ran.err, HasSubstr("further from the live adapters"));
}

TEST_F(CliQuantizeRefusals, IdsAreComparedAsIds) {
  const auto compare = [&](const std::string& file) {
    return qianwen({"compare", kBundled, kBundled, "--file", file, "--json"});
  };
  const Ran ran = compare(write("ids.json", "{\"ids\": [1, 2, 3, 4, 5]}"));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out)["n_tokens"], 4);
  expect_failure(compare(write("odd.json", "{\"id\": [1]}")), 2, "\"ids\"");
}

}  // namespace
}  // namespace qw::test
