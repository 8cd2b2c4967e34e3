// A warp of a CUDA kernel.
#pragma once

namespace oskt {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// A butterfly: every lane ends with the same sum, in the same order in every warp.
template <typename T>
__device__ __forceinline__ T warp_sum(T own) {
  for (int step = kWarp / 2; step > 0; step /= 2) own += __shfl_xor_sync(kFullWarp, own, step);
  return own;
}

}  // namespace oskt
