// Glue of k_reciprocal on CUDA: workspace and launches on the current stream. k_reciprocal waits
// for the device once, for the number of entries of its result; k_reciprocal_distances never.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "retrieval/k_reciprocal_checks.h"
#include "retrieval/k_reciprocal_kernel.h"
#include "retrieval/scores_cuda.h"

namespace oskt::retrieval {
namespace {

template <typename acc_t>
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_all(const Tensor& queries, const Tensor& gallery,
                                                      bool cosine, const Sizes& sizes,
                                                      cudaStream_t stream) {
  constexpr const char* kOp = "k_reciprocal";
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(queries, shape, type);
  };
  const DeviceRows<acc_t> rows(kOp, {queries, gallery}, cosine, stream);
  const int64_t n = rows.count, score_pitch = round_up(n, kTile);
  const int64_t chunk = chunk_rows(n, score_pitch);
  const Tensor scores = empty({chunk, score_pitch}, kAccType<acc_t>);
  const Tensor index = empty({n, sizes.list}, ScalarType::Int);
  const Tensor farthest = empty({n}, ScalarType::Double);
  acc_t* score = scores.template mutable_data_ptr<acc_t>();
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t count = std::min(chunk, n - first);
    multiply(kOp, rows, first, count, rows, score, score_pitch, stream);
    check_launch(kOp, launch_nearest<acc_t>({score, rows.bias(), index.mutable_data_ptr<int32_t>(),
                                             farthest.mutable_data_ptr<double>(), first, count, n,
                                             sizes.list, score_pitch, cosine},
                                            stream));
  }
  const Nearest nearest{index.const_data_ptr<int32_t>(), sizes.list, sizes.near, sizes.half};
  const int64_t set = nearest.max_members();
  const Tensor set_column = empty({n, set}, ScalarType::Int);
  const Tensor set_weight = empty({n, set}, kAccType<acc_t>);
  const Tensor set_size = empty({n}, ScalarType::Int);
  const SparseRows<acc_t> v{set_column.mutable_data_ptr<int32_t>(),
                            set_weight.template mutable_data_ptr<acc_t>(),
                            set_size.mutable_data_ptr<int32_t>(), set};
  check_launch(kOp, launch_encode<acc_t>({rows.rows(), farthest.const_data_ptr<double>(), nearest,
                                          v, n, rows.pitch, cosine},
                                         stream));
  const Tensor head = empty({n, sizes.mean}, ScalarType::Int);
  const Tensor start = empty({n + 1}, ScalarType::Long);
  MergeParams<acc_t> merge{v,
                           nearest,
                           head.mutable_data_ptr<int32_t>(),
                           start.mutable_data_ptr<int64_t>(),
                           nullptr,
                           nullptr,
                           n,
                           sizes.mean};
  check_launch(kOp, launch_count(merge, stream));
  int64_t entries = 0;
  check_launch(kOp, cudaMemcpyAsync(&entries, merge.start + n, sizeof(entries),
                                    cudaMemcpyDeviceToHost, stream));
  check_launch(kOp, cudaStreamSynchronize(stream));
  const Tensor column = empty({entries}, ScalarType::Int);
  const Tensor weight = empty({entries}, kAccType<acc_t>);
  merge.column = column.mutable_data_ptr<int32_t>();
  merge.weight = weight.template mutable_data_ptr<acc_t>();
  check_launch(kOp, launch_merge(merge, stream));
  const Tensor far = empty({queries.size(0)}, ScalarType::Double);
  check_launch(kOp,
               cudaMemcpyAsync(far.mutable_data_ptr<double>(), farthest.const_data_ptr<double>(),
                               queries.size(0) * sizeof(double), cudaMemcpyDeviceToDevice, stream));
  return {start, column, weight, far};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> k_reciprocal_cuda(const Tensor& query_features,
                                                             const Tensor& gallery_features,
                                                             std::string metric, int64_t k1,
                                                             int64_t k2) {
  check_features("k_reciprocal: ", query_features, gallery_features, metric);
  const Sizes sizes(query_features.size(0) + gallery_features.size(0), k1, k2);
  const torch::stable::accelerator::DeviceGuard guard(query_features.get_device_index());
  std::tuple<Tensor, Tensor, Tensor, Tensor> result;
  dispatch_floating("k_reciprocal", query_features.scalar_type(), [&](auto zero) {
    result = encode_all<acc_of<decltype(zero)>>(
        torch::stable::contiguous(query_features), torch::stable::contiguous(gallery_features),
        metric == "cosine", sizes, current_stream(query_features));
  });
  return result;
}

template <typename acc_t>
void write_distances(const EncodedRows& in, double lambda, const Tensor& out, cudaStream_t stream) {
  constexpr const char* kOp = "k_reciprocal_distances";
  const DeviceRows<acc_t> queries(kOp, {in.query_features}, in.cosine, stream);
  const DeviceRows<acc_t> gallery(kOp, {in.gallery_features}, in.cosine, stream);
  const int64_t score_pitch = round_up(in.gallery, kTile);
  const int64_t chunk = chunk_rows(in.queries, score_pitch);
  const Tensor scores = torch::stable::new_empty(out, {chunk, score_pitch}, kAccType<acc_t>);
  const Tensor shared = torch::stable::new_empty(out, {chunk, in.gallery}, ScalarType::Double);
  acc_t* score = scores.template mutable_data_ptr<acc_t>();
  for (int64_t first = 0; first < in.queries; first += chunk) {
    const int64_t count = std::min(chunk, in.queries - first);
    multiply(kOp, queries, first, count, gallery, score, score_pitch, stream);
    check_launch(
        kOp, launch_rerank<acc_t>(
                 {score, queries.bias() + first, in.start.const_data_ptr<int64_t>() + first,
                  in.item_start.const_data_ptr<int64_t>(), in.column.const_data_ptr<int32_t>(),
                  in.item.const_data_ptr<int32_t>(), in.weight.template const_data_ptr<acc_t>(),
                  in.item_weight.template const_data_ptr<acc_t>(),
                  in.farthest.const_data_ptr<double>() + first, shared.mutable_data_ptr<double>(),
                  out.template mutable_data_ptr<acc_t>() + first * in.gallery, count, in.gallery,
                  score_pitch, lambda, in.cosine},
                 stream));
  }
}

// Unlike on the CPU, the values of start, column and item are not checked: that would have to wait.
Tensor k_reciprocal_distances_cuda(const Tensor& query_features, const Tensor& gallery_features,
                                   const Tensor& start, const Tensor& column, const Tensor& weight,
                                   const Tensor& item_start, const Tensor& item,
                                   const Tensor& item_weight, const Tensor& farthest,
                                   std::string metric, double lambda) {
  const EncodedRows in = checked_encoding(query_features, gallery_features, start, column, weight,
                                          item_start, item, item_weight, farthest, metric);
  const torch::stable::accelerator::DeviceGuard guard(query_features.get_device_index());
  const Tensor out = torch::stable::new_empty(in.query_features, {in.queries, in.gallery},
                                              computing_type(in.query_features));
  dispatch_floating("k_reciprocal_distances", query_features.scalar_type(), [&](auto zero) {
    write_distances<acc_of<decltype(zero)>>(in, lambda, out, current_stream(query_features));
  });
  return out;
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("k_reciprocal", TORCH_BOX(&oskt::retrieval::k_reciprocal_cuda));
  m.impl("k_reciprocal_distances", TORCH_BOX(&oskt::retrieval::k_reciprocal_distances_cuda));
}
