// Every kind of failure as scripts see it: its exit code, and a last line of stderr in the form
// "qianwen: error: [component] what: expected X, got Y (where)"; and what is no failure.
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "support/cli_fixture.h"
#include "support/golden.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::kBundled;
using test::qianwen;
using test::Ran;

struct Failure {
  std::vector<std::string> args;
  int code;
  std::string part;  // of the line
};

class CliErrors : public test::CliTest {
 protected:
  static void expect_all(const std::vector<Failure>& failures) {
    for (const Failure& failure : failures) {
      SCOPED_TRACE(testing::PrintToString(failure.args));
      test::expect_failure(qianwen(failure.args), failure.code, failure.part);
    }
  }
  /// A directory with this one tokenizer file.
  std::string tokenizer_of(const std::string& name, const std::string& text) const {
    write(name + "/tokenizer.json", text);
    return (folder_ / name).string();
  }
  /// A file for --messages with one message and a template of its own.
  std::string with_template(const std::string& name, const std::string& source) const {
    return write(
        name, json{{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"template_text", source}}
                  .dump());
  }
  /// The bundled model with one field of its config.json set.
  std::string with_config(const std::string& name, const std::string& key,
                          const json& value) const {
    const std::string copy = copy_of(kBundled, name);
    json config = test::read_json(copy + "/config.json");
    config[key] = value;
    std::ofstream(copy + "/config.json") << config.dump();
    return copy;
  }
};

/// One f32 tensor in a safetensors file.
std::string safetensors_with(const std::string& name, int64_t rows, int64_t cols) {
  const int64_t n_bytes = rows * cols * 4;
  const std::string header =
      json{{name, {{"dtype", "F32"}, {"shape", {rows, cols}}, {"data_offsets", {0, n_bytes}}}}}
          .dump();
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i)
    out[i] = static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return out + header + std::string(static_cast<size_t>(n_bytes), '\0');
}

TEST_F(CliErrors, OfTheCommandLine) {
  const auto row = [&](const std::string& name, const std::string& text) {
    return write(name, text + "\n");
  };
  expect_all({
      {{"tokenize", "-p", "a", "--nosuch"}, 2, "--nosuch"},
      {{"tokenize", "-p", "a", "--threads", "-1"}, 2, "threads"},
      {{"tokenize", "-p", "a", "--ctx", "-1"}, 2, "ctx"},
      {{"generate", "-p", "a", "--chunk", "-1"}, 2, "chunk"},
      {{"generate", "-p", "a", "--threads", "100000"}, 2, "1024"},
      {{"generate", "-p", "a", "--stop", ""}, 2, "stop"},
      {{"generate", "-p", "a", "--log-level", "loud"}, 2, "loud"},
      {{"generate", "--file", row("a", R"({"prompt": "x", "nosuch": 1})")}, 2, "'nosuch' (line 1)"},
      {{"generate", "--file", row("f", R"({"ids": [99999]})")}, 2, "(line 1)"},
      {{"generate", "--file", row("b", R"({"prompt": "x", "ids": [1]})")}, 2, "prompt and ids"},
      {{"generate", "--file", row("c", R"({"top_k": 1})")}, 2, "prompt, text, ids"},
      {{"tokenize", "--file", row("d", R"({"text": "x", "hex": "61"})")}, 2, "text and hex"},
      {{"generate", "--file", row("e", "{")}, 2, "line 1"},
      {{"bench", "-p", "0", "-n", "0"}, 2, "-p and -n"},
      {{"bench", "-p", "8,,"}, 2, "--n-prompt: expected an integer from 0 to 1048576, got ''"},
      {{"bench", "-n", ",8"}, 2, "--n-gen: expected an integer from 0 to 1048576, got ''"},
      {{"bench", "-d", ""}, 2, "--depth: expected an integer from 0 to 1048576, got ''"},
      {{"bench", "-b", "1,,2"}, 2, "--batch: expected an integer from 1 to 4096, got ''"},
      {{"bench", "-p", "8,x"}, 2, "got 'x'"},
      {{"plan", "--draft-model", "/no/such"}, 3, "[draft model] model: expected"},
      {{"generate", "-p", "a", "--draft-model", "/no/such"}, 3, "[draft model] model: expected"},
      {{"perplexity", "--file", kBundled + "/config.json", "--window", "0"}, 2, "--window"},
      {{"perplexity", "--file", kBundled + "/config.json", "--stride", "0"}, 2, "--stride"},
      {{"perplexity", "--file", kBundled + "/config.json", "--stride", "-3"}, 2, "--stride"},
      {{"generate", "-p", "a", "--ctx", "2000000000"}, 6, "2000000000"},
      {{"generate", "-p", "a", "--kv-type", "q9"}, 2, "f16, bf16, f32, q8_0, q4_0, got 'q9'"},
      {{"generate", "-p", "a", "--kv-type", "q4_k"}, 2, "q4_0, got 'q4_k'"},
      {{"tokenize", "--file", "/dev/zero"}, 2, "/dev/zero"},
      {{"render", "--messages", "/dev/zero"}, 2, "/dev/zero"},
  });
}

