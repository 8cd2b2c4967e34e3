#pragma once

// Marks a function that the CPU and the CUDA kernels share.
#if defined(__CUDACC__)
#define OSKT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OSKT_HOST_DEVICE inline
#endif
