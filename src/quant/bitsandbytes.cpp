#include "quant/bitsandbytes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "quant/packed_codes.h"

namespace qw {

namespace {

class Bnb4Source final : public CodebookBlocks {
 public:
  const std::byte* packed_codes = nullptr;
  packed::FloatTensor absmax;  // one per block; nested: one per nested_size blocks
  // Of double quantisation:
  const std::byte* nested_codes = nullptr;
  std::vector<float> nested_levels;
  int64_t nested_size = 0;
  float nested_offset = 0;
  std::vector<std::shared_ptr<const void>> owners;

  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    const int64_t begin = row * k, count = n_rows * k;
    int64_t i = 0;
    if (begin % 2 != 0 && count > 0) out[i++] = byte_at(begin) & 15;
    for (; i + 2 <= count; i += 2) {
      const uint8_t pair = byte_at(begin + i);
      out[i] = pair >> 4;
      out[i + 1] = pair & 15;
    }
    if (i < count) out[i] = byte_at(begin + i) >> 4;
  }
  void scales(int64_t first, int64_t count, float* out) const override {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = first + i;
      if (nested_codes == nullptr) {
        out[i] = absmax[block];
        continue;
      }
      const auto code = static_cast<size_t>(nested_codes[block]);
      const float product = nested_levels[code] * absmax[block / nested_size];
      out[i] = product + nested_offset;
    }
  }

 private:
  uint8_t byte_at(int64_t element) const noexcept {
    return static_cast<uint8_t>(packed_codes[element / 2]);
  }
};

[[noreturn]] void refuse(const std::string& module, std::string_view suffix,
                         const std::string& expected, const std::string& got,
                         const RawTensor& tensor) {
  fail(ErrorKind::kCorrupt, "bitsandbytes", "{}.{}: expected {}, got {} ({})", printable(module),
       suffix, expected, got, printable(tensor.file));
}

const RawTensor& present(const RawTensor* tensor, const std::string& module,
                         std::string_view suffix) {
  if (tensor == nullptr) {
    fail(ErrorKind::kCorrupt, "bitsandbytes", "{}.{}: expected this tensor, got none",
         printable(module), suffix);
  }
  return *tensor;
}

/// A tensor of `count` elements, whatever its rank.
void require_count(const RawTensor& tensor, const std::string& module, std::string_view suffix,
                   int64_t count) {
  if (tensor.shape.n_elems() != count) {
    refuse(module, suffix, fmt::format("{} values", count), "shape " + tensor.shape.str(), tensor);
  }
}

packed::FloatTensor floats_of(const RawTensor* tensor, const std::string& module,
                              std::string_view suffix, int64_t count) {
  const RawTensor& found = present(tensor, module, suffix);
  require_count(found, module, suffix, count);
  return packed::require_floats(&found, module, suffix, found.shape.rank());
}

std::vector<float> levels_of(const RawTensor* tensor, const std::string& module,
                             std::string_view suffix, int64_t count) {
  const packed::FloatTensor floats = floats_of(tensor, module, suffix, count);
  std::vector<float> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float level = floats[i];
    if (!std::isfinite(level))
      refuse(module, suffix, "finite values", fmt::format("{} at {}", level, i), *tensor);
    out[static_cast<size_t>(i)] = level;
  }
  return out;
}

/// Codes two to a byte, in elements of the storage type (quant_storage), which means nothing else.
void require_codes(const RawTensor& weight, const std::string& module, int64_t n_weights) {
  const DTypeInfo& type = info(weight.dtype);
  const int64_t stored = checked_mul(weight.shape.n_elems(), static_cast<int64_t>(type.block_bytes),
                                     weight.name, weight.file);
  const int64_t needed = round_up<int64_t>(ceil_div<int64_t>(n_weights, 2), type.block_bytes);
  if (type.block_elems != 1 || stored != needed ||
      static_cast<uint64_t>(stored) != weight.bytes.size()) {
    refuse(module, "weight", fmt::format("{} bytes of codes for {} weights", needed, n_weights),
           fmt::format("{} {} in {} bytes", weight.shape.str(), name_of(weight.dtype),
                       weight.bytes.size()),
           weight);
  }
}