TEST_F(CliErrors, OfIntegersThatAreTooLarge) {
  const std::string ids = write("ids.json", "{\"prompts\": [[1, 2]]}");
  const auto row = [&](const std::string& name, const std::string& parameter) {
    return write(name, "{\"prompt\": \"a\", " + parameter + "}\n");
  };
  const std::string two_64 = "18446744073709551616", two_63 = "9223372036854775808";
  const std::string seeds = "an integer from 0 to 18446744073709551615, got ";
  expect_all({
      {{"generate", "-p", "a", "--seed", two_64}, 2, "--seed: expected " + seeds + "'" + two_64},
      {{"generate", "-p", "a", "--seed", "-1"}, 2, "--seed: expected " + seeds + "'-1'"},
      {{"generate", "-p", "a", "--seed", "1.5"}, 2, seeds + "'1.5'"},
      {{"generate", "-p", "a", "--seed", ""}, 2, "seed"},
      {{"tokenize", "-p", "a", "--seed", two_64}, 2, seeds},
      {{"generate", "--file", row("a", "\"seed\": " + two_64)}, 2, seeds},
      {{"generate", "--file", row("b", "\"seed\": -1")}, 2, seeds + "-1"},
      {{"generate", "--file", row("c", "\"max_new_tokens\": " + two_63)}, 2, two_63},
      {{"generate", "-p", "a", "-n", two_64}, 2, "max_new_tokens"},
      {{"generate", "-p", "a", "--top-k", two_64}, 2, "top_k"},
      {{"generate", "-p", "a", "--ctx", two_63}, 2, "2147483648, got '" + two_63},
      {{"generate", "-p", "a", "--chunk", two_63}, 2, "2147483648, got '" + two_63},
      {{"generate", "-p", "a", "--threads", "4294967297"}, 2, "1024, got '4294967297"},
      {{"bench", "-p", two_63}, 2, "1048576, got '" + two_63},
      {{"bench", "-n", "1," + two_63}, 2, "1048576, got '" + two_63},
      {{"bench", "-d", two_63}, 2, "1048576, got '" + two_63},
      {{"bench", "-b", "0"}, 2, "from 1 to 4096, got '0'"},
      {{"bench", "-r", "4294967297"}, 2, "1000, got '4294967297"},
      {{"plan", "--slots", two_63}, 2, "4096, got '" + two_63},
      {{"score", "--ids-file", ids, "--logprobs", "--last", two_63}, 2, "got '" + two_63},
      {{"score", "--ids-file", ids, "--logprobs", "--top", two_63}, 2, "got '" + two_63},
      {{"perplexity", "--file", ids, "--window", two_63}, 2, "got '" + two_63},
      {{"perplexity", "--file", ids, "--stride", two_63}, 2, "got '" + two_63},
      {{"detokenize", "--ids", "[" + two_64 + "]"}, 2, "token ids"},
  });
  test::expect_failure(qianwen({"chat"}, {.input = ":seed " + two_64 + "\n"}), 2, seeds);
  EXPECT_EQ(qianwen({"generate", "-p", "a", "-n", "1", "--seed", "18446744073709551615"}).code, 0);
}

TEST_F(CliErrors, OfInputFiles) {
  expect_all({
      {{"render", "--messages", "/no/such/file"}, 3, "/no/such/file"},
      {{"render", "--messages", folder_.string()}, 7, folder_.string()},
      {{"tokenize", "--file", folder_.string()}, 7, folder_.string()},
      {{"score", "--ids-file", "/no/such/file", "--logprobs"}, 3, "/no/such/file"},
      {{"score", "--ids-file", kBundled + "/config.json", "--logprobs", "--logits",
        "/no/such/folder/out"},
       2,
       "prompts"},
      {{"render", "--template", "/no/such/file"}, 3, "/no/such/file"},
      {{"render", "--messages", "/dev/null"}, 2, "/dev/null"},
  });
}

