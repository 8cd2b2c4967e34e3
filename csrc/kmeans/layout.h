#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oskt::kmeans {

// Hands out consecutive arrays, each aligned to 64 bytes; with a null base it only measures.
struct Layout {
  char* base;
  int64_t used;

  template <typename V>
  OSKT_HOST_DEVICE void take(V*& array, int64_t count) {
    array = base ? reinterpret_cast<V*>(base + used) : nullptr;
    used += (count * static_cast<int64_t>(sizeof(V)) + 63) / 64 * 64;
  }
};

}  // namespace oskt::kmeans
