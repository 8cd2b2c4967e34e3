// Contract of retrieval_metrics: what a query counts, shared by the CPU and the CUDA path.
//
// A gallery item is nearer than another if its score is greater, or equal at a lower index:
//   score(q, g) = <q, g> - bias(g),   cosine:    rows of length 1, bias 0
//                                     euclidean: bias(g) = |g|^2 / 2, so |q-g|^2 = |q|^2 - 2 score
// Terms that are constant per query are left out, so equal gallery rows have equal scores.
// Junk (see is_junk) gets the score -inf and so precedes nothing.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oskt::retrieval {

constexpr int64_t kJunkId = -1;  // Market-1501: a detector box that shows no person

struct Identity {
  int64_t id;
  int64_t camera;
};

// Market protocol: the same person seen by the same camera is neither right nor wrong.
OSKT_HOST_DEVICE bool is_junk(Identity query, Identity item) {
  return item.id == kJunkId || (item.id == query.id && item.camera == query.camera);
}

struct QueryMetrics {
  double average_precision;            // mean over hits of precision at the hit
  double trapezoid_average_precision;  // mean over hits of (precision before + at the hit) / 2
  double inverse_negative_penalty;     // hits / rank of the last hit
};

// Metrics of one query from the 1-based ranks of its hits, ascending; hits > 0. One fixed order of
// summation, so equal ranks give equal bits on every device.
OSKT_HOST_DEVICE QueryMetrics metrics_of_hits(const int32_t* rank, int64_t hits) {
  double precision_sum = 0.0, before_sum = 0.0;
  for (int64_t k = 0; k < hits; ++k) {
    precision_sum += static_cast<double>(k + 1) / rank[k];
    before_sum += rank[k] == 1 ? 1.0 : static_cast<double>(k) / (rank[k] - 1);
  }
  const double n = static_cast<double>(hits);
  return {precision_sum / n, 0.5 * (precision_sum + before_sum) / n, n / rank[hits - 1]};
}

}  // namespace oskt::retrieval
