// What the tests of whole checkpoints share: a tiny one, calibration for it, and what was written.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "quantize/layer_checkpoint.h"
#include "support/tiny_checkpoint.h"

namespace qw::quantize::test {

using qw::test::TinyCheckpoint;
using qw::test::TinyShape;

inline const TinyShape kDense{.hidden = 64, .intermediate = 96, .vocab = 48};
inline const TinyShape kMoe{.hidden = 64,
                            .intermediate = 96,
                            .n_experts = 4,
                            .expert_intermediate = 64,
                            .shared_intermediate = 64};

inline CalibrationSet calibration(int n_sequences = 40) {
  std::vector<std::vector<int32_t>> samples;
  uint32_t state = 1;
  for (int s = 0; s < n_sequences; ++s) {
    samples.emplace_back();
    for (int t = 0; t < 24; ++t) {
      state = state * 1664525 + 1013904223;
      samples.back().push_back(static_cast<int32_t>(state >> 24) % 32);
    }
  }
  return cut_calibration(samples, {});
}

/// Files of a directory, whole.
inline std::map<std::string, std::string> files_of(const std::string& directory) {
  std::map<std::string, std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    out[entry.path().filename().string()] = read_text_file(entry.path().string());
  return out;
}

/// A tiny checkpoint and whatever quantises it.
struct Bench {
  explicit Bench(const TinyShape& shape) : tiny(shape) {}

  void open() {
    if (checkpoint) return;
    checkpoint = tiny.open();
    config = ModelConfig::from_checkpoint(*checkpoint);
    sources = open_network(*checkpoint, config);
  }
  LayerSource source() const { return {*checkpoint, config, sources}; }

  TinyCheckpoint tiny;
  TempDir folder;
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
  std::unique_ptr<Backend> backend = make_reference_backend({});
  ThreadPool pool{2};
};

/// Interrupted after the first layer, the same request writes the same bytes. write(request, set)
/// quantises with a bench of its own.
template <typename Request, typename Write>
void expect_resumes(Request straight, Request request, const Write& write,
                    const std::function<void(Request&)>& change) {
  namespace fs = std::filesystem;
  write(straight, calibration());
  CancelFlag cancel;
  request.cancel = &cancel;
  request.on_layer = [&](int, const auto&) { cancel.cancel(); };
  expect_error(ErrorKind::kCancelled, {"[quantize]", "the same command goes on"},
               [&] { write(request, calibration()); });
  EXPECT_FALSE(fs::exists(request.output));
  EXPECT_TRUE(fs::exists(request.output + ".work"));

  expect_error(ErrorKind::kInvalidArgument, {"another's", request.output + ".work"}, [&] {
    Request other = request;
    change(other);
    write(other, calibration());
  });
  expect_error(ErrorKind::kInvalidArgument, {"another's"},
               [&] { write(request, calibration(39)); });
  cancel.reset();
  std::vector<size_t> n_modules;
  request.on_layer = [&](int, const auto& modules) { n_modules.push_back(modules.size()); };
  write(request, calibration());
  ASSERT_EQ(n_modules.size(), 2u);
  EXPECT_EQ(n_modules[0], 0u);  // was there
  EXPECT_GT(n_modules[1], 0u);
  EXPECT_EQ(files_of(request.output), files_of(straight.output));
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

}  // namespace qw::quantize::test
