// Loading and running a tiny random network: what must be refused, and how it is said.
#include "model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "checkpoint/safetensors.h"
#include "model/memory_plan.h"
#include "support/tiny_checkpoint.h"

namespace qw {

namespace {

using namespace test;
using nlohmann::json;
using testing::HasSubstr;

Error error_of(TinyCheckpoint& tiny, const CancelFlag* cancel = nullptr) {
  try {
    load(tiny, cancel);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "was accepted";
  return Error(ErrorKind::kInternal, "");
}

TEST(ModelLoad, MissingTensorIsNamed) {
  TinyCheckpoint tiny;
  tiny.tensors.erase("model.layers.1.self_attn.o_proj.weight");
  const Error error = error_of(tiny);
  EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
  EXPECT_THAT(error.message(), HasSubstr("model.layers.1.self_attn.o_proj.weight"));
}

TEST(ModelLoad, BiasOfQueryIsRequired) {
  TinyCheckpoint tiny;
  tiny.tensors.erase("model.layers.0.self_attn.q_proj.bias");
  EXPECT_THAT(error_of(tiny).message(), HasSubstr("model.layers.0.self_attn.q_proj.bias"));
}

TEST(ModelLoad, WrongShapeNamesBothSizes) {
  TinyCheckpoint tiny;
  tiny.tensors.erase("model.layers.0.mlp.down_proj.weight");
  tiny.add("model.layers.0.mlp.down_proj.weight", {24, 16});
  const Error error = error_of(tiny);
  EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
  EXPECT_THAT(error.message(), HasSubstr("model.layers.0.mlp.down_proj.weight"));
  EXPECT_THAT(error.message(), HasSubstr("16"));
  EXPECT_THAT(error.message(), HasSubstr("24"));
}

TEST(ModelLoad, VocabularyMustAgreeWithTheEmbedding) {
  TinyCheckpoint tiny;
  tiny.config["vocab_size"] = 33;
  EXPECT_THAT(error_of(tiny).message(), HasSubstr("vocab"));
}

TEST(ModelLoad, UnknownTensorsAreWarnedOfOnce) {
  TinyCheckpoint tiny;
  tiny.add("model.layers.7.self_attn.q_proj.weight", {4});
  tiny.add("visual.patch.weight", {4});
  tiny.add("model.layers.0.self_attn.rotary_emb.inv_freq", {2});
  const Loaded loaded = load(tiny);
  ASSERT_EQ(loaded.warnings.size(), 1u);
  EXPECT_THAT(loaded.warnings[0], HasSubstr("2 tensors"));
  EXPECT_THAT(loaded.warnings[0], HasSubstr("visual.patch.weight"));
}

TEST(ModelLoad, CancelStopsIt) {
  TinyCheckpoint tiny;
  CancelFlag cancel;
  cancel.cancel();
  EXPECT_EQ(error_of(tiny, &cancel).kind(), ErrorKind::kCancelled);
}

TEST(ModelLoad, TiedModelsTakeEitherNameAndWarnOfTwoThatDiffer) {
  TinyCheckpoint tied(true);
  Loaded loaded = load(tied);
  const auto expected = run(loaded, plan_of({1, 2, 3}));

  TinyCheckpoint other_name(true);
  other_name.tensors["lm_head.weight"] = other_name.tensors["model.embed_tokens.weight"];
  Loaded both = load(other_name);
  EXPECT_TRUE(both.warnings.empty());
  EXPECT_EQ(run(both, plan_of({1, 2, 3})), expected);
  other_name.tensors.erase("model.embed_tokens.weight");
  Loaded head_only = load(other_name);
  EXPECT_EQ(run(head_only, plan_of({1, 2, 3})), expected);

  TinyCheckpoint differing(true);
  differing.add("lm_head.weight", {32, 16});
  Loaded warned = load(differing);
  ASSERT_EQ(warned.warnings.size(), 1u);
  EXPECT_THAT(warned.warnings[0], HasSubstr("differs"));
  EXPECT_EQ(run(warned, plan_of({1, 2, 3})), expected);
}

TEST(ModelLoad, BiasesOfOtherLayersCountWhenTheyAreNotZero) {
  TinyCheckpoint plain;
  Loaded loaded = load(plain);
  const auto expected = run(loaded, plan_of({1, 2, 3}));
  TinyCheckpoint with_bias;
  with_bias.tensors["model.layers.0.mlp.up_proj.bias"] = {Shape{24}, std::vector<float>(24, 0.0f)};
  Loaded zero = load(with_bias);
  EXPECT_EQ(run(zero, plan_of({1, 2, 3})), expected);
  EXPECT_TRUE(zero.warnings.empty());
  with_bias.tensors["model.layers.0.mlp.up_proj.bias"].values[3] = 2;
  Loaded biased = load(with_bias);
  EXPECT_NE(run(biased, plan_of({1, 2, 3})), expected);
}

TEST(ModelForward, ValueThatIsNotFiniteNamesTheLayer) {
  // Finite weights whose products are not: layer 0 overflows; the next norm sees it, the message
  // names the block that did it.
  TinyCheckpoint tiny;
  for (const char* name : {"up_proj", "down_proj"}) {
    for (float& w : tiny.tensors[std::string("model.layers.0.mlp.") + name + ".weight"].values)
      w = 3e38f;
  }
  Loaded loaded = load(tiny);
  try {
    run(loaded, plan_of({1, 2, 3}));
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
    EXPECT_THAT(error.message(), HasSubstr("layer 0, feed-forward"));
    EXPECT_THAT(error.message(), HasSubstr("finite"));
  }
}

TEST(ModelForward, InconsistentPlansAreOurFault) {
  TinyCheckpoint tiny;
  Loaded loaded = load(tiny);
  const auto spoil = [&](auto change) {
    BatchPlan plan = plan_of({1, 2, 3});
    change(plan);
    try {
      run(loaded, plan);
      return ErrorKind::kIo;  // none
    } catch (const Error& error) {
      return error.kind();
    }
  };
  EXPECT_EQ(spoil([](BatchPlan& p) { p.tokens[1] = 32; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.tokens[1] = -1; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.slots[2] = 4096; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.pages[0] = 1; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.positions[0] = 1 << 20; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.adapters[0] = 0; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.logit_rows = {3}; }), ErrorKind::kInternal);
  EXPECT_EQ(spoil([](BatchPlan& p) { p.seq_begin = {0, 2}; }), ErrorKind::kInternal);
}

TEST(ModelForward, BatchedEqualsAloneBitForBit) {
  TinyCheckpoint tiny;
  Loaded loaded = load(tiny);
  const auto alone = run(loaded, plan_of({7, 8, 9}));
  BatchPlan plan = plan_of({7, 8, 9});
  append_sequence(plan, {4, 5}, -1, loaded.backend->kv_page_tokens());
  const auto logits = run(loaded, plan);
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), logits.begin()));
}

