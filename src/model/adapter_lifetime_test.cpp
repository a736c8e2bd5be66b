// Adapters that come and go while a model computes: staging disturbs nobody, ids are never given
// twice, nothing goes that somebody uses, and what goes gives its memory back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/cancel.h"
#include "base/error.h"
#include "support/adapter_writer.h"

namespace qw {

namespace {

using namespace test;

const std::vector<int32_t> kTokens = {1, 2, 3, 4, 5, 2};

/// Deltas of one layer, and everything that can be replaced.
std::string write_everything(Adapter& adapter, float factor = 1) {
  adapter.add("model.layers.0.self_attn.q_proj.lora_A.weight", {Adapter::kRank, 16});
  adapter.add("model.layers.0.self_attn.q_proj.lora_B.weight", {16, Adapter::kRank});
  adapter.add("model.layers.1.mlp.up_proj.lora_A.weight", {Adapter::kRank, 16});
  adapter.add("model.layers.1.mlp.up_proj.lora_B.weight", {24, Adapter::kRank});
  adapter.add("lm_head.weight", {32, 16});
  adapter.add("model.embed_tokens.weight", {32, 16});
  adapter.add("model.norm.weight", {16});
  for (auto& [name, tensor] : adapter.tensors) {
    for (float& value : tensor.values)
      value *= factor;
  }
  return adapter.write_peft();
}

/// On the CPU backend, whose team and scratch are what staging must leave alone.
Loaded load_on_cpu(const TinyCheckpoint& tiny, int n_threads = 2) {
  Loaded out;
  BackendOptions options;
  options.n_threads = n_threads;
  out.backend = make_cpu_backend(options);
  LoadOptions quiet;
  quiet.quiet = true;
  out.model = Model::load(tiny.open(), *out.backend, quiet);
  return out;
}

void expect_refused(Model& model, int32_t id, const std::string& part) {
  for (const bool remove : {false, true}) {
    try {
      if (remove) {
        model.remove_adapter(id);
      } else {
        model.use_adapter(id);
      }
      ADD_FAILURE() << id << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_THAT(error.message(), testing::HasSubstr(part));
    }
  }
}

TEST(AdapterLifetime, WhatIsRemovedGivesItsMemoryBackAndLeavesTheOthers) {
  Adapter first_files, second_files;
  const std::string first_path = write_everything(first_files);
  const std::string second_path = write_everything(second_files, 0.5);
  Loaded loaded = load_on_cpu(TinyCheckpoint());
  Model& model = *loaded.model;
  const auto base = run(loaded, plan_of(kTokens));
  const int32_t first = model.add_adapters({{first_path, 1.0}});
  const int64_t one = model.adapter_bytes();
  // Deltas in f32, the head as the backend packs it; embedding rows stay in the file.
  EXPECT_GE(one, int64_t{4} * (Adapter::kRank * (16 + 16 + 16 + 24) + 32 * 16 + 16));
  const int32_t second = model.add_adapters({{second_path, 1.0}});
  EXPECT_EQ(model.adapter_bytes(), 2 * one);
  const auto with_first = run(loaded, plan_of(kTokens, first));
  const auto with_second = run(loaded, plan_of(kTokens, second));
  EXPECT_NE(with_first, base);
  EXPECT_NE(with_first, with_second);

  std::unique_ptr<StagedAdapter> remains;
  model.remove_adapter(first,
                       [&](std::unique_ptr<StagedAdapter> gone) { remains = std::move(gone); });
  ASSERT_NE(remains, nullptr);
  EXPECT_EQ(remains->resident_bytes, one);
  EXPECT_EQ(model.adapter_bytes(), one);
  EXPECT_EQ(model.n_adapters(), 1);
  EXPECT_EQ(run(loaded, plan_of(kTokens, second)), with_second);
  EXPECT_EQ(run(loaded, plan_of(kTokens)), base);
  expect_refused(model, first, "got 0, whose adapter was unloaded");
  EXPECT_ANY_THROW(run(loaded, plan_of(kTokens, first)));

  // What was taken out is whole: it can go in again, under another id.
  const int32_t again = model.install_adapter(std::move(remains));
  EXPECT_EQ(again, 2) << "ids are given once";
  EXPECT_EQ(run(loaded, plan_of(kTokens, again)), with_first);
  model.remove_adapter(again);
  model.remove_adapter(second);
  EXPECT_EQ(model.n_adapters(), 0);
  EXPECT_EQ(model.adapter_bytes(), 0);
  EXPECT_EQ(run(loaded, plan_of(kTokens)), base);
  expect_refused(model, 3, "one of the 0 that are loaded, got 3");
  expect_refused(model, -2, "got -2");
}

TEST(AdapterLifetime, WhatIsInUseStaysUntilTheLastUseEnds) {
  Adapter files;
  Loaded loaded = load_on_cpu(TinyCheckpoint());
  Model& model = *loaded.model;
  const int32_t id = model.add_adapters({{write_everything(files), 1.0}});
  const auto want = run(loaded, plan_of(kTokens, id));
  int n_gone = 0;
  {
    AdapterUse outer = model.use_adapter(id);
    {
      AdapterUse inner = model.use_adapter(id);
      model.remove_adapter(id, [&](std::unique_ptr<StagedAdapter>) { ++n_gone; });
      expect_refused(model, id, "whose adapter was unloaded");
      AdapterUse moved = std::move(inner);
      EXPECT_EQ(run(loaded, plan_of(kTokens, id)), want);
    }
    EXPECT_EQ(n_gone, 0);
    EXPECT_EQ(model.n_adapters(), 1);
    EXPECT_EQ(run(loaded, plan_of(kTokens, id)), want);
  }
  EXPECT_EQ(n_gone, 1);
  EXPECT_EQ(model.n_adapters(), 0);
  EXPECT_EQ(model.adapter_bytes(), 0);
}

TEST(AdapterLifetime, WhatDoesNotFitIsRefusedWithTheNumbers) {
  Adapter files;
  const std::string path = write_everything(files);
  Loaded loaded = load_on_cpu(TinyCheckpoint());
  StageOptions options;
  options.limit_bytes = 1 << 10;
  expect_error(ErrorKind::kOutOfMemory, {"at most 0.0 MiB", "MiB (" + path}, [&] {
    loaded.model->stage_adapters({{path, 1.0}}, options);
  });
  const int64_t bytes = loaded.model->stage_adapters({{path, 1.0}})->resident_bytes;
  options.limit_bytes = 2 * bytes;
  EXPECT_NO_THROW(loaded.model->stage_adapters({{path, 1.0}}, options));
  CancelFlag cancel;
  cancel.cancel();
  options.cancel = &cancel;
  expect_error(ErrorKind::kCancelled, {"adapter"}, [&] {
    loaded.model->stage_adapters({{path, 1.0}}, options);
  });
  EXPECT_EQ(loaded.model->n_adapters(), 0);
}

TEST(AdapterLifetime, OfAnotherModelIsRefusedAndLeavesNoTrace) {
  Adapter files;
  const std::string path = write_everything(files);
  Loaded one = load_on_cpu(TinyCheckpoint()), other = load_on_cpu(TinyCheckpoint());
  EXPECT_ANY_THROW(other.model->install_adapter(one.model->stage_adapters({{path, 1.0}})));
  EXPECT_EQ(other.model->n_adapters(), 0);
  EXPECT_EQ(other.model->add_adapters({{path, 1.0}}), 0);
}

// Two threads stage, and one meets a broken file again and again, while the model's own computes
// steps in which the base and an adapter are side by side. Meant for ThreadSanitizer, too.
TEST(AdapterLifetime, StagingGoesOnBesideSteps) {
  constexpr int kRounds = 4;
  Adapter first_files, second_files, broken_files;
  const std::string first_path = write_everything(first_files);
  const std::string second_path = write_everything(second_files, 0.5);
  broken_files.add("model.layers.1.mlp.down_proj.lora_A.weight", {Adapter::kRank, 23});
  broken_files.add("model.layers.1.mlp.down_proj.lora_B.weight", {16, Adapter::kRank});
  const std::string broken_path = broken_files.write_peft();
  const TinyCheckpoint tiny;
  Loaded alone = load_on_cpu(tiny);
  const auto want_second =
      run(alone, plan_of(kTokens, alone.model->add_adapters({{second_path, 0.5}})));

  Loaded loaded = load_on_cpu(tiny);
  Model& model = *loaded.model;
  const int32_t first = model.add_adapters({{first_path, 1.0}});
  BatchPlan plan = plan_of(kTokens);
  append_sequence(plan, kTokens, first, loaded.backend->kv_page_tokens());
  const auto want = run(loaded, plan);
  for (int round = 0; round < kRounds; ++round) {
    std::unique_ptr<StagedAdapter> staged;
    std::atomic<int> n_begun{0}, n_done{0};
    std::atomic<int64_t> n_steps{0};
    // Each waits for a step to have gone by since it began, so that the two do overlap.
    const auto wait_for_a_step = [&] {
      const int64_t seen = n_steps.load();
      while (n_steps.load() < seen + 2)
        std::this_thread::yield();
    };
    std::thread stager([&] {
      ++n_begun;
      wait_for_a_step();
      staged = model.stage_adapters({{second_path, 0.5}});
      wait_for_a_step();
      ++n_done;
    });
    std::thread failing([&] {
      ++n_begun;
      for (int i = 0; i < 3; ++i) {
        EXPECT_THROW(model.stage_adapters({{broken_path, 1.0}}), Error);
        EXPECT_GT(model.stage_adapters({{first_path, 1.0}})->resident_bytes, 0);
      }
      wait_for_a_step();
      ++n_done;
    });
    while (n_done < 2) {
      EXPECT_EQ(run(loaded, plan), want);
      ++n_steps;
    }
    stager.join();
    failing.join();
    EXPECT_GE(n_steps, 4);
    const int32_t second = model.install_adapter(std::move(staged));
    EXPECT_EQ(run(loaded, plan_of(kTokens, second)), want_second);
    EXPECT_EQ(run(loaded, plan), want);
    model.remove_adapter(second);
  }
  EXPECT_EQ(model.n_adapters(), 1);
}

}  // namespace

}  // namespace qw