TEST_F(CliErrors, OfChatTemplates) {
  expect_all({
      {{"render", "--messages", with_template("raise", "{{ raise_exception('no way') }}")},
       2,
       "no way (raise_exception error"},
      {{"render", "--messages", with_template("undefined", "{{ nothing.at.all }}")}, 2, "nothing"},
      {{"render", "--messages", with_template("python", "{{ 1 + 'a' }}")}, 2, "python error"},
      {{"render", "--messages", with_template("syntax", "{% if %}")}, 4, "template line 1"},
  });
}

TEST_F(CliErrors, OfTokenizers) {
  fs::create_directories(folder_ / "none");
  write("pair/vocab.json", "{}");
  expect_all({
      {{"tokenize", tokenizer_of("empty", ""), "-p", "a"}, 4, "empty/tokenizer.json"},
      {{"tokenize", tokenizer_of("cut", "{\"model\""), "-p", "a"}, 4, "cut/tokenizer.json"},
      {{"tokenize",
        tokenizer_of("lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"),
        "-p", "a"},
       4,
       "git lfs pull"},
      {{"tokenize",
        tokenizer_of("merge", R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["ab"]}})"),
        "-p", "a"},
       4,
       "merge 0"},
      {{"tokenize",
        tokenizer_of("id", R"({"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}})"),
        "-p", "a"},
       4,
       "token 'a'"},
      {{"tokenize", (folder_ / "none").string(), "-p", "a"}, 3, "none"},
      {{"tokenize", (folder_ / "pair").string(), "-p", "a"}, 3, "merges.txt"},
  });
}

TEST_F(CliErrors, OfCheckpoints) {
  const std::string no_config = copy_of(kBundled, "no-config");
  fs::remove(no_config + "/config.json");
  const std::string no_scales =
      copy_of(test::find_golden("gptq/int4_g128_official").value_or(""), "no-scales");
  std::fstream weights(no_scales + "/model.safetensors",
                       std::ios::in | std::ios::out | std::ios::binary);
  std::string head(1 << 16, '\0');
  weights.read(head.data(), static_cast<std::streamsize>(head.size()));
  weights.clear();
  const size_t at = head.find(".scales\"");
  ASSERT_NE(at, std::string::npos);
  weights.seekp(static_cast<std::streamoff>(at));
  weights << ".scalez";
  weights.close();
  const std::vector<std::string> ids = {"--ids", "[1]", "-n", "1"};
  const auto generate = [&](const std::string& model) {
    std::vector<std::string> args = {"generate", model};
    args.insert(args.end(), ids.begin(), ids.end());
    return args;
  };
  expect_all({
      {generate("/no/such/model"), 3, "/no/such/model"},
      {generate(no_config), 3, "config.json"},
      {generate(no_scales), 4, "scales"},
      {generate(with_config("deep", "num_hidden_layers", 7)), 4, "layers.6"},
      {generate(with_config("wide", "num_hidden_layers", int64_t{1} << 40)), 4, "config.json"},
      {generate(with_config("text", "hidden_size", "big")), 4, "config.json"},
      {generate(with_config("other", "architectures", {"GPT2LMHeadModel"})), 5, "GPT2LMHeadModel"},
  });
}

TEST_F(CliErrors, OfAdapters) {
  write("none/README.md", "");
  const std::string config =
      R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})";
  write("half/adapter_config.json", config);
  write("half/adapter_model.safetensors",
        safetensors_with("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", 2, 256));
  write("weightless/adapter_config.json", config);
  write("half/notes.txt", "");
  write("none/adapter_model.bin", "");
  const auto with_adapter = [&](const std::string& path) -> std::vector<std::string> {
    return {"generate", kBundled, "-p", "a", "--adapter", path};
  };
  expect_all({
      {with_adapter("/no/such/adapter"), 3, "/no/such/adapter"},
      {with_adapter((folder_ / "none").string()), 3, "none"},
      {with_adapter((folder_ / "weightless").string()), 3, "weightless"},
      {with_adapter((folder_ / "half").string()), 4, "lora_B"},
      {with_adapter((folder_ / "half/adapter_model.safetensors").string()), 4, "lora_B"},
      {with_adapter((folder_ / "none/README.md").string()), 5, "none/README.md"},
      {with_adapter((folder_ / "half/notes.txt").string()), 5, "half/notes.txt"},
      {with_adapter((folder_ / "none/adapter_model.bin").string()), 3, "none/adapter_model.bin"},
  });
}

// ---- what is no failure ---------------------------------------------------------------------

