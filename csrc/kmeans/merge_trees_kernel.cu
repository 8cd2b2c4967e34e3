// Merge trees on CUDA: the Gram stage (gram_kernel.cuh) and one launch for a ragged batch.
//
// Problem    rows X (N, D) of every problem; see merge_trees.h for the contract.
// Formula    G = X X^T in float64, then ward.h on G.
// Bound      latency of the chain: up to 3 N block-wide minima over rows of N distances, one after
//            the other; a merge writes one row, and what it changes in others is fetched when they
//            are next read (ward.h).
// Plan       one block per problem, longest first; the batch is the parallelism.
// Rejected   several blocks per problem (a grid-wide barrier costs more than a minimum), one launch
//            per merge.

#include "common/device_team.cuh"
#include "kmeans/gram_kernel.cuh"
#include "kmeans/merge_trees_kernel.h"

namespace oskt::kmeans {
namespace {

__global__ void __launch_bounds__(DeviceTeam::kThreads, 1)
    tree_kernel(DeviceGrams<TreeProblem> batch) {
  __shared__ DeviceTeam::Shared shared;
  DeviceTeam team(shared);
  const TreeProblem& p = batch.problems[blockIdx.x];
  grow_dendrogram(team, p.gram, p.n, p.tree, p.out);
}

}  // namespace

cudaError_t launch_merge_trees(const TreeProblem* table, const DeviceGrams<TreeProblem>& batch,
                               cudaStream_t stream) {
  if (batch.rows > kMaxBlocks || batch.tiles > kMaxBlocks || batch.size > kMaxBlocks) {
    return cudaErrorInvalidConfiguration;
  }
  return dispatch_storage(batch.storage, [&](auto zero) {
    launch_grams<decltype(zero)>(table, batch, stream);
    tree_kernel<<<static_cast<unsigned>(batch.size), DeviceTeam::kThreads, 0, stream>>>(batch);
    return cudaGetLastError();
  });
}

}  // namespace oskt::kmeans
