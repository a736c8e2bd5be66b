// Ring (a): decoded weights of every published quantised format, bit for bit.
//
// Expected values: tests/golden/{gptq,awq,gguf}, made by the libraries that publish the formats.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/half.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "checkpoint/gguf.h"
#include "quant/awq.h"
#include "quant/ggml_blocks.h"
#include "quant/gptq.h"
#include "support/golden.h"

namespace qw {
namespace {

using nlohmann::json;
using test::find_golden;
using test::read_json;
using test::read_tensors;

using Tensors = std::map<std::string, RawTensor>;

const RawTensor* find(const Tensors& tensors, const std::string& name) {
  const auto it = tensors.find(name);
  return it == tensors.end() ? nullptr : &it->second;
}

std::string sha256_f32(const std::vector<float>& values) {
  return sha256_hex(std::as_bytes(std::span(values)));
}

std::string sha256_f16(const std::vector<float>& values) {
  std::vector<uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), f32_to_f16);
  return sha256_hex(std::as_bytes(std::span(halves)));
}

/// Decodes W in blocks of `step` rows, so that blocks and their edges are seen too.
std::vector<float> decode(const LinearSource& source, int64_t step) {
  std::vector<float> out(static_cast<size_t>(source.n * source.k));
  for (int64_t row = 0; row < source.n; row += step) {
    source.decode_rows(row, std::min(step, source.n - row), out.data() + row * source.k);
  }
  return out;
}

LinearSource as_linear(std::shared_ptr<const GroupAffine> affine) {
  LinearSource out;
  out.n = affine->n;
  out.k = affine->k;
  out.data = std::move(affine);
  return out;
}

// --- folders of GPTQ and AWQ
// -----------------------------------------------------------------------

struct Folder {
  json quant;
  json expected;
  Tensors tensors;
};

Folder open_folder(const std::string& path) {
  Folder out;
  const json config = read_json(path + "/config.json");
  out.quant = config.contains("quantization_config") ? config["quantization_config"]
                                                     : read_json(path + "/quantize_config.json");
  out.expected = read_json(path + "/expected.json");
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".safetensors") && name != "expected.safetensors") {
      out.tensors.merge(read_tensors(entry.path().string()));
    }
  }
  return out;
}

LinearSource open_gptq_module(const Folder& folder, const std::string& module) {
  const GptqConfig config = {.bits = folder.quant.at("bits"),
                             .group_size = folder.quant.at("group_size"),
                             .desc_act = folder.quant.at("desc_act"),
                             .sym = folder.quant.at("sym"),
                             .v2_zeros = folder.quant.value("checkpoint_format", "") == "gptq_v2"};
  const Tensors& all = folder.tensors;
  std::string warning;
  auto affine = open_gptq(config,
                          {.module = module,
                           .qweight = find(all, module + ".qweight"),
                           .qzeros = find(all, module + ".qzeros"),
                           .scales = find(all, module + ".scales"),
                           .g_idx = find(all, module + ".g_idx")},
                          &warning);
  EXPECT_EQ(warning, "") << module;
  return as_linear(std::move(affine));
}

std::shared_ptr<const GroupAffine> open_awq_matrix(const Folder& folder,
                                                   const std::string& module) {
  const std::string version = folder.quant.at("version");
  const AwqConfig config = {.bits = folder.quant.at("bits"),
                            .group_size = folder.quant.at("group_size"),
                            .version = version == "gemm"   ? AwqVersion::kGemm
                                       : version == "gemv" ? AwqVersion::kGemv
                                                           : AwqVersion::kGemvFast};
  const Tensors& all = folder.tensors;
  return open_awq(config, {.module = module,
                           .qweight = find(all, module + ".qweight"),
                           .qzeros = find(all, module + ".qzeros"),
                           .scales = find(all, module + ".scales")});
}