void open_scales(const Bnb4State& state, const Bnb4Tensors& tensors, Bnb4Source& out) {
  const int64_t n_blocks = out.n_blocks();
  const std::string& module = tensors.module;
  if (!state.is_nested) {
    out.absmax = floats_of(tensors.absmax, module, "weight.absmax", n_blocks);
    return;
  }
  if (state.nested_block_size < 1 || !std::isfinite(state.nested_offset)) {
    fail(ErrorKind::kCorrupt, "bitsandbytes",
         "{}.weight.quant_state: expected a positive nested_blocksize and a finite nested_offset, "
         "got {} and {}",
         printable(module), state.nested_block_size, state.nested_offset);
  }
  const RawTensor& codes = present(tensors.absmax, module, "weight.absmax");
  if (codes.dtype != DType::kU8 ||
      codes.bytes.size() != static_cast<uint64_t>(codes.shape.n_elems())) {
    refuse(module, "weight.absmax", "u8, one byte for each block",
           fmt::format("{} in {} bytes", name_of(codes.dtype), codes.bytes.size()), codes);
  }
  require_count(codes, module, "weight.absmax", n_blocks);
  out.nested_codes = codes.bytes.data();
  out.nested_size = state.nested_block_size;
  out.nested_offset = state.nested_offset;
  out.nested_levels = levels_of(tensors.nested_quant_map, module, "weight.nested_quant_map", 256);
  out.absmax = floats_of(tensors.nested_absmax, module, "weight.nested_absmax",
                         ceil_div(n_blocks, state.nested_block_size));
}

}  // namespace

bool is_bnb4_block_size(int64_t size) {
  return size >= 32 && size <= 4096 && std::has_single_bit(static_cast<uint64_t>(size));
}

std::shared_ptr<const CodebookBlocks> open_bnb4(const Bnb4State& state,
                                                const Bnb4Tensors& tensors) {
  const std::string& module = tensors.module;
  if (!is_bnb4_block_size(state.block_size)) {
    fail(ErrorKind::kUnsupported, "bitsandbytes",
         "{}: expected a block size of 32, 64, 128, 256, 512, 1024, 2048 or 4096, got {}",
         printable(module), state.block_size);
  }
  if (state.dtype != DType::kF32 && state.dtype != DType::kF16 && state.dtype != DType::kBF16) {
    fail(ErrorKind::kUnsupported, "bitsandbytes",
         "{}: expected a matrix of f32, f16 or bf16, got {}", printable(module),
         name_of(state.dtype));
  }
  const RawTensor& weight = present(tensors.weight, module, "weight");
  if (state.n < 1 || state.k < 1) {
    refuse(module, "weight.quant_state", "a shape [n, k] of positive sizes",
           fmt::format("[{}, {}]", state.n, state.k), weight);
  }
  auto source = std::make_shared<Bnb4Source>();
  source->n = state.n;
  source->k = state.k;
  source->block_size = state.block_size;
  source->value_type = state.dtype;
  source->name = state.quant_type + (state.is_nested ? " double" : "");
  require_codes(weight, module, checked_mul(state.n, state.k, module));
  const std::vector<float> levels = levels_of(tensors.quant_map, module, "weight.quant_map", 16);
  std::ranges::copy(levels, source->levels.begin());
  open_scales(state, tensors, *source);
  source->packed_codes = weight.bytes.data();
  for (const RawTensor* tensor :
       {tensors.weight, tensors.absmax, tensors.quant_map, tensors.nested_absmax,
        tensors.nested_quant_map, tensors.quant_state}) {
    if (tensor == nullptr) continue;
    source->published.push_back(tensor->bytes);
    source->owners.push_back(tensor->owner);
  }
  return source;
}

const std::array<float, 16>& bnb4_levels(std::string_view quant_type) {
  static constexpr std::array<float, 16> kNf4 = {
      -1.0F,          -0.696192801F, -0.525073051F, -0.394917488F, -0.284441382F, -0.184773430F,
      -0.0910500363F, 0.0F,          0.0795802996F, 0.160930201F,  0.246112302F,  0.337915242F,
      0.440709829F,   0.562617004F,  0.722956836F,  1.0F};
  static const std::array<float, 16> fp4 = [] {
    std::array<float, 16> out = {0, 0.0625F, 8, 12, 4, 6, 2, 3};
    for (size_t i = 0; i < 8; ++i) {
      out[i] /= 12.0F;
      out[i + 8] = -out[i];
    }
    out[8] = 0.0F;
    return out;
  }();
  return quant_type == "fp4" ? fp4 : kNf4;
}

}  // namespace qw
