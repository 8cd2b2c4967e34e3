// Glue of distance_metrics on CUDA: two launches per chunk of queries on the current stream,
// without a host synchronisation.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "retrieval/distance_metrics.h"
#include "retrieval/distance_metrics_kernel.h"
#include "retrieval/rank_cuda.h"

namespace oskt::retrieval {
namespace {

constexpr const char* kOp = "distance_metrics";

template <typename scalar_t>
void rank_rows(const DistanceInputs& in, const QueryRows& out, const Tensor& first_hit,
               cudaStream_t stream) {
  using acc_t = acc_of<scalar_t>;
  const int64_t score_pitch = round_up(in.gallery, kTile);
  const int64_t chunk = chunk_rows(in.queries, score_pitch);
  const auto* distances = static_cast<const scalar_t*>(in.distances.const_data_ptr());
  const Tensor scores =
      torch::stable::new_empty(in.distances, {chunk, score_pitch}, kAccType<acc_t>);
  const Tensor workspace = rank_workspace(in, chunk);
  for (int64_t start = 0; start < in.queries; start += chunk) {
    const int64_t count = std::min(chunk, in.queries - start);
    acc_t* score = scores.template mutable_data_ptr<acc_t>();
    check_launch(
        kOp, launch_negate<acc_t>({distances + start * in.gallery, storage_of(kOp, in.distances),
                                   score, count, in.gallery, score_pitch},
                                  stream));
    check_launch(kOp, launch_ranks(rank_params(in, out, first_hit, workspace, score, score_pitch,
                                               start, count),
                                   stream));
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> distance_metrics_cuda(const Tensor& distances,
                                                                 const Tensor& query_ids,
                                                                 const Tensor& gallery_ids,
                                                                 const Tensor& query_cameras,
                                                                 const Tensor& gallery_cameras) {
  const DistanceInputs in =
      checked_distances(distances, query_ids, gallery_ids, query_cameras, gallery_cameras);
  const torch::stable::accelerator::DeviceGuard guard(distances.get_device_index());
  const QueryRows out(in.distances, in.queries);
  const Tensor first_hit = torch::stable::new_empty(in.distances, {in.queries}, ScalarType::Int);
  dispatch_floating(kOp, distances.scalar_type(), [&](auto zero) {
    rank_rows<decltype(zero)>(in, out, first_hit, current_stream(distances));
  });
  return {first_hit, out.average_precision, out.inverse_negative_penalty,
          out.trapezoid_average_precision};
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("distance_metrics", TORCH_BOX(&oskt::retrieval::distance_metrics_cuda));
}
