// GGUF files that we make, beside those that llama.cpp's converter and llama-quantize make of the
// same checkpoint: metadata, types, and bytes.
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "base/half.h"
#include "base/sha256.h"
#include "checkpoint/test_support.h"
#include "engine/bundle.h"
#include "quantize/gguf_plan.h"
#include "support/golden.h"
#include "text/tokenizer_files.h"

namespace qw {
namespace {

using nlohmann::json;

struct Opened {
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;

  explicit Opened(const std::string& path)
      : checkpoint(Checkpoint::open(path)),
        config(ModelConfig::from_checkpoint(*checkpoint)),
        sources(open_network(*checkpoint, config)) {}
};

/// Makes a GGUF file of the checkpoint at `from`, and opens it.
Opened make(const std::string& from, const std::string& to, GgufChoices choices, int threads = 2) {
  const Opened source(from);
  std::optional<TokenizerSpec> tokenizer;
  if (!source.checkpoint->gguf) tokenizer = read_tokenizer_directory(from);
  const GgufPlan plan = plan_gguf(*source.checkpoint, source.config, source.sources,
                                  tokenizer ? &*tokenizer : nullptr, choices);
  ThreadPool pool(threads);
  int64_t n_bytes = 0;
  write_gguf_plan(
      plan, to, pool, [&](int64_t n) { n_bytes += n; }, nullptr);
  EXPECT_EQ(n_bytes, plan.bytes());
  return Opened(to);
}

GgufChoices choices_of(const char* recipe, const char* name = "") {
  GgufChoices choices;
  choices.recipe = find_gguf_recipe(recipe);
  choices.name = name;
  return choices;
}

/// The bytes of an array as they lie in a file.
std::string payload_of(const GgufValue& value) {
  std::string out;
  const auto add = [&](const auto& number) {
    out.append(reinterpret_cast<const char*>(&number), sizeof number);
  };
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value.value)) {
    for (const std::string& text : *texts) {
      add(uint64_t{text.size()});
      out += text;
    }
  } else if (const auto* numbers = std::get_if<std::vector<int64_t>>(&value.value)) {
    for (const int64_t number : *numbers)
      add(static_cast<int32_t>(number));
  }
  return out;
}

void expect_entry(const json& golden, const std::pair<std::string, GgufValue>& got) {
  SCOPED_TRACE(golden["key"].get<std::string>());
  EXPECT_EQ(got.first, golden["key"]);
  EXPECT_EQ(name_of(got.second.type), golden["type"].get<std::string>());
  if (golden["type"] == "array") {
    const std::string payload = payload_of(got.second);
    EXPECT_EQ(sha256_hex(std::as_bytes(std::span(payload))), golden["sha256_payload"]);
  } else if (golden["type"] == "string") {
    EXPECT_EQ(std::get<std::string>(got.second.value), golden["value"]);
  } else if (golden["type"] == "f32") {
    EXPECT_EQ(std::get<double>(got.second.value), golden["value"].get<float>());
  } else if (golden["type"] == "u32") {
    EXPECT_EQ(std::get<uint64_t>(got.second.value), golden["value"].get<uint64_t>());
  } else {
    EXPECT_EQ(std::get<int64_t>(got.second.value), golden["value"].get<int64_t>());
  }
}

/// Every tensor's type, shape and bytes. Returns how many have other bytes.
int expect_tensors(const json& golden, const Checkpoint& got) {
  int n_other = 0;
  EXPECT_EQ(golden.size(), got.tensors.all().size());
  for (const json& expected : golden) {
    const RawTensor& tensor = got.tensors.at(expected["name"].get<std::string>());
    std::string type(name_of(tensor.dtype));
    std::ranges::transform(type, type.begin(), [](unsigned char c) { return std::toupper(c); });
    EXPECT_EQ(type, expected["type"]) << tensor.name;
    std::vector<int64_t> ne;
    for (int axis = static_cast<int>(tensor.shape.rank()) - 1; axis >= 0; --axis)
      ne.push_back(tensor.shape[axis]);
    std::vector<int64_t> expected_ne = expected["ne"];
    // The gate of shared experts: [hidden, 1] of the converter, [hidden] of llama-quantize.
    if (tensor.name.ends_with("ffn_gate_inp_shexp.weight")) expected_ne = {expected_ne[0]};
    EXPECT_EQ(ne, expected_ne) << tensor.name;
    n_other += sha256_hex(tensor.bytes) == expected["sha256_raw"] ? 0 : 1;
  }
  return n_other;
}

