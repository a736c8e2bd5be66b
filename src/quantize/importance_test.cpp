// Importances: files in both forms, and what is collected from a network.
#include "quantize/importance.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "quantize/checkpoint_test_support.h"
#include "support/tiny_checkpoint.h"

namespace qw::quantize {
namespace {

using test::TinyCheckpoint;
using test::TinyShape;
using Floats = std::vector<float>;

ImportanceMatrix sample() {
  ImportanceMatrix out;
  out.entries["blk.0.attn_q.weight"] = {{2, 4, 0}, {2}};
  out.entries["blk.0.ffn_up_exps.weight"] = {{8, 4, 0, 0, 30, 60}, {4, 0, 10}};
  out.datasets = {"calib.txt"};
  out.n_chunks = 3;
  out.chunk_tokens = 5;
  return out;
}

void expect_means(const ImportanceMatrix& matrix) {
  EXPECT_EQ(matrix.weights("blk.0.attn_q.weight", 0, 1, 3), (Floats{1, 2, 0}));
  EXPECT_EQ(matrix.weights("blk.0.ffn_up_exps.weight", 0, 3, 2), (Floats{2, 1}));
  EXPECT_EQ(matrix.weights("blk.0.ffn_up_exps.weight", 1, 3, 2), (Floats{1, 1}));  // no tokens
  EXPECT_EQ(matrix.weights("blk.0.ffn_up_exps.weight", 2, 3, 2), (Floats{3, 6}));
  EXPECT_TRUE(matrix.weights("blk.1.attn_q.weight", 0, 1, 3).empty());
}

TEST(Importance, BothFormsAreReadAsTheyWereWritten) {
  const TempDir folder;
  expect_means(sample());
  for (const char* name : {"a.gguf", "a.dat"}) {
    write_importance(sample(), folder / name);
    const ImportanceMatrix read = read_importance(folder / name);
    expect_means(read);
    EXPECT_EQ(read.entries.size(), 2u);
    EXPECT_EQ(read.datasets, sample().datasets);
    EXPECT_EQ(read.n_chunks, 3);
    EXPECT_EQ(read.file, folder / name);
  }
  const ImportanceMatrix gguf = read_importance(folder / "a.gguf");
  EXPECT_EQ(gguf.entries.at("blk.0.ffn_up_exps.weight").counts, (Floats{4, 0, 10}));
  EXPECT_EQ(gguf.chunk_tokens, 5);
}

TEST(Importance, DatIsLlamaCpps) {
  // One entry "ab": 2 calls, values 6 and 8; 2 chunks of "d".
  const TempDir folder;
  const auto number = [](int32_t value) {
    return std::string(reinterpret_cast<const char*>(&value), 4);
  };
  const auto real = [](float value) {
    return std::string(reinterpret_cast<const char*>(&value), 4);
  };
  const std::string old = number(1) + number(2) + "ab" + number(2) + number(2) + real(6) + real(8);
  folder.write("old.dat", old);
  folder.write("new.dat", old + number(2) + number(1) + "d");
  for (const char* name : {"old.dat", "new.dat"})
    EXPECT_EQ(read_importance(folder / name).weights("ab", 0, 1, 2), (Floats{3, 4})) << name;
  EXPECT_EQ(read_importance(folder / "new.dat").datasets, std::vector<std::string>{"d"});
  ImportanceMatrix matrix = read_importance(folder / "new.dat");
  write_importance(matrix, folder / "again.dat");
  EXPECT_EQ(read_text_file(folder / "again.dat"), read_text_file(folder / "new.dat"));
}

TEST(Importance, DamagedFilesAreNamed) {
  const TempDir folder;
  write_importance(sample(), folder / "a.dat");
  const std::string whole = read_text_file(folder / "a.dat");
  for (size_t size = 0; size < whole.size(); ++size) {
    if (size == whole.size() - 17) continue;  // where the older form ends
    folder.write("cut.dat", whole.substr(0, size));
    expect_error(ErrorKind::kCorrupt, {"cut.dat"}, [&] { read_importance(folder / "cut.dat"); });
  }
  ImportanceMatrix odd = sample();
  odd.entries.begin()->second.sums[1] = -1;
  write_importance(odd, folder / "odd.gguf");
  expect_error(ErrorKind::kCorrupt, {"attn_q", "got -1"},
               [&] { read_importance(folder / "odd.gguf"); });
  folder.write("not.gguf", "GGUFxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
  expect_error(ErrorKind::kUnsupported, {}, [&] { read_importance(folder / "not.gguf"); });
  expect_error(ErrorKind::kNotFound, {"none.dat"}, [&] { read_importance(folder / "none.dat"); });
  expect_error(ErrorKind::kInvalidArgument, {"attn_q", "expected 4 values", "got 3"},
               [&] { sample().weights("blk.0.attn_q.weight", 0, 1, 4); });
}

/// Sums of squares of what a forward pass puts out under each name.
class Sums : public ForwardObserver {
 public:
  bool wants(std::string_view) override { return true; }
  void on_value(std::string_view name, int64_t rows, int64_t cols, const float* values) override {
    Floats& to = by_name[std::string(name)];
    to.resize(static_cast<size_t>(cols));
    for (int64_t i = 0; i < rows * cols; ++i)
      to[static_cast<size_t>(i % cols)] += values[i] * values[i];
  }
  std::map<std::string, Floats> by_name;
};

void expect_near(const Floats& a, const Floats& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_NEAR(a[i], b[i], 1e-5F * b[i]) << i;
}

void expect_collected(const TinyShape& shape) {
  TinyCheckpoint tiny(shape);
  qw::test::Loaded loaded = qw::test::load(tiny);
  const auto checkpoint = tiny.open();
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  const NetworkSources sources = open_network(*checkpoint, config);
  CalibrationSet set;
  set.sequences = {{1, 5, 9, 30, 2, 2, 7}, {8, 3, 4}};
  Sums sums;
  for (const auto& ids : set.sequences) {
    const auto kv = loaded.model->make_kv(1, DType::kF32);
    loaded.model->forward(qw::test::plan_of(ids), *kv, nullptr, &sums);
  }
  int n_layers = 0;
  const ImportanceMatrix got = collect_importance(
      {*checkpoint, config, sources}, set, *loaded.backend, nullptr, [&](int) { ++n_layers; });
  EXPECT_EQ(n_layers, 2);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string ours = "blk." + std::to_string(layer) + ".";
    const std::string theirs = "layer" + std::to_string(layer) + ".";
    const auto sums_of = [&](const std::string& name) -> const ImportanceEntry& {
      return got.entries.at(ours + name + ".weight");
    };
    for (const char* name : {"attn_q", "attn_k", "attn_v"}) {
      expect_near(sums_of(name).sums, sums.by_name.at(theirs + "input_layernorm"));
      EXPECT_EQ(sums_of(name).counts, Floats{10});
    }
    expect_near(sums_of("attn_output").sums, sums.by_name.at(theirs + "attn_context"));
    const Floats& inner = sums.by_name.at(theirs + "post_attention_layernorm");
    if (shape.n_experts == 0) {
      expect_near(sums_of("ffn_gate").sums, inner);
      expect_near(sums_of("ffn_up").sums, inner);
      EXPECT_EQ(sums_of("ffn_down").sums.size(), 24u);
      continue;
    }
    expect_near(sums_of("ffn_up_shexp").sums, inner);
    const ImportanceEntry& up = sums_of("ffn_up_exps");
    ASSERT_EQ(up.counts.size(), 4u);
    EXPECT_EQ(up.counts, sums_of("ffn_down_exps").counts);
    // Each token has two experts.
    Floats total(16);
    float n_tokens = 0;
    for (size_t e = 0; e < 4; ++e) {
      n_tokens += up.counts[e];
      for (size_t i = 0; i < 16; ++i)
        total[i] += up.sums[e * 16 + i] / 2;
    }
    EXPECT_EQ(n_tokens, 20);
    expect_near(total, inner);
  }
  expect_near(got.entries.at(shape.tied ? "token_embd.weight" : "output.weight").sums,
              sums.by_name.at("hidden.norm"));
  EXPECT_EQ(got.chunk_tokens, 7);
}

TEST(Importance, IsCollectedFromWhatTheForwardPassShows) {
  expect_collected({});
  expect_collected({.tied = true});
  expect_collected({.n_experts = 4});
}

TEST(Importance, GoesOnWhereItWasInterrupted) {
  namespace fs = std::filesystem;
  for (const bool tied : {false, true}) {
    test::Bench bench({.tied = tied, .n_experts = 4});
    bench.open();
    const ImportanceMatrix straight =
        collect_importance(bench.source(), test::calibration(), *bench.backend, nullptr, {});
    CancelFlag cancel;
    LayerRequest request;
    request.output = bench.folder / "i.gguf";
    request.cancel = &cancel;
    request.on_layer = [&](int, const auto&) { cancel.cancel(); };
    const auto make = [&](const CalibrationSet& set) {
      return make_importance(bench.source(), set, *bench.backend, bench.pool, request, {"text"});
    };
    request.component = "imatrix";
    expect_error(ErrorKind::kCancelled,
                 {"[imatrix]", "interrupted; the same command", "i.gguf.work"},
                 [&] { make(test::calibration()); });
    EXPECT_FALSE(fs::exists(request.output));
    const CalibrationSet set = test::calibration();
    const int64_t expected = importance_work_bytes(bench.config, bench.sources, set);
    int64_t n_bytes = 0;
    for (const auto& entry : fs::directory_iterator(request.output + ".work"))
      n_bytes += static_cast<int64_t>(entry.file_size());
    // Hidden states twice while they are replaced, and another layer.
    n_bytes += set.n_tokens * bench.config.hidden * 4;
    EXPECT_LE(n_bytes, expected);
    EXPECT_GE(n_bytes, set.n_tokens * bench.config.hidden * 8);
    EXPECT_LE(expected, n_bytes + 6 * 65536 + 10'000);
    cancel.reset();
    int n_layers = 0;
    request.on_layer = [&](int, const auto&) { ++n_layers; };
    expect_error(ErrorKind::kInvalidArgument, {"[imatrix]", "another's"},
                 [&] { make(test::calibration(39)); });
    make(test::calibration());
    EXPECT_EQ(n_layers, 2);
    const ImportanceMatrix made = read_importance(request.output);
    EXPECT_EQ(made.n_chunks, straight.n_chunks);
    EXPECT_EQ(made.chunk_tokens, straight.chunk_tokens);
    EXPECT_EQ(made.datasets, std::vector<std::string>{"text"});
    ASSERT_EQ(made.entries.size(), straight.entries.size());
    for (const auto& [name, entry] : straight.entries) {
      EXPECT_EQ(made.entries.at(name).sums, entry.sums) << name;
      EXPECT_EQ(made.entries.at(name).counts, entry.counts) << name;
    }
    EXPECT_FALSE(fs::exists(request.output + ".work"));
  }
}

}  // namespace
}  // namespace qw::quantize
