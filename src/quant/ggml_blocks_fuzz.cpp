// Fuzz target: any bytes decode as any block type, any finite floats encode; nothing is undefined.
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "quant/ggml_blocks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace qw;
  if (size == 0) return 0;
  constexpr int kTypes = static_cast<int>(DType::kQ2_0) + 1;
  const auto dtype = static_cast<DType>(data[0] % kTypes);
  const DTypeInfo& type = info(dtype);
  const auto* bytes = reinterpret_cast<const std::byte*>(data + 1);  // odd address on purpose
  const auto n_blocks = static_cast<int64_t>((size - 1) / static_cast<size_t>(type.block_bytes));
  std::vector<float> values(static_cast<size_t>(n_blocks * type.block_elems));
  try {
    decode_row(dtype, bytes, n_blocks * type.block_elems, values.data());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported || is_float(dtype) || is_block(dtype)) throw;
    return 0;
  }
  if (!can_encode(dtype)) return 0;
  // The same bytes as floats, one row of whole blocks.
  const size_t n_floats = (size - 1) / sizeof(float) / static_cast<size_t>(type.block_elems) *
                          static_cast<size_t>(type.block_elems);
  const auto n = static_cast<int64_t>(n_floats);
  std::vector<float> input(n_floats), decoded(n_floats);
  if (n_floats != 0) std::memcpy(input.data(), bytes, n_floats * sizeof(float));
  std::vector<std::byte> encoded(static_cast<size_t>(row_bytes(dtype, n, "fuzz")));
  try {
    encode_row(dtype, input.data(), n, encoded.data());
    decode_row(dtype, encoded.data(), n, decoded.data());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kInvalidArgument) throw;
  }
  return 0;
}
