// Adapters against weights merged by hand: whatever an adapter does live, a checkpoint with the
// changed weights must do too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "model/memory_plan.h"
#include "support/adapter_writer.h"
#include "support/tiny_checkpoint.h"

namespace qw {

namespace {

using namespace test;

const std::vector<int32_t> kTokens = {1, 2, 3, 4, 5, 2};
constexpr int64_t kRank = Adapter::kRank;
constexpr double kScaling = Adapter::kAlpha / kRank;

float& at(TinyTensor& tensor, int64_t row, int64_t col) {
  return tensor.values[static_cast<size_t>(row * tensor.shape.cols() + col)];
}
float at(const TinyTensor& tensor, int64_t row, int64_t col) {
  return tensor.values[static_cast<size_t>(row * tensor.shape.cols() + col)];
}

/// w[n, k] += scaling * b[n, r] a[r, k].
void merge(TinyTensor& w, const TinyTensor& b, const TinyTensor& a) {
  for (int64_t n = 0; n < w.shape[0]; ++n) {
    for (int64_t k = 0; k < w.shape[1]; ++k) {
      double sum = 0;
      for (int64_t r = 0; r < b.shape.cols(); ++r)
        sum += static_cast<double>(at(b, n, r)) * static_cast<double>(at(a, r, k));
      at(w, n, k) += static_cast<float>(kScaling * sum);
    }
  }
}

TinyTensor transposed(const TinyTensor& tensor) {
  TinyTensor out{Shape{tensor.shape[1], tensor.shape[0]}, tensor.values};
  for (int64_t i = 0; i < tensor.shape[0]; ++i) {
    for (int64_t j = 0; j < tensor.shape[1]; ++j)
      at(out, j, i) = at(tensor, i, j);
  }
  return out;
}

/// Matrix `index` of a stacked tensor [experts, n, k].
TinyTensor expert_of(const TinyTensor& stacked, int64_t index) {
  TinyTensor out{Shape{stacked.shape[1], stacked.shape[2]}, {}};
  const auto begin = stacked.values.begin() + index * out.shape.n_elems();
  out.values.assign(begin, begin + out.shape.n_elems());
  return out;
}

std::vector<float> logits_of(const TinyCheckpoint& tiny) {
  Loaded loaded = load(tiny);
  return run(loaded, plan_of(kTokens));
}

std::vector<float> logits_with(const TinyCheckpoint& tiny, const std::string& adapter) {
  Loaded loaded = load(tiny);
  return run(loaded, plan_of(kTokens, loaded.model->add_adapters({{adapter, 1.0}})));
}

/// The adapter on the base does what the changed checkpoint does, and does something.
void expect_merged(const TinyCheckpoint& base, const std::string& adapter,
                   const TinyCheckpoint& merged) {
  const auto plain = logits_of(base), want = logits_of(merged), got = logits_with(base, adapter);
  ASSERT_EQ(got.size(), want.size());
  float effect = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 2e-5) << i;
    effect = std::max(effect, std::abs(want[i] - plain[i]));
  }
  EXPECT_GT(effect, 0.05f) << "an adapter without effect";
}

/// The same weights, with embedding and lm_head apart, so that either can change.
void untie(TinyCheckpoint& tiny) {
  tiny.config["tie_word_embeddings"] = false;
  tiny.tensors["lm_head.weight"] = tiny.tensors["model.embed_tokens.weight"];
}

class AdaptedVocabulary : public testing::TestWithParam<bool> {};

TEST_P(AdaptedVocabulary, EmbeddingDeltaLeavesTheHeadAlone) {
  const TinyCheckpoint base(GetParam());
  Adapter adapter;
  const TinyTensor& a = adapter.add("model.embed_tokens.lora_embedding_A", {kRank, 32});
  const TinyTensor& b = adapter.add("model.embed_tokens.lora_embedding_B", {16, kRank});
  TinyCheckpoint merged(GetParam());
  if (GetParam()) untie(merged);
  // E'[t] = E[t] + s B A[:, t]: the transpose of the product has a row per token.
  merge(merged.tensors["model.embed_tokens.weight"], transposed(a), transposed(b));
  expect_merged(base, adapter.write_peft(), merged);

  Adapter gguf;  // one row of A per token
  gguf.tensors["token_embd.weight.lora_a"] = transposed(a);
  gguf.tensors["token_embd.weight.lora_b"] = b;
  expect_merged(base, gguf.write_gguf(), merged);
}

