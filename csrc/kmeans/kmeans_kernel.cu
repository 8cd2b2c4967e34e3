// Batched k-means on CUDA: a ragged batch in seven launches, and one per kTableChunk problems that
// stores their table.
//
// Problem    rows X (N, D) of every problem, K clusters; see kmeans.h for the contract.
// Formula    G = X X^T in float64, then gram_kmeans.h on G.
// Bound      Gram: N^2 D multiply-adds (ResNet-50's 53 weights: 19.5 GFLOP of float64, about 0.6 ms
//            at 34 TFLOP/s). Clustering: latency, K steps of k-means++ with a few block-wide sums
//            each, over rows of G that lie in L2.
// Plan       float64 throughout: products of float32 are exact, so distances need no centring and
//            no compensation. One block per 64 x 64 lower tile of a Gram matrix, mirrored on
//            store; one block per (problem, restart) for the clustering, longest first; one block
//            per cluster for means and inertia.
// Rejected   TF32 (labels differ), float32 with split sums (needs centring, half the digits), one
//            launch per problem (launch latency is the larger cost at these sizes).

#include "common/block_sum.cuh"
#include "common/device_team.cuh"
#include "common/storage.cuh"
#include "kmeans/kmeans_kernel.h"

#include <algorithm>

namespace oskt::kmeans {
namespace {

template <typename S>
__device__ double load(const S* x) {
  return static_cast<double>(load_acc(*x));
}

// The last problem whose running total is not beyond `item`.
template <typename First>
__device__ const DeviceProblem& owner(const DeviceBatch& batch, int64_t item, const First& first) {
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

__device__ Workspace<double> workspace_of(const DeviceProblem& p, int64_t restart, Init init) {
  Workspace<double> workspace;
  workspace.lay_out(p.workspaces + restart * p.workspace_bytes, p.n, p.k, init);
  return workspace;
}

constexpr int kLineThreads = 128;  // of the kernels that walk along a row

// Problems travel as kernel parameters: no copy from host memory, and a captured graph keeps them.
constexpr int64_t kTableChunk = 20;

struct TableChunk {
  DeviceProblem problem[kTableChunk];
  DeviceProblem* to;
};

static_assert(sizeof(TableChunk) <= 4000, "kernel parameters are 4 KB at most");

__global__ void __launch_bounds__(kTableChunk)
    table_kernel(const __grid_constant__ TableChunk chunk) {
  chunk.to[threadIdx.x] = chunk.problem[threadIdx.x];
}

// One block per row: its factor, 1 / length under cosine, else 1.
template <typename S>
__global__ void __launch_bounds__(kLineThreads) scale_kernel(DeviceBatch batch) {
  const DeviceProblem& p =
      owner(batch, blockIdx.x, [](const DeviceProblem& q) { return q.first_row; });
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
template <typename S>
__global__ void __launch_bounds__(GramTraits::kThreads) gram_kernel(DeviceBatch batch) {
  using Traits = GramTraits;
  __shared__ double left[Traits::kDepth][Traits::kStride], right[Traits::kDepth][Traits::kStride];
  const DeviceProblem& p =
      owner(batch, blockIdx.x, [](const DeviceProblem& q) { return q.first_tile; });
  const int64_t tile = blockIdx.x - p.first_tile;
  int64_t tile_i = 0;
  while ((tile_i + 1) * (tile_i + 2) / 2 <= tile) ++tile_i;
  const int64_t i0 = tile_i * Traits::kTile;
  const int64_t j0 = (tile - tile_i * (tile_i + 1) / 2) * Traits::kTile;
  const int64_t n = p.n, dims = p.dims;
  const S* rows = static_cast<const S*>(p.rows);
  const int x = threadIdx.x % Traits::kSide, y = threadIdx.x / Traits::kSide;
  double sum[Traits::kEntries][Traits::kEntries] = {};
  for (int64_t d0 = 0; d0 < dims; d0 += Traits::kDepth) {
    const int64_t d = d0 + threadIdx.x % Traits::kDepth;
#pragma unroll
    for (int q = 0; q < Traits::kLoads; ++q) {
      const int r = threadIdx.x / Traits::kDepth + q * (Traits::kThreads / Traits::kDepth);
      const int64_t i = i0 + r, j = j0 + r;
      const int column = threadIdx.x % Traits::kDepth;
      left[column][r] = i < n && d < dims ? load(rows + i * dims + d) * p.scale[i] : 0.0;
      right[column][r] = j < n && d < dims ? load(rows + j * dims + d) * p.scale[j] : 0.0;
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

// One block per row: the nearest given centre. Warps take centres in turn, lanes the columns.
template <typename S>
__global__ void __launch_bounds__(kLineThreads) nearest_kernel(DeviceBatch batch) {
  constexpr int kWarps = kLineThreads / 32;
  __shared__ Candidate<double> nearest[kWarps];
  const DeviceProblem& p =
      owner(batch, blockIdx.x, [](const DeviceProblem& q) { return q.first_row; });
  const int64_t i = blockIdx.x - p.first_row;
  const S* row = static_cast<const S*>(p.rows) + i * p.dims;
  const S* centers = static_cast<const S*>(p.initial_centers);
  const double scale = p.scale[i];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Candidate<double> best{kInfinity<double>, 0};
  for (int64_t c = warp; c < p.k; c += kWarps) {
    double sum = 0;
    for (int64_t d = lane; d < p.dims; d += 32) {
      const double residual = load(row + d) * scale - load(centers + c * p.dims + d);
      sum += residual * residual;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (sum < best.value) best = {sum, c};
  }
  if (lane == 0) nearest[warp] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    if (precedes(nearest[w], best)) best = nearest[w];
  }
  p.initial_label[i] = static_cast<int32_t>(best.index);
  p.initial_sq_dist[i] = best.value;
}

// One block per (problem, restart).
__global__ void __launch_bounds__(DeviceTeam::kThreads, 1) cluster_kernel(DeviceBatch batch) {
  __shared__ DeviceTeam::Shared shared;
  __shared__ Workspace<double> workspace;  // its pointers would fill the registers
  DeviceTeam team(shared);
  const DeviceProblem& p = batch.problems[blockIdx.x / batch.restarts];
  const int64_t restart = blockIdx.x % batch.restarts;
  team.once([&] { workspace = workspace_of(p, restart, batch.settings.init); });
  if (batch.settings.init == Init::kLabels) {
    team.for_each(p.n, [&](int64_t i) {
      workspace.label[i] = p.initial_label[i];
      workspace.minimum[i] = p.initial_sq_dist[i];
    });
  }
  const Gram<double> gram{p.gram, p.n, p.k};
  const Outcome outcome = GramKmeans<double, DeviceTeam>(team, gram, batch.settings,
                                                         static_cast<uint64_t>(restart), workspace)
                              .run();
  team.once([&] { p.outcome[restart] = outcome; });
}

// One block per problem: the best restart, its labels, and its members for finish_kernel.
__global__ void __launch_bounds__(DeviceTeam::kThreads) select_kernel(DeviceBatch batch) {
  __shared__ DeviceTeam::Shared shared;
  DeviceTeam team(shared);
  const DeviceProblem& p = batch.problems[blockIdx.x];
  int64_t best = 0;
  for (int64_t restart = 1; restart < batch.restarts; ++restart) {
    if (p.outcome[best].worse_than(p.outcome[restart])) best = restart;
  }
  const Workspace<double> workspace = workspace_of(p, best, batch.settings.init);
  team.members(p.n, p.k, workspace.label, workspace.start, workspace.order);
  team.for_each(p.n, [&](int64_t i) { p.labels[i] = workspace.label[i]; });
  team.once([&] {
    *p.best = best;
    *p.n_iter = p.outcome[best].n_iter;
  });
}

// One block per cluster: its mean, and the squared distances of its members to that mean. A thread
// owns columns, so that a mean is summed over ascending members.
template <typename S>
__global__ void __launch_bounds__(kLineThreads) finish_kernel(DeviceBatch batch) {
  const DeviceProblem& p =
      owner(batch, blockIdx.x, [](const DeviceProblem& q) { return q.first_cluster; });
  const int64_t c = blockIdx.x - p.first_cluster;
  const Workspace<double> workspace = workspace_of(p, *p.best, batch.settings.init);
  const int32_t first = workspace.start[c], last = workspace.start[c + 1];
  const S* rows = static_cast<const S*>(p.rows);
  double own = 0;
  for (int64_t d = threadIdx.x; d < p.dims; d += kLineThreads) {
    double mean = 0;
    for (int32_t m = first; m < last; ++m) {
      const int64_t i = workspace.order[m];
      mean += load(rows + i * p.dims + d) * p.scale[i];
    }
    mean /= last - first;
    store_acc(static_cast<S*>(p.centers) + c * p.dims + d, static_cast<acc_of<S>>(mean));
    for (int32_t m = first; m < last; ++m) {
      const int64_t i = workspace.order[m];
      const double residual = load(rows + i * p.dims + d) * p.scale[i] - mean;
      own += residual * residual;
    }
  }
  const double sum = block_sum<kLineThreads>(own);
  if (threadIdx.x == 0) p.partial[c] = sum;
}

__global__ void __launch_bounds__(kLineThreads) inertia_kernel(DeviceBatch batch) {
  const DeviceProblem& p = batch.problems[blockIdx.x];
  double own = 0;
  for (int64_t c = threadIdx.x; c < p.k; c += kLineThreads) own += p.partial[c];
  const double sum = block_sum<kLineThreads>(own);
  if (threadIdx.x == 0) *p.inertia = sum;
}

template <typename S>
cudaError_t launch(const DeviceProblem* table, const DeviceBatch& batch, cudaStream_t stream) {
  const auto grid = [](int64_t blocks) { return static_cast<unsigned>(blocks); };
  for (int64_t first = 0; first < batch.size; first += kTableChunk) {
    const int64_t count = std::min(kTableChunk, batch.size - first);
    TableChunk chunk{};
    std::copy(table + first, table + first + count, chunk.problem);
    chunk.to = batch.problems + first;
    table_kernel<<<1, grid(count), 0, stream>>>(chunk);
  }
  scale_kernel<S><<<grid(batch.rows), kLineThreads, 0, stream>>>(batch);
  gram_kernel<S><<<grid(batch.tiles), GramTraits::kThreads, 0, stream>>>(batch);
  if (batch.settings.init == Init::kLabels) {
    nearest_kernel<S><<<grid(batch.rows), kLineThreads, 0, stream>>>(batch);
  }
  cluster_kernel<<<grid(batch.size * batch.restarts), DeviceTeam::kThreads, 0, stream>>>(batch);
  select_kernel<<<grid(batch.size), DeviceTeam::kThreads, 0, stream>>>(batch);
  finish_kernel<S><<<grid(batch.clusters), kLineThreads, 0, stream>>>(batch);
  inertia_kernel<<<grid(batch.size), kLineThreads, 0, stream>>>(batch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_kmeans(const DeviceProblem* table, const DeviceBatch& batch,
                          cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  if (batch.rows > kMaxBlocks || batch.tiles > kMaxBlocks || batch.clusters > kMaxBlocks ||
      batch.size * batch.restarts > kMaxBlocks) {
    return cudaErrorInvalidConfiguration;
  }
  return dispatch_storage(batch.storage,
                          [&](auto zero) { return launch<decltype(zero)>(table, batch, stream); });
}

}  // namespace oskt::kmeans
