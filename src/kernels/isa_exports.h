// What the files of each kernels/cpu/<isa>/ export: nothing else of theirs is seen by the linker
// (isa_symbols_test.cpp).
//
// Level 3 (kernels). Plain data only: included by files compiled for one instruction set.
#pragma once

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/isa_level.h"
#include "kernels/kv_pages.h"
#include "kernels/limits.h"
#include "kernels/linear_table.h"
#include "kernels/matrix.h"
#include "quant/scale_search_ops.h"

namespace qw::kernels {

/// A row of isa_kernels.cpp. Null: the folder has none of its own, and those of what it includes
/// serve.
struct IsaKernels {
  IsaLevel level;
  LinearKernelTable (*linear_int8)() noexcept;
  LinearKernelTable (*linear_float)() noexcept;
  LimitProbes (*limit_probes)() noexcept;
  const ElementwiseOps* elementwise;
  const AttentionOps* attention;
  const KvOps* kv;
  const MatrixOps* matrix;
  const ScaleSearchOps* scale_search;
};

namespace generic {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
LimitProbes limit_probes() noexcept;
extern const ElementwiseOps kElementwiseOps;
extern const AttentionOps kAttentionOps;
extern const KvOps kKvOps;
extern const MatrixOps kMatrixOps;
extern const ScaleSearchOps kScaleSearchOps;
}  // namespace generic

namespace avx2 {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
LimitProbes limit_probes() noexcept;
extern const ElementwiseOps kElementwiseOps;
extern const AttentionOps kAttentionOps;
extern const KvOps kKvOps;
extern const MatrixOps kMatrixOps;
extern const ScaleSearchOps kScaleSearchOps;
}  // namespace avx2

namespace avxvnni {
LinearKernelTable linear_int8_kernels() noexcept;
LimitProbes limit_probes() noexcept;
}  // namespace avxvnni

namespace avx512 {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
LimitProbes limit_probes() noexcept;
extern const ElementwiseOps kElementwiseOps;
extern const AttentionOps kAttentionOps;
extern const KvOps kKvOps;
extern const MatrixOps kMatrixOps;
extern const ScaleSearchOps kScaleSearchOps;
}  // namespace avx512

namespace avx512vnni {
LinearKernelTable linear_int8_kernels() noexcept;
LimitProbes limit_probes() noexcept;
}  // namespace avx512vnni

namespace avx512bf16 {
LinearKernelTable linear_bf16_kernels() noexcept;
LimitProbes limit_probes() noexcept;
}  // namespace avx512bf16

namespace neon {
LinearKernelTable linear_int8_kernels() noexcept;
LinearKernelTable linear_float_kernels() noexcept;
LimitProbes limit_probes() noexcept;
extern const ElementwiseOps kElementwiseOps;
extern const AttentionOps kAttentionOps;
extern const KvOps kKvOps;
extern const MatrixOps kMatrixOps;
extern const ScaleSearchOps kScaleSearchOps;
}  // namespace neon

namespace neondot {
LinearKernelTable linear_int8_kernels() noexcept;
LimitProbes limit_probes() noexcept;
}  // namespace neondot

}  // namespace qw::kernels
