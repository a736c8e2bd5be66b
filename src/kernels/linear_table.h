// A row of the linear registry, and where each instruction set's rows come from.
//
// Level 3 (kernels). Included by files compiled for one instruction set: plain data only.
#pragma once

#include "kernels/linear_kernel.h"

namespace qw::kernels {

struct LinearKernel {
  LinearLayout layout;
  ActivationForm form;
  int level;        // IsaLevel that the code needs
  int rank;         // the highest allowed row wins
  int tile_panels;  // panels that expand and tile work on
  GemvFn gemv;      // null: expand and tile serve few rows too
  ExpandFn expand;  // null (kRows): the caller decodes into the f32 chunk
  TileFn tile;
  DecodeFn decode;      // null (kRows): the caller has the published bytes
  QuantizeFn quantize;  // kInt8 only
};

struct LinearKernelTable {
  const LinearKernel* rows;
  int count;
};

// The only names that the linear files of kernels/cpu/<isa>/ export.
namespace generic {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
}  // namespace generic
namespace avx2 {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
}  // namespace avx2
namespace avxvnni {
LinearKernelTable linear_int8_kernels() noexcept;
}
namespace avx512 {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
}  // namespace avx512
namespace avx512vnni {
LinearKernelTable linear_int8_kernels() noexcept;
}
namespace avx512bf16 {
LinearKernelTable linear_bf16_kernels() noexcept;
}

}  // namespace qw::kernels
