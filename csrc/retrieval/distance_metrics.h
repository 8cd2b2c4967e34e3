// Contract of distance_metrics: rows of distances are ranked and scored as retrieval_metrics.h
// says, with score = -distance, which is exact, so that ties are those of the distances.
#pragma once

#include "retrieval/retrieval_checks.h"

namespace oskt::retrieval {

struct DistanceInputs : Labels {
  Tensor distances;  // [queries, gallery], finite
  int64_t queries, gallery;
};

inline DistanceInputs checked_distances(const Tensor& distances, const Tensor& query_ids,
                                        const Tensor& gallery_ids, const Tensor& query_cameras,
                                        const Tensor& gallery_cameras) {
  constexpr const char* op = "distance_metrics: ";
  check(distances.dim() == 2 && distances.numel() > 0, op,
        "distances must be of rank 2 and not empty, got rank ", distances.dim(), " and ",
        distances.numel(), " entries.");
  check(distances.size(1) <= kMaxGallery, op,
        "distances must have fewer than 2^31 - 1 columns, got ", distances.size(1), ".");
  return {checked_labels(op, distances, distances.size(0), distances.size(1), query_ids,
                         gallery_ids, query_cameras, gallery_cameras),
          torch::stable::contiguous(distances), distances.size(0), distances.size(1)};
}

}  // namespace oskt::retrieval
