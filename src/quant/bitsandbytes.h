// bitsandbytes' 4-bit types (nf4, fp4): published tensors weight, absmax, quant_map and their
// nested ones -> CodebookBlocks, and back.
//
// Level 2 (quant). Source of the layout: bitsandbytes 0.50.2, QuantState.as_dict; docs/formats.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "quant/linear_source.h"

namespace qw {

/// What the file says of one matrix beside its tensors (quant_state, a JSON object).
struct Bnb4State {
  std::string quant_type;  // "nf4", "fp4"
  int64_t block_size = 64;
  DType dtype = DType::kBF16;  // of the matrix that was quantised: f32, f16 or bf16
  int64_t n = 0, k = 0;
  // Of double quantisation:
  bool is_nested = false;
  int64_t nested_block_size = 256;
  float nested_offset = 0;
};

struct Bnb4Tensors {
  std::string module;  // "model.layers.0.self_attn.q_proj", for messages
  const RawTensor* weight = nullptr;
  const RawTensor* absmax = nullptr;  // floats; nested: bytes
  const RawTensor* quant_map = nullptr;
  const RawTensor* nested_absmax = nullptr;
  const RawTensor* nested_quant_map = nullptr;
  const RawTensor* quant_state = nullptr;  // what `state` was read from
};

/// W[o, i] = round(quant_map[q] * absmax[b]) to state.dtype, b = (o * k + i) / block_size; codes
/// two to a byte, the first in the high nibble. Nested:
///   absmax[b] = nested_quant_map[c[b]] * nested_absmax[b / nested_block_size] + nested_offset
/// each operation rounded to f32. Errors: corrupt (types, shapes, byte counts, levels that are not
/// finite), unsupported (block sizes that bitsandbytes has not).
std::shared_ptr<const CodebookBlocks> open_bnb4(const Bnb4State& state, const Bnb4Tensors& tensors);

/// The sixteen levels of nf4 (Dettmers et al. 2023, "QLoRA", appendix E) and of fp4 (a sign, two
/// bits of exponent, one of fraction, over 12), by code.
const std::array<float, 16>& bnb4_levels(std::string_view quant_type);

/// The 256 values of nested codes, ascending: bitsandbytes' signed dynamic map.
const std::array<float, 256>& bnb_dynamic_map();

/// Whether bitsandbytes has blocks of this size: 32, 64, ... 4096.
bool is_bnb4_block_size(int64_t size);

struct Nf4Options {
  enum class Mode {
    kBetter,     // the scale of a block with the least squared error
    kReference,  // the largest magnitude, which is bitsandbytes' scale
  };
  Mode mode = Mode::kBetter;
  int64_t block_size = 64;
  bool double_quant = false;
  DType dtype = DType::kBF16;  // of the weights that are quantised, which are rounded to it first
};

/// The published tensors of one matrix.
struct Bnb4File {
  Bnb4State state;
  std::vector<uint8_t> codes;         // two to a byte
  std::vector<float> absmax;          // nested: of blocks of absmax_codes
  std::vector<uint8_t> absmax_codes;  // nested only

  /// Views of these tensors, named `module`.weight and so on; this must outlive them. Without
  /// quant_state, which is JSON (checkpoint/bnb_state.h); without nested_*: they have no name.
  struct Views {
    RawTensor weight, absmax, quant_map, nested_absmax, nested_quant_map;
    Bnb4Tensors tensors(std::string module) const;
  };
  Views views(const std::string& module) const;
};

/// nf4 of a matrix. kReference: code = the level nearest to w / max|w of the block|, the lower one
/// of two; scales of double quantisation around their mean, each by the nearest of the dynamic map:
/// the bits of bitsandbytes 0.50.2 on a CPU, where its mean is computed by one thread (up to 32,767
/// blocks) and its nested codes are the nearest. Errors: invalid_argument (a block size that
/// bitsandbytes has not, values that options.dtype cannot hold).
Bnb4File encode_nf4(const LinearSource& source, const Nf4Options& options);
/// Calls body(i) for i in [0, n), in any order, on any threads.
using Nf4ForEach = FunctionRef<void(int64_t n, FunctionRef<void(int64_t)> body)>;
Bnb4File encode_nf4(const LinearSource& source, const Nf4Options& options, Nf4ForEach for_each);

/// Codes of four bits as they lie in the file: two to a byte, the first above. What fills the last
/// byte up is bitsandbytes' zero.
std::vector<uint8_t> pack_bnb4_codes(const std::vector<uint8_t>& codes);

/// Errors: invalid_argument, as encode_nf4.
void check_nf4_sizes(int64_t n, int64_t k, int64_t block_size, std::string_view module);

/// Bytes of a matrix in the file, without quant_state.
int64_t nf4_bytes(int64_t n, int64_t k, int64_t block_size, bool double_quant);

}  // namespace qw
