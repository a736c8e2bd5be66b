// A row of the linear registry, and where each instruction set's rows come from.
//
// Level 3 (kernels). Included by files compiled for one instruction set: plain data only.
#pragma once

#include "kernels/isa_level.h"
#include "kernels/linear_kernel.h"

namespace qw::kernels {

struct LinearKernel {
  LinearLayout layout;
  ActivationForm form;
  IsaLevel level;   // that the code needs
  int rank;         // the highest allowed row wins
  int tile_panels;  // panels that expand and tile work on
  int few_rows;     // rows of x up to which gemv is faster than expanding the weights for tiles
  int gemv_rows;    // rows of x that gemv takes at a time, each time over all panels; 0: no gemv
  GemvFn gemv;      // null: expand and tile serve few rows too
  ExpandFn expand;  // null (kRows): the caller decodes into the f32 chunk
  TileFn tile;
  DecodeFn decode;      // null (kRows): the caller has the published bytes
  QuantizeFn quantize;  // kInt8 only
  StoreFn store;        // of what gemv and tile give
};

struct LinearKernelTable {
  const LinearKernel* rows;
  int count;
};

}  // namespace qw::kernels
