// Large results: memory that the allocator has just got from the system costs a page fault per
// 4 KB at the first write, more than the write itself.
#pragma once

#include <cstdint>

#include "glue/checks.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace oskt {

// Asks the system for huge pages under a tensor that is about to be written whole. A hint: where it
// is not taken nothing changes.
inline void expect_writes(Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kWorthwhile = 4 << 20;
  const uintptr_t bytes = tensor.numel() * tensor.element_size();
  if (bytes < kWorthwhile) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace oskt
