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

template <typename T>
OSKT_INLINE void sq_dists_of(const T* row, int64_t dims, T scale, const T* candidates,
                             int64_t count, T* out) {
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    const T *a = candidates + t * dims, *b = a + dims, *c = b + dims, *e = c + dims;
    T of_a = 0, of_b = 0, of_c = 0, of_e = 0;
#pragma omp simd reduction(+ : of_a, of_b, of_c, of_e)
    for (int64_t d = 0; d < dims; ++d) {
      const T x = row[d] * scale;
      of_a += (x - a[d]) * (x - a[d]);
      of_b += (x - b[d]) * (x - b[d]);
      of_c += (x - c[d]) * (x - c[d]);
      of_e += (x - e[d]) * (x - e[d]);
    }
    out[t] = of_a;
    out[t + 1] = of_b;
    out[t + 2] = of_c;
    out[t + 3] = of_e;
  }
  for (; t < count; ++t) {
    const T* a = candidates + t * dims;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dims; ++d) {
      const T residual = row[d] * scale - a[d];
      sum += residual * residual;
    }
    out[t] = sum;
  }
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

// The lowest of value(0), ..., value(count - 1) in one pass, and the first place where it is. A
// lane holds its lowest and, counted in T so that both fit one kind of vector, where that was.
template <typename T, typename Value>
OSKT_INLINE T first_lowest(int64_t count, const Value& value, int64_t& first) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  alignas(64) T lowest[kLanes], place[kLanes];
  std::fill_n(lowest, kLanes, kInfinity<T>);
  std::fill_n(place, kLanes, T(0));
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const T here = static_cast<T>(c);
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T x = value(c + lane), before = lowest[lane], there = place[lane];
      lowest[lane] = x < before ? x : before;
      place[lane] = x < before ? here : there;
    }
  }
  for (int64_t lane = 0; c + lane < count; ++lane) {
    const T x = value(c + lane);
    if (!(x < lowest[lane])) continue;
    lowest[lane] = x;
    place[lane] = static_cast<T>(c);
  }
  T least = kInfinity<T>, earliest = kInfinity<T>;
#pragma omp simd reduction(min : least)
  for (int64_t lane = 0; lane < kLanes; ++lane) least = std::min(least, lowest[lane]);
#pragma omp simd reduction(min : earliest)
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const T c_of_lane = place[lane] + static_cast<T>(lane);
    earliest = std::min(earliest, lowest[lane] == least ? c_of_lane : kInfinity<T>);
  }
  first = static_cast<int64_t>(earliest);
  return least;
}

template <typename T>
OSKT_INLINE void nearest_of_all(T* product, int64_t stride, int64_t rows, int64_t columns,
                                int64_t first, const T* square, const T* grown, const T* base,
                                const int32_t* own, T* best, int32_t* arg) {
  for (int64_t r = 0; r < rows; ++r, product += stride) {
    if (own != nullptr && own[r] >= first && own[r] < first + columns) {
      product[own[r] - first] = -kInfinity<T>;  // infinitely far
    }
    const T shift = base[r];
    const auto raised = [=](int64_t c) { return shift + (square[c] - 2 * product[c]); };
    const auto grown_by = [=](int64_t c) { return grown[c] * raised(c); };
    int64_t c = 0;
    const T lowest = grown == nullptr ? first_lowest<T>(columns, raised, c)
                                      : first_lowest<T>(columns, grown_by, c);
    if (!(lowest < best[r])) continue;
    best[r] = lowest;
    arg[r] = static_cast<int32_t>(first + c);
  }
}

}  // namespace

#define OSKT_ROW_PASSES(T)                                                                        \
  OSKT_SIMD_CLONES double add_row(const T* row, int64_t dims, double scale, double* sum) {        \
    return add_row_of(row, dims, scale, sum);                                                     \
  }                                                                                               \
  OSKT_SIMD_CLONES double sq_dist_to(const T* row, int64_t dims, double scale,                    \
                                     const double* mean) {                                        \
    return sq_dist_of(row, dims, scale, mean);                                                    \
  }                                                                                               \
  OSKT_SIMD_CLONES void sq_dists_to(const T* row, int64_t dims, T scale, const T* candidates,     \
                                    int64_t count, T* out) {                                      \
    sq_dists_of(row, dims, scale, candidates, count, out);                                        \
  }                                                                                               \
  OSKT_SIMD_CLONES void pack_panel(const T* const* rows, int64_t filled, int64_t dims,            \
                                   const double* scale, const T* offset, T* panel) {              \
    pack_panel_of(rows, filled, dims, scale, offset, panel);                                      \
  }                                                                                               \
  OSKT_SIMD_CLONES void write_mirrored(const T* block, int64_t block_stride, int64_t rows,        \
                                       int64_t columns, bool diagonal, T* out, T* mirrored,       \
                                       int64_t stride) {                                          \
    write_mirrored_of(block, block_stride, rows, columns, diagonal, out, mirrored, stride);       \
  }                                                                                               \
  OSKT_SIMD_CLONES void nearest_of(T* product, int64_t stride, int64_t rows, int64_t columns,     \
                                   int64_t first, const T* square, const T* grown, const T* base, \
                                   const int32_t* own, T* best, int32_t* arg) {                   \
    nearest_of_all(product, stride, rows, columns, first, square, grown, base, own, best, arg);   \
  }

OSKT_ROW_PASSES(float)
OSKT_ROW_PASSES(double)

}  // namespace oskt::kmeans