/// AutoAWQ's bytes again, padding included: layouts are written as they are read.
void expect_written_alike(const Folder& folder, const std::string& module,
                          const GroupAffine& matrix) {
  const std::string version = folder.quant.at("version");
  const AwqVersion to = version == "gemm"   ? AwqVersion::kGemm
                        : version == "gemv" ? AwqVersion::kGemv
                                            : AwqVersion::kGemvFast;
  const AwqFile file = publish_awq(matrix, to, module);
  const AwqFile::Views views = file.views(module);
  for (const RawTensor* made : {&views.qweight, &views.qzeros, &views.scales}) {
    const RawTensor* published = find(folder.tensors, made->name);
    ASSERT_NE(published, nullptr) << made->name;
    EXPECT_EQ(made->dtype, published->dtype) << made->name;
    EXPECT_EQ(made->shape, published->shape) << made->name;
    EXPECT_TRUE(std::ranges::equal(made->bytes, published->bytes)) << made->name;
  }
}

LinearSource open_awq_module(const Folder& folder, const std::string& module) {
  auto matrix = open_awq_matrix(folder, module);
  expect_written_alike(folder, module, *matrix);
  return as_linear(std::move(matrix));
}

using OpenModule = LinearSource (*)(const Folder&, const std::string&);

void expect_folder(const std::string& path, OpenModule open_module) {
  SCOPED_TRACE(path);
  const Folder folder = open_folder(path);
  ASSERT_FALSE(folder.expected.at("dequant").empty());
  int64_t step = 16;
  for (const auto& [module, expected] : folder.expected.at("dequant").items()) {
    SCOPED_TRACE(module);
    const LinearSource source = open_module(folder, module);
    ASSERT_EQ(source.n, expected.at("out"));
    ASSERT_EQ(source.k, expected.at("inn"));
    const std::vector<float> weights = decode(source, step);
    EXPECT_EQ(sha256_f32(weights), expected.at("sha256_f32"));
    EXPECT_EQ(sha256_f16(weights), expected.at("sha256_f16"));
    step = step == 16 ? 5 : step == 5 ? 64 : 16;  // 5: blocks that begin inside a packed word
  }
}

void expect_folders(const std::string& format, OpenModule open_module, size_t n_least) {
  std::set<std::string> names;
  for (const std::string& root : {std::string(QIANWEN_SOURCE_DIR "/tests/golden/") + format,
                                  find_golden("../golden/" + format).value_or("")}) {
    if (root.empty() || !std::filesystem::exists(root)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(root)) {
      const std::string name = entry.path().filename().string();
      if (!std::filesystem::exists(entry.path() / "expected.json")) continue;
      const json expected = read_json((entry.path() / "expected.json").string());
      if (!expected.contains("dequant") || !names.insert(name).second) continue;
      expect_folder(entry.path().string(), open_module);
    }
  }
  EXPECT_GE(names.size(), n_least);
}

TEST(GoldenGptq, EveryLinearOfEveryFolder) {
  expect_folders("gptq", open_gptq_module, 10);
}

TEST(GoldenAwq, EveryLinearOfEveryFolder) {
  expect_folders("awq", open_awq_module, 6);
}

TEST(GoldenGptq, ZeroPointOfZero) {
  const auto path = find_golden("gptq/zero_point_wrap");
  ASSERT_TRUE(path);
  const Tensors tensors = read_tensors(*path + "/tensors.safetensors");
  const json expected = read_json(*path + "/expected.json");
  const auto weights_of = [&](const std::string& storage, bool v2, std::string& warning) {
    const GptqConfig config = {.bits = 4, .group_size = 128, .sym = false, .v2_zeros = v2};
    return sha256_f32(decode(as_linear(open_gptq(config,
                                                 {.module = "layer.x",
                                                  .qweight = &tensors.at("qweight"),
                                                  .qzeros = &tensors.at("qzeros." + storage),
                                                  .scales = &tensors.at("scales"),
                                                  .g_idx = &tensors.at("g_idx")},
                                                 &warning)),
                             64));
  };
  std::string warning;
  EXPECT_EQ(weights_of("gptq_v2", true, warning), expected["gptq_v2.as_is"]["sha256_f32"]);
  EXPECT_EQ(weights_of("gptqmodel_v1", false, warning),
            expected["gptqmodel_v1.carry"]["sha256_f32"]);
  EXPECT_EQ(expected["gptqmodel_v1.carry"]["sha256_f32"], expected["gptq_v2.as_is"]["sha256_f32"]);
  EXPECT_EQ(warning, "") << "nothing is lost in these two";
  EXPECT_EQ(weights_of("autogptq_v1", false, warning), expected["autogptq_v1.carry"]["sha256_f32"]);
  EXPECT_EQ(
      warning,
      "layer.x.qzeros: a zero point of 0 was written over the zero points of 21 output rows by "
      "the program that made the file (AutoGPTQ with sym=false); these rows may be wrong: "
      "4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 21, 22, 23, 33, 34, ...");
  EXPECT_EQ(expected["autogptq_v1.carry"]["wrong_rows"].size(), 21u);
}

