// Fuzz target: the JSON and the tensors of a 4-bit matrix either open and decode, or are refused
// with an error. The input is the JSON up to a zero byte, then a size and the content of each
// tensor.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/bnb_state.h"

namespace {

using namespace qw;

struct Tensor {
  std::vector<std::byte> bytes;
  RawTensor raw;
};

/// `elems` elements, fewer or more, or of another type, as the input says.
Tensor tensor_of(const char* name, DType usual, int64_t elems, const uint8_t*& at,
                 const uint8_t* end) {
  const auto byte = [&]() -> uint8_t { return at == end ? 0 : *at++; };
  constexpr DType kOthers[] = {DType::kU8, DType::kF32, DType::kF16, DType::kBF16, DType::kI32};
  Tensor out;
  out.raw.name = name;
  const uint8_t flags = byte();
  out.raw.dtype = flags < 240 ? usual : kOthers[flags % 5];
  if (flags % 16 == 15) elems += static_cast<int8_t>(byte());
  elems = std::clamp<int64_t>(elems, 0, 1 << 18);
  out.raw.shape = Shape{elems};
  out.bytes.resize(static_cast<size_t>(elems) * info(out.raw.dtype).block_bytes);
  for (size_t i = 0; i < out.bytes.size(); ++i)
    out.bytes[i] = i < 64 ? static_cast<std::byte>(byte()) : out.bytes[i % 61];
  out.raw.bytes = out.bytes;
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const uint8_t* end = data + size;
  const uint8_t* at = std::find(data, end, uint8_t{0});
  const std::string json(reinterpret_cast<const char*>(data), static_cast<size_t>(at - data));
  RawTensor state_tensor;
  state_tensor.name = "m.weight.quant_state.bitsandbytes__nf4";
  state_tensor.dtype = DType::kU8;
  state_tensor.shape = Shape{std::ssize(json)};
  state_tensor.bytes = std::as_bytes(std::span(json));
  try {
    const Bnb4State state = read_bnb4_state(state_tensor);
    const bool small = state.n < (1 << 10) && state.k < (1 << 10) && state.block_size > 0;
    const int64_t elems = small ? state.n * state.k : 16;
    const int64_t blocks = small ? elems / state.block_size + (elems % state.block_size != 0) : 1;
    const int64_t nested = state.nested_block_size > 0 ? blocks / state.nested_block_size + 1 : 1;
    const Tensor weight = tensor_of("m.weight", DType::kU8, (elems + 1) / 2, at, end);
    const Tensor absmax =
        tensor_of("m.weight.absmax", state.is_nested ? DType::kU8 : DType::kF32, blocks, at, end);
    const Tensor map = tensor_of("m.weight.quant_map", DType::kF32, 16, at, end);
    const Tensor nested_absmax = tensor_of("m.weight.nested_absmax", DType::kF32, nested, at, end);
    const Tensor nested_map = tensor_of("m.weight.nested_quant_map", DType::kF32, 256, at, end);
    LinearSource source;
    source.data = open_bnb4(state, {.module = "m",
                                    .weight = &weight.raw,
                                    .absmax = &absmax.raw,
                                    .quant_map = &map.raw,
                                    .nested_absmax = &nested_absmax.raw,
                                    .nested_quant_map = &nested_map.raw,
                                    .quant_state = &state_tensor});
    source.n = state.n;
    source.k = state.k;
    if (!small) return 0;
    std::vector<float> out(static_cast<size_t>(elems));
    source.decode_rows(0, source.n, out.data());
    (void)source.format_name();
    (void)source.published_bytes();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInternal) throw;  // a broken promise of our own
  }
  return 0;
}
