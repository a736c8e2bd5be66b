// Adapters on the grids of quantised checkpoints: what changes, what stays, and how much is lost.
#include "quantize/own_format_merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "quant/code_grid.h"
#include "quantize/awq_checkpoint.h"
#include "quantize/checkpoint_test_support.h"
#include "quantize/gguf_plan.h"
#include "quantize/gptq_checkpoint.h"
#include "quantize/gptq_solver.h"
#include "quantize/nf4_checkpoint.h"
#include "quantize/test_support.h"
#include "support/adapter_writer.h"

namespace qw::quantize {
namespace {

using qw::test::Adapter;
using test::at;
using test::Bench;
using test::calibration;

// ---- the solver --------------------------------------------------------------------------------

TEST(GptqRecode, LosesLessOfAChangeThanRoundingAndNeverMore) {
  const test::Team team;
  constexpr int64_t kRows = 70, kCols = 160;
  const test::Floats x = test::inputs(400, kCols, 9);
  Hessian hessian("w", kCols, team);
  hessian.add(x.data(), 400, kCols);
  const GptqFactor factor(hessian, recode_options(0.01), team);
  const test::Floats base = test::normals(kRows * kCols, 21);
  Nf4Options nf4;
  nf4.dtype = DType::kF32;
  const Bnb4File file = encode_nf4(test::matrix(kRows, kCols, base), nf4);
  const Bnb4File::Views views = file.views("w");
  LinearSource codebook;
  codebook.n = kRows;
  codebook.k = kCols;
  codebook.data = open_bnb4(file.state, views.tensors("w"));
  GptqOptions options;
  options.group_size = 32;
  const LinearSource groups =
      gptq_quantise(test::matrix(kRows, kCols, base), GptqFactor(hessian, options, team), team)
          .source;
  for (const LinearSource& on : {groups, codebook}) {
    SCOPED_TRACE(on.format_name());
    test::Floats merged = test::decode(on);
    // Rank one and small beside a step, which rounding loses.
    const test::Floats a = test::normals(kCols, 31, 0.1), b = test::normals(kRows, 32);
    for (int64_t i = 0; i < kRows * kCols; ++i)
      merged[at(i)] += a[at(i % kCols)] * b[at(i / kCols)];
    const LinearSource w = test::matrix(kRows, kCols, merged);
    const RecodedMatrix made = gptq_recode(w, on, factor, team);
    GridRows grid;
    read_grid(made.source, 0, kRows, grid);
    const std::vector<uint8_t> found = grid.codes;
    read_grid(on, 0, kRows, grid);
    std::vector<uint8_t> nearest = grid.codes;
    const GridLevels levels = *grid_levels(on);
    for (size_t i = 0; i < nearest.size(); ++i) {
      float least = INFINITY;
      for (int code = 0; code < levels.n; ++code) {
        const float level = levels.is_affine ? static_cast<float>(code) : levels.values[at(code)];
        const float off = std::fabs(grid.bases[i] + grid.steps[i] * level - merged[i]);
        if (off < least) nearest[i] = static_cast<uint8_t>(code);
        least = std::min(least, off);
      }
    }
    const double kept = test::out_mse(w, on, x),
                 plain = test::out_mse(w, with_codes(on, nearest), x);
    const double lost = test::out_mse(w, made.source, x);
    EXPECT_LT(lost, 0.1 * plain);
    EXPECT_LT(plain, kept);
    EXPECT_LT(made.loss, made.nearest_loss);
    // The losses are these figures, but for the damp.
    EXPECT_NEAR(made.nearest_loss / made.kept_loss, plain / kept, 0.02 * plain / kept);
    int64_t n_changed = 0;
    for (size_t i = 0; i < found.size(); ++i)
      n_changed += found[i] != grid.codes[i] ? 1 : 0;
    EXPECT_EQ(made.n_changed, n_changed);
    // Nothing to merge: nothing changes.
    const RecodedMatrix same = gptq_recode(on, on, factor, team);
    EXPECT_EQ(same.n_changed, 0);
    EXPECT_NEAR(same.loss, 0, 1e-6 * made.kept_loss);
  }
}

// ---- whole checkpoints -------------------------------------------------------------------------

const qw::test::TinyShape kShape{.hidden = 64, .intermediate = 128, .vocab = 48};

constexpr double kScale = 0.1;  // changes are smaller than a step of four bits

/// q of layer 1 and down of layer 0.
Adapter& adapter() {
  static Adapter* const out = [] {
    auto* made = new Adapter();
    made->add("model.layers.1.self_attn.q_proj.lora_A.weight", {3, 64});
    made->add("model.layers.1.self_attn.q_proj.lora_B.weight", {64, 3});
    made->add("model.layers.0.mlp.down_proj.lora_A.weight", {3, 128});
    made->add("model.layers.0.mlp.down_proj.lora_B.weight", {64, 3});
    made->write_peft();
    return made;
  }();
  return *out;
}

struct Opened {
  explicit Opened(const std::string& path)
      : checkpoint(Checkpoint::open(path)),
        config(ModelConfig::from_checkpoint(*checkpoint)),
        sources(open_network(*checkpoint, config)) {}
  LayerSource source() const { return {*checkpoint, config, sources}; }

  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
};

using Seen = std::vector<QuantisedModule>;

OwnFormatRequest request_of(const std::string& output) {
  OwnFormatRequest request;
  request.output = output;
  request.adapters_job = "\"one\"";
  return request;
}

void merge_into(const Opened& model, Bench& bench, const OwnFormatRequest& request,
                const std::string& path) {
  const AdapterMerge merge(model.config, model.sources, {{path, kScale}});
  const OwnFormatPlan plan = plan_own_format(model.source(), merge);
  EXPECT_EQ(plan.n_recoded, 2);
  EXPECT_EQ(plan.n_tensors, std::ssize(model.checkpoint->tensors.all()));
  write_own_format(model.source(), merge, calibration(), *bench.backend, bench.pool, request);
}

/// Merges into what lies at `path`; tensors that changed must be `changed`, and no others.
void expect_merge(Bench& bench, const std::string& path, const std::string& output,
                  const std::vector<std::string>& changed) {
  const Opened model(path);
  Seen seen;
  OwnFormatRequest request = request_of(output);
  request.on_layer = [&](int, const Seen& modules) {
    seen.insert(seen.end(), modules.begin(), modules.end());
  };
  merge_into(model, bench, request, adapter().path());
  EXPECT_FALSE(std::filesystem::exists(output + ".work"));
  ASSERT_EQ(seen.size(), 2u);
  for (const QuantisedModule& module : seen) {
    ASSERT_TRUE(module.recoding);
    EXPECT_LT(module.loss, 0.25 * module.recoding->kept_loss) << hf_name(module.id);
    EXPECT_LE(module.loss, module.recoding->nearest_loss) << hf_name(module.id);
    EXPECT_GT(module.recoding->n_changed, 0);
  }
  const Opened made(output);
  std::vector<std::string> differ;
  ASSERT_EQ(made.checkpoint->tensors.all().size(), model.checkpoint->tensors.all().size());
  for (const RawTensor& tensor : model.checkpoint->tensors.all()) {
    const RawTensor& other = made.checkpoint->tensors.at(tensor.name);
    EXPECT_EQ(other.dtype, tensor.dtype);
    EXPECT_EQ(other.shape.str(), tensor.shape.str());
    if (!std::ranges::equal(other.bytes, tensor.bytes)) differ.push_back(tensor.name);
  }
  EXPECT_THAT(differ, testing::UnorderedElementsAreArray(changed));
  // What is in the file is what the losses are of.
  const AdapterMerge merge(model.config, model.sources, {{adapter().path(), kScale}});
  const LinearSource& before = model.sources.layers[1].qkv.parts[0];
  const LinearSource& after = made.sources.layers[1].qkv.parts[0];
  test::Floats wanted(at(before.n * before.k));
  merge.rows({Slot::kQ, 1}, before)(0, before.n, wanted.data());
  const test::Floats was = test::decode(before), is = test::decode(after);
  // Weights need not be nearer one by one, for feedback is about outputs; but as a whole they have
  // moved as the adapters ask.
  double along = 0, asked = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double change = wanted[i] - was[i];
    along += static_cast<double>(is[i] - was[i]) * change;
    asked += change * change;
  }
  EXPECT_GT(along, 0.7 * asked);
  EXPECT_LT(along, 1.3 * asked);
}

const std::vector<std::string> kCodes = {"model.layers.1.self_attn.q_proj.qweight",
                                         "model.layers.0.mlp.down_proj.qweight"};

TEST(OwnFormatMerge, GptqChangesCodesAlone) {
  Bench bench(kShape);
  bench.open();
  const auto run = [&](const std::string& name, const std::function<void(GptqRequest&)>& change) {
    SCOPED_TRACE(name);
    GptqRequest request;
    request.output = bench.folder / name;
    request.gptq.group_size = 32;
    change(request);
    write_gptq(bench.source(), plan_gptq(bench.source(), nullptr, request), calibration(),
               *bench.backend, bench.pool, request);
    expect_merge(bench, request.output, request.output + "-merged", kCodes);
    EXPECT_EQ(test::files_of(request.output)["config.json"],
              test::files_of(request.output + "-merged")["config.json"]);
    EXPECT_EQ(test::files_of(request.output)["quantize_config.json"],
              test::files_of(request.output + "-merged")["quantize_config.json"]);
  };
  run("int4", [](GptqRequest&) {});
  run("int8", [](GptqRequest& r) { r.gptq.bits = 8; });
  run("int3-act-v2", [](GptqRequest& r) {
    r.gptq.bits = 3;
    r.gptq.sym = false;
    r.gptq.desc_act = true;
    r.gptq.zero_from_0 = true;
  });
}

TEST(OwnFormatMerge, AwqAndNf4ChangeCodesAlone) {
  Bench bench(kShape);
  bench.open();
  for (const AwqVersion version : {AwqVersion::kGemm, AwqVersion::kGemv, AwqVersion::kGemvFast}) {
    SCOPED_TRACE(name_of(version));
    AwqRequest request;
    request.output = bench.folder / std::string(name_of(version));
    request.awq.group_size = 32;
    request.awq.version = version;
    write_awq(bench.source(), plan_awq(bench.source(), nullptr, request), calibration(),
              *bench.backend, bench.pool, request);
    expect_merge(bench, request.output, request.output + "-merged", kCodes);
  }
  Nf4Request request;
  request.output = bench.folder / "nf4";
  request.nf4.double_quant = true;
  request.kept_dtype = request.nf4.dtype;
  write_nf4(bench.source(), plan_nf4(bench.source(), nullptr, request), *bench.backend, bench.pool,
            request);
  expect_merge(bench, request.output, request.output + "-merged",
               {"model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"});
}

std::string write_gguf_of(Bench& bench, const char* type) {
  bench.open();
  GgufChoices choices;
  choices.recipe = find_gguf_recipe(type);
  choices.pure = true;
  const std::string path = bench.folder / (std::string(type) + ".gguf");
  write_gguf_plan(
      plan_gguf(*bench.checkpoint, bench.config, bench.sources, nullptr, choices), path, bench.pool,
      [](int64_t) {}, nullptr);
  return path;
}

TEST(OwnFormatMerge, GgufBlocksChangeAndNothingElse) {
  Bench bench(kShape);
  for (const char* type : {"q4_0", "q8_0", "iq4_nl"}) {
    SCOPED_TRACE(type);
    const std::string path = write_gguf_of(bench, type);
    expect_merge(bench, path, path + "-merged.gguf",
                 {"blk.1.attn_q.weight", "blk.0.ffn_down.weight"});
  }
}

TEST(OwnFormatMerge, GoesOnWhereItWasInterrupted) {
  Bench bench(kShape);
  const Opened model(write_gguf_of(bench, "q4_0"));
  OwnFormatRequest request = request_of(bench.folder / "straight.gguf");
  merge_into(model, bench, request, adapter().path());
  const auto straight = read_text_file(request.output);
  request.output = bench.folder / "again.gguf";
  CancelFlag cancel;
  request.cancel = &cancel;
  request.on_layer = [&](int, const Seen&) { cancel.cancel(); };
  expect_error(ErrorKind::kCancelled, {},
               [&] { merge_into(model, bench, request, adapter().path()); });
  EXPECT_FALSE(std::filesystem::exists(request.output));
  cancel.reset();
  OwnFormatRequest other = request;
  other.adapters_job = "\"two\"";
  expect_error(ErrorKind::kInvalidArgument, {"another's"},
               [&] { merge_into(model, bench, other, adapter().path()); });
  size_t n_made = 0;
  request.on_layer = [&](int, const Seen& modules) { n_made += modules.size(); };
  merge_into(model, bench, request, adapter().path());
  EXPECT_EQ(n_made, 1u);
  EXPECT_EQ(read_text_file(request.output), straight);
  expect_error(ErrorKind::kInvalidArgument, {"not there yet"},
               [&] { merge_into(model, bench, request, adapter().path()); });
}

TEST(OwnFormatMerge, FormatsWithoutCodesAreRefused) {
  Bench bench({.hidden = 256, .intermediate = 256, .vocab = 48, .n_heads = 4});
  const Opened model(write_gguf_of(bench, "tq1_0"));
  Adapter changes;
  changes.add("model.layers.1.self_attn.q_proj.lora_A.weight", {3, 256});
  changes.add("model.layers.1.self_attn.q_proj.lora_B.weight", {256, 3});
  const AdapterMerge merge(model.config, model.sources, {{changes.write_peft(), 1.0}});
  expect_error(ErrorKind::kUnsupported, {"q_proj", "tq1_0", "--type bf16"},
               [&] { plan_own_format(model.source(), merge); });
}

}  // namespace
}  // namespace qw::quantize
