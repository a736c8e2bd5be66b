// The program as users and scripts call it: results, exit codes, the last line of stderr.
//
// The contract is docs/commands.md. Every case runs the real binary.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/cli_fixture.h"
#include "support/golden.h"
#include "support/process.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::qianwen;
using test::Ran;
using test::RunOptions;
using testing::HasSubstr;

using test::kBundled;

using Cli = test::CliTest;
using test::expect_failure;

json last_json(const Ran& ran) {
  EXPECT_EQ(ran.code, 0) << ran.err;
  const size_t end = ran.out.find_last_not_of('\n');
  const size_t begin = end == std::string::npos ? end : ran.out.rfind('\n', end);
  return json::parse(ran.out.substr(begin == std::string::npos ? 0 : begin + 1), nullptr, false);
}

std::vector<json> json_lines(const std::string& text) {
  std::vector<json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);)
    lines.push_back(json::parse(line));
  return lines;
}

std::string golden(const std::string& relative) {
  return test::find_golden(relative).value_or("");
}

// ---- the frame ------------------------------------------------------------------------------

TEST_F(Cli, VersionAndHelp) {
  const Ran version = qianwen({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.out, HasSubstr("qianwen 0.1.0"));
  EXPECT_THAT(version.out, HasSubstr("ISA paths"));
  EXPECT_THAT(version.out, testing::ContainsRegex("\\((unknown|[0-9a-f]{12}(-dirty)?)\\)"));
  for (const char* command : {"chat", "generate", "score", "perplexity", "tokenize", "detokenize",
                              "render", "inspect", "plan", "info", "bench"}) {
    const Ran help = qianwen({"help", command});
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, HasSubstr("--json")) << command;
    EXPECT_THAT(help.out, HasSubstr(std::string("Usage: qianwen ") + command));
    EXPECT_THAT(help.out, testing::Not(HasSubstr("  top_k"))) << "a name is no explanation";
  }
  EXPECT_THAT(qianwen({"completion", "bash"}).out, HasSubstr("complete"));
}

TEST_F(Cli, WrongUsageIsTwo) {
  expect_failure(qianwen({"nosuch"}), 2, "nosuch");
  expect_failure(qianwen({}), 2, "ubcommand");
  expect_failure(qianwen({"chat", "--nosuch"}), 2, "nosuch");
  expect_failure(qianwen({"help", "nosuch"}), 2, "nosuch");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--temperature", "-1"}), 2,
                 "temperature");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--top-p", "2"}), 2, "top_p");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--max-new-tokens", "-5"}), 2,
                 "max_new_tokens");
  expect_failure(qianwen({"generate", kBundled, "-p", ""}), 2, "prompt");
  expect_failure(qianwen({"generate", kBundled, "--ids", "[]"}), 2, "prompt");
  expect_failure(qianwen({"generate", kBundled, "--ids", "[1,2,99999]"}), 2, "99999");
  expect_failure(qianwen({"generate", kBundled, "--ids", "[1,-2]"}), 2, "-2");
  expect_failure(qianwen({"generate", kBundled, "--ids", "nonsense"}), 2, "nonsense");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--device", "cuda:7"}), 5, "cuda:7");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--isa", "mmx"}), 2, "mmx");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--kv-type", "q3"}), 2, "q3");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--threads", "-1"}), 2, "threads");
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--activations", "int3"}), 2, "int3");
}

// ---- text -----------------------------------------------------------------------------------

TEST_F(Cli, TokenizesAndBack) {
  const std::string text = "Hello 千问 <|im_end|>!";
  const json special = last_json(qianwen({"tokenize", kBundled, "-p", text, "--json"}));
  const json plain = last_json(qianwen({"tokenize", kBundled, "-p", text, "--plain", "--json"}));
  EXPECT_EQ(special["ids"].size(), special["tokens"].size());
  EXPECT_LT(special["ids"].size(), plain["ids"].size());
  EXPECT_EQ(last_json(qianwen(
                {"detokenize", kBundled, "--ids", special["ids"].dump(), "--json"}))["text"],
            text);
  EXPECT_EQ(last_json(qianwen({"detokenize", kBundled, "--ids", special["ids"].dump(),
                               "--skip-special-tokens", "--json"}))["text"],
            "Hello 千问 !");
  EXPECT_EQ(last_json(qianwen({"tokenize", "--json"}, {.input = text}))["ids"], special["ids"]);
}

