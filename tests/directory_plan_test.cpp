// Hugging Face directories that we make: of every published form, and with adapters merged.
#include "quantize/directory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "engine/bundle.h"
#include "model/gguf_tokenizer.h"
#include "quantize/adapter_extraction.h"
#include "support/golden.h"
#include "support/model_runner.h"
#include "text/tokenizer_files.h"

namespace qw::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr double kLogits = 5e-4;  // as golden_lora_test.cpp

class Directories : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("qw_directories_{}", ::getpid());
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// Writes a directory of the checkpoint at `from`; returns its path.
  std::string make(const std::string& from, DirectoryChoices choices,
                   const std::vector<AdapterSpec>& adapters = {},
                   const CancelFlag* cancel = nullptr) {
    const auto checkpoint = Checkpoint::open(from);
    const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
    const NetworkSources sources = open_network(*checkpoint, config);
    std::optional<AdapterMerge> merge;
    if (!adapters.empty()) {
      merge.emplace(config, sources, adapters);
      choices.merge = &*merge;
    }
    std::optional<TokenizerSpec> tokenizer;
    if (checkpoint->gguf) tokenizer = gguf_tokenizer_spec(*checkpoint->gguf);
    const DirectoryPlan plan =
        plan_directory(*checkpoint, config, sources, tokenizer ? &*tokenizer : nullptr, choices);
    warnings_ = plan.warnings;
    const std::string path = (folder_ / fmt::format("made-{}", n_made_++)).string();
    ThreadPool pool(2);
    int64_t n_bytes = 0;
    figures_ = write_directory(
        plan, path, pool, [&](int64_t n) { n_bytes += n; }, cancel);
    EXPECT_EQ(n_bytes, plan.n_bytes());
    return path;
  }

  fs::path folder_;
  int n_made_ = 0;
  std::vector<std::string> warnings_;
  MergeFigures figures_;
};

DirectoryChoices of_type(DType dtype) {
  DirectoryChoices choices;
  choices.dtype = dtype;
  return choices;
}

/// Every matrix of a checkpoint in f32, by module.
std::map<std::string, std::vector<float>> matrices_of(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  const NetworkSources sources =
      open_network(*checkpoint, ModelConfig::from_checkpoint(*checkpoint));
  std::map<std::string, std::vector<float>> out;
  sources.for_each([&](const LinearParts& linear) {
    for (size_t i = 0; i < linear.parts.size(); ++i) {
      std::vector<float>& values = out[hf_name(linear.modules[i])];
      values.resize(static_cast<size_t>(linear.parts[i].n * linear.parts[i].k));
      linear.parts[i].decode_rows(0, linear.parts[i].n, values.data());
    }
    out[linear.name + ".bias"] = linear.bias;
  });
  for (const LayerSources& layer : sources.layers) {
    out[fmt::format("norm {}", out.size())] = layer.input_norm;
    out[fmt::format("norm {}", out.size())] = layer.post_norm;
  }
  out["norm"] = sources.final_norm;
  return out;
}

