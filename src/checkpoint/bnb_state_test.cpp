// The JSON beside a 4-bit matrix, and directories that hold such matrices.
#include "checkpoint/bnb_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/quantised_modules.h"

namespace qw {
namespace {

using testing::HasSubstr;

RawTensor as_tensor(const std::string& text) {
  RawTensor out;
  out.name = "q_proj.weight.quant_state.bitsandbytes__nf4";
  out.dtype = DType::kU8;
  out.shape = Shape{std::ssize(text)};
  out.bytes = std::as_bytes(std::span(text));
  out.file = "model.safetensors";
  return out;
}

// What bitsandbytes 0.50.2 wrote.
constexpr std::string_view kPlain =
    R"x({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [176, 64]})x";
constexpr std::string_view kNested =
    R"x({"quant_type": "nf4", "blocksize": 128, "dtype": "float32", "shape": [48, 96], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.19551482796669006})x";

TEST(BnbState, ReadsAndWritesWhatTheLibraryWrites) {
  for (const std::string_view text : {kPlain, kNested}) {
    const std::string bytes(text);
    EXPECT_EQ(bnb4_state_json(read_bnb4_state(as_tensor(bytes))), text);
  }
  const std::string bytes(kNested);
  const Bnb4State state = read_bnb4_state(as_tensor(bytes));
  EXPECT_EQ(state.quant_type, "nf4");
  EXPECT_EQ(state.block_size, 128);
  EXPECT_EQ(state.dtype, DType::kF32);
  EXPECT_EQ(state.n, 48);
  EXPECT_EQ(state.k, 96);
  EXPECT_TRUE(state.is_nested);
  EXPECT_EQ(state.nested_offset, 0.19551482796669006F);
}

TEST(BnbState, WritesNumbersAsPythonDoes) {
  Bnb4State state;
  state.is_nested = true;
  for (const auto& [value, text] : {std::pair{1.0F, "1.0"},
                                    {0.1F, "0.10000000149011612"},
                                    {0.00001F, "9.999999747378752e-06"},
                                    {0.0001F, "9.999999747378752e-05"},
                                    {-2.5F, "-2.5"},
                                    {0.0F, "0.0"}}) {
    state.nested_offset = value;
    EXPECT_THAT(bnb4_state_json(state), HasSubstr(fmt::format("\"nested_offset\": {}}}", text)));
  }
}

std::string message_of(const std::string& text) {
  try {
    read_bnb4_state(as_tensor(text));
  } catch (const Error& error) {
    EXPECT_NE(error.kind(), ErrorKind::kInternal);
    return error.what();
  }
  return "nothing was thrown";
}

std::string with(const std::string& from, const std::string& to) {
  std::string text(kNested);
  text.replace(text.find(from), from.size(), to);
  return text;
}

TEST(BnbState, WrongOnesGetASentence) {
  EXPECT_THAT(message_of("[1]"), HasSubstr("bitsandbytes__nf4 of model.safetensors"));
  EXPECT_THAT(message_of(""), HasSubstr("bitsandbytes__nf4 of model.safetensors"));
  EXPECT_THAT(message_of(with("nf4", "int4")), HasSubstr("expected nf4 or fp4, got int4"));
  EXPECT_THAT(message_of(with("\"blocksize\"", "\"size\"")), HasSubstr("blocksize"));
  EXPECT_THAT(message_of(with("float32", "float64")),
              HasSubstr("dtype: expected float32, float16 or bfloat16, got float64"));
  EXPECT_THAT(message_of(with("[48, 96]", "[48]")), HasSubstr("shape: expected two integers"));
  EXPECT_THAT(message_of(with("[48, 96]", "null")), HasSubstr("shape: expected two integers"));
  EXPECT_THAT(message_of(with("[48, 96]", "[48, -96]")), HasSubstr("shape: expected sizes"));
  EXPECT_THAT(message_of(with("[48, 96]", "[48, 18446744073709551615]")),
              HasSubstr("shape: expected sizes"));
  EXPECT_THAT(message_of(with("\"nested_offset\": 0.19551482796669006", "\"x\": 1")),
              HasSubstr("nested_offset"));
  EXPECT_THAT(message_of(std::string(1 << 17, ' ')), HasSubstr("JSON as u8 of at most"));
}

QuantizationConfig config_of(const std::string& text) {
  return read_quantization_config(nlohmann::ordered_json::parse(text), "config.json");
}

TEST(BnbConfig, IsReadAsTransformersWritesIt) {
  const QuantizationConfig q = config_of(R"x({
    "_load_in_4bit": true, "_load_in_8bit": false, "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
    "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
    "llm_int8_skip_modules": ["lm_head"], "llm_int8_threshold": 6.0, "load_in_4bit": true,
    "load_in_8bit": false, "quant_method": "bitsandbytes"})x");
  EXPECT_EQ(q.method, "bitsandbytes");
  EXPECT_EQ(q.bits, 4);
  EXPECT_EQ(q.bnb_type, "nf4");
  EXPECT_TRUE(q.bnb_double);
  EXPECT_THAT(q.modules_to_not_convert, testing::ElementsAre("lm_head"));
  EXPECT_EQ(config_of(R"x({"load_in_4bit": true})x").bnb_type, "fp4");
}

TEST(BnbConfig, RefusesEightBits) {
  try {
    config_of(R"x({"quant_method": "bitsandbytes", "load_in_8bit": true})x");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("expected load_in_4bit (nf4 or fp4), got load_in_8bit"));
  }
}

}  // namespace
}  // namespace qw
