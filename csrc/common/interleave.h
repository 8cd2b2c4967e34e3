// Several rows read or written as one: element c of row r lies at tile[c * kRows + r], so that a
// sum over scattered columns is a sum of short contiguous vectors, one per column.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define OSKT_WIDE_TRANSPOSE
#endif

namespace oskt {

#if defined(OSKT_WIDE_TRANSPOSE)
// Blocks of 16 x 16 floats, for processors whose registers hold 16: half the time of 4 x 4.
namespace wide {

constexpr int kSide = 16;
typedef float Vector __attribute__((vector_size(4 * kSide), aligned(4), may_alias));
typedef int Lanes __attribute__((vector_size(4 * kSide)));

inline bool available() {
  static const bool found = (__builtin_cpu_init(), __builtin_cpu_supports("avx512f"));
  return found;
}

#define OSKT_WIDE __attribute__((target("avx512f")))

// Swaps the off-diagonal quarters of every block of 2 d x 2 d.
template <int d>
OSKT_WIDE inline __attribute__((always_inline)) void swap_quarters(Vector (&v)[kSide]) {
  Lanes upper, lower;  // lanes of two rows that stand d apart
  for (int c = 0; c < kSide; ++c) {
    upper[c] = c & d ? kSide + c - d : c;
    lower[c] = c & d ? kSide + c : c + d;
  }
  for (int r = 0; r < kSide; ++r)
    if ((r & d) == 0) {
      const Vector a = v[r], b = v[r + d];
      v[r] = __builtin_shuffle(a, b, upper);
      v[r + d] = __builtin_shuffle(a, b, lower);
    }
}

// tile[c * 16 + r] = rows[r][c]; n is a multiple of 16.
OSKT_WIDE inline void interleave(const float* const* rows, int64_t n, float* tile) {
  for (int64_t c = 0; c < n; c += kSide) {
    Vector v[kSide];
    for (int r = 0; r < kSide; ++r) v[r] = *reinterpret_cast<const Vector*>(rows[r] + c);
    swap_quarters<8>(v);
    swap_quarters<4>(v);
    swap_quarters<2>(v);
    swap_quarters<1>(v);
    for (int i = 0; i < kSide; ++i) *reinterpret_cast<Vector*>(tile + (c + i) * kSide) = v[i];
  }
}

#undef OSKT_WIDE

}  // namespace wide
#endif

#if defined(__SSE2__)
// out[r][c] = in[c][r] for a block of 4 x 4; `in` and `out` give the address of a row.
template <typename In, typename Out>
OSKT_INLINE void transpose_block(const In& in, const Out& out) {
  __m128 a = _mm_loadu_ps(in(0)), b = _mm_loadu_ps(in(1));
  __m128 c = _mm_loadu_ps(in(2)), d = _mm_loadu_ps(in(3));
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out(0), a);
  _mm_storeu_ps(out(1), b);
  _mm_storeu_ps(out(2), c);
  _mm_storeu_ps(out(3), d);
}
#endif

// tile[c * kRows + r] = rows[r][c] for c < n. Four rows at a time are read by whole cache lines:
// rows that lie a power of two apart share the sets of a cache.
template <int kRows, typename T>
OSKT_INLINE void interleave(const T* const* rows, int64_t n, T* tile) {
  int64_t c = 0;
#if defined(OSKT_WIDE_TRANSPOSE)
  if constexpr (std::is_same_v<T, float> && kRows == wide::kSide)
    if (wide::available()) wide::interleave(rows, c = n / wide::kSide * wide::kSide, tile);
#endif
#if defined(__SSE2__)
  if constexpr (std::is_same_v<T, float>)
    for (; c + 16 <= n; c += 16)
      for (int r = 0; r < kRows; r += 4)
        for (int64_t at = c; at < c + 16; at += 4)
          transpose_block([&](int i) { return rows[r + i] + at; },
                          [&](int i) { return tile + (at + i) * kRows + r; });
#endif
  for (; c < n; ++c)
    for (int r = 0; r < kRows; ++r) tile[c * kRows + r] = rows[r][c];
}

// rows[r][c] = tile[c * kRows + r] for c < n and r < count.
template <int kRows, typename T, typename Stored>
OSKT_INLINE void deinterleave(const T* tile, int64_t n, int count, Stored* const* rows) {
  int r = 0;
#if defined(__SSE2__)
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Stored, float>)
    for (; r + 4 <= count; r += 4) {
      int64_t c = 0;
      for (; c + 4 <= n; c += 4)
        transpose_block([&](int i) { return tile + (c + i) * kRows + r; },
                        [&](int i) { return rows[r + i] + c; });
      for (; c < n; ++c)
        for (int i = r; i < r + 4; ++i) rows[i][c] = tile[c * kRows + i];
    }
#endif
  for (; r < count; ++r)
    for (int64_t c = 0; c < n; ++c) rows[r][c] = static_cast<Stored>(tile[c * kRows + r]);
}

}  // namespace oskt