/// Dense, sharded, PyTorch, mixture of experts, GPTQ of every kind, AWQ, GGUF: in f32 nothing is
/// lost.
TEST_F(Directories, KeepEveryBitOfEveryPublishedFormInF32) {
  size_t n_tested = 0;
  for (const char* name :
       {"models/dense-mha-tied", "models/dense-gqa-untied-sharded", "models/moe",
        "models/moe-variant", "models/bin-legacy", "models/bin-sharded", "models/rope-yarn",
        "models/sliding-window", "gptq/int4_g128_official", "gptq/int4_g128_desc_act",
        "gptq/int3_g128", "gptq/int8_g128_official", "gptq/moe_int4_g128", "awq/gemm_g128_official",
        "awq/gemv_fast_g128", "gguf/files/nano-f16.gguf", "gguf/files/nanomoe-f16.gguf",
        "gguf/files/nanoyarn-f16.gguf", "gguf/files/mini-q4_k.gguf"}) {
    auto from = find_golden(name);
    if (!from) continue;
    const fs::path with_model = fs::path(*from) / "model";
    if (fs::is_directory(with_model)) from = with_model.string();
    ++n_tested;
    const std::string made = make(*from, of_type(DType::kF32));
    const auto want = matrices_of(*from), got = matrices_of(made);
    ASSERT_EQ(got.size(), want.size()) << name;
    for (const auto& [module, values] : want) {
      // Of GGUF and GPTQ files nobody but Qwen2's own layers has biases.
      if (got.at(module).empty() && !values.empty()) {
        EXPECT_THAT(values, ::testing::Each(0.0f)) << name << " " << module;
        continue;
      }
      EXPECT_TRUE(got.at(module) == values) << name << " " << module;
    }
    const ModelConfig before = ModelConfig::from_checkpoint(*Checkpoint::open(*from));
    const ModelConfig after = ModelConfig::from_checkpoint(*Checkpoint::open(made));
    EXPECT_EQ(after.rope.factor, before.rope.factor) << name;
    EXPECT_EQ(after.rope.original_max_positions, before.rope.original_max_positions) << name;
    EXPECT_EQ(after.rope.scaling, before.rope.scaling) << name;
    EXPECT_EQ(after.sliding_window, before.sliding_window) << name;
    EXPECT_EQ(after.tied_embeddings, before.tied_embeddings) << name;
    EXPECT_EQ(after.max_positions, before.max_positions) << name;
    EXPECT_NEAR(after.rms_norm_eps, before.rms_norm_eps, 1e-12) << name;
    EXPECT_EQ(after.eos_ids, before.eos_ids) << name;
    EXPECT_EQ(after.quantization.method, "") << name;
    EXPECT_TRUE(warnings_.empty()) << name << ": " << warnings_.front();
    fs::remove_all(made);
  }
  EXPECT_GE(n_tested, 12u);
}

TEST_F(Directories, HaveTheTokenizerOfAGgufFile) {
  const std::string bundled = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  const auto from = find_golden("gguf/files/nano-f16.gguf");
  ASSERT_TRUE(from);
  DirectoryChoices choices = of_type(DType::kF16);
  choices.eos_ids = {5, 7};
  const std::string made = make(*from, choices);
  const ModelFiles want = open_files(*from), got = open_files(made);
  ASSERT_TRUE(want.tokenizer && got.tokenizer);
  EXPECT_EQ(got.tokenizer->size(), want.tokenizer->size());
  EXPECT_EQ(got.tokenizer->bos_id(), want.tokenizer->bos_id());
  EXPECT_EQ(got.tokenizer->eos_id(), want.tokenizer->eos_id());
  EXPECT_EQ(got.tokenizer->pad_id(), want.tokenizer->pad_id());
  for (const std::string text : {"Hello, world 2024!", "千问 <|im_start|>user\n你好<|im_end|>",
                                 "\xF0\x9F\x98\x80 caf\xC3\xA9"}) {
    EncodeOptions special;
    special.parse_special = true;
    EXPECT_EQ(got.tokenizer->encode(text, special), want.tokenizer->encode(text, special)) << text;
    const auto ids = want.tokenizer->encode(text);
    EXPECT_EQ(got.tokenizer->decode(ids), want.tokenizer->decode(ids));
  }
  EXPECT_EQ(got.tokenizer->config().chat_templates, want.tokenizer->config().chat_templates);
  EXPECT_EQ(got.generation.eos_token_id, choices.eos_ids);
}

