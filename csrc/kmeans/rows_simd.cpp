#include "kmeans/rows_simd.h"

#include <algorithm>

#include "common/gemm_nt.h"
#include "common/host_device.h"
#include "common/numeric.h"
#include "common/simd.h"

namespace oskt::kmeans {
namespace {

// Every function below is one of these templates in a plain function: only those are cloned.

template <typename T>
OSKT_INLINE double add_row_of(const T* row, int64_t dims, double scale, double* sum) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < dims; ++d) {
    const double x = static_cast<double>(row[d]) * scale;
    sum[d] += x;
    squares += x * x;
  }
  return squares;
}

template <typename T>
OSKT_INLINE double sq_dist_of(const T* row, int64_t dims, double scale, const double* mean) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < dims; ++d) {
    const double residual = static_cast<double>(row[d]) * scale - mean[d];
    sum += residual * residual;
  }
  return sum;
}

// Adds to out[t, r] what dimensions `first` to `last` of a panel's row r and of candidate t are
// apart. A row stays in its lane, so that no sum is across.
template <typename T, int kCount>
OSKT_INLINE void add_sq_dists(const T* panel, int64_t first, int64_t last, const T* candidates,
                              int64_t dims, T* out) {
  constexpr int kVectors = 2, kWidth = kPanelWidth<T>;
  typedef T Vector
      __attribute__((vector_size(sizeof(T) * kWidth / kVectors), may_alias, aligned(sizeof(T))));
  Vector* total = reinterpret_cast<Vector*>(out);
  Vector sum[kCount][kVectors];
  for (int t = 0; t < kCount; ++t)
    for (int v = 0; v < kVectors; ++v) sum[t][v] = total[t * kVectors + v];
  for (int64_t d = first; d < last; ++d) {
    const Vector* x = reinterpret_cast<const Vector*>(panel + d * kWidth);
    for (int t = 0; t < kCount; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        const Vector residual = x[v] - candidates[t * dims + d];
        sum[t][v] += residual * residual;
      }
    }
  }
  for (int t = 0; t < kCount; ++t)
    for (int v = 0; v < kVectors; ++v) total[t * kVectors + v] = sum[t][v];
}

template <typename T>
OSKT_INLINE void sq_dists_of(const T* panel, int64_t dims, const T* candidates, int64_t count,
                             T* out) {
  constexpr int kAtOnce = 3;       // their sums, and the panel's numbers, fit AVX2's registers
  constexpr int64_t kChunk = 128;  // dimensions of a panel that stay in L1 while candidates pass
  std::fill_n(out, count * kPanelWidth<T>, T(0));
  for (int64_t first = 0; first < dims; first += kChunk) {
    const int64_t last = std::min(first + kChunk, dims);
    for (int64_t t = 0; t < count; t += kAtOnce) {
      const T* some = candidates + t * dims;
      T* to = out + t * kPanelWidth<T>;
      const int64_t left = count - t;
      if (left >= kAtOnce) add_sq_dists<T, kAtOnce>(panel, first, last, some, dims, to);
      if (left == 2) add_sq_dists<T, 2>(panel, first, last, some, dims, to);
      if (left == 1) add_sq_dists<T, 1>(panel, first, last, some, dims, to);
    }
  }
}

template <typename T>
OSKT_INLINE double sum_of_minima_of(const T* a, const T* b, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(std::min(a[i], b[i]));
  return sum;
}

template <typename T>
OSKT_INLINE void pack_panel_of(const T* const* rows, int64_t filled, int64_t dims,
                               const double* scale, const T* offset, T* panel) {
  constexpr int64_t kWidth = kPanelWidth<T>, kRun = 16;
  alignas(64) T buffer[kWidth][kRun] = {};  // rows in contiguous runs, then read across
  for (int64_t start = 0; start < dims; start += kRun) {
    const int64_t count = std::min(kRun, dims - start);
    for (int64_t r = 0; r < filled; ++r) {
      const T factor = static_cast<T>(scale[r]);
      const T *in = rows[r] + start, *shift = offset + start;
      if (count == kRun) {
#pragma omp simd
        for (int64_t d = 0; d < kRun; ++d) buffer[r][d] = in[d] * factor - shift[d];
      } else {
        for (int64_t d = 0; d < count; ++d) buffer[r][d] = in[d] * factor - shift[d];
      }
    }
    T* out = panel + start * kWidth;
    for (int64_t d = 0; d < count; ++d, out += kWidth) {
#pragma GCC unroll 32
      for (int64_t r = 0; r < kWidth; ++r) out[r] = buffer[r][d];
    }
  }
}

