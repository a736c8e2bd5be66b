// GGUF files with error feedback: other codes on the same grids, closer predictions, and nothing
// else changed.
#include "quantize/gguf_feedback.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "quant/code_grid.h"
#include "quantize/checkpoint_test_support.h"
#include "quantize/network_probe.h"

namespace qw::quantize {
namespace {

namespace fs = std::filesystem;
using test::calibration;
using test::kMoe;
using test::TinyShape;

/// Rows of 256, which k-quants need.
const TinyShape kWide{.hidden = 256, .intermediate = 256, .vocab = 48};

struct Bench : test::Bench {
  explicit Bench(const TinyShape& shape) : test::Bench(shape) {
    if (shape.n_experts > 0) tiny.config["norm_topk_prob"] = false;  // as GGUF has it
    open();
    importance = collect_importance(source(), calibration(), *backend, nullptr, {});
  }

  GgufPlan plan(const char* type, bool pure = true) const {
    GgufChoices choices;
    choices.recipe = find_gguf_recipe(type);
    choices.pure = pure;
    choices.importance = &importance;
    return plan_gguf(*checkpoint, config, sources, nullptr, choices);
  }
  std::string write(const GgufPlan& plan, const std::string& name) {
    const std::string path = folder / name;
    write_gguf_plan(
        plan, path, pool, [](int64_t) {}, nullptr);
    return path;
  }
  GgufFeedbackRequest request(const std::string& name) const {
    GgufFeedbackRequest out;
    out.output = folder / name;
    return out;
  }
  /// Makes the file of `request`; returns what was said of its matrices.
  std::vector<QuantisedModule> make(const GgufPlan& plan, GgufFeedbackRequest request,
                                    const CalibrationSet& set = calibration()) {
    std::vector<QuantisedModule> seen;
    const auto told = request.on_layer;
    request.on_layer = [&](int layer, const std::vector<QuantisedModule>& modules) {
      seen.insert(seen.end(), modules.begin(), modules.end());
      if (told) told(layer, modules);
    };
    make_gguf_feedback(source(), plan, set, *backend, pool, request, [&](const GgufPlan& made) {
      write_gguf_plan(
          made, request.output, pool, [](int64_t) {}, nullptr);
    });
    return seen;
  }
  /// Divergence of the predictions with the layers of a file.
  double kl(const std::string& path) {
    const auto file = Checkpoint::open(path);
    const NetworkSources read = open_network(*file, ModelConfig::from_checkpoint(*file));
    std::vector<ChangedMatrix> changed;
    for (const LayerSources& layer : read.layers) {
      for_each_quantised(layer, [&](const LinearParts& parts) {
        for (size_t i = 0; i < parts.parts.size(); ++i)
          changed.push_back({parts.modules[i], [source = parts.parts[i]] { return source; }});
      });
    }
    return NetworkProbe(source(), calibration(), *backend, pool, nullptr).kl(changed);
  }