TEST_F(Directories, CopyWhatIsOfTheTypeAlready) {
  const std::string bundled = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  DirectoryChoices choices = of_type(DType::kBF16);
  choices.shard_bytes = 2'000'000;
  const std::string made = make(bundled, choices);
  const auto before = Checkpoint::open(bundled), after = Checkpoint::open(made);
  EXPECT_GT(after->weight_files.size(), 5u);
  ASSERT_EQ(after->tensors.all().size(), before->tensors.all().size());
  for (const RawTensor& tensor : before->tensors.all()) {
    const RawTensor& copy = after->tensors.at(tensor.name);
    EXPECT_EQ(copy.dtype, tensor.dtype);
    EXPECT_EQ(copy.shape.str(), tensor.shape.str());
    EXPECT_TRUE(std::ranges::equal(copy.bytes, tensor.bytes)) << tensor.name;
  }
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    EXPECT_TRUE(fs::exists(fs::path(made) / name)) << name;
  EXPECT_EQ(read_json(made + "/config.json"), read_json(bundled + "/config.json"));
}

// An adapter merged in f32 gives peft's own numbers of merge_and_unload().
class MergedAdapters : public Directories, public ::testing::WithParamInterface<std::string> {};

TEST_P(MergedAdapters, GivePeftsLogits) {
  const auto path = find_golden("models/lora/" + GetParam());
  ASSERT_TRUE(path);
  const json expected = read_json(*path + "/expected.json");
  const std::string base = fs::path(expected["base"].get<std::string>()).filename();
  const auto base_path = find_golden("models/" + base);
  if (!base_path) GTEST_SKIP() << "base " << base << " is not here";
  auto tensors = read_tensors(*path + "/expected.safetensors");
  ModelRunner runner(make(*base_path, of_type(DType::kF32), {{*path, 1.0}}), "reference");
  EXPECT_GT(figures_.change, 0);
  EXPECT_EQ(figures_.lost, 0);
  for (const json& prompt : expected["prompts"]) {
    const auto merged = runner.logits(prompt["input_ids"], prompt["merged_positions"]);
    EXPECT_LE(
        largest_difference(merged, floats_of(tensors.at(prompt["merged_logits"])), runner.vocab())
            .absolute,
        kLogits);
  }
}

INSTANTIATE_TEST_SUITE_P(All, MergedAdapters, ::testing::ValuesIn(golden_names("models/lora")),
                         [](const auto& one) { return test_name(one.param); });

TEST_F(Directories, MergeSeveralAdaptersByTheirWeights) {
  const auto base = find_golden("models/dense-mha-tied");
  const auto first = find_golden("models/lora/attn-r8");
  const auto second = find_golden("models/lora/patterns-bf16");
  if (!base || !first || !second) GTEST_SKIP() << "goldens not here";
  const std::vector<AdapterSpec> adapters = {{*first, 0.5}, {*second, -1.5}};
  ModelRunner live(*base, "reference");
  live.adapter = live.model().add_adapters(adapters);
  ModelRunner merged(make(*base, of_type(DType::kF32), adapters), "reference");
  const std::vector<int32_t> ids = {5, 17, 301, 44, 8};
  const auto want = live.logits(ids, {4});
  EXPECT_LE(largest_difference(merged.logits(ids, {4}), want, merged.vocab()).absolute, 1e-4);
  live.adapter = -1;
  EXPECT_GT(largest_difference(live.logits(ids, {4}), want, live.vocab()).absolute, 0.1);
  // Half of the bits of bf16 are too few for a small change: that is told.
  make(*base, of_type(DType::kBF16), adapters);
  EXPECT_GT(figures_.lost / figures_.change, 1e-8);
}

/// What extract_adapter makes of two checkpoints.
Extraction extract(const std::string& base, const std::string& tuned, const std::string& path,
                   const ExtractionOptions& options) {
  const auto a = Checkpoint::open(base), b = Checkpoint::open(tuned);
  const ModelConfig config_a = ModelConfig::from_checkpoint(*a),
                    config_b = ModelConfig::from_checkpoint(*b);
  const NetworkSources sources_a = open_network(*a, config_a),
                       sources_b = open_network(*b, config_b);
  ThreadPool pool(2);
  return extract_adapter(
      config_a, sources_a, config_b, sources_b, options, path, pool, [](int64_t) {}, nullptr);
}

