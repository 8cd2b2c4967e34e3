// Products of a warp on tensor cores of sm_80 and later; code for earlier ones compiles, and traps.
// tests/emulation has its own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace oskt {

// C += A B^T in float32, of 16 rows of A and 8 of B, 32 bytes of each: 16 halves of type S, or 8
// floats rounded to TF32. With g = lane / 4 and t = lane % 4, a lane gives words t and t + 4 of row
// g (a[0], a[2]) and of row g + 8 (a[1], a[3]) of A and of row g of B, and holds the entries
// (g, 2t), (g, 2t + 1), (g + 8, 2t) and (g + 8, 2t + 1) of C.
template <typename S>
__device__ __forceinline__ void mma(float& c0, float& c1, float& c2, float& c3,
                                    const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
#define OSKT_MMA(shape, type)                                                         \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<S, __half>) {
    OSKT_MMA("m16n8k16", "f16");
  } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    OSKT_MMA("m16n8k16", "bf16");
  } else {
    OSKT_MMA("m16n8k8", "tf32");
  }
#undef OSKT_MMA
#endif
}

}  // namespace oskt