TEST_F(CliErrors, CommonFlagsAreTakenByEveryCommand) {
  const std::vector<std::string> common = {"--threads",
                                           "1",
                                           "--seed",
                                           "1",
                                           "--device",
                                           "cpu",
                                           "--isa",
                                           "generic",
                                           "--ctx",
                                           "0",
                                           "--chunk",
                                           "0",
                                           "--activations",
                                           "auto",
                                           "--kv-type",
                                           "f16",
                                           "--deterministic",
                                           "--no-prefix-cache",
                                           "--packed-cache",
                                           "",
                                           "--log-level",
                                           "error",
                                           "--prefix-cache-dir",
                                           "",
                                           "--prefix-cache-bytes",
                                           "0"};
  const std::string messages = write("m.json", R"([{"role": "user", "content": "hi"}])");
  for (std::vector<std::string> args :
       std::vector<std::vector<std::string>>{{"tokenize", "-p", "hi"},
                                             {"detokenize", "--ids", "[1]"},
                                             {"render", "--messages", messages},
                                             {"inspect"},
                                             {"plan"},
                                             {"info", "--quick"},
                                             {"generate", "-p", "hi", "-n", "1"}}) {
    args.insert(args.end(), common.begin(), common.end());
    const Ran ran = qianwen(args);
    EXPECT_EQ(ran.code, 0) << args[0] << ": " << ran.err;
  }
  EXPECT_THAT(qianwen({"tokenize", "--help"}).out, testing::HasSubstr("without effect"));
  EXPECT_THAT(qianwen({"generate", "--help"}).out, testing::Not(testing::HasSubstr("without eff")));
}

TEST_F(CliErrors, PipesAreInputs) {
  const std::string messages = R"([{"role": "user", "content": "from a pipe"}])";
  for (const char* path : {"-", "/dev/stdin"}) {
    const Ran ran = qianwen({"render", "--messages", path}, {.input = messages});
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_THAT(ran.out, testing::HasSubstr("from a pipe"));
    EXPECT_EQ(qianwen({"tokenize", "--file", path}, {.input = "{\"text\": \"hi\"}"}).code, 0);
    EXPECT_EQ(qianwen({"score", "--ids-file", path, "--logprobs"},
                      {.input = "{\"prompts\": [[1, 2, 3]]}"})
                  .code,
              0);
    EXPECT_EQ(qianwen({"perplexity", "--file", path, "--window", "8"},
                      {.input = "The capital of France is Paris."})
                  .code,
              0);
    EXPECT_EQ(qianwen({"render", "--template", path, "--messages", write("m.json", messages)},
                      {.input = "{{ messages[0].content }}!"})
                  .out,
              "from a pipe!");
  }
}

TEST_F(CliErrors, ConversationsLoadFromPipes) {
  const std::string command =
      "exec 3< <(echo '[{\"role\": \"user\", \"content\": \"one\"}]'); "
      "printf ':load /dev/fd/3\\n:history\\n' | " +
      std::string(QIANWEN_PROGRAM) + " chat";
  const Ran ran = test::run_program("/bin/bash", {"-c", command});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "[user] one\n");
}

TEST_F(CliErrors, PrefixCacheCanBeSwitchedOff) {
  const std::string text(600, 'a');
  const std::string row = json{{"prompt", text}, {"max_new_tokens", 1}}.dump() + "\n";
  const std::string file = write("same.jsonl", row + row);
  const auto cached = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {"generate", "--file", file, "--json", "--temperature", "0"};
    args.insert(args.end(), more.begin(), more.end());
    std::istringstream lines(qianwen(args).out);
    std::string first, second;
    std::getline(lines, first);
    std::getline(lines, second);
    return json::parse(second)["timings"]["n_cached"].get<int64_t>();
  };
  EXPECT_GT(cached({}), 0);
  EXPECT_EQ(cached({"--no-prefix-cache"}), 0);
}

TEST_F(CliErrors, InfoGivesSizesAsBytes) {
  const json machine = json::parse(qianwen({"info", "--quick", "--json"}).out)["machine"];
  EXPECT_TRUE(machine["memory_available_bytes"].is_number_integer()) << machine;
  EXPECT_GT(machine["memory_available_bytes"].get<int64_t>(), int64_t{1} << 20);
  for (const json& cache : machine["caches"]) {
    EXPECT_TRUE(cache["level"].is_number_integer()) << cache;
    EXPECT_GE(cache["size_bytes"].get<int64_t>(), 1024) << cache;
  }
}

}  // namespace
}  // namespace qw
