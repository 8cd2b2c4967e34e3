// k-reciprocal encoding on CUDA; the steps on sets are the text of k_reciprocal.h, a thread a row.
//
// Bound: N^2 D multiply-adds of the scores (retrieval_metrics_kernel.cu; MSMT17, 93820 rows of
// 2048: 18 T of them), twice what symmetry needs. Nearest lists read each score K + 1 times, from
// L2 where the chunk fits. Everything else is small beside these.
//
//   nearest  one block per row: K rounds, each the first score behind the one before
//   encode   one thread per row writes its set, then one warp per row the weights
//   merge    one thread per row counts, one block sums, one thread per row writes
//   rerank   one block per query: columns in turn, the items of a column side by side, so that sums
//            have one order and need no atomics

#include <cmath>

#include "common/numeric.h"
#include "common/warp.cuh"
#include "retrieval/k_reciprocal_kernel.h"

namespace oskt::retrieval {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers, where ptxas would rather spill

inline unsigned blocks_of(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// ------------------------------------------------------------------------------- nearest lists

template <typename acc_t>
struct Place {
  acc_t score;
  int32_t index;

  __device__ bool precedes(const Place& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

template <typename acc_t>
__device__ Place<acc_t> first_of_warp(Place<acc_t> mine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Place<acc_t> other{__shfl_xor_sync(kFullWarp, mine.score, offset),
                             __shfl_xor_sync(kFullWarp, mine.index, offset)};
    if (other.precedes(mine)) mine = other;
  }
  return mine;
}

template <typename acc_t>
__global__ void __launch_bounds__(kThreads) nearest_kernel(NearestParams<acc_t> p) {
  __shared__ Place<acc_t> firsts[kWarps];
  __shared__ acc_t lows[kWarps];
  const int64_t i = p.first + blockIdx.x;
  const acc_t* score = p.scores + blockIdx.x * p.score_pitch;
  const int32_t rows = static_cast<int32_t>(p.rows);
  const int warp = threadIdx.x / kWarp;
  const Place<acc_t> nobody{-kInfinity<acc_t>, INT32_MAX};

  acc_t low = kInfinity<acc_t>;
  for (int32_t j = threadIdx.x; j < rows; j += kThreads) low = min(low, score[j]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    low = min(low, __shfl_xor_sync(kFullWarp, low, offset));
  }
  if (threadIdx.x % kWarp == 0) lows[warp] = low;
  __syncthreads();  // the lowest score of every warp is there
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) low = min(low, lows[w]);
    const double offset = p.cosine ? 1.0 : static_cast<double>(p.bias[i]);
    p.farthest[i] = offset - static_cast<double>(low);
  }

  Place<acc_t> last{kInfinity<acc_t>, -1};
  for (int64_t k = 0; k < p.length; ++k) {
    Place<acc_t> first = nobody;
    for (int32_t j = threadIdx.x; j < rows; j += kThreads) {
      const Place<acc_t> place{score[j], j};
      if (last.precedes(place) && place.precedes(first)) first = place;
    }
    first = first_of_warp(first);
    if (threadIdx.x % kWarp == 0) firsts[warp] = first;
    __syncthreads();  // the first place of every warp is there
    last = first_of_warp(threadIdx.x % kWarp < kWarps ? firsts[threadIdx.x % kWarp] : nobody);
    // Nobody is left where scores are NaN; every entry must be a row all the same.
    if (threadIdx.x == 0) p.index[i * p.length + k] = min(last.index, rows - 1);
    __syncthreads();  // all warps have read them
  }
}

// ------------------------------------------------------------------------------------ encoding

template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocks) sets_kernel(EncodeParams<acc_t> p) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= p.rows) return;
  p.v.size[i] = p.nearest.members(static_cast<int32_t>(i), p.v.column + i * p.v.pitch);
}

template <typename acc_t>
__global__ void __launch_bounds__(kThreads) weights_kernel(EncodeParams<acc_t> p) {
  const int64_t i = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp;
  if (i >= p.rows) return;  // a whole warp leaves
  const int lane = threadIdx.x % kWarp;
  const acc_t* row = p.features + i * p.pitch;
  acc_t* weight = p.v.weight + i * p.v.pitch;
  double total = 0.0;
  for (int32_t k = 0; k < p.v.size[i]; ++k) {
    const acc_t* other = p.features + p.v.column[i * p.v.pitch + k] * p.pitch;
    double sum = 0.0;
    for (int64_t d = lane; d < p.pitch; d += kWarp) {
      const double a = row[d], b = other[d];
      sum = p.cosine ? fma(a, b, sum) : fma(a - b, a - b, sum);
    }
    sum = warp_sum(sum);
    const double distance = p.cosine ? 1.0 - sum : 0.5 * sum;
    const double raw = exp(-share_of_farthest(distance, p.farthest[i]));
    if (lane == 0) weight[k] = static_cast<acc_t>(raw);
    total += raw;
  }
  __syncwarp();  // lane 0 has written the weights
  for (int32_t k = lane; k < p.v.size[i]; k += kWarp) {
    weight[k] = static_cast<acc_t>(static_cast<double>(weight[k]) / total);
  }
}

