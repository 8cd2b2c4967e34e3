// The sum over a CUDA block of one value per thread.
#pragma once

namespace oskt {

// In a fixed order, and in every thread: lanes within warps first, then warps.
template <int kThreads>
__device__ double block_sum(double own) {
  static_assert(kThreads % 32 == 0, "warps are whole");
  __shared__ double warps[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) own += __shfl_down_sync(0xffffffffu, own, step);
  __syncthreads();  // the readers of a former sum are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();  // the sums of all warps stand
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += warps[w];
  return total;
}

}  // namespace oskt
