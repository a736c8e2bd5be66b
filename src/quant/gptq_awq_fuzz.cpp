// Fuzz target: GPTQ and AWQ tensors of any type, shape and content either open and decode, or are
// refused with an error.
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "quant/awq.h"
#include "quant/gptq.h"

namespace {

using namespace qw;

/// Bytes of the input, one after another; zeros at its end.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}
  int byte() { return data_ == end_ ? 0 : *data_++; }
  size_t left() const { return static_cast<size_t>(end_ - data_); }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

/// Mostly the type that belongs there, sometimes another.
DType read_dtype(Reader& in, DType usual) {
  constexpr std::array kOthers = {DType::kF32, DType::kBF16, DType::kI32, DType::kI16,
                                  DType::kU8,  DType::kQ4_0, DType::kF64, DType::kBool};
  const int choice = in.byte();
  return choice < 224 ? usual : kOthers[static_cast<size_t>(choice) % kOthers.size()];
}

struct Tensor {
  std::vector<std::byte> bytes;
  RawTensor raw;
  bool present = true;
};

/// A tensor with sizes from the input (up to 255), and bytes that fit them unless it says
/// otherwise.
void read_tensor(Reader& in, DType usual, int usual_rank, Tensor& out) {
  const int flags = in.byte();
  out.present = flags % 16 != 15;
  out.raw.dtype = read_dtype(in, usual);
  const int rank = flags / 16 == 15 ? in.byte() % 5 : usual_rank;
  std::array<int64_t, 4> sizes{};
  for (int axis = 0; axis < rank; ++axis)
    sizes[static_cast<size_t>(axis)] = in.byte();
  int64_t bytes = info(out.raw.dtype).block_bytes;
  for (int axis = 0; axis < rank; ++axis)
    bytes *= sizes[static_cast<size_t>(axis)];
  if (flags / 16 == 14) bytes += in.byte() - 128;
  out.raw.shape = Shape(std::span(sizes.data(), static_cast<size_t>(rank)), "t");
  out.bytes.resize(static_cast<size_t>(std::clamp<int64_t>(bytes, 0, int64_t{1} << 18)));
  // One unaligned copy of the content, repeated.
  for (size_t i = 0; i < out.bytes.size(); ++i) {
    out.bytes[i] = i < 64 ? static_cast<std::byte>(in.byte()) : out.bytes[i % 61];
  }
  out.raw.bytes = out.bytes;
}

void use(std::shared_ptr<const GroupAffine> affine, Reader& in) {
  LinearSource source;
  source.n = affine->n;
  source.k = affine->k;
  source.data = std::move(affine);
  if (source.n * source.k > (int64_t{1} << 20)) return;
  const int64_t row = in.byte() % source.n;
  const int64_t n_rows = 1 + in.byte() % (source.n - row);
  std::vector<float> out(static_cast<size_t>(n_rows * source.k));
  source.slice_rows(row, source.n).decode_rows(0, n_rows, out.data());
  (void)source.format_name();
  (void)source.published_bytes();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  const int format = in.byte() % 6;
  const bool is_gptq = format < 3;
  const bool is_fast = format == 5;
  const int bits = is_gptq ? std::array{2, 3, 4, 8, 4, 5}[static_cast<size_t>(in.byte() % 6)] : 4;
  const int group = in.byte();
  Tensor qweight, qzeros, scales, g_idx;
  read_tensor(in, is_fast ? DType::kI16 : DType::kI32, 2, qweight);
  read_tensor(in, is_fast ? DType::kF16 : DType::kI32, 2, qzeros);
  read_tensor(in, DType::kF16, 2, scales);
  const auto pointer = [](const Tensor& tensor) { return tensor.present ? &tensor.raw : nullptr; };
  try {
    if (is_gptq) {
      read_tensor(in, DType::kI32, 1, g_idx);
      std::string warning;
      const GptqConfig config = {.bits = bits,
                                 .group_size = group == 255 ? -1 : group,
                                 .desc_act = format == 1,
                                 .sym = false,
                                 .v2_zeros = format == 2};
      use(open_gptq(config,
                    {.module = "m",
                     .qweight = pointer(qweight),
                     .qzeros = pointer(qzeros),
                     .scales = pointer(scales),
                     .g_idx = pointer(g_idx)},
                    &warning),
          in);
    } else {
      const AwqConfig config = {.group_size = group == 255 ? -1 : group,
                                .version = static_cast<AwqVersion>(format - 3)};
      use(open_awq(config, {.module = "m",
                            .qweight = pointer(qweight),
                            .qzeros = pointer(qzeros),
                            .scales = pointer(scales)}),
          in);
    }
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInternal) throw;  // a broken promise of our own
  }
  return 0;
}
