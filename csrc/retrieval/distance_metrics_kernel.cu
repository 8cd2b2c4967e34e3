// Distance metrics on CUDA: a chunk of distances becomes scores; retrieval_metrics_kernel.cu ranks
// them. Bound: one read and one write of every distance.

#include <type_traits>

#include "common/storage.cuh"
#include "retrieval/distance_metrics_kernel.h"

namespace oskt::retrieval {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // items per thread, kThreads apart

template <typename acc_t, typename scalar_t>
__global__ void __launch_bounds__(kThreads) negate_kernel(NegateParams<acc_t> p) {
  const scalar_t* distance =
      static_cast<const scalar_t*>(p.distances) + blockIdx.y * p.gallery_count;
  acc_t* score = p.scores + blockIdx.y * p.score_pitch;
  const int64_t first = blockIdx.x * int64_t{kThreads * kPerThread} + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t g = first + i * kThreads;
    if (g < p.gallery_count) score[g] = -static_cast<acc_t>(load_acc(distance[g]));
  }
}

}  // namespace

template <typename acc_t>
cudaError_t launch_negate(const NegateParams<acc_t>& p, cudaStream_t stream) {
  constexpr int64_t kPerBlock = kThreads * kPerThread;
  const dim3 blocks(static_cast<unsigned>((p.gallery_count + kPerBlock - 1) / kPerBlock),
                    static_cast<unsigned>(p.query_count));
  return dispatch_storage(p.storage, [&](auto zero) {
    using scalar_t = decltype(zero);
    if constexpr (std::is_same_v<acc_of<scalar_t>, acc_t>) {
      negate_kernel<acc_t, scalar_t><<<blocks, kThreads, 0, stream>>>(p);
      return cudaGetLastError();
    } else {
      return cudaErrorInvalidValue;  // the other computing type
    }
  });
}

template cudaError_t launch_negate<float>(const NegateParams<float>&, cudaStream_t);
template cudaError_t launch_negate<double>(const NegateParams<double>&, cudaStream_t);

}  // namespace oskt::retrieval