// --- GGML blocks
// ------------------------------------------------------------------------------------

TEST(GoldenBlocks, DecodedBitForBit) {
  const auto json_path = find_golden("gguf/blocks.json");
  ASSERT_TRUE(json_path);
  const json expected = read_json(*json_path);
  const Tensors tensors = read_tensors(*find_golden("gguf/blocks.safetensors"));
  int n_checked = 0;
  for (const auto& [type, kinds] : expected.at("types").items()) {
    const std::optional<DType> dtype = dtype_from_name(type);
    ASSERT_TRUE(dtype) << type;
    for (const char* kind : {"plain", "imatrix"}) {
      if (!kinds.contains(kind) || !kinds[kind].is_object()) continue;  // or "same as plain"
      const RawTensor* bytes = find(tensors, type + "." + kind + ".bytes");
      if (bytes == nullptr) bytes = find(tensors, type + ".bytes");
      ASSERT_NE(bytes, nullptr) << type;
      const int64_t n_elems =
          bytes->shape.n_elems() / info(*dtype).block_bytes * info(*dtype).block_elems;
      std::vector<float> values(static_cast<size_t>(n_elems));
      decode_row(*dtype, bytes->bytes.data(), n_elems, values.data());
      EXPECT_EQ(sha256_f32(values), kinds[kind].at("sha256_f32")) << type << " " << kind;
      ++n_checked;
    }
  }
  EXPECT_GE(n_checked, 40);
}

double rmse(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum / static_cast<double>(n));
}

std::vector<float> floats_of(const RawTensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.shape.n_elems()));
  decode_row(tensor.dtype, tensor.bytes.data(), tensor.shape.n_elems(), out.data());
  return out;
}

/// Rows of `input` encoded, and how many of them differ from the golden bytes.
struct Encoded {
  std::vector<std::byte> bytes;
  int64_t n_rows_differing = 0;
};
Encoded encode_rows(DType dtype, const std::vector<float>& input, int64_t n_cols,
                    const RawTensor& golden, const float* importance = nullptr) {
  Encoded out;
  out.bytes.resize(golden.bytes.size());
  const int64_t n_rows = golden.shape[0], stride = golden.shape[1];
  for (int64_t r = 0; r < n_rows; ++r) {
    std::byte* row = out.bytes.data() + r * stride;
    const float* values = input.data() + r * n_cols;
    importance == nullptr ? encode_row(dtype, values, n_cols, row)
                          : encode_row(dtype, values, importance, n_cols, row);
    if (!std::equal(row, row + stride, golden.bytes.data() + r * stride)) ++out.n_rows_differing;
  }
  return out;
}

TEST(GoldenBlocks, EncodedByteForByte) {
  const Tensors tensors = read_tensors(*find_golden("gguf/blocks.safetensors"));
  const std::vector<float> x = floats_of(tensors.at("x"));
  for (const char* type : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4",
                           "NVFP4", "Q1_0", "Q2_0", "F16", "BF16"}) {
    const RawTensor* golden = find(tensors, std::string(type) + ".plain.bytes");
    if (golden == nullptr) golden = &tensors.at(std::string(type) + ".bytes");
    EXPECT_EQ(encode_rows(*dtype_from_name(type), x, 512, *golden).n_rows_differing, 0) << type;
  }
  const std::vector<float> activations = floats_of(tensors.at("act.x"));
  for (const char* type : {"Q8_0", "Q8_1", "Q8_K"}) {
    const RawTensor& golden = tensors.at("act." + std::string(type) + ".ref");
    EXPECT_EQ(encode_rows(*dtype_from_name(type), activations, 512, golden).n_rows_differing, 0)
        << type;
  }
}