struct Nothing {
  OSKT_HOST_DEVICE void operator()(int32_t, double) const {}
};

template <typename acc_t>
struct Entries {
  int32_t* column;
  acc_t* weight;
  int64_t* entry;

  OSKT_HOST_DEVICE void operator()(int32_t c, double mean) const {
    column[*entry] = c;
    weight[*entry] = static_cast<acc_t>(mean);
    ++*entry;
  }
};

template <typename acc_t, typename Emit>
__device__ int64_t merge_row(const MergeParams<acc_t>& p, int64_t i, const Emit& emit) {
  return merge_rows(p.v, p.nearest, static_cast<int32_t>(i), p.mean, p.head + i * p.mean, emit);
}

template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocks) count_kernel(MergeParams<acc_t> p) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < p.rows) p.start[i + 1] = merge_row(p, i, Nothing{});
}

// start[i] = start[1] + .. + start[i], by one block; every thread has a run of rows.
__global__ void __launch_bounds__(kThreads) sum_kernel(int64_t* start, int64_t rows) {
  __shared__ int64_t sums[kThreads];
  const int64_t run = (rows + kThreads - 1) / kThreads;
  const int64_t begin = 1 + threadIdx.x * run, end = min(begin + run, rows + 1);
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += start[i];
  sums[threadIdx.x] = sum;
  __syncthreads();  // all runs are summed
  int64_t before = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) before += sums[t];
  for (int64_t i = begin; i < end; ++i) start[i] = before += start[i];
  if (threadIdx.x == 0) start[0] = 0;
}

template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocks) merge_kernel(MergeParams<acc_t> p) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= p.rows) return;
  int64_t entry = p.start[i];
  merge_row(p, i, Entries<acc_t>{p.column, p.weight, &entry});
}

// ----------------------------------------------------------------------------------- distances

template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocks) rerank_kernel(RerankParams<acc_t> p) {
  const int64_t q = blockIdx.x;
  double* shared = p.shared + q * p.gallery;
  for (int64_t g = threadIdx.x; g < p.gallery; g += kThreads) shared[g] = 0.0;
  for (int64_t entry = p.start[q]; entry < p.start[q + 1]; ++entry) {
    __syncthreads();  // the sums of the column before are there
    const int64_t end = p.item_start[p.column[entry] + 1];
    for (int64_t k = p.item_start[p.column[entry]] + threadIdx.x; k < end; k += kThreads) {
      shared[p.item[k]] += static_cast<double>(min(p.weight[entry], p.item_weight[k]));
    }
  }
  __syncthreads();  // all sums are there
  const double offset = p.cosine ? 1.0 : static_cast<double>(p.query_bias[q]);
  for (int64_t g = threadIdx.x; g < p.gallery; g += kThreads) {
    const double distance = offset - static_cast<double>(p.scores[q * p.score_pitch + g]);
    p.distances[q * p.gallery + g] =
        static_cast<acc_t>(reranked_distance(shared[g], distance, p.farthest[q], p.lambda));
  }
}

}  // namespace

template <typename acc_t>
cudaError_t launch_nearest(const NearestParams<acc_t>& p, cudaStream_t stream) {
  nearest_kernel<acc_t><<<static_cast<unsigned>(p.count), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename acc_t>
cudaError_t launch_encode(const EncodeParams<acc_t>& p, cudaStream_t stream) {
  sets_kernel<acc_t><<<blocks_of(p.rows, kThreads), kThreads, 0, stream>>>(p);
  weights_kernel<acc_t><<<blocks_of(p.rows, kWarps), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename acc_t>
cudaError_t launch_count(const MergeParams<acc_t>& p, cudaStream_t stream) {
  count_kernel<acc_t><<<blocks_of(p.rows, kThreads), kThreads, 0, stream>>>(p);
  sum_kernel<<<1, kThreads, 0, stream>>>(p.start, p.rows);
  return cudaGetLastError();
}

template <typename acc_t>
cudaError_t launch_merge(const MergeParams<acc_t>& p, cudaStream_t stream) {
  merge_kernel<acc_t><<<blocks_of(p.rows, kThreads), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename acc_t>
cudaError_t launch_rerank(const RerankParams<acc_t>& p, cudaStream_t stream) {
  rerank_kernel<acc_t><<<static_cast<unsigned>(p.queries), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

#define OSKT_INSTANTIATE(acc_t)                                                          \
  template cudaError_t launch_nearest<acc_t>(const NearestParams<acc_t>&, cudaStream_t); \
  template cudaError_t launch_encode<acc_t>(const EncodeParams<acc_t>&, cudaStream_t);   \
  template cudaError_t launch_count<acc_t>(const MergeParams<acc_t>&, cudaStream_t);     \
  template cudaError_t launch_merge<acc_t>(const MergeParams<acc_t>&, cudaStream_t);     \
  template cudaError_t launch_rerank<acc_t>(const RerankParams<acc_t>&, cudaStream_t);
OSKT_INSTANTIATE(float)
OSKT_INSTANTIATE(double)
#undef OSKT_INSTANTIATE

}  // namespace oskt::retrieval
