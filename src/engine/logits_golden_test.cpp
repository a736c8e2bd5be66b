// Every logits processor against the goldens of Transformers.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/checkpoint.h"
#include "engine/logits_math.h"
#include "engine/logits_process.h"
#include "engine/logits_processors.h"
#include "engine/logits_warpers.h"
#include "engine/sampler.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;

Json load_golden(const std::string& name) {
  std::ifstream in(std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/generation/" + name);
  return Json::parse(in);
}

std::vector<float> row_of(const Json& values) {
  std::vector<float> out;
  for (const Json& v : values)
    out.push_back(v.is_null() ? kMinusInfinity : v.get<float>());
  return out;
}

/// Tolerance of the golden's README: 1e-5 relative, 1e-6 absolute; -infinity exactly.
void expect_near(std::span<const float> got, std::span<const float> want,
                 const std::string& where) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(want[i]) || std::isinf(got[i])) {
      ASSERT_EQ(got[i], want[i]) << where << " token " << i;
    } else {
      ASSERT_NEAR(got[i], want[i], 1e-6 + 1e-5 * std::abs(want[i])) << where << " token " << i;
    }
  }
}

/// The generation parameters that make exactly this one processor.
GenerationConfig config_of(const std::string& kind, const Json& args) {
  GenerationConfig c;
  c.top_k = 0;
  const auto set = [&](const char* name, const Json& value) {
    c.set(name, value, ParameterSource::kUser);
  };
  if (args.contains("eos_token_id")) set("eos_token_id", args["eos_token_id"]);
  static const std::map<std::string, std::string> kRenamed = {
      {"no_repeat_ngram", "no_repeat_ngram_size"},
      {"bad_words", "bad_words_ids"},
      {"renormalize", "renormalize_logits"}};
  const std::string name = kRenamed.count(kind) != 0 ? kRenamed.at(kind) : kind;
  static const std::map<std::string, std::string> kArgument = {
      {"typical_p", "mass"},
      {"epsilon_cutoff", "epsilon"},
      {"eta_cutoff", "epsilon"},
      {"repetition_penalty", "penalty"},
      {"encoder_repetition_penalty", "penalty"},
      {"no_repeat_ngram", "ngram_size"}};
  const std::string argument = kArgument.count(kind) != 0 ? kArgument.at(kind) : name;
  if (kind == "renormalize") {
    c.renormalize_logits = true;
  } else if (kind == "forced_bos") {
    set("forced_bos_token_id", args["bos_token_id"]);
  } else if (kind == "forced_eos") {
    set("forced_eos_token_id", args["eos_token_id"]);
  } else {
    set(name.c_str(), args.at(argument));
  }
  c.do_sample = true;
  return c;
}

int64_t prompt_len_of(const Json& args, int64_t length) {
  if (args.contains("prompt_length_to_skip")) return args["prompt_length_to_skip"];
  if (args.contains("input_ids_seq_length")) return args["input_ids_seq_length"];
  if (args.contains("begin_index")) return args["begin_index"];
  return length;
}

std::shared_ptr<const LogitsProcessor> with_min_keep(const std::string& kind, const Json& args) {
  const int64_t keep = args.value("min_tokens_to_keep", 1);
  if (kind == "top_k") return std::make_shared<TopK>(args["top_k"].get<int64_t>(), keep);
  if (kind == "top_p") return std::make_shared<TopP>(args["top_p"].get<double>(), keep);
  if (kind == "min_p") return std::make_shared<MinP>(args["min_p"].get<double>(), keep);
  if (kind == "typical_p") return std::make_shared<TypicalP>(args["mass"].get<double>(), keep);
  return nullptr;
}

TEST(LogitsGolden, EveryProcessor) {
  const Json golden = load_golden("processors.json");
  int tested = 0;
  for (const Json& one : golden["cases"]) {
    const std::string kind = one["processor"];
    const Json& args = one["args"];
    for (size_t r = 0; r < one["out"].size(); ++r) {
      const std::string where = kind + " " + args.dump() + " row " + std::to_string(r);
      std::vector<int32_t> ids = golden["input_ids"][r];
      if (one.contains("input_ids_first_n")) ids.resize(one["input_ids_first_n"].get<size_t>());
      std::vector<float> values = row_of(golden["raw_logits"][r]);
      LogitsRow row(values);
      const auto vocab = static_cast<int64_t>(values.size());
      if (kind == "hamming_diversity") {
        // Groups before the second (index 2) have chosen the first two of current_tokens.
        const std::vector<int32_t> chosen = args["current_tokens"];
        apply_hamming_diversity(args["diversity_penalty"], std::span(chosen).first(2), row);
      } else if (args.contains("min_tokens_to_keep")) {
        with_min_keep(kind, args)->process({ids, 0}, row);
      } else {
        std::vector<int32_t> prompt(
            ids.begin(),
            ids.begin() + std::min<int64_t>(prompt_len_of(args, ssize(ids)), ssize(ids)));
        if (args.contains("encoder_input_ids"))
          prompt = args["encoder_input_ids"][r].get<std::vector<int32_t>>();
        const GenerationConfig config = config_of(kind, args);
        const auto pipeline =
            make_pipeline(config, prompt, args.value("max_length", int64_t{1} << 40), vocab);
        ASSERT_EQ(pipeline.processors.size() + pipeline.warpers.size(), 1u) << where;
        pipeline.apply({ids, ssize(prompt)}, row);
      }
      expect_near(values, row_of(one["out"][r]), where);
      ++tested;
    }
  }
  EXPECT_GE(tested, 100);
}

