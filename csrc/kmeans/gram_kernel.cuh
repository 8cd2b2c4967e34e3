// The Gram stage on CUDA: G = X X^T of every problem of a ragged batch, in two launches, a third in
// float64, and one per chunk of problems that stores their table.
//
// Bound      N^2 D multiply-adds of float64 (ResNet-50's 53 weights: 19.5 GFLOP, about 0.6 ms at
//            34 TFLOP/s).
// Plan       float64 throughout: products of float32 are exact, so distances need no centring and
//            no compensation; float64 rows are centred as on the CPU (gram_cpu.h). One block per
//            64 x 64 lower tile, mirrored on store.
// Rejected   TF32 (labels differ), float32 with split sums (needs centring, half the digits).
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/block_sum.cuh"
#include "common/storage.cuh"
#include "kmeans/gram_kernel.h"

namespace oskt::kmeans {

template <typename S>
__device__ double load(const S* x) {
  return static_cast<double>(load_acc(*x));
}

// The last problem whose running total is not beyond `item`.
template <typename Problem, typename First>
__device__ const Problem& owner(const DeviceGrams<Problem>& batch, int64_t item,
                                const First& first) {
  int64_t low = 0, high = batch.size - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (first(batch.problems[middle]) <= item) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return batch.problems[low];
}

constexpr int kLineThreads = 128;    // of the kernels that walk along a row
constexpr int kOffsetThreads = 512;  // of the kernel that walks down all columns

// Problems travel as kernel parameters: no copy from host memory, and a captured graph keeps them.
template <typename Problem>
struct TableChunk {
  static constexpr int64_t kProblems = 4000 / sizeof(Problem);
  Problem problem[kProblems];
  Problem* to;
};

template <typename Problem>
__global__ void __launch_bounds__(TableChunk<Problem>::kProblems)
    table_kernel(const __grid_constant__ TableChunk<Problem> chunk) {
  static_assert(sizeof(chunk) <= 4096, "kernel parameters are 4 KB at most");
  chunk.to[threadIdx.x] = chunk.problem[threadIdx.x];
}

// One block per row: its factor, 1 / length under cosine, else 1.
template <typename S, typename Problem>
__global__ void __launch_bounds__(kLineThreads) scale_kernel(DeviceGrams<Problem> batch) {
  const Problem& p = owner(batch, blockIdx.x, [](const Problem& q) { return q.first_row; });
  const int64_t i = blockIdx.x - p.first_row;
  const S* row = static_cast<const S*>(p.rows) + i * p.dims;
  double scale = 1;
  if (batch.cosine) {
    double own = 0;
    for (int64_t d = threadIdx.x; d < p.dims; d += kLineThreads)
      own += load(row + d) * load(row + d);
    const double square = block_sum<kLineThreads>(own);
    if (square > 0) scale = 1 / sqrt(square);
  }
  if (threadIdx.x == 0) p.scale[i] = scale;
}

// Rounds p.offset, the mean of the rows, where it outweighs the spread, else clears it: the rule of
// find_scale_and_offset in gram_cpu.h. A thread owns columns, and brings its part of the sums of
// squares of the rows and of their mean.
template <typename Problem>
__device__ void settle_offset(const Problem& p, double own_squares, double own_mean_squares) {
  const double mean_squares = block_sum<kOffsetThreads>(own_mean_squares);
  const double spread = block_sum<kOffsetThreads>(own_squares) - mean_squares;
  const bool outweighs = mean_squares > spread && spread > 0;  // not where they are not finite
  const double grid = outweighs ? ldexp(1.0, ilogb(sqrt(spread / p.n / p.dims))) : 1.0;
  for (int64_t d = threadIdx.x; d < p.dims; d += kOffsetThreads) {
    p.offset[d] = outweighs ? rint(p.offset[d] / grid) * grid : 0.0;
  }
}

// One block per problem of float64.
template <typename Problem>
__global__ void __launch_bounds__(kOffsetThreads) offset_kernel(DeviceGrams<Problem> batch) {
  const Problem& p = batch.problems[blockIdx.x];
  const int64_t n = p.n, dims = p.dims;
  const double* rows = static_cast<const double*>(p.rows);
  double own_squares = 0, own_mean_squares = 0;
  for (int64_t d = threadIdx.x; d < dims; d += kOffsetThreads) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = rows[i * dims + d] * p.scale[i];
      sum += x;
      own_squares += x * x;
    }
    p.offset[d] = sum / n;
    own_mean_squares += sum / n * sum;
  }
  settle_offset(p, own_squares, own_mean_squares);
}