TEST(GoldenBlocks, SearchedEncodersAreAsGood) {
  const Tensors tensors = read_tensors(*find_golden("gguf/blocks.safetensors"));
  const json expected = read_json(*find_golden("gguf/blocks.json"));
  const std::vector<float> x = floats_of(tensors.at("x"));
  for (const char* type : {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}) {
    const DType dtype = *dtype_from_name(type);
    const RawTensor& golden = tensors.at(std::string(type) + ".plain.bytes");
    const Encoded encoded = encode_rows(dtype, x, 512, golden);
    const json& limits = expected["types"][type]["plain"]["rmse_per_row"];
    for (int64_t r = 0; r < 16; ++r) {
      std::array<float, 512> decoded;
      decode_row(dtype, encoded.bytes.data() + r * golden.shape[1], 512, decoded.data());
      const double limit = limits[static_cast<size_t>(r)].get<double>();
      EXPECT_LE(rmse(decoded.data(), x.data() + r * 512, 512), limit * 1.01)
          << type << " row " << r;
    }
    EXPECT_EQ(encoded.n_rows_differing, 0) << type;
  }
}

TEST(GoldenBlocks, EncodedWithImportances) {
  const Tensors tensors = read_tensors(*find_golden("gguf/blocks.safetensors"));
  const std::vector<float> x = floats_of(tensors.at("x"));
  const std::vector<float> importance = floats_of(tensors.at("imatrix"));
  for (const char* type : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
                           "IQ4_NL", "IQ4_XS"}) {
    const RawTensor& golden = tensors.at(std::string(type) + ".imatrix.bytes");
    const Encoded encoded = encode_rows(*dtype_from_name(type), x, 512, golden, importance.data());
    EXPECT_EQ(encoded.n_rows_differing, 0) << type;
  }
  // A type without a search.
  const RawTensor& golden = tensors.at("TQ2_0.plain.bytes");
  EXPECT_EQ(encode_rows(DType::kTQ2_0, x, 512, golden, importance.data()).n_rows_differing, 0);
}

/// Types whose encoders are a method of our own: less error than llama.cpp's bytes, weighted by the
/// same importances, row by row. Prints the table of docs/formats.md.
TEST(GoldenBlocks, GridTypesHaveLessErrorThanLlamaCpps) {
  const Tensors tensors = read_tensors(*find_golden("gguf/blocks.safetensors"));
  const std::vector<float> x = floats_of(tensors.at("x"));
  const std::vector<float> importance = floats_of(tensors.at("imatrix")), ones(512, 1.0F);
  const auto error = [](const float* row, const float* decoded, const std::vector<float>& weights) {
    double sum = 0, all = 0;
    for (size_t i = 0; i < 512; ++i) {
      sum += double{weights[i]} * std::pow(double{row[i]} - decoded[i], 2);
      all += weights[i];
    }
    return std::sqrt(sum / all);
  };
  for (const char* type : {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}) {
    const DType dtype = *dtype_from_name(type);
    for (const char* kind : {"imatrix", "plain"}) {
      const RawTensor* golden = find(tensors, fmt::format("{}.{}.bytes", type, kind));
      if (golden == nullptr) continue;  // llama.cpp wants importances for this one
      const bool is_plain = kind == std::string_view("plain");
      const std::vector<float>& weights = is_plain ? ones : importance;
      const Encoded ours =
          encode_rows(dtype, x, 512, *golden, is_plain ? nullptr : importance.data());
      double first_ours = 0, first_theirs = 0;
      for (int64_t r = 0; r < 16; ++r) {
        std::array<float, 512> a, b;
        decode_row(dtype, ours.bytes.data() + r * golden->shape[1], 512, a.data());
        decode_row(dtype, golden->bytes.data() + r * golden->shape[1], 512, b.data());
        const double our = error(x.data() + r * 512, a.data(), weights);
        const double their = error(x.data() + r * 512, b.data(), weights);
        EXPECT_LE(our, their) << type << " " << kind << " row " << r;
        // The first rows are normal, and every step better is a step of the search.
        if (r < 3) {
          EXPECT_LT(our, 0.97 * their) << type << " " << kind << " row " << r;
        }
        if (r == 0) first_ours = our, first_theirs = their;
      }
      fmt::print("{:8} {:8} {:.4f} {:.4f}\n", type, kind, first_ours, first_theirs);
    }
  }
}

