// Batched k-means on CUDA without Gram matrices: the route for many rows, direct_kmeans.h in grids.
//
// Problem    rows X (N, D) of every problem, K clusters; see kmeans.h for the contract.
// Formula    |x - m|^2 = |x - o|^2 + |m - o|^2 - 2 (x - o) (m - o), o the offset of gram_cpu.h, in
//            float32 for float32 and half types, float64 otherwise; all else by definition.
// Bound      2 N K D operations of the assignment per iteration (N 131072, K 1000, D 128: 34 GFLOP,
//            0.5 ms at 67 TFLOP/s); K passes over the rows for k-means++.
// Plan       grid x runs over what a stage works on (tiles of 128 rows, clusters, problems) of the
//            whole ragged batch, grid y over restarts. Three launches a round for every problem;
//            one that is done returns at once, so that nothing waits for the host and a graph can
//            hold it. The assignment keeps its products and the running minimum in registers: no
//            N x K matrix; direct_tile.cuh has its two kinds, in the type of the sums and, where
//            rounding is allowed, on tensor cores. A mean is the float64 sum of its members in
//            ascending order, found by a scan of the labels: no atomics, no sort.
// Rejected   TF32 and half products unless asked for (labels differ); atomics on means (no two runs
//            alike).

#include <type_traits>

#include "common/block_sum.cuh"
#include "common/device_team.cuh"
#include "common/warp.cuh"
#include "kmeans/direct_kernel.h"
#include "kmeans/direct_tile.cuh"
#include "kmeans/gram_kernel.cuh"

