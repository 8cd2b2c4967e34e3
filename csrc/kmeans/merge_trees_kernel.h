// The launcher of merge_trees_kernel.cu and its table; no torch, so that nvcc sees plain structs.
#pragma once

#include "kmeans/gram_kernel.h"
#include "kmeans/ward.h"

namespace oskt::kmeans {

struct TreeProblem : DeviceRows {
  WardTree<double> tree;  // scratch
  Dendrogram out;
};

// Stores the table, batch.size problems on the host, and launches every stage on `stream`; returns
// the first launch error. Nothing of the host is read after it returns.
cudaError_t launch_merge_trees(const TreeProblem* table, const DeviceGrams<TreeProblem>& batch,
                               cudaStream_t stream);

}  // namespace oskt::kmeans