TEST_P(AdaptedVocabulary, HeadDeltaLeavesTheEmbeddingAlone) {
  const TinyCheckpoint base(GetParam());
  Adapter adapter;
  const TinyTensor& a = adapter.add("lm_head.lora_A.weight", {kRank, 16});
  const TinyTensor& b = adapter.add("lm_head.lora_B.weight", {32, kRank});
  TinyCheckpoint merged(GetParam());
  if (GetParam()) untie(merged);
  merge(merged.tensors["lm_head.weight"], b, a);
  expect_merged(base, adapter.write_peft(), merged);

  Adapter gguf;
  gguf.tensors["output.weight.lora_a"] = a;
  gguf.tensors["output.weight.lora_b"] = b;
  expect_merged(base, gguf.write_gguf(), merged);
}

INSTANTIATE_TEST_SUITE_P(All, AdaptedVocabulary, testing::Bool(),
                         [](const auto& one) { return one.param ? "Tied" : "Untied"; });

constexpr TinyShape kMoe{.n_experts = 4};

TEST(AdaptedExperts, StackedGgufTensorsGoToTheirExperts) {
  const TinyCheckpoint base(kMoe);
  TinyCheckpoint merged(kMoe);
  Adapter adapter;
  for (int layer = 0; layer < kMoe.n_layers; ++layer) {
    const std::string blk = "blk." + std::to_string(layer) + ".ffn_";
    for (const auto& [gguf, hf, n, k] :
         {std::tuple("gate_exps", "gate_proj", 12, 16), std::tuple("up_exps", "up_proj", 12, 16),
          std::tuple("down_exps", "down_proj", 16, 12)}) {
      const TinyTensor& a = adapter.add(blk + gguf + ".weight.lora_a", {4, kRank, k});
      const TinyTensor& b = adapter.add(blk + gguf + ".weight.lora_b", {4, n, kRank});
      for (int e = 0; e < kMoe.n_experts; ++e) {
        const std::string name = "model.layers." + std::to_string(layer) + ".mlp.experts." +
                                 std::to_string(e) + "." + hf + ".weight";
        merge(merged.tensors.at(name), expert_of(b, e), expert_of(a, e));
      }
    }
  }
  expect_merged(base, adapter.write_gguf("qwen2moe"), merged);
}

/// Experts as newer Transformers save them: two stacked tensors per layer, gate rows above up rows.
TinyCheckpoint& fuse_experts(TinyCheckpoint& tiny) {
  for (int layer = 0; layer < kMoe.n_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    TinyTensor gate_up{Shape{4, 24, 16}, {}}, down{Shape{4, 16, 12}, {}};
    const auto move_to = [&](TinyTensor& to, const std::string& name) {
      const auto node = tiny.tensors.extract(name);
      to.values.insert(to.values.end(), node.mapped().values.begin(), node.mapped().values.end());
    };
    for (int e = 0; e < kMoe.n_experts; ++e) {
      const std::string expert = prefix + std::to_string(e) + ".";
      move_to(gate_up, expert + "gate_proj.weight");
      move_to(gate_up, expert + "up_proj.weight");
      move_to(down, expert + "down_proj.weight");
    }
    tiny.tensors[prefix + "gate_up_proj"] = gate_up;
    tiny.tensors[prefix + "down_proj"] = down;
  }
  return tiny;
}

TEST(FusedExperts, GiveTheLogitsOfSeparateOnes) {
  const TinyCheckpoint separate(kMoe);
  TinyCheckpoint fused(kMoe);
  const Loaded loaded = load(fuse_experts(fused));
  EXPECT_THAT(loaded.warnings, testing::IsEmpty());
  EXPECT_EQ(logits_of(fused), logits_of(separate));
}

TEST(FusedExperts, TakeAdaptersOfSeparateOnes) {
  TinyCheckpoint base(kMoe), merged(kMoe);
  Adapter adapter;
  for (const int expert : {0, 2, 3}) {
    const std::string name = "model.layers.1.mlp.experts." + std::to_string(expert) + ".up_proj";
    const TinyTensor& a = adapter.add(name + ".lora_A.weight", {kRank, 16});
    const TinyTensor& b = adapter.add(name + ".lora_B.weight", {12, kRank});
    merge(merged.tensors.at(name + ".weight"), b, a);
  }
  expect_merged(fuse_experts(base), adapter.write_peft(), merged);
}

