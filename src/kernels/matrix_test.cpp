// Every table of matrix operations that this CPU can run, against the formulas in double.
#include "kernels/matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"
#include "kernels/isa_kernels.h"

namespace qw::kernels {
namespace {

using Floats = std::vector<float>;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

std::vector<const MatrixOps*> tables() {
  std::vector<const MatrixOps*> out;
  for (const IsaKernels* row : isa_kernels(detect_isa())) {
    if (row->matrix != nullptr) out.push_back(row->matrix);
  }
  return out;
}

Floats normals(int64_t n, uint64_t stream, double scale = 1) {
  Floats out(at(n));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(scale * random_normal(12, stream, i));
  return out;
}

class MatrixTest : public testing::TestWithParam<const MatrixOps*> {};

TEST_P(MatrixTest, TileAddsTheProduct) {
  const MatrixOps& ops = *GetParam();
  const int64_t rows = ops.tile_rows, cols = ops.tile_cols, b_stride = cols + 5,
                c_stride = cols + 3;
  ASSERT_EQ(kGridRows % cols, 0);
  for (const int64_t depth : {0, 1, 2, 3, 17, 256}) {
    for (const float sign : {1.0F, -1.0F}) {
      const Floats a = normals(depth * rows, 1), b = normals(depth * b_stride + cols, 2);
      const Floats before = normals(rows * c_stride, 3);
      Floats c = before;
      ops.multiply_tile(a.data(), b.data(), b_stride, depth, sign, c.data(), c_stride);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < c_stride && i * c_stride + j < rows * c_stride; ++j) {
          const double old = before[at(i * c_stride + j)];
          double sum = 0, magnitude = std::abs(old);
          for (int64_t p = 0; j < cols && p < depth; ++p) {
            const double product =
                static_cast<double>(a[at(p * rows + i)]) * b[at(p * b_stride + j)];
            sum += product;
            magnitude += std::abs(product);
          }
          // Beside the tile nothing may change: there the bound is 0.
          const double bound =
              j < cols ? 1e-7 * magnitude * std::sqrt(static_cast<double>(depth + 1)) : 0;
          ASSERT_NEAR(c[at(i * c_stride + j)], old + static_cast<double>(sign) * sum, bound)
              << ops.name << ' ' << depth << ' ' << i << ' ' << j;
        }
      }
    }
  }
}

struct Columns {
  int64_t n;
  Floats w, feedback, scale, zero, codes, errors, loss;
  explicit Columns(int64_t n_columns, bool own_grids)
      : n(n_columns),
        w(normals(n * kGridRows, 4)),
        feedback(normals(n * (n + 1), 5, 0.3)),
        scale(at((own_grids ? n : 1) * kGridRows)),
        zero(scale.size(), 7),
        codes(w.size(), -1),
        errors(w.size(), -1),
        loss(kGridRows, -1) {
    for (size_t i = 0; i < scale.size(); ++i)
      scale[i] = 0.2F + 0.01F * static_cast<float>(i % 17);
    for (int64_t i = 0; i < n; ++i)
      feedback[at(i * (n + 1) + i)] = 1.5F;
  }
  GridColumns job(bool own_grids) {
    return {n,
            w.data(),
            feedback.data(),
            n + 1,
            scale.data(),
            zero.data(),
            own_grids ? kGridRows : 0,
            15,
            codes.data(),
            errors.data(),
            loss.data()};
  }
};

TEST_P(MatrixTest, ColumnsAreRoundedWithTheErrorsOfThoseBefore) {
  for (const bool own_grids : {false, true}) {
    for (const int64_t n : {1, 2, 5, 31}) {
      Columns x(n, own_grids);
      GetParam()->quantise_columns(x.job(own_grids));
      for (int64_t r = 0; r < kGridRows; ++r) {
        double loss = 0;
        for (int64_t i = 0; i < n; ++i) {
          double v = x.w[at(i * kGridRows + r)];
          for (int64_t j = 0; j < i; ++j)  // the errors as they were computed: codes may not differ
            v += static_cast<double>(x.errors[at(j * kGridRows + r)]) *
                 x.feedback[at(i * (n + 1) + j)];
          const size_t grid = at((own_grids ? i * kGridRows : 0) + r);
          const double scale = x.scale[grid], exact = v / scale;
          const double code = x.codes[at(i * kGridRows + r)];
          ASSERT_EQ(code, std::clamp(std::round(code), 0.0, 15.0));
          const double nearest = std::clamp(exact + 7, 0.0, 15.0);
          ASSERT_LE(std::abs(code - nearest), 0.5 + 1e-4) << i << ' ' << r;
          ASSERT_NEAR(x.errors[at(i * kGridRows + r)], (scale * (code - 7) - v) / 1.5,
                      2e-6 * (1 + std::abs(v)));
          loss += std::pow(static_cast<double>(x.errors[at(i * kGridRows + r)]), 2);
        }
        ASSERT_NEAR(x.loss[at(r)], loss, 1e-5 * loss);
      }
    }
  }
}

TEST_P(MatrixTest, CodesMayBeLeftOut) {
  Columns with(9, false), without(9, false);
  GridColumns job = without.job(false);
  job.codes = nullptr;
  GetParam()->quantise_columns(with.job(false));
  GetParam()->quantise_columns(job);
  EXPECT_EQ(with.errors, without.errors);
  EXPECT_EQ(with.loss, without.loss);
}

INSTANTIATE_TEST_SUITE_P(Isa, MatrixTest, testing::ValuesIn(tables()),
                         [](const auto& row) { return std::string(row.param->name); });

}  // namespace
}  // namespace qw::kernels
