// Counter-based random numbers: a draw is a pure function of its key, so that results depend
// neither on threads nor on what else is in the batch.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oskt {

// The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
OSKT_HOST_DEVICE uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A uniform number in [0, 1) with 53 bits, for (seed, restart, step, trial).
OSKT_HOST_DEVICE double uniform(uint64_t seed, uint64_t restart, uint64_t step, uint64_t trial) {
  const uint64_t bits =
      splitmix64(splitmix64(splitmix64(splitmix64(seed) ^ restart) ^ step) ^ trial);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace oskt