// --- GGUF files
// -------------------------------------------------------------------------------------

/// Every tensor of a golden by name; of all parts when the file is split.
Tensors read_gguf_tensors(const json& expected) {
  std::vector<std::string> files = {expected.at("file")};
  if (expected.contains("parts")) files = expected.at("parts").get<std::vector<std::string>>();
  Tensors out;
  for (const std::string& file : files) {
    const auto path = find_golden("gguf/" + file);
    if (!path) return {};
    for (RawTensor& tensor : read_gguf(MappedFile::open(*path)).tensors) {
      const std::string name = tensor.name;
      out.emplace(name, std::move(tensor));
    }
  }
  return out;
}

/// All of a tensor in f32, by the road that a model takes: rows, experts, or a vector.
std::vector<float> decode_tensor(const RawTensor& tensor) {
  if (tensor.shape.rank() == 2) return decode(LinearSource::of_matrix(tensor), 64);
  if (tensor.shape.rank() != 3) return floats_of(tensor);
  std::vector<float> out;
  for (int64_t e = 0; e < tensor.shape[0]; ++e) {
    const std::vector<float> expert = decode(LinearSource::of_expert(tensor, e), 64);
    out.insert(out.end(), expert.begin(), expert.end());
  }
  return out;
}

TEST(GoldenGguf, EveryTensorOfEveryFile) {
  const auto folder = find_golden("gguf/expected");
  ASSERT_TRUE(folder);
  int n_files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*folder)) {
    if (entry.path().extension() != ".json") continue;
    const json expected = read_json(entry.path().string());
    const Tensors tensors = read_gguf_tensors(expected);
    if (tensors.empty()) continue;  // the larger files are in the shared folder only
    SCOPED_TRACE(entry.path().filename().string());
    ++n_files;
    for (const json& row : expected.at("tensors")) {
      const RawTensor* tensor = find(tensors, row.at("name"));
      ASSERT_NE(tensor, nullptr) << row.at("name");
      EXPECT_EQ(sha256_f32(decode_tensor(*tensor)), row.at("sha256_f32")) << row.at("name");
    }
  }
  EXPECT_GE(n_files, 20);
}

/// Files that llama-quantize made from an f16 file without importances: our bytes are the same.
TEST(GoldenGguf, EncodedLikeTheFiles) {
  const auto folder = find_golden("gguf/expected");
  ASSERT_TRUE(folder);
  int n_tensors = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*folder)) {
    if (entry.path().extension() != ".json") continue;
    const json expected = read_json(entry.path().string());
    const std::string how = expected.at("how");
    const std::string prefix = how.starts_with("llama-quantize --pure mini-f16") ? "mini" : "nano";
    if (prefix == "nano" && !how.starts_with("llama-quantize nano-f16")) continue;
    const auto source_path = find_golden("gguf/files/" + prefix + "-f16.gguf");
    if (!source_path) continue;  // the larger files are in the shared folder only
    Tensors source = read_gguf_tensors({{"file", "files/" + prefix + "-f16.gguf"}});
    for (const json& row : expected.at("tensors")) {
      const DType dtype = *dtype_from_name(row.at("type").get<std::string>());
      if (!is_block(dtype) || is_grid_type(dtype)) continue;
      const RawTensor& from = source.at(row.at("name"));
      const std::vector<float> values = floats_of(from);
      std::vector<std::byte> bytes(
          static_cast<size_t>(row_bytes(dtype, from.shape.n_elems(), "test")));
      encode_row(dtype, values.data(), from.shape.n_elems(), bytes.data());
      EXPECT_EQ(sha256_hex(bytes), row.at("sha256_raw"))
          << expected.at("file") << " " << row.at("name");
      ++n_tensors;
    }
  }
  EXPECT_GE(n_tensors, 20);
}

}  // namespace
}  // namespace qw
