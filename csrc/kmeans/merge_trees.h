// Ward's merge tree of every problem of a ragged batch: the contract that merge_trees_cpu.cpp and
// merge_trees_cuda.cpp share.
//
//   rows             B tensors (N_b, D_b), contiguous, one floating dtype and device,
//                    1 <= N_b <= kMaxRows
//   -> order         B tensors int64 (N_b): the row that position i is once all have split
//      parent        B tensors int64 (N_b): the position that i splits off from, < i; -1 at 0
//      height        B tensors float64 (N_b): what that split takes off the sum of squares, never
//                    rising from position 1 on; 0 at 0. NaN where a squared length is not finite
//
// Stages: the Gram matrix per problem, as for k-means; then ward.h on it alone.
#pragma once

#include <tuple>
#include <vector>

#include "kmeans/row_checks.h"
#include "kmeans/ward.h"

namespace oskt::kmeans {

using MergeTrees = std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

inline Dendrogram dendrogram_of(MergeTrees& trees, std::size_t b) {
  auto& [order, parent, height] = trees;
  return {static_cast<int64_t*>(order[b].mutable_data_ptr()),
          static_cast<int64_t*>(parent[b].mutable_data_ptr()),
          static_cast<double*>(height[b].mutable_data_ptr())};
}

inline MergeTrees new_merge_trees(const std::vector<Tensor>& rows) {
  MergeTrees trees;
  auto& [order, parent, height] = trees;
  for (const Tensor& tensor : rows) {
    const int64_t n = tensor.size(0);
    order.push_back(torch::stable::new_empty(tensor, {n}, ScalarType::Long));
    parent.push_back(torch::stable::new_empty(tensor, {n}, ScalarType::Long));
    height.push_back(torch::stable::new_empty(tensor, {n}, ScalarType::Double));
  }
  return trees;
}

}  // namespace oskt::kmeans
