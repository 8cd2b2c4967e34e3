// C = A B^T on one CPU thread, the product under every distance: C[i, j] = sum_d A[i, d] B[j, d].
//
// Rows are packed once into panels of kPanelWidth rows, depth-major: element (d, r) of a panel is
// panel[d * kPanelWidth + r], zero beyond the last row. Any two panels then multiply without
// packing again, so that callers hand out blocks of panels to threads.
//
// Every product is summed over ascending d in chunks of kChunk, by one kernel, wherever i and j
// lie: equal rows give bit-equal products, and C[i, j] of (A, B) is C[j, i] of (B, A).
//
//   std::size_t size = gemm_panel_size<float>(rows, depth);      // numbers, not bytes
//   gemm_pack<float>(rows, depth, [&](int64_t i, int64_t d) { return a[i * stride + d]; }, panels);
//   gemm_nt(a_panels, a_rows, b_panels, b_rows, depth, c, c_stride);
//
// One chunk of a block of 256 x 256 floats is 2 * 256 KB: it stays in the L2 cache of a core.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace oskt {

template <typename T>
inline constexpr int kPanelWidth = 128 / sizeof(T);  // two 64-byte vectors

inline constexpr int kPanelAlignment = 64;  // bytes, of every panel buffer

template <typename T>
inline std::size_t gemm_panel_size(int64_t rows, int64_t depth) {
  const int64_t width = kPanelWidth<T>;
  return static_cast<std::size_t>((rows + width - 1) / width * width * depth);
}

namespace gemm {

inline constexpr int64_t kChunk = 256;      // depth summed in registers
inline constexpr int64_t kBlockRows = 256;  // rows of one cache block

#define OSKT_GEMM_NAME multiply_baseline
#define OSKT_GEMM_TARGET
#define OSKT_GEMM_BYTES 16
#define OSKT_GEMM_ROWS 4
#include "common/gemm_nt_kernel.h"

#if defined(__x86_64__)
#define OSKT_GEMM_NAME multiply_avx2
#define OSKT_GEMM_TARGET __attribute__((target("avx2,fma")))
#define OSKT_GEMM_BYTES 32
#define OSKT_GEMM_ROWS 4
#include "common/gemm_nt_kernel.h"

#define OSKT_GEMM_NAME multiply_avx512
#define OSKT_GEMM_TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define OSKT_GEMM_BYTES 64
#define OSKT_GEMM_ROWS 8
#include "common/gemm_nt_kernel.h"
#endif

template <typename T>
using Multiply = void (*)(const T* a, const T* b, int64_t depth, T* c, int64_t stride, bool add);

// The widest kernel that this processor runs.
template <typename T>
inline Multiply<T> choose_multiply() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw")) {
    return multiply_avx512<T>;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_avx2<T>;
#endif
  return multiply_baseline<T>;
}

}  // namespace gemm

// Packs rows into panels; load(i, d) is the value of row i at d, converted or scaled as it likes.
template <typename T, typename Load>
inline void gemm_pack(int64_t rows, int64_t depth, const Load& load, T* panels) {
  constexpr int64_t kWidth = kPanelWidth<T>, kRun = 16;  // a run is one cache line of a float row
  for (int64_t first = 0; first < rows; first += kWidth, panels += kWidth * depth) {
    const int64_t filled = std::min(kWidth, rows - first);
    for (int64_t start = 0; start < depth; start += kRun) {
      const int64_t end = std::min(start + kRun, depth);
      for (int64_t r = 0; r < filled; ++r) {
        for (int64_t d = start; d < end; ++d) {
          panels[d * kWidth + r] = static_cast<T>(load(first + r, d));
        }
      }
      for (int64_t d = start; d < end; ++d) {
        std::fill(panels + d * kWidth + filled, panels + (d + 1) * kWidth, T(0));
      }
    }
  }
}

// c[i * c_stride + j] = sum_d A[i, d] B[j, d] for i < a_rows, j < b_rows, from packed panels.
// With `lower`, A and B are the same rows and entries with j > i may be left unwritten.
template <typename T>
inline void gemm_nt(const T* a_panels, int64_t a_rows, const T* b_panels, int64_t b_rows,
                    int64_t depth, T* c, int64_t c_stride, bool lower = false) {
  constexpr int64_t kWidth = kPanelWidth<T>;
  static const gemm::Multiply<T> multiply = gemm::choose_multiply<T>();
  alignas(kPanelAlignment) T tile[kWidth * kWidth];
  for (int64_t i0 = 0; i0 < a_rows; i0 += gemm::kBlockRows) {
    const int64_t i1 = std::min(i0 + gemm::kBlockRows, a_rows);
    for (int64_t j0 = 0; j0 < (lower ? i1 : b_rows); j0 += gemm::kBlockRows) {
      const int64_t j1 = std::min(j0 + gemm::kBlockRows, b_rows);
      for (int64_t d = 0; d < std::max<int64_t>(depth, 1); d += gemm::kChunk) {
        const int64_t length = std::min(gemm::kChunk, depth - d);
        for (int64_t i = i0; i < i1; i += kWidth) {
          for (int64_t j = j0; j < (lower ? std::min(j1, i + kWidth) : j1); j += kWidth) {
            const T* left = a_panels + i * depth + d * kWidth;
            const T* right = b_panels + j * depth + d * kWidth;
            const int64_t rows = std::min(kWidth, a_rows - i);
            const int64_t columns = std::min(kWidth, b_rows - j);
            T* out = c + i * c_stride + j;
            if (rows == kWidth && columns == kWidth) {
              multiply(left, right, length, out, c_stride, d > 0);
              continue;
            }
            multiply(left, right, length, tile, kWidth, false);
            for (int64_t r = 0; r < rows; ++r, out += c_stride) {
              const T* in = tile + r * kWidth;
              for (int64_t s = 0; s < columns; ++s) out[s] = d > 0 ? out[s] + in[s] : in[s];
            }
          }
        }
      }
    }
  }
}

}  // namespace oskt