namespace oskt::kmeans {
namespace {

constexpr int kTileThreads = static_cast<int>(kRowTile);  // a thread per row
constexpr int kTileWarps = kTileThreads / kWarp;

template <typename T>
__device__ DirectWorkspace<T> workspace_of(const DirectProblem& p, int64_t restart, Init init) {
  DirectWorkspace<T> workspace;
  workspace.lay_out(p.workspaces + restart * p.workspace_bytes, p.n, p.dims, p.k, p.operand_bytes,
                    init);
  return workspace;
}

// The same in shared memory, where a kernel has no registers to spare for its pointers.
template <typename T>
__device__ void share_workspace(DirectWorkspace<T>& w, const DirectProblem& p,
                                const DirectBatch& batch) {
  if (threadIdx.x == 0) w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  __syncthreads();  // the workspace stands
}

__device__ const DirectProblem& owner_of_tile(const DirectBatch& batch) {
  return owner(batch, blockIdx.x, [](const DirectProblem& q) { return q.first_tile; });
}

__device__ const DirectProblem& owner_of_cluster(const DirectBatch& batch) {
  return owner(batch, blockIdx.x, [](const DirectProblem& q) { return q.first_cluster; });
}

// x * scale, rounded: fused with a subtraction it would keep equal entries apart.
__device__ float scaled(float x, float scale) { return __fmul_rn(x, scale); }
__device__ double scaled(double x, double scale) { return __dmul_rn(x, scale); }

// Row i, column d of the scaled rows.
template <typename S>
__device__ double entry(const DirectProblem& p, int64_t i, int64_t d) {
  return scaled(load(static_cast<const S*>(p.rows) + i * p.dims + d), p.scale[i]);
}

// |x_i - y|^2, y(d) in float64, by one warp; the same in every lane.
template <typename S, typename Y>
__device__ double sq_dist_to(const DirectProblem& p, int64_t i, const Y& y) {
  double sum = 0;
  for (int64_t d = threadIdx.x % kWarp; d < p.dims; d += kWarp) {
    const double residual = entry<S>(p, i, d) - y(d);
    sum += residual * residual;
  }
  return warp_sum(sum);
}

// One block per tile: the sums that the offset is made of.
template <typename S>
__global__ void __launch_bounds__(kTileThreads) tile_sum_kernel(DirectBatch batch) {
  const DirectProblem& p = owner_of_tile(batch);
  const int64_t tile = blockIdx.x - p.first_tile, first = tile * kRowTile;
  const int64_t last = min(first + kRowTile, p.n);
  double own_squares = 0;
  for (int64_t d = threadIdx.x; d < p.dims; d += kTileThreads) {
    double sum = 0;
    for (int64_t i = first; i < last; ++i) {
      const double x = entry<S>(p, i, d);
      sum += x;
      own_squares += x * x;
    }
    p.tile_sum[tile * p.dims + d] = sum;
  }
  const double squares = block_sum<kTileThreads>(own_squares);
  if (threadIdx.x == 0) p.tile_squares[tile] = squares;
}

// One block per problem.
__global__ void __launch_bounds__(kOffsetThreads) tile_offset_kernel(DirectBatch batch) {
  const DirectProblem& p = batch.problems[blockIdx.x];
  const double n = static_cast<double>(p.n);
  double own_squares = 0, own_mean_squares = 0;
  for (int64_t tile = threadIdx.x; tile < p.tiles; tile += kOffsetThreads) {
    own_squares += p.tile_squares[tile];
  }
  for (int64_t d = threadIdx.x; d < p.dims; d += kOffsetThreads) {
    const double* sum_of = p.tile_sum + d;
    double sum = 0;
    for (int64_t tile = 0; tile < p.tiles; ++tile, sum_of += p.dims) sum += *sum_of;
    const double mean = sum / n;
    p.offset[d] = mean;
    own_mean_squares += mean * sum;
  }
  settle_offset(p, own_squares, own_mean_squares);
}

// Entries of an operand, zeros at its end included.
template <typename Tile>
__device__ int64_t entries_of(const DirectProblem& p) {
  return p.operand_bytes / static_cast<int64_t>(sizeof(typename Tile::Operand));
}

// Stores entry d of operand r.
template <typename Tile>
__device__ void put(const DirectProblem& p, char* operands, int64_t r, int64_t d,
                    typename Tile::T x) {
  store_acc(reinterpret_cast<typename Tile::Operand*>(operands + r * p.operand_bytes) + d,
            x / Tile::kUnit);
}

// One block per tile: squared lengths, and the rounded rows; the first tile's sets the run's state.
template <typename Tile>
__global__ void __launch_bounds__(kTileThreads) diagonal_kernel(DirectBatch batch) {
  using S = typename Tile::Stored;
  using T = typename Tile::T;
  __shared__ DirectWorkspace<T> w;
  const DirectProblem& p = owner_of_tile(batch);
  share_workspace(w, p, batch);
  const int64_t first = (blockIdx.x - p.first_tile) * kRowTile;
  for (int64_t i = first + threadIdx.x / kWarp; i < min(first + kRowTile, p.n); i += kTileWarps) {
    double square = 0;
    if constexpr (Tile::kRounds) {
      for (int64_t d = threadIdx.x % kWarp; d < entries_of<Tile>(p); d += kWarp) {
        const double x = d < p.dims ? entry<S>(p, i, d) - p.offset[d] : 0.0;
        const T rounded = Tile::rounded(static_cast<T>(x));
        if (blockIdx.y == 0) put<Tile>(p, p.rounded_rows, i, d, rounded);
        square += static_cast<double>(rounded) * static_cast<double>(rounded);
      }
      square = warp_sum(square);
    } else {
      square = sq_dist_to<S>(p, i, [&](int64_t d) { return p.offset[d]; });
    }
    if (threadIdx.x % kWarp == 0) w.diagonal[i] = static_cast<T>(square);
  }
  if (first == 0 && threadIdx.x == 0) {
    *w.phase = Phase::kLloyd;
    *w.n_iter = 0;
  }
}

// One block per run: the candidates of a step of greedy k-means++.
template <typename T>
__global__ void __launch_bounds__(DeviceTeam::kThreads)
    choose_kernel(DirectBatch batch, int64_t step) {
  __shared__ DeviceTeam::Shared shared;
  DeviceTeam team(shared);
  const DirectProblem& p = batch.problems[blockIdx.x];
  if (step >= p.k) return;
  const uint64_t seed = batch.settings.seed, restart = blockIdx.y;
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  if (step == 0) {
    team.once([&] {
      w.chosen[0] = static_cast<int64_t>(uniform(seed, restart, 0, 0) * p.n);
      *w.count = 1;
    });
    return;
  }
  const bool spent = !prepare_draws(team, p.n, w.minimum, w.lanes);
  const int32_t count = spent ? 1 : trials_of(p.k);
  for (int32_t t = threadIdx.x; t < count; t += DeviceTeam::kThreads) {
    w.chosen[t] = spent ? step : draw_row(p.n, w.minimum, w.lanes, uniform(seed, restart, step, t));
  }
  team.once([&] { *w.count = count; });
}

// One block per tile: its distances to the candidates, and the sums that each would leave.
template <typename S>
__global__ void __launch_bounds__(kTileThreads) measure_kernel(DirectBatch batch, int64_t step) {
  using T = acc_of<S>;
  const DirectProblem& p = owner_of_tile(batch);
  if (step >= p.k) return;
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  const int64_t tile = blockIdx.x - p.first_tile, first = tile * kRowTile;
  const int32_t count = *w.count;
  const S* rows = static_cast<const S*>(p.rows);
  for (int64_t i = first + threadIdx.x / kWarp; i < min(first + kRowTile, p.n); i += kTileWarps) {
    const T scale = static_cast<T>(p.scale[i]);
    for (int32_t t = 0; t < count; ++t) {
      const int64_t j = w.chosen[t];
      const T scale_j = static_cast<T>(p.scale[j]);
      T sum = 0;
      for (int64_t d = threadIdx.x % kWarp; d < p.dims; d += kWarp) {
        const T residual = scaled(load_acc(rows[i * p.dims + d]), scale) -
                           scaled(load_acc(rows[j * p.dims + d]), scale_j);
        sum += residual * residual;
      }
      sum = warp_sum(sum);
      if (threadIdx.x % kWarp == 0) w.distance[t * p.n + i] = sum;
    }
  }
  if (step == 0) return;
  __syncthreads();  // the distances of the tile stand
  const int64_t i = first + threadIdx.x;
  for (int32_t t = 0; t < count; ++t) {
    double left = 0;
    if (i < p.n) left = static_cast<double>(min(w.distance[t * p.n + i], w.minimum[i]));
    const double sum = block_sum<kTileThreads>(left);
    if (threadIdx.x == 0) w.potential[t * p.tiles + tile] = sum;
  }
}

// One block per run: the candidate that leaves the lowest sum.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) best_kernel(DirectBatch batch, int64_t step) {
  const DirectProblem& p = batch.problems[blockIdx.x];
  if (step >= p.k) return;
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  int32_t best = 0;
  double lowest = kInfinity<double>;
  for (int32_t t = 0; step > 0 && t < *w.count; ++t) {
    double own = 0;
    for (int64_t tile = threadIdx.x; tile < p.tiles; tile += kTileThreads) {
      own += w.potential[t * p.tiles + tile];
    }
    const double potential = block_sum<kTileThreads>(own);
    if (potential < lowest) {
      lowest = potential;
      best = t;
    }
  }
  if (threadIdx.x == 0) *w.best = best;
}

// One block per tile: the best candidate becomes a centre.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) keep_kernel(DirectBatch batch, int64_t step) {
  const DirectProblem& p = owner_of_tile(batch);
  if (step >= p.k) return;
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  const int64_t i = (blockIdx.x - p.first_tile) * kRowTile + threadIdx.x;
  if (i >= p.n) return;
  const T distance = w.distance[*w.best * p.n + i];
  if (step > 0 && !(distance < w.minimum[i])) return;
  w.minimum[i] = distance;
  w.label[i] = static_cast<int32_t>(step);
}

