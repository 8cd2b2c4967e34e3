#pragma once

// OSKT_INLINE inlines by force: a function that is called keeps one instruction set for all clones
// (simd.h). OSKT_HOST_DEVICE marks functions that the CPU and the CUDA kernels share.
#define OSKT_INLINE inline __attribute__((always_inline))
#if defined(__CUDACC__)
#define OSKT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OSKT_HOST_DEVICE OSKT_INLINE
#endif
