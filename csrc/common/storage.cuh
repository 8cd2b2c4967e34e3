// Device side of storage.h: the type behind a Storage, and loads and stores in another precision.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/storage.h"

namespace oskt {

// Named conversions, because torch's build flags take the implicit ones of half types away.
__device__ __forceinline__ double load_acc(double value) { return value; }
__device__ __forceinline__ float load_acc(float value) { return value; }
__device__ __forceinline__ float load_acc(__half value) { return __half2float(value); }
__device__ __forceinline__ float load_acc(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void store_acc(double* to, double value) { *to = value; }
__device__ __forceinline__ void store_acc(float* to, float value) { *to = value; }
__device__ __forceinline__ void store_acc(__half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void store_acc(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}

// Runs body(scalar_t{}) on the host for the type behind `storage`.
template <typename Body>
auto dispatch_storage(Storage storage, Body&& body) {
  switch (storage) {
    case Storage::kFloat64:
      return body(double{});
    case Storage::kFloat16:
      return body(__half{});
    case Storage::kBFloat16:
      return body(__nv_bfloat16{});
    default:
      return body(float{});
  }
}

}  // namespace oskt