TEST(FusedExperts, OfAnotherShapeAreRefused) {
  TinyCheckpoint tiny(kMoe);
  fuse_experts(tiny).tensors["model.layers.1.mlp.experts.gate_up_proj"].shape = Shape{4, 16, 24};
  expect_error(ErrorKind::kCorrupt, {"model.layers.1.mlp.experts.gate_up_proj", "[4, 16, 24]"},
               [&] { load(tiny); });
}

TEST(PeftPickle, DoesWhatSafetensorsDo) {
  const TinyCheckpoint base;
  TinyCheckpoint merged;
  Adapter as_pickle, as_safetensors;
  for (const std::string name : {"model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"}) {
    TinyTensor& w = merged.tensors.at(name + ".weight");
    const TinyTensor& a = as_pickle.add(name + ".lora_A.weight", {kRank, 16});
    const TinyTensor& b = as_pickle.add(name + ".lora_B.weight", {w.shape[0], kRank});
    merge(w, b, a);
  }
  as_safetensors.tensors = as_pickle.tensors;
  const std::string pickle = as_pickle.write_peft_pickle();
  expect_merged(base, pickle, merged);
  EXPECT_EQ(logits_with(base, pickle), logits_with(base, as_safetensors.write_peft()));
}

const char* const kSavable[] = {"model.embed_tokens.weight",
                                "lm_head.weight",
                                "model.norm.weight",
                                "model.layers.0.input_layernorm.weight",
                                "model.layers.1.input_layernorm.weight",
                                "model.layers.1.post_attention_layernorm.weight"};

TEST(ModulesToSave, TakeThePlaceOfTheBases) {
  const TinyCheckpoint base;
  for (const std::string name : kSavable) {
    TinyCheckpoint replaced;
    TinyTensor& weight = replaced.tensors.at(name);
    for (size_t i = 0; i < weight.values.size(); ++i)
      weight.values[i] *= 0.5f + 0.1f * static_cast<float>(i % 11);
    Adapter adapter;
    adapter.tensors[name] = weight;
    const auto got = logits_with(base, adapter.write_peft());
    EXPECT_EQ(got, logits_of(replaced)) << name;
    EXPECT_NE(got, logits_of(base)) << name;
  }
}

TEST(ModulesToSave, AreReadWhileTheyAreUsed) {
  Adapter adapter;
  adapter.add("model.embed_tokens.weight", {32, 16});
  Loaded loaded = load(TinyCheckpoint());
  const int32_t id = loaded.model->add_adapters({{adapter.write_peft(), 1.0}});
  EXPECT_NO_THROW(run(loaded, plan_of(kTokens, id)));
  std::filesystem::resize_file(adapter.path() + "/adapter_model.safetensors", 100);
  expect_error(ErrorKind::kIo, {"adapter_model.safetensors"},
               [&] { run(loaded, plan_of(kTokens, id)); });
}

