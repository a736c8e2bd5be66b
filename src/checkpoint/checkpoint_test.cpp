#include "checkpoint/checkpoint.h"

#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/test_support.h"
#include "checkpoint/weight_files.h"

namespace qw {
namespace {

void write_safetensors(const TempDir& dir, std::string_view name,
                       const std::vector<std::string>& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const std::string& tensor : tensors)
    entries.push_back({tensor, DType::kF32, {1}});
  SafetensorsWriter out(dir / name, entries);
  out.write(std::vector<std::byte>(4 * tensors.size()));
  out.finish();
}

void write_small_gguf(const TempDir& dir, std::string_view name) {
  GgufWriter content;
  content.tensors = {{"g", DType::kF32, {1}}};
  write_gguf(dir / name, content, [](size_t, GgufSink sink) { sink(std::vector<std::byte>(4)); });
}

std::vector<std::string> names(const Checkpoint& checkpoint) {
  std::vector<std::string> out;
  for (const RawTensor& tensor : checkpoint.tensors.all())
    out.push_back(tensor.name);
  return out;
}

TEST(ShardName, ParsesFromTheRight) {
  const auto shard = parse_shard_name("gptq_model-4bit-128g-00002-of-00004.safetensors");
  ASSERT_TRUE(shard.has_value());
  EXPECT_EQ(shard->stem, "gptq_model-4bit-128g");
  EXPECT_EQ(shard->number, 2);
  EXPECT_EQ(shard->count, 4);
  EXPECT_EQ(format_shard_name(*shard), "gptq_model-4bit-128g-00002-of-00004.safetensors");
  for (const char* name :
       {"model.safetensors", "-of-.x", "m-00000-of-00004.x", "m-00005-of-00004.x",
        "m-0001-of-00004.x", "m-00001-of-99999.x", "m-+0001-of-00004.x", ""}) {
    EXPECT_FALSE(parse_shard_name(name).has_value()) << name;
  }
}

TEST(CheckpointDirectory, Preference) {
  const TempDir dir;
  using Names = std::vector<std::string>;
  write_small_gguf(dir, "any.gguf");
  EXPECT_EQ(names(*Checkpoint::open(dir.path())), Names{"g"});
  write_safetensors(dir, "adapter_model.safetensors", {"lora"});
  EXPECT_EQ(names(*Checkpoint::open(dir.path())), Names{"g"});
  write_safetensors(dir, "gptq_model-4bit-128g.safetensors", {"q"});
  EXPECT_EQ(names(*Checkpoint::open(dir.path())), Names{"q"});
  write_safetensors(dir, "expected.safetensors", {"e"});
  EXPECT_EQ(names(*Checkpoint::open(dir.path())), Names{"q"});
  write_safetensors(dir, "model.safetensors", {"m"});
  EXPECT_EQ(names(*Checkpoint::open(dir.path())), Names{"m"});
  EXPECT_EQ(names(*Checkpoint::open(dir / "expected.safetensors")), Names{"e"});
}

TEST(CheckpointDirectory, ShardsWithoutAnIndex) {
  const TempDir dir;
  write_safetensors(dir, "m-00001-of-00002.safetensors", {"a"});
  expect_error(ErrorKind::kNotFound, {"m-00002-of-00002.safetensors"},
               [&] { Checkpoint::open(dir.path()); });
  write_safetensors(dir, "m-00002-of-00002.safetensors", {"b"});
  EXPECT_EQ(names(*Checkpoint::open(dir.path())), (std::vector<std::string>{"a", "b"}));
  write_safetensors(dir, "m-00002-of-00002.safetensors", {"a"});
  expect_error(ErrorKind::kCorrupt, {"tensor a", "once", "m-00001", "m-00002"},
               [&] { Checkpoint::open(dir.path()); });
  write_safetensors(dir, "other.safetensors", {"c"});
  expect_error(ErrorKind::kUnsupported, {"other.safetensors", "m-00001"},
               [&] { Checkpoint::open(dir.path()); });
}

TEST(CheckpointDirectory, Index) {
  const TempDir dir;
  const auto index = [&](std::string_view map) {
    dir.write("model.safetensors.index.json",
              fmt::format(R"({{"metadata":{{}},"weight_map":{}}})", map));
  };
  const auto open = [&] { return Checkpoint::open(dir.path()); };
  write_safetensors(dir, "one.safetensors", {"a", "extra"});
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  expect_error(ErrorKind::kNotFound, {"two.safetensors", "index.json"}, open);
  write_safetensors(dir, "two.safetensors", {"c"});
  expect_error(ErrorKind::kCorrupt, {"index entry of b", "two.safetensors", "no such tensor"},
               open);
  write_safetensors(dir, "two.safetensors", {"b"});
  EXPECT_EQ(names(*open()), (std::vector<std::string>{"a", "extra", "b"}))
      << "a tensor beside the index is fine";
  index(R"({"a":"one.safetensors","b":"one.safetensors","extra":"two.safetensors"})");
  expect_error(ErrorKind::kCorrupt,
               {"index entry of b", "expected it in one.safetensors", "two.safetensors"}, open);
  for (const char* map :
       {"{}", "[]", "null", R"({"a":1})", R"({"a":"../one.safetensors"})", R"({"a":""})"}) {
    index(map);
    expect_error(ErrorKind::kCorrupt, {"index"}, open);
  }
  dir.write("model.safetensors.index.json", "{\"weight_map\":");
  expect_error(ErrorKind::kCorrupt, {"index", "byte"}, open);
  dir.write("model.safetensors.index.json", "[]");
  expect_error(ErrorKind::kCorrupt, {"index", "weight_map"}, open);
  dir.write("model.safetensors.index.json", "{\"metadata\":" + std::string(1'000'000, '['));
  expect_error(ErrorKind::kCorrupt, {"nesting", "levels", "index.json"}, open);
  std::string keys = "{\"a\":1";
  for (int i = 0; i < 1'000'000; ++i)
    keys += ",\"\":1";
  dir.write("model.safetensors.index.json", keys + "}");
  expect_error(ErrorKind::kCorrupt, {"keys", "index.json"}, open);
}

TEST(CheckpointDirectory, SeveralGgufsAreListed) {
  const TempDir dir;
  write_small_gguf(dir, "x-q4_0.gguf");
  write_small_gguf(dir, "x-q8_0.gguf");
  expect_error(ErrorKind::kUnsupported, {"x-q4_0.gguf", "x-q8_0.gguf"},
               [&] { Checkpoint::open(dir.path()); });
  EXPECT_EQ(Checkpoint::open(dir / "x-q8_0.gguf")->kind, Checkpoint::Kind::kGguf);
}

TEST(CheckpointDirectory, LfsPointer) {
  const TempDir dir;
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1239173352\n";
  for (const char* name : {"model.safetensors", "m.gguf", "pytorch_model.bin", "weights"}) {
    dir.write(name, pointer);
    expect_error(ErrorKind::kCorrupt, {"Git LFS pointer", "1239173352", name},
                 [&] { Checkpoint::open(dir / name); });
  }
  for (const char* name : {"config.json", "generation_config.json", "quantize_config.json",
                           "quant_config.json", "model.safetensors.index.json"}) {
    const TempDir model;
    if (!std::string_view(name).ends_with("index.json"))
      write_safetensors(model, "model.safetensors", {"a"});
    model.write(name, pointer);
    expect_error(ErrorKind::kCorrupt, {"Git LFS pointer", name},
                 [&] { Checkpoint::open(model.path()); });
  }
}

TEST(CheckpointDirectory, WhatCannotBeInspectedIsNotAbsent) {
  const TempDir dir;
  std::filesystem::create_symlink(dir / "loop", dir / "loop");
  expect_error(ErrorKind::kIo, {"loop"}, [&] { Checkpoint::open(dir / "loop"); });
  std::filesystem::create_directory(dir / "closed");
  write_safetensors(dir, "closed/model.safetensors", {"a"});
  std::filesystem::permissions(dir / "closed", std::filesystem::perms::none);
  if (::geteuid() != 0) {  // root may search everywhere
    expect_error(ErrorKind::kIo, {"Permission denied"},
                 [&] { Checkpoint::open(dir / "closed/model.safetensors"); });
  }
  std::filesystem::permissions(dir / "closed", std::filesystem::perms::owner_all);
}

TEST(CheckpointDirectory, WithoutWeights) {
  const TempDir dir;
  dir.write("config.json", "{}");
  expect_error(ErrorKind::kNotFound, {"model.safetensors", "pytorch_model.bin", "*.gguf"},
               [&] { Checkpoint::open(dir.path()); });
  const auto checkpoint = Checkpoint::open(dir.path(), /*tensors_required=*/false);
  EXPECT_EQ(checkpoint->config_json, "{}");
  EXPECT_TRUE(checkpoint->tensors.all().empty());
  dir.write("adapter_config.json", "{}");
  expect_error(ErrorKind::kNotFound, {"LoRA adapter"}, [&] { Checkpoint::open(dir.path()); });
  expect_error(ErrorKind::kNotFound, {"no such path"}, [&] { Checkpoint::open(dir / "nowhere"); });
}

TEST(CheckpointDirectory, OtherFiles) {
  const TempDir dir;
  dir.write("model.safetensors", "");
  expect_error(ErrorKind::kCorrupt, {"empty file"}, [&] { Checkpoint::open(dir.path()); });
  dir.write("notes.txt", "hello");
  expect_error(ErrorKind::kUnsupported, {"notes.txt", ".gguf"},
               [&] { Checkpoint::open(dir / "notes.txt"); });
  std::filesystem::create_directory(dir / "x.gguf");
  expect_error(ErrorKind::kNotFound, {"none of them"}, [&] { Checkpoint::open(dir / "x.gguf"); });
  std::filesystem::permissions(dir / "model.safetensors", std::filesystem::perms::none);
  if (::geteuid() != 0) {  // root may read everything
    expect_error(ErrorKind::kIo, {"model.safetensors"}, [&] { Checkpoint::open(dir.path()); });
  }
}

TEST(CheckpointDirectory, FileThatIsCutLater) {
  const TempDir dir;
  std::vector<SafetensorsEntry> entries = {{"a", DType::kU8, {1 << 20}}};
  SafetensorsWriter out(dir / "model.safetensors", entries);
  out.write(std::vector<std::byte>(1 << 20));
  out.finish();
  const auto checkpoint = Checkpoint::open(dir.path());
  std::filesystem::resize_file(dir / "model.safetensors", 4096);
  EXPECT_EQ(checkpoint->tensors.at("a").bytes.back(), std::byte{0});
  expect_error(ErrorKind::kIo, {"model.safetensors"}, [&] { checkpoint->check_readable(); });
}

TEST(CheckpointDirectory, QuantizeConfigs) {
  const TempDir dir;
  write_safetensors(dir, "model.safetensors", {"a"});
  dir.write("quant_config.json", "{\"awq\":1}");
  EXPECT_EQ(Checkpoint::open(dir.path())->quantize_config_json, "{\"awq\":1}");
  dir.write("quantize_config.json", "{\"gptq\":1}");
  const auto checkpoint = Checkpoint::open(dir / "model.safetensors");
  EXPECT_EQ(checkpoint->quantize_config_json, "{\"gptq\":1}");
  EXPECT_EQ(checkpoint->tensor_bytes(), 4);
  EXPECT_GT(checkpoint->file_bytes(), 4);
  expect_error(ErrorKind::kCorrupt, {"tensor x", dir.path()},
               [&] { checkpoint->tensors.at("x"); });
}

}  // namespace
}  // namespace qw
