// The tie rule of every search: the smaller value wins, among equal values the lower index.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/numeric.h"

namespace oskt {

template <typename T>
struct Candidate {
  T value;
  int64_t index;
};

template <typename T>
OSKT_HOST_DEVICE bool precedes(const Candidate<T>& a, const Candidate<T>& b) {
  return a.value < b.value || (a.value == b.value && a.index < b.index);
}

}  // namespace oskt
