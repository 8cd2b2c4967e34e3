// The passes over whole rows, compiled in rows_simd.cpp for three instruction sets. A row is of
// float or double; x = scale * row throughout. Sums over d are in a fixed order.
#pragma once

#include <cstdint>

namespace oskt::kmeans {

#define OSKT_ROW_PASSES(T)                                                                        \
  /* sum[d] += x[d]; returns |x|^2. */                                                            \
  double add_row(const T* row, int64_t dims, double scale, double* sum);                          \
  /* |x - mean|^2, by definition in float64. */                                                   \
  double sq_dist_to(const T* row, int64_t dims, double scale, const double* mean);                \
  /* out[t, r] = |panel[:, r] - candidates[t, :]|^2 for t < count, by definition in T, of a */    \
  /* panel that pack_panel made. */                                                               \
  void sq_dists_to(const T* panel, int64_t dims, const T* candidates, int64_t count, T* out);     \
  /* The sum of min(a[i], b[i]) over i < count, in float64. */                                    \
  double sum_of_minima(const T* a, const T* b, int64_t count);                                    \
  /* panel[d, r] = scale[r] * rows[r][d] - offset[d] for r < filled, zero up to the width of */   \
  /* the panel; the layout of gemm_nt.h. */                                                       \
  void pack_panel(const T* const* rows, int64_t filled, int64_t dims, const double* scale,        \
                  const T* offset, T* panel);                                                     \
  /* out[r, c] = block[r, c] and mirrored[c, r] = block[r, c]; of a block on the diagonal only */ \
  /* c <= r is read. */                                                                           \
  void write_mirrored(const T* block, int64_t block_stride, int64_t rows, int64_t columns,        \
                      bool diagonal, T* out, T* mirrored, int64_t stride);                        \
  /* Lowers best[r] to the minimum over c of grown[c] (base[r] + square[c] - 2 product[c, r]), */ \
  /* and arg[r] to first + c; the lowest c wins, and c = own[r] - first is left out. `grown` */   \
  /* and `own` may both be null: 1 and none. */                                                   \
  void nearest_of(const T* product, int64_t stride, int64_t rows, int64_t columns, int64_t first, \
                  const T* square, const T* grown, const T* base, const int32_t* own, T* best,    \
                  int32_t* arg);

OSKT_ROW_PASSES(float)
OSKT_ROW_PASSES(double)
#undef OSKT_ROW_PASSES

}  // namespace oskt::kmeans
