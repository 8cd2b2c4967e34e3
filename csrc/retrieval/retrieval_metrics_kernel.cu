// Retrieval metrics on CUDA: for each query the ranks of its hits among G gallery items.
//
//   score(q, g) = <q, g> - bias(g)          rank(p) = 1 + #{kept g before p in (score, index)}
//
// Bound: Q G D multiply-adds; Market-1501 (3368 x 15913 x 512) is 27 G of them, about 1 ms of FP32
// issue on an H100-class GPU. Counting reads each score ceil(P / 8) times for P hits, from L1/L2.
//
// Plan, per chunk of queries (the glue keeps a chunk at 64 MB or one tile row of queries):
//   rows    one warp per feature row: norm in double, converted copy, zero-padded to kDepth
//   scores  one block per 128 x 128 tile (64 x 64 in double): registers 8 x 8 (4 x 4) per thread,
//           operands through two shared buffers; the sum over D ascends, one fused multiply-add
//           at a time, for every element alike: equal gallery rows get bit-equal scores
//   ranks   one block per query: finds hits and junk, counts for 8 hits at once, integers only
//   cmc     one block per place
// Not chosen: tensor cores (TF32 rounds the features: order changes), a library product (its order
// of summation may depend on where a tile lies), sorting (G log G, to use P ranks).

#include <cmath>
#include <type_traits>

#include "common/storage.cuh"
#include "common/warp.cuh"
#include "retrieval/retrieval_metrics.h"
#include "retrieval/retrieval_metrics_kernel.h"

namespace oskt::retrieval {
namespace {

constexpr int kThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------------------- rows

template <typename acc_t, typename scalar_t>
__global__ void __launch_bounds__(kThreads) rows_kernel(RowsParams<acc_t> p) {
  const int64_t i = blockIdx.x * int64_t{kThreads / kWarp} + threadIdx.x / kWarp;
  if (i >= p.count) return;  // a whole warp leaves
  const int lane = threadIdx.x % kWarp;
  const scalar_t* source = static_cast<const scalar_t*>(p.features) + i * p.width;
  acc_t* row = p.rows + i * p.pitch;
  double norm2 = 0.0;
  for (int64_t d = lane; d < p.width; d += kWarp) {
    const double x = load_acc(source[d]);
    norm2 = fma(x, x, norm2);
  }
  norm2 = warp_sum(norm2);
  const double scale = !p.cosine ? 1.0 : norm2 > 0.0 ? 1.0 / sqrt(norm2) : 0.0;
  for (int64_t d = lane; d < p.pitch; d += kWarp) {
    row[d] = d < p.width ? static_cast<acc_t>(load_acc(source[d]) * scale) : acc_t{0};
  }
  if (lane == 0) p.bias[i] = p.cosine ? acc_t{0} : static_cast<acc_t>(0.5 * norm2);
}

// -------------------------------------------------------------------------------------- scores

template <typename acc_t>
struct ScoreTraits {
  static constexpr int kVector = 16 / sizeof(acc_t);  // elements of one 128-bit access
  static constexpr int kGrid = 16;                    // threads along each side of the tile
  static constexpr int kGroups = 2;  // vectors per thread and side, half a tile apart
  static constexpr int kSide = kGrid * kVector * kGroups;
  static constexpr int kPerThread = kVector * kGroups;
  static constexpr int kVectorsPerRow = kDepth / kVector;
  static constexpr int kLoads = kSide * kVectorsPerRow / kThreads;  // vectors per thread and tile
  static constexpr int kStride =
      kSide + kVector;  // padded: transposed float stores meet no bank twice
  static constexpr int kSharedBytes = 2 * 2 * kDepth * kStride * sizeof(acc_t);
  static_assert(kGrid * kGrid == kThreads, "one thread per register block");
  static_assert(kTile % kSide == 0, "buffers filled up to kTile hold whole tiles");
  static_assert(kSide * kVectorsPerRow % kThreads == 0, "equal loads for every thread");
  static_assert(kStride % kVector == 0, "shared rows stay aligned to 16 bytes");
  static_assert(kSharedBytes <= 48 * 1024, "static shared memory");
};

template <typename acc_t>
struct alignas(16) Vector {
  acc_t value[16 / sizeof(acc_t)];
};

// One side of the product: kSide rows, of which kDepth features at a time go through registers
// into shared memory, transposed to [depth][row] so that a thread reads its rows as vectors.
template <typename acc_t>
struct Operand {
  using Traits = ScoreTraits<acc_t>;
  const acc_t* source[Traits::kLoads];
  Vector<acc_t> staged[Traits::kLoads];

