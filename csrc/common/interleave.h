// Several rows read or written as one: element c of row r lies at tile[c * kRows + r], so that a
// sum over scattered columns is a sum of short contiguous vectors, one per column.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace oskt {

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
