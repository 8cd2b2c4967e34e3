// Stores that bypass the caches, for results larger than them: an ordinary store first reads the
// line that it overwrites.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace oskt {

constexpr int64_t kStreamBytes = 16 << 20;  // results from here on are streamed

// Copies `bytes`; where target and length are multiples of 16, without the target's lines in a
// cache. stream_fence() must follow before another thread reads them.
OSKT_INLINE void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  constexpr int64_t kVector = 16;
  if ((reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(bytes)) % kVector == 0) {
    auto* target = static_cast<__m128i*>(to);
    const auto* source = static_cast<const __m128i*>(from);
    for (int64_t i = 0; i < bytes / kVector; ++i)
      _mm_stream_si128(target + i, _mm_loadu_si128(source + i));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

OSKT_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace oskt