  __device__ Operand(const acc_t* rows, int64_t first, int64_t count, int64_t pitch) {
#pragma unroll
    for (int l = 0; l < Traits::kLoads; ++l) {
      const int v = threadIdx.x + l * kThreads;
      const int64_t row = min(first + v / Traits::kVectorsPerRow, count - 1);
      source[l] = rows + row * pitch + v % Traits::kVectorsPerRow * Traits::kVector;
    }
  }

  __device__ void load() {
#pragma unroll
    for (int l = 0; l < Traits::kLoads; ++l) {
      staged[l] = *reinterpret_cast<const Vector<acc_t>*>(source[l]);
      source[l] += kDepth;
    }
  }

  __device__ void store(acc_t (*tile)[Traits::kStride]) const {
#pragma unroll
    for (int l = 0; l < Traits::kLoads; ++l) {
      const int v = threadIdx.x + l * kThreads;
      const int d = v % Traits::kVectorsPerRow * Traits::kVector;
#pragma unroll
      for (int e = 0; e < Traits::kVector; ++e) {
        tile[d + e][v / Traits::kVectorsPerRow] = staged[l].value[e];
      }
    }
  }
};

// A thread's rows of one depth: kGroups vectors, half a tile apart.
template <typename acc_t>
__device__ inline void read_fragment(const acc_t* row, int slot, acc_t* fragment) {
  using Traits = ScoreTraits<acc_t>;
#pragma unroll
  for (int group = 0; group < Traits::kGroups; ++group) {
    const auto vector = *reinterpret_cast<const Vector<acc_t>*>(
        row + (group * Traits::kGrid + slot) * Traits::kVector);
#pragma unroll
    for (int e = 0; e < Traits::kVector; ++e)
      fragment[group * Traits::kVector + e] = vector.value[e];
  }
}

// Two blocks per multiprocessor: 128 registers hold the 64 sums, both fragments and the staging.
template <typename acc_t>
__global__ void __launch_bounds__(kThreads, 2) scores_kernel(ScoreParams<acc_t> p) {
  using Traits = ScoreTraits<acc_t>;
  constexpr int kSide = Traits::kSide, kPerThread = Traits::kPerThread;
  __shared__ alignas(16) acc_t shared_queries[2][kDepth][Traits::kStride];
  __shared__ alignas(16) acc_t shared_gallery[2][kDepth][Traits::kStride];
  const int64_t first_query = int64_t{blockIdx.y} * kSide;
  const int64_t first_item = int64_t{blockIdx.x} * kSide;
  const int query_slot = threadIdx.x / Traits::kGrid, item_slot = threadIdx.x % Traits::kGrid;

  Operand<acc_t> queries(p.queries, first_query, p.query_count, p.pitch);
  Operand<acc_t> gallery(p.gallery, first_item, p.gallery_count, p.pitch);
  queries.load();
  gallery.load();
  queries.store(shared_queries[0]);
  gallery.store(shared_gallery[0]);
  __syncthreads();  // the first buffers are full

  acc_t sum[kPerThread][kPerThread] = {};
  const int64_t steps = p.pitch / kDepth;
  for (int64_t step = 0; step < steps; ++step) {
    const int current = step % 2;
    const bool more = step + 1 < steps;
    if (more) {  // in flight while this buffer is multiplied
      queries.load();
      gallery.load();
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      acc_t query[kPerThread], item[kPerThread];
      read_fragment(shared_queries[current][d], query_slot, query);
      read_fragment(shared_gallery[current][d], item_slot, item);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sum[i][j] = fma(query[i], item[j], sum[i][j]);
      }
    }
    if (more) {  // nobody reads the other buffer: the barrier of the step before saw to it
      queries.store(shared_queries[current ^ 1]);
      gallery.store(shared_gallery[current ^ 1]);
    }
    __syncthreads();  // the other buffers are full, these are read
  }

#pragma unroll
  for (int column_group = 0; column_group < Traits::kGroups; ++column_group) {
    const int64_t column =
        first_item + (column_group * Traits::kGrid + item_slot) * Traits::kVector;
    acc_t bias[Traits::kVector];
#pragma unroll
    for (int e = 0; e < Traits::kVector; ++e)
      bias[e] = p.bias[min(column + e, p.gallery_count - 1)];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t row = first_query +
                          (i / Traits::kVector * Traits::kGrid + query_slot) * Traits::kVector +
                          i % Traits::kVector;
      Vector<acc_t> out;
#pragma unroll
      for (int e = 0; e < Traits::kVector; ++e) {
        out.value[e] = sum[i][column_group * Traits::kVector + e] - bias[e];
      }
      *reinterpret_cast<Vector<acc_t>*>(p.scores + row * p.score_pitch + column) = out;
    }
  }
}

