// How a block of the direct route's assignment (direct_kernel.cu) multiplies a tile of rows by a
// tile of means, slab by slab of their columns. A tile says which rows and columns of the products
// a thread owns (`row`, `column`, both ascending); kLanes neighbouring lanes have the same rows.
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/storage.cuh"
#include "common/warp.cuh"
#include "kmeans/direct_kernel.h"

namespace oskt::kmeans {

// On FMA units, in the type of the sums: 256 threads own 8 rows and 4 means each of a tile of
// 128 x 64 (float64: 8 and 2 of 128 x 32). Entries lie in groups of 16 bytes, so that shared loads
// are vectors; 16 columns of both lie in shared memory, 12.5 KB (20.5). 8 x 8 entries would leave a
// multiprocessor one block.
template <typename S>
struct FmaTile {
  using Stored = S;
  using T = acc_of<S>;
  using Operand = T;  // an entry of a mean, less the offset, as the products read it
  static constexpr bool kRounds = false;  // whether rows are stored as operands, too
  static constexpr T kUnit = 1;           // operands are stored as multiples of it
  static constexpr int kSide = 16, kThreads = kSide * kSide, kLanes = kSide;
  static constexpr int kBlocks = sizeof(T) == 4 ? 2 : 1;  // of a multiprocessor
  static constexpr int kDepth = 16, kRowDepth = kDepth;   // columns of a slab of means, of rows
  static constexpr int kGroup = 16 / static_cast<int>(sizeof(T));
  static constexpr int kRows = static_cast<int>(kRowTile) / kSide, kColumns = kGroup;  // a thread's
  static constexpr int kColumnTile = kSide * kColumns;
  static_assert(kRows % kGroup == 0, "whole vectors per thread");

  struct Slab {
    alignas(16) T rows[kDepth][kRowTile + kGroup];
    alignas(16) T means[kDepth][kColumnTile + kGroup];
  };

  static __device__ int lane() { return threadIdx.x % kSide; }
  static __device__ int row(int e) { return place(threadIdx.x / kSide, e); }
  static __device__ int column(int f) { return place(threadIdx.x % kSide, f); }

  static __device__ T rounded(T x) { return x; }

  static __device__ void load_rows(Slab& slab, const DirectProblem& p, int64_t i0, int64_t d0) {
    const int column = threadIdx.x % kDepth;
    const int64_t d = d0 + column;
    const S* rows = static_cast<const S*>(p.rows);
    const T offset = d < p.dims ? static_cast<T>(p.offset[d]) : T(0);
#pragma unroll
    for (int r = threadIdx.x / kDepth; r < kRowTile; r += kThreads / kDepth) {
      const int64_t i = i0 + r;
      slab.rows[column][r] =
          i < p.n && d < p.dims
              ? load_acc(rows[i * p.dims + d]) * static_cast<T>(p.scale[i]) - offset
              : T(0);
    }
  }

  static __device__ void load_means(Slab& slab, const DirectProblem& p, const char* operands,
                                    int64_t c0, int64_t d0) {
    const int column = threadIdx.x % kDepth;
    const int64_t d = d0 + column;
    const T* means = reinterpret_cast<const T*>(operands);
#pragma unroll
    for (int r = threadIdx.x / kDepth; r < kColumnTile; r += kThreads / kDepth) {
      const int64_t c = c0 + r;
      slab.means[column][r] = c < p.k && d < p.dims ? means[c * p.dims + d] : T(0);
    }
  }

  // Adds the products of a slab of means with the columns from `first` on of the slab of rows.
  static __device__ void multiply(const Slab& slab, int /*first*/, T (&sum)[kRows][kColumns]) {
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
      T a[kRows], b[kColumns];
#pragma unroll
      for (int e = 0; e < kRows; ++e) a[e] = slab.rows[depth][row(e)];
#pragma unroll
      for (int f = 0; f < kColumns; ++f) b[f] = slab.means[depth][column(f)];
#pragma unroll
      for (int e = 0; e < kRows; ++e) {
#pragma unroll
        for (int f = 0; f < kColumns; ++f) sum[e][f] += a[e] * b[f];
      }
    }
  }

 private:
  static __device__ int place(int q, int e) {
    return e / kGroup * (kSide * kGroup) + q * kGroup + e % kGroup;
  }
};