// Writes what the assignment reads of the mean of cluster c; the threads have written the mean.
template <typename Tile>
__device__ void centre(const DirectProblem& p, const DirectWorkspace<typename Tile::T>& w,
                       int64_t c) {
  using T = typename Tile::T;
  double own = 0;
  for (int64_t d = threadIdx.x; d < entries_of<Tile>(p); d += kTileThreads) {
    const double mean = d < p.dims ? w.mean[c * p.dims + d] - p.offset[d] : 0.0;
    const T x = Tile::rounded(static_cast<T>(mean));
    put<Tile>(p, w.operands, c, d, x);
    own += static_cast<double>(x) * static_cast<double>(x);
  }
  const double square = block_sum<kTileThreads>(own);
  if (threadIdx.x == 0) w.square[c] = static_cast<T>(square);
}

// One block per cluster: the given centre.
template <typename Tile>
__global__ void __launch_bounds__(kTileThreads) given_kernel(DirectBatch batch) {
  using S = typename Tile::Stored;
  using T = typename Tile::T;
  const DirectProblem& p = owner_of_cluster(batch);
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  const int64_t c = blockIdx.x - p.first_cluster;
  const S* given = static_cast<const S*>(p.initial_centers) + c * p.dims;
  for (int64_t d = threadIdx.x; d < p.dims; d += kTileThreads) {
    w.mean[c * p.dims + d] = load(given + d);
  }
  centre<Tile>(p, w, c);
}

