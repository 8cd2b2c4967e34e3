// Glue of retrieval_metrics on CUDA: workspace, then four launches per chunk of queries on the
// current stream, without a host synchronisation.

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <type_traits>

#include "retrieval/rank_cuda.h"

namespace oskt::retrieval {
namespace {

constexpr const char* kOp = "retrieval_metrics";
template <typename acc_t>
struct Rows {
  Tensor rows, bias;

  Rows(const Tensor& features, const Inputs& in, int64_t pitch, cudaStream_t stream)
      : rows(torch::stable::new_empty(features, {features.size(0), pitch}, kAccType<acc_t>)),
        bias(torch::stable::new_empty(features, {features.size(0)}, kAccType<acc_t>)) {
    check_launch(kOp, launch_rows<acc_t>({features.const_data_ptr(), storage_of(kOp, features),
                                          rows.template mutable_data_ptr<acc_t>(),
                                          bias.template mutable_data_ptr<acc_t>(), features.size(0),
                                          in.width, pitch, in.cosine},
                                         stream));
  }
};

template <typename acc_t>
void measure(const Inputs& in, const QueryRows& out, double* cmc, int64_t max_rank,
             cudaStream_t stream) {
  const int64_t pitch = round_up(in.width, kDepth);
  const int64_t score_pitch = round_up(in.gallery, kTile);
  const int64_t chunk = chunk_rows(in.queries, score_pitch);
  const Rows<acc_t> queries(in.query_features, in, pitch, stream);
  const Rows<acc_t> gallery(in.gallery_features, in, pitch, stream);
  const Tensor scores =
      torch::stable::new_empty(in.query_features, {chunk, score_pitch}, kAccType<acc_t>);
  const Tensor workspace = rank_workspace(in, chunk);
  const Tensor first_hit = torch::stable::new_empty(in.query_ids, {in.queries}, ScalarType::Int);

  for (int64_t start = 0; start < in.queries; start += chunk) {
    const int64_t count = std::min(chunk, in.queries - start);
    check_launch(
        kOp, launch_scores<acc_t>(
                 {queries.rows.template const_data_ptr<acc_t>() + start * pitch,
                  gallery.rows.template const_data_ptr<acc_t>(),
                  gallery.bias.template const_data_ptr<acc_t>(),
                  scores.template mutable_data_ptr<acc_t>(), count, in.gallery, pitch, score_pitch},
                 stream));
    check_launch(kOp, launch_ranks(rank_params(in, out, first_hit, workspace,
                                               scores.template mutable_data_ptr<acc_t>(),
                                               score_pitch, start, count),
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
    using acc_t = std::conditional_t<std::is_same_v<decltype(zero), double>, double, float>;
    measure<acc_t>(in, out, cmc.mutable_data_ptr<double>(), max_rank,
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