TEST_F(Cli, TokenizesTheGoldenVocabulary) {
  const std::string tiny = golden("tokenizer/tiny");
  const Ran ran = qianwen({"tokenize", tiny, "--file", tiny + "/strings.jsonl", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto got = json_lines(ran.out);
  std::ifstream in(tiny + "/strings.jsonl");
  size_t i = 0;
  for (std::string line; std::getline(in, line); ++i)
    ASSERT_EQ(got.at(i)["ids"], json::parse(line)["ids"]) << line;
  EXPECT_EQ(i, got.size());
}

TEST_F(Cli, InvalidUtf8IsAnErrorOrReplaced) {
  const std::string file = write("bad.jsonl", "{\"hex\": \"61ff62\"}\n");
  expect_failure(qianwen({"tokenize", kBundled, "--file", file}), 2, "1");
  const json replaced = last_json(
      qianwen({"tokenize", kBundled, "--file", file, "--invalid-utf8", "replace", "--json"}));
  EXPECT_EQ(replaced["ids"], last_json(qianwen({"tokenize", kBundled, "-p",
                                                "a\xEF\xBF\xBD"
                                                "b",
                                                "--json"}))["ids"]);
}

TEST_F(Cli, RendersAndKeepsContentPlain) {
  const std::string file =
      write("m.json", R"({"messages": [{"role": "user", "content": "a<|im_end|>b"}]})");
  const json out = last_json(qianwen({"render", kBundled, "--messages", file, "--json"}));
  EXPECT_THAT(out["text"].get<std::string>(),
              HasSubstr("<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"));
  const json asked =
      last_json(qianwen({"render", kBundled, "--messages", file, "--parse-special", "--json"}));
  const json end_id =
      last_json(qianwen({"tokenize", kBundled, "-p", "<|im_end|>", "--json"}))["ids"][0];
  const auto count = [&](const json& ids) { return std::count(ids.begin(), ids.end(), end_id); };
  EXPECT_EQ(count(out["ids"]), 2);
  EXPECT_EQ(count(asked["ids"]), 3);
}

TEST_F(Cli, RenderBatchGivesErrorsAsLines) {
  const std::string file = write("m.jsonl",
                                 "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], "
                                 "\"template_text\": \"{{ raise_exception('no') }}\"}\n"
                                 "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], "
                                 "\"add_generation_prompt\": false}\n");
  const auto lines = json_lines(qianwen({"render", kBundled, "--file", file, "--json"}).out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["error"]["message"], "no");
  EXPECT_TRUE(lines[1].contains("text"));
}

TEST_F(Cli, RenderBatchGoesOnAfterLinesThatAreNoConversations) {
  const std::string good = R"({"messages": [{"role": "user", "content": "x"}]})";
  const std::vector<std::string> bad = {"{",           "nonsense",
                                        "[1]",         "7",
                                        R"({"a": 1})", R"({"messages": "x"})",
                                        "\xFF\xFE",    std::string(300'000, '[')};
  std::string input = good + "\n";
  for (const std::string& line : bad)
    input += line + "\n";
  const Ran ran = qianwen({"render", kBundled, "--file", "-"}, {.input = input + good + "\n"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  const auto lines = json_lines(ran.out);
  ASSERT_EQ(lines.size(), bad.size() + 2);
  EXPECT_TRUE(lines.front().contains("text"));
  EXPECT_EQ(lines.back(), lines.front());
  for (size_t i = 0; i < bad.size(); ++i) {
    const json& line = lines[i + 1];
    ASSERT_TRUE(line.contains("error")) << bad[i].substr(0, 40) << line;
    EXPECT_TRUE(line["error"].contains("kind") && line["error"].contains("message")) << line;
  }
  EXPECT_THAT(lines[1]["error"]["message"].get<std::string>(), HasSubstr("line 2"));
}

TEST_F(Cli, DetokenizeKnowsWhichIdsThereAre) {
  const auto detokenize = [&](const std::string& model, const json& ids) {
    return qianwen({"detokenize", model, "--ids", ids.dump()});
  };
  expect_failure(detokenize(kBundled, {99999999}), 2, "6016, got 99999999");
  expect_failure(detokenize(kBundled, {1, 6016}), 2, "6016, got 6016");
  EXPECT_EQ(detokenize(kBundled, {6015}).out, "\n") << "a padding row is nothing";
  expect_failure(qianwen({"detokenize", "--file", "-"}, {.input = "[1]\n[6016]\n"}), 2, "line 2");
  // Without a configuration the tokens themselves say it.
  const std::string copy = copy_of(kBundled, "tokenizer-only");
  fs::remove(copy + "/config.json");
  fs::remove(copy + "/model.safetensors");
  const json size = last_json(qianwen({"inspect", copy, "--json"}))["tokenizer"]["size"];
  EXPECT_EQ(detokenize(copy, {size.get<int>() - 1}).code, 0);
  expect_failure(detokenize(copy, {size}), 2, size.dump());
  const std::string gguf = golden("gguf/files/nano-q4_0.gguf");
  const json config = last_json(qianwen({"inspect", gguf, "--json"}))["config"];
  const auto vocab = config["vocab_size"].get<int>();
  EXPECT_EQ(detokenize(gguf, {vocab - 1}).code, 0);
  expect_failure(detokenize(gguf, {vocab}), 2, std::to_string(vocab));
}

TEST_F(Cli, HostileJsonIsRefused) {
  const std::string deep = write("deep.jsonl", std::string(300'000, '[') + "\n");
  expect_failure(qianwen({"render", kBundled, "--messages", deep}), 2, "nesting");
  expect_failure(qianwen({"generate", kBundled, "--file", deep}), 2, "nesting");
  expect_failure(qianwen({"score", kBundled, "--ids-file", deep, "--logprobs"}), 2, "nesting");
  expect_failure(
      qianwen({"generate", kBundled, "-p", "a", "--bad-words-ids", std::string(100'000, '[')}), 2,
      "bad_words_ids");
  const std::string closed = std::string(50'000, '[') + std::string(50'000, ']');
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--bad-words-ids", closed}), 2,
                 "nesting");
}

// ---- running --------------------------------------------------------------------------------

json prompt_named(const json& expected, const std::string& name) {
  for (const json& prompt : expected["prompts"]) {
    if (prompt["name"] == name) return prompt["input_ids"];
  }
  return nullptr;
}

/// Runs `generate` greedily and compares as far as the golden's margins allow.
void expect_greedy(const std::string& model, const json& prompt, const json& tokens,
                   const json& margins, double margin_needed, const std::vector<std::string>& flags,
                   size_t at_least = 8) {
  std::vector<std::string> args = {"generate",
                                   model,
                                   "--ids",
                                   prompt.dump(),
                                   "--do-sample",
                                   "false",
                                   "--ignore-eos",
                                   "--repetition-penalty",
                                   "1",
                                   "--max-new-tokens",
                                   std::to_string(tokens.size()),
                                   "--json"};
  args.insert(args.end(), flags.begin(), flags.end());
  const json out = last_json(qianwen(args));
  ASSERT_TRUE(out.contains("ids")) << model;
  size_t compared = 0;
  for (; compared < tokens.size() && margins[compared].get<double>() >= margin_needed; ++compared) {
    ASSERT_EQ(out["ids"].at(compared), tokens[compared]) << model << ": token " << compared;
  }
  EXPECT_GE(compared, at_least) << model;
}

const std::vector<std::string> kExact = {"--activations", "f32", "--kv-type", "f32"};
const std::vector<std::string> kReference = {"--device", "reference", "--kv-type", "f32"};

TEST_F(Cli, GeneratesTheGoldenTokens) {
  for (const char* name :
       {"dense-mha-tied", "dense-gqa-untied-sharded", "moe", "rope-yarn", "dense-f16"}) {
    const std::string model = golden(std::string("models/") + name);
    const json expected = test::read_json(model + "/expected.json");
    const json& greedy = expected["greedy"];
    const json prompt = prompt_named(expected, greedy["prompt"]);
    for (const auto& flags : {kExact, kReference})
      expect_greedy(model, prompt, greedy["tokens"], greedy["margins"], 0.02, flags);
    // Default settings round activations and cache: only clear margins can be demanded.
    expect_greedy(model, prompt, greedy["tokens"], greedy["margins"], 0.3, {}, 0);
  }
}

TEST_F(Cli, GeneratesTheGoldenTokensOfQuantisedFiles) {
  for (const char* name :
       {"gptq/int4_g128_official", "gptq/int8_g128_official", "gptq/int4_g128_desc_act",
        "gptq/moe_int4_g128", "awq/gemm_g128_official", "awq/gemv_g64"}) {
    const std::string model = golden(name);
    const json expected = test::read_json(model + "/expected.json");
    const json& greedy = expected["greedy"];
    expect_greedy(model, greedy["prompt"], greedy["tokens"], greedy["margin_to_second"], 0.01,
                  kExact);
  }
  for (const char* name : {"base-q4_k_m", "nano-q8_0", "nano-v1", "nano-f16-bigendian"}) {
    const json expected = test::read_json(golden(std::string("gguf/expected/") + name + ".json"));
    const json& prompt = expected["prompts"][1];
    expect_greedy(golden(std::string("gguf/files/") + name + ".gguf"), prompt["ids"],
                  prompt["greedy"], prompt["margins"], 0.01, kExact, 4);
  }
}

TEST_F(Cli, PlansInspectsAndScores) {
  const std::string model = golden("models/dense-f16");
  const json plan = last_json(qianwen({"plan", model, "--ctx", "64", "--json"}));
  EXPECT_GT(plan["weights_bytes"].get<int64_t>(), 0);
  EXPECT_EQ(plan["ctx"], 64);
  EXPECT_TRUE(plan["fits"].get<bool>());
  const json inspected = last_json(qianwen({"inspect", model, "--hash", "--json"}));
  EXPECT_EQ(inspected["config"]["hidden_size"], 96);
  for (const json& tensor : inspected["tensors"])
    EXPECT_EQ(tensor["sha256"].get<std::string>().size(), 64u);

  const json expected = test::read_json(model + "/expected.json");
  const json ids = prompt_named(expected, "len17");
  const std::string file = write("ids.json", json{{"prompts", {ids}}}.dump());
  const std::string out = (folder_ / "out.safetensors").string();
  const Ran ran = qianwen({"score", model, "--ids-file", file, "--logits", out, "--device",
                           "reference", "--kv-type", "f32", "--hidden-states"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto got = test::read_tensors(out);
  const auto want = test::read_tensors(model + "/expected.safetensors");
  const RawTensor& a = got.at("logits.0");
  const RawTensor& b = want.at("logits.len17");
  ASSERT_EQ(a.shape.n_elems(), b.shape.n_elems());
  const auto* x = reinterpret_cast<const float*>(a.bytes.data());
  std::vector<float> y(static_cast<size_t>(b.shape.n_elems()));
  std::memcpy(y.data(), b.bytes.data(), b.bytes.size());
  for (size_t i = 0; i < y.size(); ++i)
    ASSERT_NEAR(x[i], y[i], 5e-4);
  EXPECT_TRUE(got.count("hidden.embed.0") && got.count("hidden.layer.1.0") &&
              got.count("hidden.norm.0"));
}

TEST_F(Cli, ScoreSaysWhatItWrote) {
  const std::string ids = write("ids.json", "{\"prompts\": [[5, 17, 99], [3]]}");
  const std::string out = (folder_ / "o.safetensors").string();
  EXPECT_EQ(last_json(qianwen({"score", "--ids-file", ids, "--logits", out, "--json"})),
            (json{{"path", out}, {"prompts", 2}, {"tokens", 4}}));
  EXPECT_EQ(qianwen({"score", "--ids-file", ids, "--logits", out}).out, "");
}

TEST_F(Cli, ScoresLongerThanTheTrainedContextAndSparesDevices) {
  const std::string model = golden("models/rope-yarn");
  json ids = json::array();
  for (int i = 0; i < 200; ++i)
    ids.push_back(i % 500);
  const std::string file = write("long.json", json{{"prompts", {ids}}}.dump());
  EXPECT_EQ(
      last_json(qianwen({"score", model, "--ids-file", file, "--logprobs"}))["logprobs"].size(),
      199u);
  expect_failure(qianwen({"score", model, "--ids-file", file, "--logits", "/dev/null"}), 7,
                 "/dev/null");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--seed", "-1"}), 2, "seed");
}

TEST_F(Cli, ScoreRefusesMoreThanThereIs) {
  const std::string ids = write("ids.json", R"({"prompts": [[1, 2, 3]]})");
  expect_failure(qianwen({"score", "--ids-file", ids, "--logprobs", "--top", "6017"}), 2, "--top");
  expect_failure(
      qianwen({"score", "--ids-file", ids, "--logits", folder_.string() + "/out", "--top", "1"}), 2,
      "--logprobs");
}

TEST_F(Cli, PerplexityOfText) {
  const std::string text = write(
      "t.txt", "The capital of Japan is Tokyo. The capital of France is Paris. Nice to meet you.");
  const json out = last_json(qianwen({"perplexity", kBundled, "--file", text, "--json"}));
  EXPECT_GT(out["perplexity"].get<double>(), 1.0);
  EXPECT_GE(out["stderr"].get<double>(), 0.0);
  EXPECT_GT(out["n_tokens"].get<int>(), 5);
}

TEST_F(Cli, SeedDecidesTheSample) {
  const auto sample = [&](const char* seed) {
    return last_json(
        qianwen({"generate", kBundled, "-p", "The", "--temperature", "1.5", "--do-sample", "true",
                 "--top-k", "0", "--max-new-tokens", "24", "--seed", seed, "--json"}))["ids"];
  };
  EXPECT_EQ(sample("1"), sample("1"));
  EXPECT_NE(sample("1"), sample("2"));
}

// ---- chat -----------------------------------------------------------------------------------

TEST_F(Cli, ChatAnswersOnceAndFromAPipe) {
  const Ran once = qianwen({"chat", "-p", "What is the capital of Japan?", "--temperature", "0"});
  EXPECT_EQ(once.code, 0) << once.err;
  EXPECT_EQ(once.out, "The capital of Japan is Tokyo.\n");
  const Ran piped = qianwen({"chat", "--temperature", "0"},
                            {.input = "Hi! My name is Lucy.\nWhat is my name?\n"});
  EXPECT_EQ(piped.code, 0) << piped.err;
  EXPECT_THAT(piped.out, HasSubstr("Your name is Lucy."));
  const json answer = last_json(qianwen({"chat", "-p", "Hello!", "--temperature", "0", "--json"}));
  EXPECT_EQ(answer["finish_reason"], "stop");
  EXPECT_TRUE(answer.contains("timings"));
  EXPECT_TRUE(answer.contains("generation"));
}

TEST_F(Cli, ChatCommands) {
  const std::string saved = (folder_ / "c.json").string();
  const Ran ran = qianwen(
      {"chat", "--temperature", "0"},
      {.input = "What is the capital of Japan?\n:save " + saved + "\n:clear\n:load " + saved +
                "\n:history\n:undo\n:stats\n:seed 7\n:set temperature=0.5\n:exit\nnot reached\n"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("[assistant] The capital of Japan is Tokyo."));
  EXPECT_THAT(ran.err, HasSubstr("context:"));
  EXPECT_EQ(test::read_json(saved)["messages"].size(), 2u);
  expect_failure(qianwen({"chat"}, {.input = ":nosuch\n"}), 2, "nosuch");
  expect_failure(qianwen({"chat"}, {.input = ":set nosuch=1\n"}), 2, "nosuch");
}

TEST_F(Cli, StdinClosedAndStdoutFull) {
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"chat"}, {"generate"}, {"generate", "--file", "-"}, {"tokenize"}}) {
    expect_failure(qianwen(args, {.close_stdin = true}), 7, "standard input");
  }
  for (const char* flag : {"--file", "--messages"}) {
    expect_failure(qianwen({"render", flag, "/dev/stdin"}, {.close_stdin = true}), 7, "/dev/stdin");
  }
  // A stream that is closed must not become the number of a file that is opened later.
  const std::string file = write("kept.json", "{\"prompts\": [[1, 2]]}");
  const std::string logits = (folder_ / "out.safetensors").string();
  expect_failure(
      test::run_program("/bin/sh", {"-c", std::string(QIANWEN_PROGRAM) + " score --ids-file " +
                                              file + " --logprobs --logits " + logits + " >&-"}),
      7, "stdout");
  const Ran full = test::run_program("/bin/sh", {"-c", std::string(QIANWEN_PROGRAM) + " tokenize " +
                                                           kBundled + " -p hello > /dev/full"});
  expect_failure(full, 7, "stdout");
  for (const char* args : {"--version", "--help", "tokenize --help", "info --quick"}) {
    expect_failure(test::run_program("/bin/sh", {"-c", std::string(QIANWEN_PROGRAM) + " " + args +
                                                           " > /dev/full"}),
                   7, "stdout");
  }
}

TEST_F(Cli, AReaderThatStopsIsNoErrorToTalkAbout) {
  const std::string program = QIANWEN_PROGRAM;
  for (const std::string args : {"inspect", "--help"}) {
    // The reader is gone before anything is written.
    const Ran ran = test::run_program(
        "/bin/bash",
        {"-c", "set -o pipefail; (sleep 0.3; exec " + program + " " + args + ") | exec true"});
    EXPECT_EQ(ran.code, 7) << args;
    EXPECT_EQ(ran.err, "") << args;
  }
}

TEST_F(Cli, AFileCutWhileInUseIsAnErrorAndNotAnAnswer) {
  const std::string row = R"({"prompt": "The capital of Japan is", "max_new_tokens": 4})";
  const std::string other = R"({"prompt": "The capital of France is", "max_new_tokens": 4})";
  const std::string copy = copy_of(kBundled, "cut");
  const Ran ran = qianwen({"generate", copy, "--json", "--file", "-"},
                          {.input = row + "\n", .after_output = [&] {
                             std::filesystem::resize_file(copy + "/model.safetensors", 20000);
                             return other + "\n";
                           }});
  expect_failure(ran, 7, "model.safetensors");
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 1) << ran.out;
}

TEST_F(Cli, InterruptEndsWith130) {
  const std::vector<std::string> args = {"generate",     kBundled,           "-p",   "The",
                                         "--ignore-eos", "--max-new-tokens", "2000", "--do-sample",
                                         "true",         "--temperature",    "1"};
  for (const int signal : {SIGINT, SIGTERM}) {
    const Ran ran = qianwen(args, {.signal_after_output = signal, .timeout_s = 60});
    expect_failure(ran, 130, "interrupted");
  }
}

TEST_F(Cli, InterruptEndsMeasuring) {
  // The signal comes long before the end. 137: it had to be killed. --foreground: timeout would
  // send the signal a second time, to the group, and a second one ends the program at once,
  // wordless.
  for (const char* args : {"info", "bench -p 1 -n 0 -r 1"}) {
    for (const char* signal : {"INT", "TERM", "HUP"}) {
      const std::string command = "timeout --foreground -k 1 -s " + std::string(signal) +
                                  " --preserve-status 0.3 " + QIANWEN_PROGRAM + " " + args;
      expect_failure(test::run_program("/bin/sh", {"-c", command}), 130, "interrupted");
    }
  }
}

TEST_F(Cli, InfoNamesOnlyUnitsThatThereAre) {
  const Ran ran = qianwen({"info", "--isa", "generic"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  for (const char* line : {"\nread  ", "\nint8 dot  ", "\nf32 FMA  "})
    EXPECT_THAT(ran.out, HasSubstr(line));
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("bf16 dot")));
  const json machine = json::parse(qianwen({"info", "--isa", "generic", "--json"}).out)["machine"];
  EXPECT_EQ(machine["limits"]["bf16_gflop_per_second"], 0) << "programs find every field";
}

// ---- bad checkpoints ------------------------------------------------------------------------

TEST_F(Cli, MissingThings) {
  expect_failure(qianwen({"generate", "/no/such/model", "-p", "a"}), 3, "/no/such/model");
  fs::create_directories(folder_ / "empty");
  expect_failure(qianwen({"inspect", (folder_ / "empty").string()}), 3, "empty");
  write("config-only/config.json", test::read_json(kBundled + "/config.json").dump());
  EXPECT_EQ(qianwen({"inspect", (folder_ / "config-only").string()}).code, 0);
  expect_failure(qianwen({"generate", (folder_ / "empty").string(), "-p", "a"}), 3, "empty");
  const std::string copy = copy_of(kBundled, "noweights");
  fs::remove(copy + "/model.safetensors");
  expect_failure(qianwen({"generate", copy, "-p", "a"}), 3, "noweights");
  EXPECT_EQ(qianwen({"tokenize", copy, "-p", "a"}).code, 0) << "tokenizer files alone are enough";
  const std::string sharded = copy_of(golden("models/dense-gqa-untied-sharded"), "sharded");
  fs::remove(sharded + "/model-00002-of-00004.safetensors");
  expect_failure(qianwen({"generate", sharded, "--ids", "[1]"}), 3,
                 "model-00002-of-00004.safetensors");
}

TEST_F(Cli, LfsPointerSaysSo) {
  const std::string copy = copy_of(kBundled, "lfs");
  std::ofstream(copy + "/model.safetensors")
      << "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13327616\n";
  expect_failure(qianwen({"generate", copy, "-p", "a"}), 4, "LFS");
}

TEST_F(Cli, DamagedFilesAreCorrupt) {
  const std::string copy = copy_of(kBundled, "cut");
  fs::resize_file(copy + "/model.safetensors", 5'000'000);
  expect_failure(qianwen({"generate", copy, "-p", "a"}), 4, "model.safetensors");
  const std::string other = copy_of(kBundled, "config");
  write("config/config.json", "{\"architectures\": [");
  expect_failure(qianwen({"generate", other, "-p", "a"}), 4, "config.json");
  const std::string gguf =
      write("broken.gguf", std::string("GGUF\x03\0\0\0", 8) + std::string(16, '\xFF'));
  expect_failure(qianwen({"inspect", gguf}), 4, "broken.gguf");
}

TEST_F(Cli, ConfigsThatCannotRun) {
  const std::string copy = copy_of(kBundled, "config");
  const json config = test::read_json(kBundled + "/config.json");
  const auto with = [&](const std::string& key, const json& value) {
    json changed = config;
    changed[key] = value;
    if (value.is_discarded()) changed.erase(key);
    std::ofstream(copy + "/config.json") << changed.dump();
    return qianwen({"generate", copy, "-p", "a", "--max-new-tokens", "1"});
  };
  expect_failure(with("architectures", {"LlamaForCausalLM"}), 5, "LlamaForCausalLM");
  expect_failure(with("hidden_act", "gelu"), 5, "gelu");
  expect_failure(with("rope_scaling", {{"type", "longrope"}, {"factor", 2.0}}), 5, "longrope");
  expect_failure(with("quantization_config", {{"quant_method", "fp8"}}), 5, "fp8");
  expect_failure(with("hidden_size", 128), 4, "128");
  expect_failure(with("num_hidden_layers", 7), 4, "layers.6");
  expect_failure(with("rms_norm_eps", json(json::value_t::discarded)), 4, "rms_norm_eps");
  expect_failure(with("vocab_size", 6100), 4, "6100");
}

TEST_F(Cli, ContextThatDoesNotFit) {
  expect_failure(qianwen({"generate", kBundled, "-p", "a", "--ctx", "2000000000"}), 6,
                 "2000000000");
  const Ran long_prompt =
      qianwen({"generate", kBundled, "-p", "one two three four five six seven eight nine ten",
               "--ctx", "4"});
  expect_failure(long_prompt, 2, "4");
}

TEST_F(Cli, NotANumberInTheWeightsIsNamed) {
  const std::string copy = copy_of(kBundled, "nan");
  std::fstream file(copy + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header = 0;
  file.read(reinterpret_cast<char*>(&header), 8);
  std::string text(header, '\0');
  file.read(text.data(), static_cast<std::streamsize>(header));
  const json tensors = json::parse(text);
  const auto offset =
      tensors["model.layers.3.mlp.down_proj.weight"]["data_offsets"][0].get<uint64_t>();
  file.seekp(static_cast<std::streamoff>(8 + header + offset));
  const std::string nans(64, '\xFF');  // bf16 NaNs
  file.write(nans.data(), static_cast<std::streamsize>(nans.size()));
  file.close();
  const Ran ran = qianwen({"generate", copy, "-p", "Hello", "--max-new-tokens", "4"});
  EXPECT_EQ(ran.code, 4) << ran.err;
  EXPECT_THAT(ran.last_error_line(), HasSubstr("layer 3, feed-forward block"));
}

}  // namespace
}  // namespace qw
