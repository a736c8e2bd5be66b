#include "checkpoint/bnb_state.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "checkpoint/hf_config.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

/// Far above what bitsandbytes writes, which is some two hundred bytes.
constexpr size_t kMaxStateBytes = 1 << 16;

constexpr std::string_view kF32 = "float32", kF16 = "float16", kBf16 = "bfloat16";

DType read_dtype(const ordered_json& json, std::string_view key, const std::string& where) {
  const std::string name = required_string(json, key, where);
  if (name == kF32) return DType::kF32;
  if (name == kF16) return DType::kF16;
  if (name == kBf16) return DType::kBF16;
  fail(ErrorKind::kUnsupported, "bitsandbytes",
       "{}: expected float32, float16 or bfloat16, got {} ({})", key, printable(name), where);
}

std::string_view torch_name(DType dtype) {
  return dtype == DType::kF16 ? kF16 : dtype == DType::kBF16 ? kBf16 : kF32;
}

/// The shortest digits that are this number, as Python writes them; nlohmann-json's are not always.
std::string python_real(double value) {
  std::string out = fmt::format("{}", value);
  return out.find_first_of(".e") == std::string::npos ? out + ".0" : out;
}

void read_shape(const ordered_json& json, const std::string& where, Bnb4State& state) {
  const ordered_json* shape = find_member(json, "shape", where);
  if (shape == nullptr || !shape->is_array() || shape->size() != 2 ||
      !(*shape)[0].is_number_integer() || !(*shape)[1].is_number_integer()) {
    fail(ErrorKind::kCorrupt, "bitsandbytes", "shape: expected two integers [n, k], got {} ({})",
         shape == nullptr ? "none" : describe_json(*shape), where);
  }
  constexpr uint64_t kMostSize = 1U << 31;
  for (const ordered_json& size : *shape) {
    if (size.get<int64_t>() < 1 || size.get<uint64_t>() > kMostSize) {
      fail(ErrorKind::kCorrupt, "bitsandbytes", "shape: expected sizes of 1 to {}, got {} ({})",
           kMostSize, describe_json(*shape), where);
    }
  }
  state.n = (*shape)[0].get<int64_t>();
  state.k = (*shape)[1].get<int64_t>();
}

}  // namespace

Bnb4State read_bnb4_state(const RawTensor& tensor) {
  const std::string where = fmt::format("{} of {}", printable(tensor.name), printable(tensor.file));
  if (tensor.dtype != DType::kU8 || tensor.bytes.size() > kMaxStateBytes) {
    fail(ErrorKind::kCorrupt, "bitsandbytes",
         "quant_state: expected JSON as u8 of at most {} bytes, got {} {} ({})", kMaxStateBytes,
         tensor.shape.str(), name_of(tensor.dtype), where);
  }
  const std::string_view text(reinterpret_cast<const char*>(tensor.bytes.data()),
                              tensor.bytes.size());
  const ordered_json json = parse_json_object(text, where);
  Bnb4State state;
  state.quant_type = required_string(json, "quant_type", where);
  if (state.quant_type != "nf4" && state.quant_type != "fp4") {
    fail(ErrorKind::kUnsupported, "bitsandbytes", "quant_type: expected nf4 or fp4, got {} ({})",
         printable(state.quant_type), where);
  }
  state.block_size = required_int(json, "blocksize", where);
  state.dtype = read_dtype(json, "dtype", where);
  read_shape(json, where, state);
  state.is_nested = find_member(json, "nested_blocksize", where) != nullptr;
  if (!state.is_nested) return state;
  state.nested_block_size = required_int(json, "nested_blocksize", where);
  if (read_dtype(json, "nested_dtype", where) != DType::kF32) {
    fail(ErrorKind::kUnsupported, "bitsandbytes", "nested_dtype: expected float32, got {} ({})",
         describe_json(json["nested_dtype"]), where);
  }
  // An f32 that was written as a double.
  state.nested_offset = static_cast<float>(required_real(json, "nested_offset", where));
  return state;
}

std::string bnb4_state_json(const Bnb4State& state) {
  std::string out =
      fmt::format(R"x({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}, {}])x",
                  state.quant_type, state.block_size, torch_name(state.dtype), state.n, state.k);
  if (state.is_nested) {
    out += fmt::format(R"x(, "nested_blocksize": {}, "nested_dtype": "{}", "nested_offset": {})x",
                       state.nested_block_size, kF32,
                       python_real(static_cast<double>(state.nested_offset)));
  }
  return out + "}";
}

}  // namespace qw