// One block per run: its start, once every row has a label.
template <typename T>
__global__ void __launch_bounds__(DeviceTeam::kThreads) start_kernel(DirectBatch batch) {
  __shared__ DeviceTeam::Shared shared;
  DeviceTeam team(shared);
  const DirectProblem& p = batch.problems[blockIdx.x];
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  if (batch.settings.init == Init::kLabels) {
    team.for_each(p.n, [&](int64_t i) { w.label[i] = w.previous[i]; });
  }
  fill_empty(team, p.n, p.k, w.label, w.minimum, w.size);
  team.for_each(p.k, [&](int64_t c) { w.touched[c] = 1; });
  team.once([&] {
    if (batch.settings.max_iter == 0) *w.phase = Phase::kDone;
  });
}

// One block per cluster: the mean of a touched one, summed over ascending members, which the block
// finds a stretch of labels at a time; a thread owns columns.
template <typename Tile>
__global__ void __launch_bounds__(kTileThreads) mean_kernel(DirectBatch batch) {
  using S = typename Tile::Stored;
  using T = typename Tile::T;
  constexpr int kStretch = 8 * kTileThreads;
  __shared__ int32_t members[kStretch];
  __shared__ int32_t found[kTileWarps];
  __shared__ DirectWorkspace<T> w;
  const DirectProblem& p = owner_of_cluster(batch);
  share_workspace(w, p, batch);
  const int64_t c = blockIdx.x - p.first_cluster;
  if (!w.touched[c]) return;
  for (int64_t d = threadIdx.x; d < p.dims; d += kTileThreads) w.mean[c * p.dims + d] = 0;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t first = 0; first < p.n; first += kStretch) {
    int32_t count = 0;
    for (int part = 0; part < kStretch; part += kTileThreads) {
      const int64_t i = first + part + threadIdx.x;
      const int32_t own = i < p.n && w.label[i] == c ? 1 : 0;
      int32_t place = own;
      for (int step = 1; step < kWarp; step *= 2) {
        const int32_t other = __shfl_up_sync(kFullWarp, place, step);
        if (lane >= step) place += other;
      }
      __syncthreads();  // the counts of the part before are read
      if (lane == kWarp - 1) found[warp] = place;
      __syncthreads();  // the counts of this part stand
      for (int other = 0; other < warp; ++other) place += found[other];
      if (own) members[count + place - 1] = static_cast<int32_t>(i);
      for (int other = 0; other < kTileWarps; ++other) count += found[other];
    }
    __syncthreads();  // the members of the stretch stand
    for (int64_t d = threadIdx.x; count > 0 && d < p.dims; d += kTileThreads) {
      double sum = w.mean[c * p.dims + d];
      for (int32_t m = 0; m < count; ++m) sum += entry<S>(p, members[m], d);
      w.mean[c * p.dims + d] = sum;
    }
    __syncthreads();  // they are used up
  }
  for (int64_t d = threadIdx.x; d < p.dims; d += kTileThreads) {
    w.mean[c * p.dims + d] /= w.size[c];
  }
  centre<Tile>(p, w, c);
  if (threadIdx.x == 0) w.touched[c] = 0;
}

// One block per tile of rows: previous[i] and minimum[i] become the nearest mean and its squared
// distance; in Hartigan's phase the cluster other than the own one that row i would raise least by
// joining, and what moving there would gain.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) assign_kernel(DirectBatch batch) {
  using S = typename Tile::Stored;
  using T = typename Tile::T;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns;
  constexpr T kTwice = 2 * Tile::kUnit * Tile::kUnit;
  __shared__ typename Tile::Slab slab;
  __shared__ DirectWorkspace<T> w;
  const DirectProblem& p = owner_of_tile(batch);
  share_workspace(w, p, batch);
  const Phase phase = *w.phase;
  if (phase == Phase::kDone) return;
  const bool others = phase == Phase::kHartigan;
  const int64_t n = p.n, dims = p.dims, i0 = (blockIdx.x - p.first_tile) * kRowTile;
  T lowest[kRows];
  int32_t nearest[kRows];