class GgufConvert : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufConvert, GivesTheConvertersFile) {
  const std::string name = GetParam();
  const auto from = test::find_golden("gguf/hf/" + name);
  const auto expected = test::find_golden("gguf/expected/" + name + "-f16.json");
  if (!from || !expected) GTEST_SKIP() << "no golden gguf/hf/" << name;
  const TempDir directory;
  const std::string path = directory.path() + "/out.gguf";
  const Opened made = make(*from, path, choices_of("F16", ("Qwen1.5 Golden " + name).c_str()));
  const json golden =
      test::read_json(*test::find_golden("gguf/metadata.json"))[name + "-f16.gguf"]["keys"];
  const GgufEntries& entries = made.checkpoint->gguf->entries;
  ASSERT_EQ(entries.size(), golden.size());
  for (size_t i = 0; i < entries.size(); ++i)
    expect_entry(golden[i], entries[i]);
  EXPECT_EQ(expect_tensors(test::read_json(*expected)["tensors"], *made.checkpoint), 0);
}
INSTANTIATE_TEST_SUITE_P(All, GgufConvert, ::testing::Values("nano", "nanomoe"));

class GgufQuantize : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufQuantize, GivesLlamaQuantizesBytes) {
  const std::string type = GetParam();
  const auto from = test::find_golden("gguf/files/mini-f16.gguf");
  const auto expected = test::find_golden("gguf/expected/mini-" + type + ".json");
  if (!from || !expected) GTEST_SKIP() << "no golden gguf/files/mini-f16.gguf";
  GgufChoices choices = choices_of("F16");
  for (const std::string_view name : gguf_recipe_names()) {
    const GgufRecipe* recipe = find_gguf_recipe(name);
    if (name_of(base_of(*recipe)) == type) choices.recipe = recipe;
  }
  choices.pure = true;
  const TempDir directory;
  const Opened made = make(*from, directory.path() + "/out.gguf", choices);
  EXPECT_EQ(expect_tensors(test::read_json(*expected)["tensors"], *made.checkpoint), 0);
}
INSTANTIATE_TEST_SUITE_P(All, GgufQuantize,
                         ::testing::Values("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k",
                                           "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq1_0",
                                           "tq2_0", "q1_0", "q2_0", "mxfp4"),
                         [](const auto& type) { return std::string(type.param); });

TEST(GgufSplitOutput, GivesLlamaGgufSplitsFiles) {
  const auto from = test::find_golden("gguf/files/nano-q4_0.gguf");
  const auto golden = test::find_golden("gguf/files/nano-split/nano-q4_0-00001-of-00003.gguf");
  if (!from || !golden) GTEST_SKIP() << "no golden gguf/files/nano-split";
  const Opened source(*from);
  const GgufPlan plan =
      plan_gguf(*source.checkpoint, source.config, source.sources, nullptr, choices_of("Q4_0"));
  const TempDir directory;
  ThreadPool pool(1);
  write_gguf_plan(plan, directory.path() + "/nano-q4_0.gguf", pool, [](int64_t) {}, nullptr,
                  {.max_tensors = 9});
  for (int part = 1; part <= 3; ++part) {
    const std::string name = fmt::format("nano-q4_0-{:05}-of-00003.gguf", part);
    SCOPED_TRACE(name);
    const auto ours = MappedFile::open(directory.path() + "/" + name);
    const auto theirs =
        MappedFile::open((std::filesystem::path(*golden).parent_path() / name).string());
    EXPECT_EQ(sha256_hex(ours->bytes()), sha256_hex(theirs->bytes()));
  }
}

