// Golden GGUF files: metadata, tensor order, and the bytes of every tensor.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/sha256.h"
#include "checkpoint/checkpoint.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kGoldens = fs::path(QIANWEN_SOURCE_DIR) / "tests" / "golden" / "gguf";

json read_json(const fs::path& path) {
  return json::parse(read_text_file(path.string()));
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

// Shape in GGUF order, contiguous axis first.
std::vector<int64_t> reversed(const Shape& shape) {
  return {shape.sizes().rbegin(), shape.sizes().rend()};
}

void append(std::string& out, auto value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_integer(std::string& out, GgufType type, int64_t value) {
  switch (type) {
    case GgufType::kI32:
      return append(out, static_cast<int32_t>(value));
    case GgufType::kU32:
      return append(out, static_cast<uint32_t>(value));
    case GgufType::kBool:
      return append(out, static_cast<uint8_t>(value));
    default:
      FAIL() << "no golden has arrays of " << name_of(type);
  }
}

// An array's payload as it lies in a little-endian file.
std::string payload(const GgufValue& value) {
  std::string out;
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value.value)) {
    for (const std::string& text : *texts) {
      append(out, uint64_t{text.size()});
      out += text;
    }
  } else if (const auto* numbers = std::get_if<std::vector<int64_t>>(&value.value)) {
    for (const int64_t number : *numbers)
      append_integer(out, value.element, number);
  } else {
    for (const double real : std::get<std::vector<double>>(value.value))
      append(out, static_cast<float>(real));
  }
  return out;
}

json scalar_of(const GgufValue& value) {
  return std::visit([](const auto& held) { return json(held); }, value.value);
}

void expect_metadata(const GgufMetadata& found, const json& expected) {
  EXPECT_EQ(found.version, expected["version"].get<uint32_t>());
  ASSERT_EQ(found.entries.size(), expected["keys"].size());
  for (size_t i = 0; i < found.entries.size(); ++i) {
    const auto& [key, value] = found.entries[i];
    const json& row = expected["keys"][i];
    SCOPED_TRACE(key);
    EXPECT_EQ(key, row["key"]);
    EXPECT_EQ(name_of(value.type), row["type"].get<std::string>());
    if (value.type != GgufType::kArray) {
      EXPECT_EQ(scalar_of(value), row["value"]);
      continue;
    }
    EXPECT_EQ(name_of(value.element), row["element"].get<std::string>());
    if (row.contains("sha256_payload")) {
      const std::string bytes = payload(value);
      EXPECT_EQ(sha256_hex(std::as_bytes(std::span(bytes))), row["sha256_payload"]);
    } else {
      EXPECT_EQ(scalar_of(value), row["value"]);
    }
  }
}

TEST(GgufGolden, MetadataOfEveryFile) {
  const json all = read_json(kGoldens / "metadata.json");
  int n_files = 0;
  for (const auto& [name, expected] : all.items()) {
    const bool is_part = name.find("-of-") != std::string::npos;
    const fs::path path = kGoldens / "files" / (is_part ? "nano-split" : "") / name;
    if (!fs::exists(path)) continue;  // not every golden is kept in the project
    SCOPED_TRACE(name);
    ++n_files;
    const GgufFile file = read_gguf(MappedFile::open(path.string()));
    expect_metadata(*file.metadata, expected);
    ASSERT_EQ(file.tensors.size(), expected["tensor_order"].size());
    for (size_t i = 0; i < file.tensors.size(); ++i) {
      const json& row = expected["tensor_order"][i];
      EXPECT_EQ(file.tensors[i].name, row[0]);
      EXPECT_EQ(name_of(file.tensors[i].dtype), lower(row[1]));
      EXPECT_EQ(reversed(file.tensors[i].shape), row[2].get<std::vector<int64_t>>());
    }
  }
  EXPECT_GE(n_files, 10);
}

void expect_tensors(const fs::path& model, const json& expected) {
  const auto checkpoint = Checkpoint::open(model.string());
  ASSERT_EQ(checkpoint->kind, Checkpoint::Kind::kGguf);
  // The expectations of an adapter are those of the model it is applied to.
  if (checkpoint->gguf->string_or("general.type", "model") == "adapter") return;
  ASSERT_EQ(checkpoint->tensors.all().size(), expected["tensors"].size());
  for (const json& row : expected["tensors"]) {
    const RawTensor& tensor = checkpoint->tensors.at(row["name"].get<std::string>());
    EXPECT_EQ(name_of(tensor.dtype), lower(row["type"]));
    EXPECT_EQ(reversed(tensor.shape), row["ne"].get<std::vector<int64_t>>());
    EXPECT_EQ(sha256_hex(tensor.bytes), row["sha256_raw"]) << tensor.name;
  }
}

// All of the files in a folder of goldens; returns how many were compared.
int compare_all(const fs::path& goldens) {
  int n_files = 0;
  for (const auto& entry : fs::directory_iterator(goldens / "files")) {
    const std::string name = entry.path().stem().string();
    const fs::path expected = goldens / "expected" / (name + ".json");
    if (!fs::exists(expected)) continue;
    const json content = read_json(expected);
    SCOPED_TRACE(name);
    expect_tensors(entry.path(), content);  // nano-split is a directory of parts
    ++n_files;
  }
  return n_files;
}

TEST(GgufGolden, BytesOfEveryTensor) {
  EXPECT_GE(compare_all(kGoldens), 25);
}

TEST(GgufGolden, BytesOfEveryTensorOfTheSharedFiles) {
  const char* shared = std::getenv("QIANWEN_SHARED");
  const fs::path root =
      shared != nullptr ? fs::path(shared) : fs::path(QIANWEN_SOURCE_DIR) / ".." / "shared";
  if (!fs::exists(root / "golden" / "gguf")) GTEST_SKIP() << "no shared goldens";
  EXPECT_GE(compare_all(root / "golden" / "gguf"), 42);
}

TEST(GgufGolden, AnyPartOpensTheWholeSplit) {
  const fs::path folder = kGoldens / "files" / "nano-split";
  const auto whole = Checkpoint::open((kGoldens / "files" / "nano-q4_0.gguf").string());
  for (const char* part : {"1", "2", "3"}) {
    const auto split = Checkpoint::open(
        (folder / (std::string("nano-q4_0-0000") + part + "-of-00003.gguf")).string());
    EXPECT_EQ(split->weight_files.size(), 3u);
    EXPECT_EQ(split->gguf->string("general.architecture"), "qwen2");
    ASSERT_EQ(split->tensors.all().size(), whole->tensors.all().size());
    for (const RawTensor& tensor : whole->tensors.all()) {
      EXPECT_TRUE(std::ranges::equal(split->tensors.at(tensor.name).bytes, tensor.bytes))
          << tensor.name;
    }
  }
}

}  // namespace
}  // namespace qw
