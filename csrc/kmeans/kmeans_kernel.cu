// Batched k-means on CUDA: the Gram stage (gram_kernel.cuh) and five launches for a ragged batch.
//
// Problem    rows X (N, D) of every problem, K clusters; see kmeans.h for the contract.
// Formula    G = X X^T in float64, then gram_kmeans.h on G.
// Bound      latency of the clustering: K steps of k-means++ with a few block-wide sums each, over
//            rows of G that lie in L2; the Gram stage, see there.
// Plan       float64 throughout; one block per (problem, restart) for the clustering, longest
//            first; one block per cluster for means and inertia.
// Rejected   one launch per problem (launch latency is the larger cost at these sizes).

#include "common/block_sum.cuh"
#include "common/device_team.cuh"
#include "common/warp.cuh"
#include "kmeans/gram_kernel.cuh"
#include "kmeans/kmeans_kernel.h"

namespace oskt::kmeans {
namespace {

__device__ Workspace<double> workspace_of(const DeviceProblem& p, int64_t restart, Init init) {
  Workspace<double> workspace;
  workspace.lay_out(p.workspaces + restart * p.workspace_bytes, p.n, p.k, init);
  return workspace;
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
    sum = warp_sum(sum);
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
  launch_grams<S>(table, batch, stream);
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
  if (batch.rows > kMaxBlocks || batch.tiles > kMaxBlocks || batch.clusters > kMaxBlocks ||
      batch.size * batch.restarts > kMaxBlocks) {
    return cudaErrorInvalidConfiguration;
  }
  return dispatch_storage(batch.storage,
                          [&](auto zero) { return launch<decltype(zero)>(table, batch, stream); });
}

}  // namespace oskt::kmeans