TEST(ModelForward, OfAFileThatWasCutIsAnError) {
  TinyCheckpoint tiny;
  Loaded loaded = load(tiny);
  run(loaded, plan_of({7, 8, 9}));
  const std::string file = tiny.path() + "/model.safetensors";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  try {
    run(loaded, plan_of({7, 8, 9}));
    FAIL() << "logits of a file that is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_THAT(error.message(), HasSubstr(file));
  }
}

/// A peft directory that adds B A, both in bf16, to the queries of layer 0.
void write_bf16_adapter(const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "adapter_config.json")
      << json{{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 4}, {"target_modules", {"q_proj"}}};
  const std::string module = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  SafetensorsWriter out(
      (directory / "adapter_model.safetensors").string(),
      {{module + "A.weight", DType::kBF16, {4, 16}}, {module + "B.weight", DType::kBF16, {16, 4}}});
  std::vector<uint16_t> values;
  for (uint64_t i = 0; i < 2 * 4 * 16; ++i)
    values.push_back(f32_to_bf16(static_cast<float>(random_normal(11, 0, i))));
  out.write(std::as_bytes(std::span(values)));
  out.finish();
}

TEST(ModelAdapters, DeltasAreComputedInF32WhateverTheyAreStoredAs) {
  TinyCheckpoint tiny;
  const auto directory =
      std::filesystem::path(testing::TempDir()) / ("qw_bf16_adapter_" + std::to_string(::getpid()));
  write_bf16_adapter(directory);
  const auto logits = [&](std::unique_ptr<Backend> backend, bool with_adapter) {
    Loaded loaded;
    loaded.backend = std::move(backend);
    LoadOptions options;
    options.quiet = true;
    loaded.model = Model::load(tiny.open(), *loaded.backend, options);
    BatchPlan plan = plan_of({1, 2, 3, 4, 5});
    if (with_adapter) plan.adapters = {loaded.model->add_adapters({{directory.string(), 1.0}})};
    return run(loaded, plan);
  };
  const std::vector<float> want = logits(make_reference_backend({}), true);
  const std::vector<float> got = logits(make_cpu_backend({}), true);  // activations: auto
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(got[i], want[i], 2e-5) << i;
  EXPECT_NE(logits(make_reference_backend({}), false), want) << "an adapter without effect";
  std::filesystem::remove_all(directory);
}