// 256 threads own 4 x 4 entries each of a 64 x 64 tile, strided by 16 so that a warp's shared
// loads are broadcasts or neighbours; 16 columns of both row blocks lie in shared memory, 16.5 KB.
struct GramTraits {
  static constexpr int kTile = static_cast<int>(kGramTile);
  static constexpr int kDepth = 16;
  static constexpr int kSide = 16;                // threads per side
  static constexpr int kEntries = kTile / kSide;  // entries per thread and side
  static constexpr int kThreads = kSide * kSide;
  static constexpr int kStride = kTile + 1;  // against conflicts when a column is stored
  static constexpr int kLoads = kTile * kDepth / kThreads;
  static_assert(kTile % kSide == 0 && kTile * kDepth % kThreads == 0, "whole entries per thread");
};

// A tile's products are summed over ascending d in one register each: equal rows give equal
// entries, and the mirror image is the same number.
template <typename S, typename Problem>
__global__ void __launch_bounds__(GramTraits::kThreads) gram_kernel(DeviceGrams<Problem> batch) {
  using Traits = GramTraits;
  __shared__ double left[Traits::kDepth][Traits::kStride], right[Traits::kDepth][Traits::kStride];
  const Problem& p = owner(batch, blockIdx.x, [](const Problem& q) { return q.first_tile; });
  const int64_t tile = blockIdx.x - p.first_tile;
  int64_t tile_i = 0;
  while ((tile_i + 1) * (tile_i + 2) / 2 <= tile) ++tile_i;
  const int64_t i0 = tile_i * Traits::kTile;
  const int64_t j0 = (tile - tile_i * (tile_i + 1) / 2) * Traits::kTile;
  const int64_t n = p.n, dims = p.dims;
  const S* rows = static_cast<const S*>(p.rows);
  constexpr bool kCentred = std::is_same_v<S, double>;
  const int x = threadIdx.x % Traits::kSide, y = threadIdx.x / Traits::kSide;
  double sum[Traits::kEntries][Traits::kEntries] = {};
  for (int64_t d0 = 0; d0 < dims; d0 += Traits::kDepth) {
    const int64_t d = d0 + threadIdx.x % Traits::kDepth;
#pragma unroll
    for (int q = 0; q < Traits::kLoads; ++q) {
      const int r = threadIdx.x / Traits::kDepth + q * (Traits::kThreads / Traits::kDepth);
      const int64_t i = i0 + r, j = j0 + r;
      const int column = threadIdx.x % Traits::kDepth;
      const double offset = kCentred && d < dims ? p.offset[d] : 0.0;
      left[column][r] = i < n && d < dims ? load(rows + i * dims + d) * p.scale[i] - offset : 0.0;
      right[column][r] = j < n && d < dims ? load(rows + j * dims + d) * p.scale[j] - offset : 0.0;
    }
    __syncthreads();  // the slab is complete
#pragma unroll
    for (int depth = 0; depth < Traits::kDepth; ++depth) {
      double a[Traits::kEntries], b[Traits::kEntries];
#pragma unroll
      for (int e = 0; e < Traits::kEntries; ++e) {
        a[e] = left[depth][y + e * Traits::kSide];
        b[e] = right[depth][x + e * Traits::kSide];
      }
#pragma unroll
      for (int e = 0; e < Traits::kEntries; ++e) {
#pragma unroll
        for (int f = 0; f < Traits::kEntries; ++f) sum[e][f] += a[e] * b[f];
      }
    }
    __syncthreads();  // the slab is used up
  }
#pragma unroll
  for (int e = 0; e < Traits::kEntries; ++e) {
#pragma unroll
    for (int f = 0; f < Traits::kEntries; ++f) {
      const int64_t i = i0 + y + e * Traits::kSide, j = j0 + x + f * Traits::kSide;
      if (i >= n || j > i) continue;
      p.gram[i * n + j] = sum[e][f];
      p.gram[j * n + i] = sum[e][f];
    }
  }
}

// Stores the table, batch.size problems on the host, and the scale of every row.
template <typename S, typename Problem>
void launch_table(const Problem* table, const DeviceGrams<Problem>& batch, cudaStream_t stream) {
  using Chunk = TableChunk<Problem>;
  for (int64_t first = 0; first < batch.size; first += Chunk::kProblems) {
    const int64_t count = std::min(Chunk::kProblems, batch.size - first);
    Chunk chunk{};
    std::copy(table + first, table + first + count, chunk.problem);
    chunk.to = batch.problems + first;
    table_kernel<<<1, static_cast<unsigned>(count), 0, stream>>>(chunk);
  }
  scale_kernel<S><<<static_cast<unsigned>(batch.rows), kLineThreads, 0, stream>>>(batch);
}

// Stores the table and forms every Gram matrix.
template <typename S, typename Problem>
void launch_grams(const Problem* table, const DeviceGrams<Problem>& batch, cudaStream_t stream) {
  launch_table<S>(table, batch, stream);
  if constexpr (std::is_same_v<S, double>) {
    offset_kernel<<<static_cast<unsigned>(batch.size), kOffsetThreads, 0, stream>>>(batch);
  }
  gram_kernel<S><<<static_cast<unsigned>(batch.tiles), GramTraits::kThreads, 0, stream>>>(batch);
}

}  // namespace oskt::kmeans