// On tensor cores, of rows and means that are rounded to half types, or to TF32 from float32, once
// the offset is taken off: 4 warps own 32 rows and 64 means each of a tile of 128 x 64. Operands
// are words of 32 bits, whichever type they hold. Rows of up to 128 halves (64 floats) stay in
// shared memory for all means; the padding of 16 bytes spreads the words that a warp reads over all
// banks.
template <typename S>
struct TensorTile {
  using Stored = S;
  using T = float;
  using Operand = S;  // of float32 rows TF32 numbers
  static constexpr bool kRounds = true;
  // A half less the offset, which is rounded to up to 2^16, may be beyond twice the largest half. A
  // quarter of it is stored: no digit is lost from 2^-12 on.
  static constexpr float kUnit = std::is_same_v<S, __half> ? 4 : 1;
  static constexpr int kWarps = 4, kThreads = kWarps * kWarp, kLanes = 4, kBlocks = 4;
  static constexpr int kEntries = 4 / static_cast<int>(sizeof(S));  // of a word
  static constexpr int kRowWords = 64, kMeanWords = 32, kVector = 4, kStepWords = 8;
  static constexpr int kDepth = kMeanWords * kEntries, kRowDepth = kRowWords * kEntries;
  static constexpr int kRows = 4, kColumns = 16, kColumnTile = 64;

  struct alignas(16) Vector {
    uint32_t word[kVector];
  };
  struct Slab {
    alignas(16) uint32_t rows[kRowTile][kRowWords + kVector];
    alignas(16) uint32_t means[kColumnTile][kMeanWords + kVector];
  };

  static __device__ int lane() { return threadIdx.x % kLanes; }
  static __device__ int row(int e) {
    return static_cast<int>(threadIdx.x) / kWarp * (8 * kRows) + 8 * e + in_warp() / kLanes;
  }
  static __device__ int column(int f) { return f / 2 * 8 + 2 * lane() + f % 2; }

  static __device__ float rounded(float x) {
    if constexpr (std::is_same_v<S, float>) {
      // TF32, ties away from 0. A GPU's NaN is all ones, which would carry over into -0.
      return x == x ? __uint_as_float((__float_as_uint(x) + 0x1000u) & ~0x1fffu) : x;
    } else {
      S half;
      store_acc(&half, x / kUnit);
      return load_acc(half) * kUnit;
    }
  }

  static __device__ void load_rows(Slab& slab, const DirectProblem& p, int64_t i0, int64_t d0) {
    load<kRowWords>(slab.rows, p.rounded_rows, p, i0, p.n, d0);
  }
  static __device__ void load_means(Slab& slab, const DirectProblem& p, const char* operands,
                                    int64_t c0, int64_t d0) {
    load<kMeanWords>(slab.means, operands, p, c0, p.k, d0);
  }

  static __device__ void multiply(const Slab& slab, int first, float (&sum)[kRows][kColumns]) {
    const int t = lane(), g = in_warp() / kLanes;
#pragma unroll
    for (int step = 0; step < kMeanWords; step += kStepWords) {
      uint32_t a[kRows / 2][4], b[kColumns / 2][2];
#pragma unroll
      for (int e = 0; e < kRows; ++e) {
        const uint32_t* words = slab.rows[row(e)] + first / kEntries + step;
        a[e / 2][e % 2] = words[t];
        a[e / 2][e % 2 + 2] = words[t + 4];
      }
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) {
        const uint32_t* words = slab.means[8 * j + g] + step;
        b[j][0] = words[t];
        b[j][1] = words[t + 4];
      }
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns / 2; ++j) {
          float* upper = &sum[2 * i][2 * j];
          float* lower = &sum[2 * i + 1][2 * j];
          mma<S>(upper[0], upper[1], lower[0], lower[1], a[i], b[j]);
        }
      }
    }
  }

 private:
  static __device__ int in_warp() { return threadIdx.x % kWarp; }

  // `words` of every operand from column d0 on; zero beyond its end and beyond the last.
  template <int words, int rows>
  static __device__ void load(uint32_t (&to)[rows][words + kVector], const char* operands,
                              const DirectProblem& p, int64_t first, int64_t count, int64_t d0) {
    constexpr int kVectors = words / kVector;
    const int64_t held = p.operand_bytes / static_cast<int64_t>(sizeof(Vector));
    const int64_t start = d0 / (kVector * kEntries);
    const Vector* from = reinterpret_cast<const Vector*>(operands);
#pragma unroll 4
    for (int v = threadIdx.x; v < rows * kVectors; v += kThreads) {
      const int r = v / kVectors, q = v % kVectors;
      const bool there = first + r < count && start + q < held;
      Vector* slot = reinterpret_cast<Vector*>(&to[r][q * kVector]);
      *slot = there ? from[(first + r) * held + start + q] : Vector{};
    }
  }
};

}  // namespace oskt::kmeans
