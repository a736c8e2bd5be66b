// Golden checkpoints: every container holds the same tensors, byte for byte.
#include <gtest/gtest.h>

#include <string>

#include "base/sha256.h"
#include "checkpoint/checkpoint.h"

namespace qw {
namespace {

std::string model(const std::string& name) {
  return std::string(QIANWEN_SOURCE_DIR "/tests/golden/models/") + name;
}

TEST(CheckpointGolden, SingleSafetensors) {
  const auto checkpoint = Checkpoint::open(model("dense-mha-tied"));
  ASSERT_EQ(checkpoint->weight_files.size(), 1u);
  EXPECT_EQ(checkpoint->tensors.all().size(), 26u);
  const RawTensor& embed = checkpoint->tensors.at("model.embed_tokens.weight");
  EXPECT_EQ(embed.dtype, DType::kBF16);
  EXPECT_EQ(embed.shape, (Shape{1024, 64}));
  EXPECT_EQ(embed.bytes.size(), 1024u * 64 * 2);
  EXPECT_TRUE(checkpoint->config_json.has_value());
  EXPECT_TRUE(checkpoint->generation_config_json.has_value());
  EXPECT_FALSE(checkpoint->quantize_config_json.has_value());
  EXPECT_EQ(checkpoint->tensors.find("model.nothing"), nullptr);
}

TEST(CheckpointGolden, ShardedSafetensors) {
  const auto checkpoint = Checkpoint::open(model("dense-gqa-untied-sharded"));
  EXPECT_EQ(checkpoint->weight_files.size(), 4u);
  EXPECT_EQ(checkpoint->tensors.at("lm_head.weight").shape, (Shape{1024, 128}));
  EXPECT_EQ(checkpoint->tensors.at("model.layers.2.mlp.down_proj.weight").shape, (Shape{128, 352}));
  // Any shard stands for the whole set.
  const auto by_shard = Checkpoint::open(checkpoint->weight_files[2]);
  ASSERT_EQ(by_shard->tensors.all().size(), checkpoint->tensors.all().size());
}

TEST(CheckpointGolden, EveryContainerHoldsTheSameTensors) {
  const auto expected = Checkpoint::open(model("dense-mha-tied"));
  for (const char* name : {"bin-zip", "bin-legacy", "bin-sharded"}) {
    SCOPED_TRACE(name);
    const auto found = Checkpoint::open(model(name));
    for (const RawTensor& tensor : expected->tensors.all()) {
      const RawTensor& other = found->tensors.at(tensor.name);
      EXPECT_EQ(other.dtype, tensor.dtype) << tensor.name;
      EXPECT_EQ(other.shape, tensor.shape) << tensor.name;
      EXPECT_EQ(sha256_hex(other.bytes), sha256_hex(tensor.bytes)) << tensor.name;
    }
    // A tied lm_head may be stored under both names.
    for (const RawTensor& tensor : found->tensors.all()) {
      if (tensor.name == "lm_head.weight") continue;
      EXPECT_NE(expected->tensors.find(tensor.name), nullptr) << tensor.name;
    }
  }
  const auto zip = Checkpoint::open(model("bin-zip"));
  EXPECT_EQ(zip->tensors.at("lm_head.weight").bytes.data(),
            zip->tensors.at("model.embed_tokens.weight").bytes.data());
}

}  // namespace
}  // namespace qw
