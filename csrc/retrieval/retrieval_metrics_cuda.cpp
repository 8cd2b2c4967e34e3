// Glue of retrieval_metrics on CUDA: workspace, then four launches per chunk of queries on the
// current stream, without a host synchronisation.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "retrieval/rank_cuda.h"

namespace oskt::retrieval {
namespace {

constexpr const char* kOp = "retrieval_metrics";

template <typename acc_t>
void measure(const Inputs& in, const QueryRows& out, double* cmc, int64_t max_rank,
             cudaStream_t stream) {
  const DeviceRows<acc_t> queries(kOp, {in.query_features}, in.cosine, stream);
  const DeviceRows<acc_t> gallery(kOp, {in.gallery_features}, in.cosine, stream);
  const int64_t score_pitch = round_up(in.gallery, kTile);
  const int64_t chunk = chunk_rows(in.queries, score_pitch);
  const Tensor scores =
      torch::stable::new_empty(in.query_features, {chunk, score_pitch}, kAccType<acc_t>);
  const Tensor workspace = rank_workspace(in, chunk);
  const Tensor first_hit = torch::stable::new_empty(in.query_ids, {in.queries}, ScalarType::Int);
  acc_t* score = scores.template mutable_data_ptr<acc_t>();
  for (int64_t start = 0; start < in.queries; start += chunk) {
    const int64_t count = std::min(chunk, in.queries - start);
    multiply(kOp, queries, start, count, gallery, score, score_pitch, stream);
    check_launch(kOp, launch_ranks(rank_params(in, out, first_hit, workspace, score, score_pitch,
                                               start, count),
                                   stream));
  }
  check_launch(kOp,
               launch_cmc(first_hit.const_data_ptr<int32_t>(), in.queries, cmc, max_rank, stream));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> retrieval_metrics_cuda(
    const Tensor& query_features, const Tensor& gallery_features, const Tensor& query_ids,
    const Tensor& gallery_ids, const Tensor& query_cameras, const Tensor& gallery_cameras,
    std::string metric, int64_t max_rank) {
  const Inputs in = checked_inputs(query_features, gallery_features, query_ids, gallery_ids,
                                   query_cameras, gallery_cameras, metric, max_rank);
  const torch::stable::accelerator::DeviceGuard guard(query_features.get_device_index());
  const QueryRows out(in.query_features, in.queries);
  const Tensor cmc = torch::stable::new_empty(in.query_features, {max_rank}, ScalarType::Double);
  dispatch_floating(kOp, query_features.scalar_type(), [&](auto zero) {
    measure<acc_of<decltype(zero)>>(in, out, cmc.mutable_data_ptr<double>(), max_rank,
                                    current_stream(query_features));
  });
  return {cmc, out.average_precision, out.inverse_negative_penalty,
          out.trapezoid_average_precision};
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("retrieval_metrics", TORCH_BOX(&oskt::retrieval::retrieval_metrics_cuda));
}
