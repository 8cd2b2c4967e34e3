// Distance metrics on the CPU: one copy of a row per thread, turned into scores and ranked.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "common/storage.h"
#include "retrieval/distance_metrics.h"
#include "retrieval/rank_hits.h"

namespace oskt::retrieval {
namespace {

template <typename scalar_t>
void rank_rows(const Tensor& distances, const HitRanker& ranker) {
  using acc_t = acc_of<scalar_t>;
  const auto* data = static_cast<const scalar_t*>(distances.const_data_ptr());
  const int64_t gallery = distances.size(1);
  torch::stable::parallel_for(0, distances.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> score(gallery);
    std::vector<int32_t> rank;
    for (int64_t q = begin; q < end; ++q) {
      const scalar_t* distance = data + q * gallery;
      for (int64_t g = 0; g < gallery; ++g) score[g] = -static_cast<acc_t>(distance[g]);
      ranker.write(q, score.data(), rank);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> distance_metrics_cpu(const Tensor& distances,
                                                                const Tensor& query_ids,
                                                                const Tensor& gallery_ids,
                                                                const Tensor& query_cameras,
                                                                const Tensor& gallery_cameras) {
  const DistanceInputs in =
      checked_distances(distances, query_ids, gallery_ids, query_cameras, gallery_cameras);
  const QueryRows out(in.distances, in.queries);
  const Tensor first_hit = torch::stable::new_empty(in.distances, {in.queries}, ScalarType::Int);
  const HitRanker ranker(in, out, first_hit.mutable_data_ptr<int32_t>());
  dispatch_floating("distance_metrics", distances.scalar_type(),
                    [&](auto zero) { rank_rows<decltype(zero)>(in.distances, ranker); });
  return {first_hit, out.average_precision, out.inverse_negative_penalty,
          out.trapezoid_average_precision};
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("distance_metrics", TORCH_BOX(&oskt::retrieval::distance_metrics_cpu));
}
