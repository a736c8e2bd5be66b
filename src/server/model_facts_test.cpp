// What clients are told of a checkpoint's files.
#include "server/model_facts.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "checkpoint/test_support.h"

namespace qw::server {
namespace {

/// A GGUF file of one f32 tensor that says it is of such a type.
std::string write_model(const TempDir& directory, std::optional<GgufValue> file_type) {
  GgufWriter writer;
  writer.entries = {{"general.architecture", GgufValue::string("qwen2")},
                    {"qwen2.block_count", GgufValue::u32(1)},
                    {"qwen2.context_length", GgufValue::u32(64)},
                    {"qwen2.embedding_length", GgufValue::u32(8)},
                    {"qwen2.feed_forward_length", GgufValue::u32(16)},
                    {"qwen2.attention.head_count", GgufValue::u32(2)},
                    {"qwen2.attention.head_count_kv", GgufValue::u32(2)},
                    {"qwen2.attention.layer_norm_rms_epsilon", GgufValue::f32(1e-6F)},
                    {"qwen2.rope.freq_base", GgufValue::f32(10000)}};
  if (file_type) writer.entries.emplace_back("general.file_type", *file_type);
  writer.tensors = {{"token_embd.weight", DType::kF32, {4, 8}}};
  const std::vector<float> values(32, 0.5F);
  const std::string path = directory / "model.gguf";
  write_gguf(path, writer, [&](size_t, GgufSink sink) { sink(std::as_bytes(std::span(values))); });
  return path;
}
std::string quantization_of(std::optional<GgufValue> file_type) {
  const TempDir directory;
  return read_model_facts(write_model(directory, std::move(file_type))).quantization;
}

// Of a file of many types the name that its maker gave it, as Ollama shows it.
TEST(ModelFacts, AGgufFileSaysItsMixtureOfTypes) {
  EXPECT_EQ(quantization_of(GgufValue::u32(15)), "Q4_K_M");
  EXPECT_EQ(quantization_of(GgufValue::u32(2)), "Q4_0");
  EXPECT_EQ(quantization_of(GgufValue::u32(999)), "F32") << "the type of most bytes";
  EXPECT_EQ(quantization_of(GgufValue::string("Q4_K_M")), "F32");
  EXPECT_EQ(quantization_of(std::nullopt), "F32");
}

// An adapter is a model of its own, and so is its next version.
TEST(ModelFacts, ADigestIsOfTheAdapterToo) {
  const TempDir directory;
  const std::string model = write_model(directory, std::nullopt);
  std::filesystem::create_directory(directory / "adapter");
  const auto write = [](const std::string& path, const char* text) { std::ofstream(path) << text; };
  write(directory / "adapter/adapter_model.safetensors", "one");
  write(directory / "other.gguf", "one");
  std::set<std::string> digests = {read_model_facts(model).digest,
                                   read_model_facts(model, directory / "adapter").digest,
                                   read_model_facts(model, directory / "other.gguf").digest};
  EXPECT_EQ(digests.size(), 3u);
  EXPECT_EQ(digests.count(read_model_facts(model, directory / "adapter").digest), 1u);
  write(directory / "adapter/adapter_model.safetensors", "another");
  EXPECT_EQ(digests.count(read_model_facts(model, directory / "adapter").digest), 0u);
  EXPECT_EQ(digests.count(read_model_facts(model, directory / "gone").digest), 1u);
}

}  // namespace
}  // namespace qw::server