template <typename T>
OSKT_INLINE void write_mirrored_of(const T* block, int64_t block_stride, int64_t rows,
                                   int64_t columns, bool diagonal, T* out, T* mirrored,
                                   int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(block + r * block_stride, diagonal ? r + 1 : columns, out + r * stride);
  }
  constexpr int64_t kSide = 16;  // lines of the block that are read side by side
  for (int64_t r0 = 0; r0 < rows; r0 += kSide) {
    const int64_t last = std::min(r0 + kSide, rows);
    for (int64_t c = 0; c < (diagonal ? last : columns); ++c) {
      const int64_t first = diagonal ? std::max(r0, c + 1) : r0;
      T* to = mirrored + c * stride;
      if (last - first == kSide) {
#pragma GCC unroll 16
        for (int64_t r = 0; r < kSide; ++r) to[r0 + r] = block[(r0 + r) * block_stride + c];
      } else {
        for (int64_t r = first; r < last; ++r) to[r] = block[r * block_stride + c];
      }
    }
  }
}

// Rows lie side by side, so that each stays in its lane while the columns pass.
template <typename T>
OSKT_INLINE void nearest_of_all(const T* product, int64_t stride, int64_t rows, int64_t columns,
                                int64_t first, const T* square, const T* grown, const T* base,
                                const int32_t* own, T* best, int32_t* arg) {
  for (int64_t c = 0; c < columns; ++c, product += stride) {
    const int32_t label = static_cast<int32_t>(first + c);
    const auto lower_to = [&](int64_t r, T value, bool allowed) {
      const bool nearer = value < best[r] && allowed;
      best[r] = nearer ? value : best[r];
      arg[r] = nearer ? label : arg[r];
    };
    if (own == nullptr) {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) lower_to(r, base[r] + (square[c] - 2 * product[r]), true);
    } else {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r)
        lower_to(r, grown[c] * (base[r] + (square[c] - 2 * product[r])), own[r] != label);
    }
  }
}

}  // namespace

#define OSKT_ROW_PASSES(T)                                                                         \
  OSKT_SIMD_CLONES double add_row(const T* row, int64_t dims, double scale, double* sum) {         \
    return add_row_of(row, dims, scale, sum);                                                      \
  }                                                                                                \
  OSKT_SIMD_CLONES double sq_dist_to(const T* row, int64_t dims, double scale,                     \
                                     const double* mean) {                                         \
    return sq_dist_of(row, dims, scale, mean);                                                     \
  }                                                                                                \
  OSKT_SIMD_CLONES void sq_dists_to(const T* panel, int64_t dims, const T* candidates,             \
                                    int64_t count, T* out) {                                       \
    sq_dists_of(panel, dims, candidates, count, out);                                              \
  }                                                                                                \
  OSKT_SIMD_CLONES double sum_of_minima(const T* a, const T* b, int64_t count) {                   \
    return sum_of_minima_of(a, b, count);                                                          \
  }                                                                                                \
  OSKT_SIMD_CLONES void pack_panel(const T* const* rows, int64_t filled, int64_t dims,             \
                                   const double* scale, const T* offset, T* panel) {               \
    pack_panel_of(rows, filled, dims, scale, offset, panel);                                       \
  }                                                                                                \
  OSKT_SIMD_CLONES void write_mirrored(const T* block, int64_t block_stride, int64_t rows,         \
                                       int64_t columns, bool diagonal, T* out, T* mirrored,        \
                                       int64_t stride) {                                           \
    write_mirrored_of(block, block_stride, rows, columns, diagonal, out, mirrored, stride);        \
  }                                                                                                \
  OSKT_SIMD_CLONES void nearest_of(                                                                \
      const T* product, int64_t stride, int64_t rows, int64_t columns, int64_t first,              \
      const T* square, const T* grown, const T* base, const int32_t* own, T* best, int32_t* arg) { \
    nearest_of_all(product, stride, rows, columns, first, square, grown, base, own, best, arg);    \
  }

OSKT_ROW_PASSES(float)
OSKT_ROW_PASSES(double)

}  // namespace oskt::kmeans
