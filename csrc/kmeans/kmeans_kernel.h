// The launcher of kmeans_kernel.cu and its tables; no torch, so that nvcc sees plain structs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/storage.h"
#include "kmeans/gram_kmeans.h"

namespace oskt::kmeans {

// One problem. Pointers are on the device; the first_* fields are running totals over the problems
// before this one and say which blocks of a ragged launch are its own.
struct DeviceProblem {
  const void* rows;             // n x dims
  const void* initial_centers;  // k x dims, or null
  void* centers;                // k x dims
  int64_t* labels;              // n
  double* inertia;              // 1
  int64_t* n_iter;              // 1
  int64_t n, dims, k;
  int64_t first_row, first_tile, first_cluster;
  double* scale;            // n
  double* gram;             // n x n
  double* partial;          // k
  int32_t* initial_label;   // n, or null
  double* initial_sq_dist;  // n, or null
  Outcome* outcome;         // restarts
  int64_t* best;            // 1
  char* workspaces;         // restarts x workspace_bytes
  int64_t workspace_bytes;
};

struct DeviceBatch {
  DeviceProblem* problems;  // on the device, longest first; written by the launch
  int64_t size, rows, tiles, clusters, restarts;
  Storage storage;
  Settings settings;
  bool cosine;
};

inline constexpr int64_t kGramTile = 64;

// Stores the table, batch.size problems on the host, and launches every stage on `stream`; returns
// the first launch error. Nothing of the host is read after it returns.
cudaError_t launch_kmeans(const DeviceProblem* table, const DeviceBatch& batch,
                          cudaStream_t stream);

}  // namespace oskt::kmeans
