// The launcher of direct_kernel.cu and its tables; no torch, so that nvcc sees plain structs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kmeans/kmeans_kernel.h"

namespace oskt::kmeans {

inline constexpr int64_t kRowTile = 128;  // rows of a block; DeviceRows::first_tile counts these

struct DirectProblem : DeviceTask {
  int64_t tiles;
  double* tile_sum;      // tiles x dims: the sum of the rows of every tile
  double* tile_squares;  // tiles: their sum of squares
  // What the assignment multiplies, see direct_tile.cuh: bytes of a mean, and of a rounded row.
  int64_t operand_bytes;
  char* rounded_rows;  // n x operand_bytes, or null where rows are not rounded
};

struct DirectBatch : DeviceTasks<DirectProblem> {
  int64_t most_clusters;  // of any problem
  bool rounds;            // products are of rounded rows and means, on tensor cores
};

// Whole vectors of 16 bytes where a row is rounded to its own type, or from float32 to TF32; else
// entries in the type of the sums.
inline int64_t operand_bytes(int64_t dims, Storage storage, bool rounds) {
  if (storage == Storage::kFloat64) return dims * 8;
  const int64_t bytes = rounds && storage != Storage::kFloat32 ? 2 : 4;
  return rounds ? (dims * bytes + 15) / 16 * 16 : dims * bytes;
}

// What a run is at: Lloyd's iterations, Hartigan's passes, or neither.
enum class Phase : int32_t { kLloyd, kHartigan, kDone };

// Scratch of one (problem, restart).
template <typename T>
struct DirectWorkspace {
  Phase* phase;       // 1
  int64_t* n_iter;    // 1
  double* lanes;      // kTeamLanes
  int64_t* chosen;    // trials: the candidates of a step of k-means++
  int32_t* count;     // 1: how many
  int32_t* best;      // 1: which of them is taken
  double* potential;  // trials x tiles: sums of the squared distances that would be left
  double* own;        // tiles: sums of squared distances to the own means
  double* total;      // tiles: sums of `diagonal`
  double* mean;       // k x dims, of the scaled rows
  char* operands;     // k x operand_bytes: mean - offset, rounded if products are
  T* square;          // k: their squared lengths
  T* diagonal;        // n: |row - offset|^2, of the rounded row if products are of such
  T* minimum;         // n: squared distance to the own mean, or a gain
  T* distance;        // trials x n: to the candidates
  int32_t* label;     // n
  int32_t* previous;  // n
  int32_t* size;      // k
  int32_t* touched;   // k: the mean must be summed again

  // Lays the arrays out from `base`, aligned to 64 bytes, and returns the bytes taken.
  OSKT_HOST_DEVICE int64_t lay_out(char* base, int64_t n, int64_t dims, int64_t k,
                                   int64_t operand_bytes, Init init) {
    const int64_t tiles = (n + kRowTile - 1) / kRowTile;
    const int64_t trials = init == Init::kPlusPlus ? trials_of(k) : 0;
    Layout layout{base, 0};
    layout.take(phase, 1);
    layout.take(n_iter, 1);
    layout.take(lanes, kTeamLanes);
    layout.take(chosen, trials);
    layout.take(count, 1);
    layout.take(best, 1);
    layout.take(potential, trials * tiles);
    layout.take(own, tiles);
    layout.take(total, tiles);
    layout.take(mean, k * dims);
    layout.take(operands, k * operand_bytes);
    layout.take(square, k);
    layout.take(diagonal, n);
    layout.take(minimum, n);
    layout.take(distance, trials * n);
    layout.take(label, n);
    layout.take(previous, n);
    layout.take(size, k);
    layout.take(touched, k);
    return layout.used;
  }
};

// As launch_kmeans, without a Gram matrix.
cudaError_t launch_direct(const DirectProblem* table, const DirectBatch& batch,
                          cudaStream_t stream);

}  // namespace oskt::kmeans