TEST(MemoryForecast, AddsUpAndRefusesWithTheNumbers) {
  TinyCheckpoint tiny;
  const auto checkpoint = tiny.open();
  const auto backend = make_reference_backend({});
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  MemoryRequest request{
      .ctx = 48, .n_slots = 2, .chunk_tokens = 8, .kv_type = DType::kF32, .limit_bytes = 1 << 20};
  const MemoryForecast small = forecast_memory(*checkpoint, config, *backend, request);
  // Every matrix in f32: two vocabulary tables, and per layer qkv, o, gate, up, down.
  EXPECT_EQ(small.weights, 4 * (2 * 32 * 16 + 2 * (32 * 16 + 16 * 16 + 3 * 24 * 16)));
  EXPECT_EQ(small.kv, 48 * 2 * /*layers*/ 2 * /*k, v*/ 2 * 8 * 4);
  EXPECT_TRUE(small.fits());
  EXPECT_NO_THROW(require_memory(small, request));

  request.ctx = small.largest_ctx;
  EXPECT_TRUE(forecast_memory(*checkpoint, config, *backend, request).fits());
  request.ctx = small.largest_ctx + 1;
  const MemoryForecast large = forecast_memory(*checkpoint, config, *backend, request);
  EXPECT_FALSE(large.fits());
  try {
    require_memory(large, request);
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    EXPECT_THAT(error.message(), HasSubstr(std::to_string(small.largest_ctx)));
    EXPECT_THAT(error.message(), HasSubstr("1.0 MiB (available)"));
  }
}

TEST(MemoryForecast, CountsTheProgramAndWhatIsReadInPlace) {
  TinyCheckpoint tiny;
  const auto checkpoint = tiny.open();
  const auto cpu = make_cpu_backend({});
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  MemoryRequest request{.ctx = 48, .chunk_tokens = 8, .limit_bytes = 1 << 20};
  const MemoryForecast without = forecast_memory(*checkpoint, config, *cpu, request);
  EXPECT_GT(without.working, 0);
  EXPECT_GE(without.file_pages, 4 * 32 * 16) << "the table's rows are read from the file";
  request.program_bytes = program_memory_bytes();
  EXPECT_GT(request.program_bytes, 1 << 20);
  const MemoryForecast with = forecast_memory(*checkpoint, config, *cpu, request);
  EXPECT_EQ(with.needed(), without.needed() + request.program_bytes);
  EXPECT_EQ(with.total(), without.total() + request.program_bytes);
  EXPECT_TRUE(without.fits());
  EXPECT_FALSE(with.fits());
}

TEST(MemoryForecast, TheProgramIsWhatItHoldsAndTheRestOfItsCode) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / "qw_program_memory_test";
  fs::remove_all(root);
  fs::create_directories(root / "self");
  std::ofstream(root / "self/status") << "VmPeak: 9000 kB\nVmRSS:   5000 kB\nVmExe:   3000 kB\n";
  EXPECT_EQ(program_memory_bytes(root.string()), 8000 * 1024) << "nobody says what is resident";
  fs::create_symlink("/bin/program", root / "self/exe");
  std::ofstream(root / "self/smaps")
      << "10000-20000 r--p 00000000 fe:00 1   /bin/program\nSize: 64 kB\nRss: 64 kB\n"
         "20000-30000 r-xp 00000000 fe:00 1   /bin/program\nSize: 3000 kB\nRss: 1200 kB\n"
         "40000-50000 r-xp 00000000 fe:00 2   /lib/library.so\nSize: 900 kB\nRss: 800 kB\n";
  EXPECT_EQ(program_memory_bytes(root.string()), (5000 + 3000 - 1200) * 1024);
  fs::remove_all(root);
}

TEST(MemoryForecast, AvailableIsTheTightestOfMachineAndGroups) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / "qw_memory_test";
  const auto write = [&](const std::string& name, const std::string& text) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  };
  write("proc/meminfo", "MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:   800 kB\n");
  write("proc/self/cgroup", "0::/a/b\n");
  const auto available = [&] {
    return available_memory_bytes((root / "proc").string(), (root / "sys").string());
  };
  EXPECT_EQ(available(), 800 * 1024);
  write("sys/a/b/memory.max", "max\n");
  write("sys/a/b/memory.current", "5000\n");
  EXPECT_EQ(available(), 800 * 1024);
  write("sys/a/memory.max", "100000\n");  // the parent's limit counts, its page cache does not
  write("sys/a/memory.current", "60000\n");
  write("sys/a/memory.stat", "anon 50000\nfile 10000\n");
  EXPECT_EQ(available(), 50000);
  fs::remove_all(root);
}

}  // namespace

}  // namespace qw