// Merged and extracted again: the adapter's own change, of any kind that is.
TEST_P(MergedAdapters, AreFoundAgainInTheDifference) {
  const auto path = find_golden("models/lora/" + GetParam());
  ASSERT_TRUE(path);
  const json expected = read_json(*path + "/expected.json");
  const std::string name = fs::path(expected["base"].get<std::string>()).filename();
  const auto base = find_golden("models/" + name);
  if (!base) GTEST_SKIP() << "base " << name << " is not here";
  const std::string merged = make(*base, of_type(DType::kF32), {{*path, 1.0}});
  ExtractionOptions options;
  options.embeddings = true;
  // DoRA changes the lengths of rows, so that its change has any rank.
  const bool is_dora = GetParam().find("dora") != std::string::npos;
  options.rank = is_dora ? 64 : 16;
  const std::string found = (folder_ / "found").string();
  const Extraction extraction = extract(*base, merged, found, options);
  EXPECT_GT(extraction.kept, 1 - 1e-9);
  EXPECT_TRUE(extraction.warnings.empty());
  auto tensors = read_tensors(*path + "/expected.safetensors");
  ModelRunner runner(*base, "reference");
  runner.adapter = runner.model().add_adapters({{found, 1.0}});
  for (const json& prompt : expected["prompts"]) {
    const auto logits = runner.logits(prompt["input_ids"], prompt["merged_positions"]);
    EXPECT_LE(
        largest_difference(logits, floats_of(tensors.at(prompt["merged_logits"])), runner.vocab())
            .absolute,
        2 * kLogits);
  }
}

TEST_F(Directories, ExtractWhatARankHoldsAndSayWhatItDoesNot) {
  const auto base = find_golden("models/dense-mha-tied"),
             adapter = find_golden("models/lora/attn-r8"),
             other = find_golden("models/dense-gqa-untied-sharded");
  if (!base || !adapter || !other) GTEST_SKIP() << "goldens not here";
  const std::string merged = make(*base, of_type(DType::kF32), {{*adapter, 1.0}});
  const auto kept = [&](int64_t rank) {
    ExtractionOptions options;
    options.rank = rank;
    return extract(*base, merged, (folder_ / fmt::format("r{}", rank)).string(), options).kept;
  };
  EXPECT_GT(kept(8), 1 - 1e-9);
  EXPECT_LT(kept(2), 0.95);
  EXPECT_GT(kept(4), kept(3));
  const auto message = [&](const std::string& tuned) -> std::string {
    try {
      extract(*base, tuned, (folder_ / "x").string(), {});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.message();
    }
    return "";
  };
  EXPECT_THAT(message(*base), HasSubstr("expected two that differ"));
  EXPECT_THAT(message(*other), HasSubstr("expected the same in both checkpoints"));
}

TEST_F(Directories, AreWholeOrNotThere) {
  const auto from = find_golden("models/dense-mha-tied");
  ASSERT_TRUE(from);
  CancelFlag cancel;
  cancel.cancel();
  EXPECT_THROW(make(*from, of_type(DType::kBF16), {}, &cancel), Error);
  EXPECT_TRUE(fs::is_empty(folder_));
  n_made_ = 0;
  make(*from, of_type(DType::kBF16));
  n_made_ = 0;
  try {
    make(*from, of_type(DType::kBF16));
    FAIL() << "expected a refusal";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), HasSubstr("expected one that is not there yet"));
  }
}

TEST_F(Directories, RefuseAdaptersOfOtherModels) {
  const auto base = find_golden("models/dense-gqa-untied-sharded");
  const auto other = find_golden("models/lora/attn-r8");
  if (!base || !other) GTEST_SKIP() << "goldens not here";
  try {
    make(*base, of_type(DType::kF32), {{*other, 1.0}});
    FAIL() << "expected a refusal";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), HasSubstr("expected"));
    EXPECT_THAT(error.message(), HasSubstr("attn-r8"));
  }
}

}  // namespace
}  // namespace qw::test
