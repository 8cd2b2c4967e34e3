// The launcher of kmeans_kernel.cu and its tables; no torch, so that nvcc sees plain structs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kmeans/gram_kernel.h"
#include "kmeans/gram_kmeans.h"

namespace oskt::kmeans {

// What both routes know of a problem; see DeviceRows for the convention.
struct DeviceTask : DeviceRows {
  const void* initial_centers;  // k x dims, or null
  void* centers;                // k x dims
  int64_t* labels;              // n
  double* inertia;              // 1
  int64_t* n_iter;              // 1
  int64_t k, first_cluster;
  int64_t* best;     // 1: the restart that is taken
  char* workspaces;  // restarts x workspace_bytes
  int64_t workspace_bytes;
};

struct DeviceProblem : DeviceTask {
  double* partial;          // k
  int32_t* initial_label;   // n, or null
  double* initial_sq_dist;  // n, or null
  Outcome* outcome;         // restarts
};

template <typename Problem>
struct DeviceTasks : DeviceGrams<Problem> {
  int64_t clusters, restarts;
  Settings settings;
};

using DeviceBatch = DeviceTasks<DeviceProblem>;

// Stores the table, batch.size problems on the host, and launches every stage on `stream`; returns
// the first launch error. Nothing of the host is read after it returns.
cudaError_t launch_kmeans(const DeviceProblem* table, const DeviceBatch& batch,
                          cudaStream_t stream);

}  // namespace oskt::kmeans