// --------------------------------------------------------------------------------------- ranks

constexpr int kHitsPerPass = 8;  // hits whose ranks one reading of the scores counts

// Lists the hits of the block's query, in any order, and takes junk out of the race.
template <typename acc_t>
__device__ inline void find_hits(const RankParams<acc_t>& p, Identity query, acc_t* score,
                                 int32_t* hits, int32_t* hit_count) {
  for (int64_t g = threadIdx.x; g < p.gallery_count; g += kThreads) {
    const Identity item{p.gallery_ids[g], p.gallery_cameras[g]};
    if (is_junk(query, item)) {
      score[g] = -static_cast<acc_t>(INFINITY);
    } else if (item.id == query.id) {
      hits[atomicAdd(hit_count, 1)] = static_cast<int32_t>(g);
    }
  }
}

template <typename acc_t>
__global__ void __launch_bounds__(kThreads) ranks_kernel(RankParams<acc_t> p) {
  __shared__ int32_t hit_count;
  __shared__ int32_t before[kHitsPerPass];
  const int64_t q = blockIdx.x;
  acc_t* score = p.scores + q * p.score_pitch;
  int32_t* hits = p.workspace + q * 2 * p.gallery_count;
  int32_t* ranks = hits + p.gallery_count;
  if (threadIdx.x == 0) hit_count = 0;
  if (threadIdx.x < kHitsPerPass) before[threadIdx.x] = 0;
  __syncthreads();  // counters are zero
  find_hits(p, Identity{p.query_ids[q], p.query_cameras[q]}, score, hits, &hit_count);
  __syncthreads();  // hits are listed, junk is out

  const int32_t total = hit_count;
  for (int32_t start = 0; start < total; start += kHitsPerPass) {
    int32_t index[kHitsPerPass], count[kHitsPerPass];
    acc_t bound[kHitsPerPass];
#pragma unroll
    for (int j = 0; j < kHitsPerPass; ++j) {
      const bool real = start + j < total;
      index[j] = real ? hits[start + j] : 0;
      bound[j] = real ? score[index[j]] : static_cast<acc_t>(INFINITY);
      count[j] = 0;
    }
    for (int32_t g = threadIdx.x; g < p.gallery_count; g += kThreads) {
      const acc_t s = score[g];
#pragma unroll
      for (int j = 0; j < kHitsPerPass; ++j) {
        count[j] += s > bound[j] || (s == bound[j] && g < index[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kHitsPerPass; ++j) {
      const int32_t sum = warp_sum(count[j]);
      if (threadIdx.x % kWarp == 0) atomicAdd(&before[j], sum);
    }
    __syncthreads();  // all warps have added
    if (threadIdx.x < kHitsPerPass) {
      if (start + static_cast<int32_t>(threadIdx.x) < total) {
        ranks[start + threadIdx.x] = 1 + before[threadIdx.x];
      }
      before[threadIdx.x] = 0;
    }
    __syncthreads();  // ranks are stored, counters are zero again
  }

  // Ranks are distinct, so each one's place among them is a count too; the list takes them sorted.
  for (int32_t h = threadIdx.x; h < total; h += kThreads) {
    const int32_t rank = ranks[h];
    int32_t place = 0;
    for (int32_t j = 0; j < total; ++j) place += ranks[j] < rank;
    hits[place] = rank;
  }
  __syncthreads();  // sorted
  if (threadIdx.x == 0) {
    const double skipped = nan("");
    QueryMetrics metrics{skipped, skipped, skipped};
    if (total > 0) metrics = metrics_of_hits(hits, total);
    p.average_precision[q] = metrics.average_precision;
    p.trapezoid_average_precision[q] = metrics.trapezoid_average_precision;
    p.inverse_negative_penalty[q] = metrics.inverse_negative_penalty;
    p.first_hit[q] = total > 0 ? hits[0] : 0;
  }
}

// ----------------------------------------------------------------------------------------- cmc

__global__ void __launch_bounds__(kThreads)
    cmc_kernel(const int32_t* __restrict__ first_hit, int64_t query_count, double* cmc) {
  __shared__ int32_t found, valid;
  if (threadIdx.x == 0) found = valid = 0;
  __syncthreads();  // counters are zero
  int32_t my_found = 0, my_valid = 0;
  for (int64_t q = threadIdx.x; q < query_count; q += kThreads) {
    const int32_t rank = first_hit[q];
    my_valid += rank > 0;
    my_found += rank > 0 && rank <= blockIdx.x + int64_t{1};
  }
  atomicAdd(&found, my_found);
  atomicAdd(&valid, my_valid);
  __syncthreads();  // all threads have added
  if (threadIdx.x == 0) cmc[blockIdx.x] = static_cast<double>(found) / static_cast<double>(valid);
}

}  // namespace

template <typename acc_t>
cudaError_t launch_rows(const RowsParams<acc_t>& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(p.count, kThreads / kWarp));
  return dispatch_storage(p.storage, [&](auto zero) {
    using scalar_t = decltype(zero);
    if constexpr (std::is_same_v<acc_of<scalar_t>, acc_t>) {
      rows_kernel<acc_t, scalar_t><<<blocks, kThreads, 0, stream>>>(p);
      return cudaGetLastError();
    } else {
      return cudaErrorInvalidValue;  // the other computing type
    }
  });
}

template <typename acc_t>
cudaError_t launch_scores(const ScoreParams<acc_t>& p, cudaStream_t stream) {
  constexpr int kSide = ScoreTraits<acc_t>::kSide;
  const dim3 blocks(static_cast<unsigned>(ceil_div(p.gallery_count, kSide)),
                    static_cast<unsigned>(ceil_div(p.query_count, kSide)));
  scores_kernel<acc_t><<<blocks, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename acc_t>
cudaError_t launch_ranks(const RankParams<acc_t>& p, cudaStream_t stream) {
  ranks_kernel<acc_t><<<static_cast<unsigned>(p.query_count), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_cmc(const int32_t* first_hit, int64_t query_count, double* cmc, int64_t max_rank,
                       cudaStream_t stream) {
  cmc_kernel<<<static_cast<unsigned>(max_rank), kThreads, 0, stream>>>(first_hit, query_count, cmc);
  return cudaGetLastError();
}

#define OSKT_INSTANTIATE(acc_t)                                                       \
  template cudaError_t launch_rows<acc_t>(const RowsParams<acc_t>&, cudaStream_t);    \
  template cudaError_t launch_scores<acc_t>(const ScoreParams<acc_t>&, cudaStream_t); \
  template cudaError_t launch_ranks<acc_t>(const RankParams<acc_t>&, cudaStream_t);
OSKT_INSTANTIATE(float)
OSKT_INSTANTIATE(double)
#undef OSKT_INSTANTIATE

}  // namespace oskt::retrieval
