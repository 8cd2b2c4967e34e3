// The tables of the Gram stage on CUDA; no torch, so that nvcc sees plain structs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/storage.h"

namespace oskt::kmeans {

// What every table says of a problem. Pointers are on the device; the first_* fields are running
// totals over the problems before this one and say which blocks of a ragged launch are its own.
struct DeviceRows {
  const void* rows;  // n x dims
  int64_t n, dims;
  int64_t first_row, first_tile;
  double* scale;   // n
  double* offset;  // dims, of rows in float64
  double* gram;    // n x n; of the first of several problems of the same rows
};

// A ragged batch of an operator whose problems derive from DeviceRows.
template <typename Problem>
struct DeviceGrams {
  Problem* problems;  // on the device, longest first; written by the launch
  int64_t size, rows, tiles;
  Storage storage;
  bool cosine;
};

inline constexpr int64_t kGramTile = 64;
inline constexpr int64_t kMaxBlocks = 0x7fffffff;

}  // namespace oskt::kmeans