TEST(ModulesToSave, HoldForTheirSequencesOnly) {
  Adapter adapter;
  for (const std::string name : kSavable)
    adapter.add(name, name.find("norm") == std::string::npos ? std::vector<int64_t>{32, 16}
                                                             : std::vector<int64_t>{16});
  const TinyCheckpoint base;
  Loaded loaded = load(base);
  const int32_t id = loaded.model->add_adapters({{adapter.write_peft(), 1.0}});
  std::vector<float> alone;
  for (const int32_t of : {-1, id, id, -1}) {
    const auto logits = run(loaded, plan_of(kTokens, of));
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  BatchPlan plan = plan_of(kTokens);
  for (const int32_t of : {id, id, -1})
    append_sequence(plan, kTokens, of, loaded.backend->kv_page_tokens());
  EXPECT_EQ(run(loaded, plan), alone);
}

TEST(ModulesToSave, AValueThatIsNotFiniteHasItsRowOfThePlan) {
  // Norms of different weights run apart: rows of the second part are not those of the plan.
  Adapter adapter;
  adapter.add("model.layers.0.input_layernorm.weight", {16});
  TinyCheckpoint base;
  TinyTensor& table = base.tensors.at("model.embed_tokens.weight");
  for (int64_t col = 0; col < table.shape.cols(); ++col)
    at(table, 9, col) = 3e38f;
  Loaded loaded;
  loaded.backend =
      make_cpu_backend({});  // sums squares in float; the reference's double holds them
  LoadOptions quiet;
  quiet.quiet = true;
  loaded.model = Model::load(base.open(), *loaded.backend, quiet);
  const int32_t id = loaded.model->add_adapters({{adapter.write_peft(), 1.0}});
  EXPECT_EQ(loaded.model->n_adapters(), id + 1);
  const auto row_at_fault = [&](const std::vector<int32_t>& with_adapter) -> int64_t {
    BatchPlan plan = plan_of({1, 2, 3});
    append_sequence(plan, with_adapter, id, loaded.backend->kv_page_tokens());
    append_sequence(plan, {4, 5}, -1, loaded.backend->kv_page_tokens());
    try {
      run(loaded, plan);
    } catch (const NumericError& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
      EXPECT_THAT(error.message(), testing::HasSubstr("embedding"));
      return error.row();
    }
    return -1;
  };
  EXPECT_EQ(row_at_fault({6, 7, 8}), -1);
  EXPECT_EQ(row_at_fault({6, 9, 9}), 4);
}

TEST(ModulesToSave, OfTwoAdaptersAreRefusedNamingBoth) {
  const TinyCheckpoint base;
  Loaded loaded = load(base);
  for (const std::string name : kSavable) {
    Adapter first, second;
    for (Adapter* adapter : {&first, &second})
      adapter->tensors[name] = base.tensors.at(name);
    const std::string module = name.substr(0, name.rfind('.'));
    expect_error(ErrorKind::kInvalidArgument, {module, first.path(), second.path()}, [&] {
      loaded.model->add_adapters({{first.write_peft(), 1.0}, {second.write_peft(), 1.0}});
    });
  }
}

TEST(ModulesToSave, OfOneAdapterTakeTheDeltasOfAnotherInAnyOrder) {
  const TinyCheckpoint base;
  TinyCheckpoint merged;
  Adapter whole, delta;
  merged.tensors["model.embed_tokens.weight"] = whole.add("model.embed_tokens.weight", {32, 16});
  const TinyTensor& a = delta.add("model.embed_tokens.lora_embedding_A", {kRank, 32});
  const TinyTensor& b = delta.add("model.embed_tokens.lora_embedding_B", {16, kRank});
  merge(merged.tensors["model.embed_tokens.weight"], transposed(a), transposed(b));
  const auto want = logits_of(merged);
  Loaded loaded = load(base);
  const AdapterSpec one{whole.write_peft(), 1.0}, other{delta.write_peft(), 1.0};
  for (const auto& order : {std::vector{one, other}, std::vector{other, one}}) {
    const auto got = run(loaded, plan_of(kTokens, loaded.model->add_adapters(order)));
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 2e-5) << i;
  }
}

TEST(ModulesToSave, ThatDoNotFitAreRefused) {
  const TinyCheckpoint base;
  Loaded loaded = load(base);
  const auto refused = [&](ErrorKind kind, const std::string& name,
                           const std::vector<int64_t>& shape, const std::vector<std::string>& parts,
                           float first = 1) {
    Adapter adapter;
    adapter.add(name, shape).values[0] = first;
    expect_error(kind, parts, [&] { loaded.model->add_adapters({{adapter.write_peft(), 1.0}}); });
  };
  refused(ErrorKind::kUnsupported, "model.layers.0.mlp.up_proj.weight", {24, 16},
          {"model.layers.0.mlp.up_proj.weight", "norms"});
  refused(ErrorKind::kCorrupt, "model.norm.weight", {17}, {"model.norm", "[16]", "[17]"});
  refused(ErrorKind::kCorrupt, "model.layers.7.input_layernorm.weight", {16},
          {"model.layers.7.input_layernorm", "2"});
  refused(ErrorKind::kCorrupt, "lm_head.weight", {31, 16}, {"lm_head", "32", "31"});
  refused(ErrorKind::kCorrupt, "model.norm.weight", {16}, {"model.norm.weight", "finite"},
          std::nanf(""));
  EXPECT_EQ(loaded.model->add_adapters({}), 0) << "a failure left a trace";
}

TEST(Adapters, WithoutTensorsAreRefused) {
  const TinyCheckpoint base;
  Loaded loaded = load(base);
  const Adapter adapter;
  for (const std::string& path : {adapter.write_peft(), adapter.write_gguf()}) {
    expect_error(ErrorKind::kCorrupt, {"at least one", path}, [&] {
      loaded.model->add_adapters({{path, 1.0}});
    });
  }
}

}  // namespace

}  // namespace qw