TEST(GgufSplitOutput, IsReadBackEqualAndRefusesNothingThatFits) {
  const auto from = test::find_golden("gguf/files/nano-q4_0.gguf");
  if (!from) GTEST_SKIP() << "no golden gguf/files/nano-q4_0.gguf";
  const Opened source(*from);
  const GgufPlan plan =
      plan_gguf(*source.checkpoint, source.config, source.sources, nullptr, choices_of("Q4_0"));
  const TempDir directory;
  ThreadPool pool(1);
  const auto write = [&](const char* name, const GgufSplitLimits& limits) {
    write_gguf_plan(
        plan, directory.path() + "/" + name, pool, [](int64_t) {}, nullptr, limits);
  };
  write("whole.gguf", {.max_bytes = 1 << 20});
  write("parts.gguf", {.max_bytes = 20'000});
  const auto whole = Checkpoint::open(directory.path() + "/whole.gguf");
  EXPECT_EQ(whole->weight_files.size(), 1u);
  EXPECT_EQ(whole->gguf->find("split.count"), nullptr);
  const std::vector<size_t> counts = split_gguf(plan.content().tensors, {.max_bytes = 20'000});
  ASSERT_EQ(counts.size(), 4u);
  EXPECT_EQ(counts[0], 1u);  // the output matrix is larger than a file may be: it is alone
  EXPECT_EQ(counts[1], 3u);  // 256 + 19,584 + 128 bytes; the next has 1,152
  const auto parts = Checkpoint::open(directory.path() + "/parts-00002-of-00004.gguf");
  EXPECT_EQ(parts->weight_files.size(), 4u);
  ASSERT_EQ(parts->tensors.all().size(), whole->tensors.all().size());
  for (const RawTensor& tensor : whole->tensors.all())
    EXPECT_TRUE(std::ranges::equal(parts->tensors.at(tensor.name).bytes, tensor.bytes));
  // And again in one file: what is said of parts is not kept.
  const Opened again = make(directory.path() + "/parts-00001-of-00004.gguf",
                            directory.path() + "/again.gguf", choices_of("Q4_0"));
  EXPECT_EQ(again.checkpoint->gguf->find("split.no"), nullptr);
}

TEST(GgufSplitOutput, RefusesMoreFilesThanItCanCount) {
  EXPECT_EQ(gguf_split_paths("m.gguf", 65'535).back(), "m-65535-of-65535.gguf");
  expect_error(ErrorKind::kInvalidArgument, {"at most 65535", "65536"},
               [] { gguf_split_paths("m.gguf", 65'536); });
}

/// A value that a type cannot hold in the last file: no file appears, and none is left.
TEST(GgufSplitOutput, AppearsWholeOrNotAtAll) {
  const auto write = [](const std::string& folder, bool fails) {
    GgufWriter content;
    content.tensors = {{"a", DType::kF32, {8}}, {"b", DType::kF32, {8}}, {"c", DType::kF32, {8}}};
    write_split_gguf(folder + "/m.gguf", content, {.max_tensors = 1}, [&](size_t i, GgufSink sink) {
      if (fails && i == 2) fail(ErrorKind::kIo, "test", "the disk is full");
      sink(std::vector<std::byte>(32, std::byte(i)));
    });
  };
  const TempDir directory;
  EXPECT_THROW(write(directory.path(), true), Error);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
  write(directory.path(), false);
  write(directory.path(), false);  // over what is there
  EXPECT_EQ(Checkpoint::open(directory.path())->tensors.all().size(), 3u);
  EXPECT_THROW(write(directory.path(), true), Error);
  EXPECT_EQ(Checkpoint::open(directory.path())->tensors.all().size(), 3u);
}

}  // namespace
}  // namespace qw