  ImportanceMatrix importance;
};

/// The tensors of two files whose bytes differ; all else must be equal.
std::vector<std::string> differing(const std::string& a_path, const std::string& b_path) {
  const auto a = Checkpoint::open(a_path), b = Checkpoint::open(b_path);
  EXPECT_EQ(fs::file_size(a_path), fs::file_size(b_path));
  std::vector<std::string> out;
  for (const RawTensor& tensor : a->tensors.all()) {
    const RawTensor& other = b->tensors.at(tensor.name);
    EXPECT_EQ(tensor.dtype, other.dtype);
    if (!std::ranges::equal(tensor.bytes, other.bytes)) out.push_back(tensor.name);
  }
  return out;
}

void expect_grids_kept(const std::string& a_path, const std::string& b_path) {
  const auto a = Checkpoint::open(a_path), b = Checkpoint::open(b_path);
  const NetworkSources plain = open_network(*a, ModelConfig::from_checkpoint(*a)),
                       made = open_network(*b, ModelConfig::from_checkpoint(*b));
  for (size_t l = 0; l < plain.layers.size(); ++l) {
    const LinearSource &from = plain.layers[l].o.parts.front(),
                       &to = made.layers[l].o.parts.front();
    GridRows was, is;
    read_grid(from, 0, from.n, was);
    read_grid(to, 0, to.n, is);
    EXPECT_EQ(was.steps, is.steps);
    EXPECT_EQ(was.bases, is.bases);
    EXPECT_NE(was.codes, is.codes);
  }
}

TEST(GgufFeedback, OtherCodesOnTheSameGridsPredictBetter) {
  Bench bench(kWide);
  for (const char* type : {"q4_k_s", "iq4_xs", "q2_k"}) {
    SCOPED_TRACE(type);
    const GgufPlan plan = bench.plan(type);
    const std::string plain = bench.write(plan, std::string(type) + "-plain.gguf");
    const GgufFeedbackRequest request = bench.request(std::string(type) + ".gguf");
    const std::vector<QuantisedModule> seen = bench.make(plan, request);
    EXPECT_EQ(seen.size(), 14u);
    for (const QuantisedModule& module : seen) {
      ASSERT_TRUE(module.recoding) << hf_name(module.id);
      EXPECT_LE(module.loss, module.recoding->kept_loss) << hf_name(module.id);
    }
    const std::vector<std::string> names = differing(plain, request.output);
    EXPECT_EQ(names.size(), 14u);
    for (const std::string& name : names)
      EXPECT_TRUE(name.starts_with("blk.")) << name;
    expect_grids_kept(plain, request.output);
    EXPECT_LT(bench.kl(request.output), 0.7 * bench.kl(plain));
    EXPECT_FALSE(fs::exists(request.output + ".work"));
  }
}

TEST(GgufFeedback, ExpertsAreMadeOneByOne) {
  Bench bench(kMoe);
  const GgufPlan plan = bench.plan("q4_0");
  const std::string plain = bench.write(plan, "plain.gguf");
  const GgufFeedbackRequest request = bench.request("made.gguf");
  const std::vector<QuantisedModule> seen = bench.make(plan, request);
  // q, k, v, o; gate, up and down of the shared expert and of four.
  EXPECT_EQ(seen.size(), 2u * (4 + 3 + 4 * 3));
  EXPECT_EQ(differing(plain, request.output).size(), 2u * (4 + 3 + 3));
  EXPECT_LT(bench.kl(request.output), bench.kl(plain));
}

TEST(GgufFeedback, TypesWithoutCodesAndCopiesStay) {
  Bench bench(kWide);
  const GgufPlan plan = bench.plan("iq2_xs");
  const std::string plain = bench.write(plan, "plain.gguf");
  const GgufFeedbackRequest request = bench.request("made.gguf");
  for (const QuantisedModule& module : bench.make(plan, request))
    EXPECT_FALSE(module.recoding) << hf_name(module.id);
  EXPECT_TRUE(differing(plain, request.output).empty());
  EXPECT_EQ(recodable_matrices(plan), 0);
  EXPECT_EQ(recodable_matrices(bench.plan("f16")), 0);
  EXPECT_EQ(recodable_matrices(bench.plan("q4_0")), 14);

  // A file that is in the type already is copied.
  const std::string blocks = bench.write(bench.plan("q8_0"), "q8_0.gguf");
  bench.checkpoint = Checkpoint::open(blocks);
  bench.config = ModelConfig::from_checkpoint(*bench.checkpoint);
  bench.sources = open_network(*bench.checkpoint, bench.config);
  EXPECT_TRUE(bench.make(bench.plan("q8_0"), bench.request("again.gguf")).empty());
  EXPECT_EQ(feedback_bytes(bench.plan("q8_0")), 0);
  EXPECT_EQ(recodable_matrices(bench.plan("q8_0")), 0);
  EXPECT_TRUE(differing(blocks, bench.folder / "again.gguf").empty());
}

TEST(GgufFeedback, GoesOnWhereItWasInterrupted) {
  Bench bench(kMoe);
  const GgufPlan plan = bench.plan("q4_1");
  const GgufFeedbackRequest straight = bench.request("straight.gguf");
  bench.make(plan, straight);
  CancelFlag cancel;
  GgufFeedbackRequest request = bench.request("cut.gguf");
  request.cancel = &cancel;
  request.on_layer = [&](int, const auto&) { cancel.cancel(); };
  expect_error(ErrorKind::kCancelled, {}, [&] { bench.make(plan, request); });
  EXPECT_FALSE(fs::exists(request.output));
  cancel.reset();
  request.on_layer = {};
  const auto expect_anothers = [&](const GgufPlan& other, double damp, int n_sequences) {
    GgufFeedbackRequest changed = request;
    changed.damp = damp;
    expect_error(ErrorKind::kInvalidArgument, {"another's"},
                 [&] { bench.make(other, changed, calibration(n_sequences)); });
  };
  expect_anothers(plan, 0.02, 40);
  expect_anothers(plan, 0.01, 39);
  expect_anothers(bench.plan("q4_0"), 0.01, 40);
  EXPECT_EQ(bench.make(plan, request).size(), 4u + 3 + 4 * 3) << "the second layer";
  EXPECT_EQ(read_text_file(request.output), read_text_file(straight.output));
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

TEST(GgufFeedback, ImportancesAreCollectedOnceAndKept) {
  Bench bench(kMoe);
  const GgufPlan plan = bench.plan("q4_1");
  const GgufFeedbackRequest straight = bench.request("straight.gguf");
  bench.make(plan, straight);
  GgufPlan bare = plan;
  for (GgufTensor& tensor : bare.tensors)
    tensor.importance.clear();
  CancelFlag cancel;
  GgufFeedbackRequest request = bench.request("made.gguf");
  request.cancel = &cancel;
  std::vector<int> resumed;
  int n_collected = 0;
  request.on_importance_resumed = [&](int n_layers) { resumed.push_back(n_layers); };
  request.on_importance = [&] {
    ++n_collected;
    cancel.cancel();
  };
  request.with_importance = [&](const ImportanceMatrix& collected) {
    EXPECT_EQ(collected.entries.size(), bench.importance.entries.size());
    for (const auto& [name, entry] : bench.importance.entries)
      EXPECT_EQ(collected.entries.at(name).sums, entry.sums) << name;
    return plan;
  };
  expect_error(ErrorKind::kCancelled, {}, [&] { bench.make(bare, request); });
  cancel.reset();
  // Other types have the same importances, another calibration has others.
  expect_error(ErrorKind::kInvalidArgument, {"another's", "made.gguf.work/imatrix"},
               [&] { bench.make(bare, request, calibration(39)); });
  request.on_importance = [&] { ++n_collected; };
  request.on_layer = [&](int, const auto&) { cancel.cancel(); };
  expect_error(ErrorKind::kCancelled, {}, [&] { bench.make(bare, request); });
  cancel.reset();
  request.on_layer = {};
  GgufFeedbackRequest other = request;  // is refused before importances are looked at
  other.damp = 0.02;
  expect_error(ErrorKind::kInvalidArgument, {"another's", "made.gguf.work, or"},
               [&] { bench.make(bare, other); });
  EXPECT_EQ(bench.make(bare, request).size(), 4u + 3 + 4 * 3) << "the second layer";
  EXPECT_EQ(resumed, (std::vector{0, 1, 2}));
  EXPECT_EQ(n_collected, 2);
  EXPECT_EQ(read_text_file(request.output), read_text_file(straight.output));
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

TEST(GgufFeedback, OptionsAreCheckedBeforeAnythingIsMade) {
  Bench bench(kMoe);
  GgufFeedbackRequest request = bench.request("made.gguf");
  request.damp = 0;
  expect_error(ErrorKind::kInvalidArgument, {"damp"},
               [&] { bench.make(bench.plan("q4_0"), request); });
  EXPECT_FALSE(fs::exists(request.output + ".work"));
}

TEST(GgufFeedback, ReplacesOnlyWhenAsked) {
  Bench bench(kMoe);
  const GgufPlan plan = bench.plan("q8_0");
  GgufFeedbackRequest request = bench.request("there.gguf");
  bench.write(plan, "there.gguf");
  expect_error(ErrorKind::kInvalidArgument, {"--output"}, [&] { bench.make(plan, request); });
  request.replaces = true;
  EXPECT_FALSE(bench.make(plan, request).empty());
}

}  // namespace
}  // namespace qw::quantize