TEST(LogitsGolden, Chains) {
  const Json golden = load_golden("processors.json");
  for (const Json& chain : golden["chains"]) {
    GenerationConfig config;
    for (const auto& [key, value] : chain["generation_config"].items())
      config.set(key, value, ParameterSource::kFile);
    if (!chain["generation_config"].contains("top_k")) config.top_k = 50;
    config.eos_token_id = chain["eos_token_id"].get<std::vector<int32_t>>();
    for (size_t r = 0; r < chain["out"].size(); ++r) {
      const std::vector<int32_t> ids = golden["input_ids"][r];
      const auto prompt_len = chain["prompt_length"].get<int64_t>();
      std::vector<float> values = row_of(golden["raw_logits"][r]);
      LogitsRow row(values);
      const auto pipeline = make_pipeline(
          config, std::span(ids).first(static_cast<size_t>(prompt_len)), 1 << 30, ssize(values));
      ASSERT_EQ(pipeline.processors.size() + pipeline.warpers.size(), chain["order"].size())
          << chain["name"];
      pipeline.apply({ids, prompt_len}, row);
      const std::string where = chain["name"].get<std::string>() + " row " + std::to_string(r);
      expect_near(values, row_of(chain["out"][r]), where);
      std::vector<float> p(values.size());
      const double sum = exp_all(values, values[static_cast<size_t>(argmax(values))], p.data());
      for (float& v : p)
        v = static_cast<float>(static_cast<double>(v) / sum);
      expect_near(p, row_of(chain["probabilities"][r]), where + " probabilities");
    }
  }
}

TEST(LogitsGolden, OpenAiPenalties) {
  const Json golden = load_golden("processors.json");
  const Json& openai = golden["openai_penalties"];
  for (const Json& one : openai["cases"]) {
    for (size_t r = 0; r < one["out"].size(); ++r) {
      std::vector<int32_t> ids = {1, 1, 2};  // a prompt, which must not count
      const std::vector<int32_t> generated = openai["generated"][r];
      ids.insert(ids.end(), generated.begin(), generated.end());
      std::vector<float> values = row_of(golden["raw_logits"][r]);
      LogitsRow row(values);
      PresenceFrequencyPenalty(one["presence_penalty"], one["frequency_penalty"])
          .process({ids, 3}, row);
      expect_near(values, row_of(one["out"][r]), one.dump().substr(0, 60));
    }
  }
}

TEST(LogitsGolden, QwenChainOverTheFullVocabulary) {
  const auto checkpoint_path = std::string(QIANWEN_SOURCE_DIR) +
                               "/tests/golden/generation/qwen_chain_full_vocab.safetensors";
  std::ifstream in(checkpoint_path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  const Json header = Json::parse(bytes.substr(8, header_size));
  const char* data = bytes.data() + 8 + header_size;
  const auto tensor = [&](const char* name) {
    return data + header.at(name)["data_offsets"][0].get<size_t>();
  };
  const size_t vocab = header.at("raw_logits")["shape"][1];
  const size_t n_ids = header.at("input_ids")["shape"][1];

  GenerationConfig config;
  config.do_sample = true;
  config.repetition_penalty = 1.05;
  config.temperature = 0.7;
  config.top_k = 20;
  config.top_p = 0.8;
  for (size_t r = 0; r < header.at("raw_logits")["shape"][0].get<size_t>(); ++r) {
    std::vector<int64_t> wide(n_ids);
    std::memcpy(wide.data(), tensor("input_ids") + r * n_ids * 8, n_ids * 8);
    const std::vector<int32_t> ids(wide.begin(), wide.end());
    std::vector<float> values(vocab), processed(vocab), probabilities(vocab);
    std::memcpy(values.data(), tensor("raw_logits") + r * vocab * 4, vocab * 4);
    std::memcpy(processed.data(), tensor("processed") + r * vocab * 4, vocab * 4);
    std::memcpy(probabilities.data(), tensor("probabilities") + r * vocab * 4, vocab * 4);
    LogitsRow row(values);
    make_pipeline(config, ids, 1 << 30, ssize(values)).apply({ids, ssize(ids)}, row);
    EXPECT_TRUE(row.is_sparse());
    expect_near(values, processed, "processed " + std::to_string(r));
    std::vector<float> p(vocab);
    const double sum = exp_all(values, values[static_cast<size_t>(argmax(values))], p.data());
    for (float& v : p)
      v = static_cast<float>(static_cast<double>(v) / sum);
    expect_near(p, probabilities, "probabilities " + std::to_string(r));
  }
}

}  // namespace
}  // namespace qw
