// Retrieval metrics on the CPU. Cost: Q G D multiply-adds, then per score P vector compares for a
// query with P hits: at Market-1501 size (P = 17, D = 512) about 1 vector compare per 30 fused
// multiply-adds, so the product decides. Workspace: one strip of kStrip rows of G scores.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "retrieval/feature_rows.h"
#include "retrieval/rank_hits.h"
#include "retrieval/retrieval_checks.h"

namespace oskt::retrieval {
namespace {

template <typename scalar_t>
void rank_queries(const Inputs& in, const HitRanker& ranker) {
  using acc_t = acc_of<scalar_t>;
  const FeatureRows<scalar_t> queries({in.query_features}, in.cosine);
  const FeatureRows<scalar_t> gallery({in.gallery_features}, in.cosine);
  const acc_t* bias = gallery.bias();
  ScoreStrip<scalar_t> strip(queries, gallery);
  for (int64_t first = 0; first < in.queries; first += kStrip) {
    const int64_t count = std::min(kStrip, in.queries - first);
    strip.multiply(first, count, 0, [](int64_t, int64_t) {});
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> rank;
      for (int64_t i = begin; i < end; ++i) {
        acc_t* score = strip.row(i);
        for (int64_t g = 0; g < in.gallery; ++g) score[g] -= bias[g];
        ranker.write(first + i, score, rank);
      }
    });
  }
}

// cmc[k] = share of the queries with a hit whose first hit has rank k + 1 or less.
void write_cmc(const std::vector<int32_t>& first_hit, double* cmc, int64_t max_rank) {
  std::vector<int64_t> found(max_rank + 1, 0);
  int64_t valid = 0;
  for (const int32_t rank : first_hit) {
    if (rank == 0) continue;
    ++valid;
    if (rank <= max_rank) ++found[rank];
  }
  for (int64_t k = 1; k <= max_rank; ++k) {
    found[k] += found[k - 1];
    cmc[k - 1] = static_cast<double>(found[k]) / static_cast<double>(valid);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> retrieval_metrics_cpu(
    const Tensor& query_features, const Tensor& gallery_features, const Tensor& query_ids,
    const Tensor& gallery_ids, const Tensor& query_cameras, const Tensor& gallery_cameras,
    std::string metric, int64_t max_rank) {
  const Inputs in = checked_inputs(query_features, gallery_features, query_ids, gallery_ids,
                                   query_cameras, gallery_cameras, metric, max_rank);
  const QueryRows out(in.query_features, in.queries);
  const Tensor cmc = torch::stable::new_empty(in.query_features, {max_rank}, ScalarType::Double);
  std::vector<int32_t> first_hit(in.queries);
  const HitRanker ranker(in, out, first_hit.data());
  dispatch_floating("retrieval_metrics", query_features.scalar_type(),
                    [&](auto zero) { rank_queries<decltype(zero)>(in, ranker); });
  write_cmc(first_hit, cmc.mutable_data_ptr<double>(), max_rank);
  return {cmc, out.average_precision, out.inverse_negative_penalty,
          out.trapezoid_average_precision};
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("retrieval_metrics", TORCH_BOX(&oskt::retrieval::retrieval_metrics_cpu));
}