#pragma unroll
  for (int e = 0; e < kRows; ++e) {
    lowest[e] = kInfinity<T>;
    nearest[e] = 0;
  }
  for (int64_t c0 = 0; c0 < p.k; c0 += Tile::kColumnTile) {
    T sum[kRows][kColumns] = {};
    for (int64_t d0 = 0; d0 < dims; d0 += Tile::kRowDepth) {
      // Rows that one slab holds stay for all means.
      if (c0 == 0 || dims > Tile::kRowDepth) Tile::load_rows(slab, p, i0, d0);
      const int depth = static_cast<int>(min(int64_t{Tile::kRowDepth}, dims - d0));
      for (int first = 0; first < depth; first += Tile::kDepth) {
        Tile::load_means(slab, p, w.operands, c0, d0 + first);
        __syncthreads();  // the slabs are complete
        Tile::multiply(slab, first, sum);
        __syncthreads();  // they are used up
      }
    }
#pragma unroll
    for (int e = 0; e < kRows; ++e) {
      const int64_t i = i0 + Tile::row(e);
      if (i >= n) continue;
      const T base = w.diagonal[i];
      const int32_t own = others ? w.label[i] : -1;
#pragma unroll
      for (int f = 0; f < kColumns; ++f) {
        const int32_t c = static_cast<int32_t>(c0) + Tile::column(f);
        if (c >= p.k) continue;
        T value = base + (w.square[c] - kTwice * sum[e][f]);
        if (others) value *= w.size[c] / (w.size[c] + T(1));
        if (c == own || !(value < lowest[e])) continue;
        lowest[e] = value;
        nearest[e] = c;
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kRows; ++e) {
    for (int step = Tile::kLanes / 2; step > 0; step /= 2) {
      const Candidate<T> mine{lowest[e], nearest[e]};
      const Candidate<T> other{__shfl_xor_sync(kFullWarp, lowest[e], step),
                               __shfl_xor_sync(kFullWarp, nearest[e], step)};
      if (!precedes(other, mine)) continue;
      lowest[e] = other.value;
      nearest[e] = static_cast<int32_t>(other.index);
    }
    const int64_t i = i0 + Tile::row(e);
    T value = lowest[e] > 0 ? lowest[e] : T(0);
    if (others) {
      const int64_t own = i < n ? w.label[i] : 0;
      double distance = 0;
      for (int64_t d = Tile::lane(); i < n && d < dims; d += Tile::kLanes) {
        const double residual = entry<S>(p, i, d) - w.mean[own * dims + d];
        distance += residual * residual;
      }
      for (int step = Tile::kLanes / 2; step > 0; step /= 2) {
        distance += __shfl_xor_sync(kFullWarp, distance, step);
      }
      const double size = i < n ? w.size[own] : 0;
      value = size > 1 ? static_cast<T>(size / (size - 1) * distance) - value : T(0);
    }
    if (Tile::lane() == 0 && i < n) {
      w.minimum[i] = value;
      w.previous[i] = nearest[e];
    }
  }
}

// Moves single rows where that lowers the inertia by more than rounding could feign; true if any.
template <typename S, typename T>
__device__ bool move_rows(DeviceTeam& team, const DirectProblem& p, const DirectWorkspace<T>& w) {
  const auto sq_dist = [&](int64_t i, int64_t c) {
    const double* mean = w.mean + c * p.dims;
    return team.sum(p.dims, [&](int64_t d) {
      const double residual = entry<S>(p, i, d) - mean[d];
      return residual * residual;
    });
  };
  bool moved = false;
  for (int64_t first = 0; first < p.n; first += kTeamLanes) {
    const int64_t last = min(first + kTeamLanes, p.n);
    const auto gains = [&](int64_t i) { return w.minimum[first + i] > 0 ? 1.0 : 0.0; };
    if (team.sum(last - first, gains) == 0) continue;
    for (int64_t i = first; i < last; ++i) {
      if (!(w.minimum[i] > 0)) continue;
      const int32_t a = w.label[i], b = w.previous[i];
      const double size_a = w.size[a], size_b = w.size[b];
      if (size_a <= 1) continue;
      const double from = sq_dist(i, a), to = sq_dist(i, b);
      const double gain = size_a / (size_a - 1) * from - size_b / (size_b + 1) * to;
      const auto square = [&] {
        return team.sum(p.dims, [&](int64_t d) {
          const double x = entry<S>(p, i, d);
          return x * x;
        });
      };
      if (!worth_moving(gain, from, to, square)) continue;
      double *mean_a = w.mean + a * p.dims, *mean_b = w.mean + b * p.dims;
      // From memory again: sizes that live until here would cost registers, which spill.
      const double of_a = 1 / (w.size[a] - 1.0), of_b = 1 / (w.size[b] + 1.0);
      team.for_each(p.dims, [&](int64_t d) {
        const double x = entry<S>(p, i, d);
        mean_a[d] += (mean_a[d] - x) * of_a;
        mean_b[d] += (x - mean_b[d]) * of_b;
      });
      team.once([&] {
        --w.size[a];
        ++w.size[b];
        w.label[i] = b;
        w.touched[a] = w.touched[b] = 1;
      });
      moved = true;
    }
  }
  return moved;
}

// One block per run: takes the assignment over, and says what comes next.
template <typename S>
__global__ void __launch_bounds__(DeviceTeam::kThreads) settle_kernel(DirectBatch batch) {
  using T = acc_of<S>;
  __shared__ DeviceTeam::Shared shared;
  DeviceTeam team(shared);
  __shared__ DirectWorkspace<T> w;
  const DirectProblem& p = batch.problems[blockIdx.x];
  share_workspace(w, p, batch);
  const Phase phase = *w.phase;
  if (phase == Phase::kDone) return;
  bool moved = false;
  if (phase == Phase::kLloyd) {
    team.for_each(p.n, [&](int64_t i) {
      const int32_t label = w.previous[i];
      w.previous[i] = w.label[i];
      w.label[i] = label;
    });
    fill_empty(team, p.n, p.k, w.label, w.minimum, w.size);
    const auto changed = [&](int64_t i) { return w.label[i] != w.previous[i] ? 1.0 : 0.0; };
    moved = team.sum(p.n, changed) > 0 && !all_at_means(team, p.n, w.minimum, w.diagonal);
    team.for_each(p.n, [&](int64_t i) {
      if (w.label[i] == w.previous[i]) return;
      w.touched[w.label[i]] = 1;
      w.touched[w.previous[i]] = 1;
    });
  } else {
    moved = move_rows<S>(team, p, w);
  }
  team.once([&] {
    ++*w.n_iter;
    if (!moved) {
      const bool goes_on = phase == Phase::kLloyd && batch.settings.hartigan;
      *w.phase = goes_on ? Phase::kHartigan : Phase::kDone;
    }
    if (*w.n_iter == batch.settings.max_iter) *w.phase = Phase::kDone;
  });
}

// One block per tile: squared distances to the own means, by definition.
template <typename S>
__global__ void __launch_bounds__(kTileThreads) own_kernel(DirectBatch batch) {
  using T = acc_of<S>;
  const DirectProblem& p = owner_of_tile(batch);
  const DirectWorkspace<T> w = workspace_of<T>(p, blockIdx.y, batch.settings.init);
  const int64_t tile = blockIdx.x - p.first_tile, first = tile * kRowTile;
  double own = 0, total = 0;
  for (int64_t i = first + threadIdx.x / kWarp; i < min(first + kRowTile, p.n); i += kTileWarps) {
    const double* mean = w.mean + w.label[i] * p.dims;
    const double distance = sq_dist_to<S>(p, i, [&](int64_t d) { return mean[d]; });
    if (threadIdx.x % kWarp != 0) continue;
    own += distance;
    total += static_cast<double>(w.diagonal[i]);
  }
  const double sum = block_sum<kTileThreads>(own), lengths = block_sum<kTileThreads>(total);
  if (threadIdx.x != 0) return;
  w.own[tile] = sum;
  w.total[tile] = lengths;
}

// One block per problem: the best restart and its labels.
template <typename T>
__global__ void __launch_bounds__(DeviceTeam::kThreads) take_kernel(DirectBatch batch) {
  __shared__ DeviceTeam::Shared shared;
  DeviceTeam team(shared);
  const DirectProblem& p = batch.problems[blockIdx.x];
  int64_t best = 0;
  Outcome lowest{};
  for (int64_t restart = 0; restart < batch.restarts; ++restart) {
    const DirectWorkspace<T> w = workspace_of<T>(p, restart, batch.settings.init);
    const double own = team.sum(p.tiles, [&](int64_t tile) { return w.own[tile]; });
    const double total = team.sum(p.tiles, [&](int64_t tile) { return w.total[tile]; });
    const Outcome outcome{own, kRounding<T> * total, *w.n_iter};
    if (restart > 0 && !lowest.worse_than(outcome)) continue;
    lowest = outcome;
    best = restart;
  }
  const DirectWorkspace<T> w = workspace_of<T>(p, best, batch.settings.init);
  team.for_each(p.n, [&](int64_t i) { p.labels[i] = w.label[i]; });
  team.once([&] {
    *p.best = best;
    *p.n_iter = lowest.n_iter;
    *p.inertia = lowest.inertia;
  });
}

// One block per cluster.
template <typename S>
__global__ void __launch_bounds__(kTileThreads) center_kernel(DirectBatch batch) {
  using T = acc_of<S>;
  const DirectProblem& p = owner_of_cluster(batch);
  const DirectWorkspace<T> w = workspace_of<T>(p, *p.best, batch.settings.init);
  const int64_t c = blockIdx.x - p.first_cluster;
  S* center = static_cast<S*>(p.centers) + c * p.dims;
  for (int64_t d = threadIdx.x; d < p.dims; d += kTileThreads) {
    store_acc(center + d, static_cast<T>(w.mean[c * p.dims + d]));
  }
}

template <typename Tile>
cudaError_t launch(const DirectProblem* table, const DirectBatch& batch, cudaStream_t stream) {
  using S = typename Tile::Stored;
  using T = typename Tile::T;
  const auto restarts = static_cast<unsigned>(batch.restarts);
  const dim3 tiles(static_cast<unsigned>(batch.tiles), restarts);
  const dim3 clusters(static_cast<unsigned>(batch.clusters), restarts);
  const dim3 runs(static_cast<unsigned>(batch.size), restarts);
  const dim3 problems(static_cast<unsigned>(batch.size));
  constexpr int kAssign = Tile::kThreads, kTeam = DeviceTeam::kThreads;
  launch_table<S>(table, batch, stream);
  tile_sum_kernel<S><<<tiles.x, kTileThreads, 0, stream>>>(batch);
  tile_offset_kernel<<<problems, kOffsetThreads, 0, stream>>>(batch);
  diagonal_kernel<Tile><<<tiles, kTileThreads, 0, stream>>>(batch);
  if (batch.settings.init == Init::kLabels) {
    given_kernel<Tile><<<clusters, kTileThreads, 0, stream>>>(batch);
    assign_kernel<Tile><<<tiles, kAssign, 0, stream>>>(batch);
  } else {
    for (int64_t step = 0; step < batch.most_clusters; ++step) {
      choose_kernel<T><<<runs, kTeam, 0, stream>>>(batch, step);
      measure_kernel<S><<<tiles, kTileThreads, 0, stream>>>(batch, step);
      best_kernel<T><<<runs, kTileThreads, 0, stream>>>(batch, step);
      keep_kernel<T><<<tiles, kTileThreads, 0, stream>>>(batch, step);
    }
  }
  start_kernel<T><<<runs, kTeam, 0, stream>>>(batch);
  mean_kernel<Tile><<<clusters, kTileThreads, 0, stream>>>(batch);
  for (int32_t round = 0; round < batch.settings.max_iter; ++round) {
    assign_kernel<Tile><<<tiles, kAssign, 0, stream>>>(batch);
    settle_kernel<S><<<runs, kTeam, 0, stream>>>(batch);
    mean_kernel<Tile><<<clusters, kTileThreads, 0, stream>>>(batch);
  }
  own_kernel<S><<<tiles, kTileThreads, 0, stream>>>(batch);
  take_kernel<T><<<problems, kTeam, 0, stream>>>(batch);
  center_kernel<S><<<clusters.x, kTileThreads, 0, stream>>>(batch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_direct(const DirectProblem* table, const DirectBatch& batch,
                          cudaStream_t stream) {
  constexpr int64_t kMaxRestarts = 65535;  // of grid y
  if (batch.rows > kMaxBlocks || batch.tiles > kMaxBlocks || batch.clusters > kMaxBlocks ||
      batch.restarts > kMaxRestarts) {
    return cudaErrorInvalidConfiguration;
  }
  return dispatch_storage(batch.storage, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (!std::is_same_v<S, double>) {
      if (batch.rounds) return launch<TensorTile<S>>(table, batch, stream);
    }
    return launch<FmaTile<S>>(table, batch, stream);
  });
}

}  // namespace oskt::kmeans
