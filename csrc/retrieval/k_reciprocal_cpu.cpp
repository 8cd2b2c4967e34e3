// k-reciprocal encoding on the CPU. Cost: the N (N + 1) / 2 inner products of N = Q + G rows, each
// offered to both its rows; then small sets per row, and Q G products for the distances. Workspace:
// a strip of scores, and per row a list of K and a set of about 4 k1 entries at most.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/simd.h"
#include "retrieval/k_reciprocal.h"
#include "retrieval/k_reciprocal_checks.h"
#include "retrieval/nearest_lists.h"

namespace oskt::retrieval {
namespace {

// ------------------------------------------------------------------------------------ encoding

// Inner product in double, in sixteen fixed lanes.
template <typename scalar_t>
OSKT_INLINE double inner_text(const scalar_t* a, const scalar_t* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  double lane[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(a[d + l]) * static_cast<double>(b[d + l]);
    }
  }
  for (int64_t l = 0; d + l < n; ++l) {
    lane[l] += static_cast<double>(a[d + l]) * static_cast<double>(b[d + l]);
  }
  double sum = 0.0;
  for (const double value : lane) sum += value;
  return sum;
}
OSKT_SIMD_CLONES double inner(const float* a, const float* b, int64_t n) {
  return inner_text(a, b, n);
}
OSKT_SIMD_CLONES double inner(const double* a, const double* b, int64_t n) {
  return inner_text(a, b, n);
}
template <typename scalar_t>
double inner(const scalar_t* a, const scalar_t* b, int64_t n) {
  return inner_text(a, b, n);
}

template <typename acc_t>
struct Encoding {  // V, and what it is stored in
  std::vector<int32_t> column, size;
  std::vector<acc_t> weight;
  SparseRows<acc_t> rows;

  Encoding(int64_t count, int64_t pitch)
      : column(count * pitch),
        size(count),
        weight(count * pitch),
        rows{column.data(), weight.data(), size.data(), pitch} {}
};

template <typename scalar_t>
Encoding<acc_of<scalar_t>> encode(const FeatureRows<scalar_t>& features, const Nearest& nearest,
                                  const std::vector<double>& farthest) {
  using acc_t = acc_of<scalar_t>;
  Encoding<acc_t> v(features.count(), nearest.max_members());
  for_each_task(features.count(), [&](int64_t i, int64_t) {
    int32_t* column = v.rows.column + i * v.rows.pitch;
    acc_t* weight = v.rows.weight + i * v.rows.pitch;
    const int32_t size = nearest.members(static_cast<int32_t>(i), column);
    v.rows.size[i] = size;
    double sum = 0.0;
    for (int32_t k = 0; k < size; ++k) {
      const int64_t j = column[k];
      const double product = features.scale(i) * features.scale(j) *
                             inner(features.row(i), features.row(j), features.width());
      const double distance = features.offset(i) + features.half_norm(j) - product;
      const double raw = std::exp(-share_of_farthest(distance, farthest[i]));
      weight[k] = static_cast<acc_t>(raw);
      sum += raw;
    }
    for (int32_t k = 0; k < size; ++k) {
      weight[k] = static_cast<acc_t>(static_cast<double>(weight[k]) / sum);
    }
  });
  return v;
}

template <typename scalar_t>
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_all(const Tensor& queries, const Tensor& gallery,
                                                      bool cosine, const Sizes& sizes) {
  using acc_t = acc_of<scalar_t>;
  const FeatureRows<scalar_t> features({queries, gallery}, cosine);
  const int64_t n = features.count();
  const NearestLists<acc_t> lists = find_nearest(features, sizes.list);
  // A score that is NaN is in no list, and what is left in its place is no row.
  check(*std::max_element(lists.index.begin(), lists.index.end()) < n,
        "k_reciprocal: features must be finite, got NaN or Inf. Clean them with torch.nan_to_num.");
  std::vector<double> farthest(n);
  for (int64_t i = 0; i < n; ++i) farthest[i] = features.offset(i) - lists.lowest[i];
  const Nearest nearest{lists.index.data(), sizes.list, sizes.near, sizes.half};
  const Encoding<acc_t> v = encode(features, nearest, farthest);

  const Tensor start = torch::stable::new_empty(queries, {n + 1}, ScalarType::Long);
  int64_t* starts = start.mutable_data_ptr<int64_t>();
  std::vector<int32_t> heads(num_workers() * sizes.mean);
  const auto merge = [&](int64_t i, int64_t worker, const auto& emit) {
    return merge_rows(v.rows, nearest, static_cast<int32_t>(i), sizes.mean,
                      heads.data() + worker * sizes.mean, emit);
  };
  starts[0] = 0;
  for_each_task(n, [&](int64_t i, int64_t worker) {
    starts[i + 1] = merge(i, worker, [](int32_t, double) {});
  });
  for (int64_t i = 0; i < n; ++i) starts[i + 1] += starts[i];
  const Tensor column = torch::stable::new_empty(queries, {starts[n]}, ScalarType::Int);
  const Tensor weight = torch::stable::new_empty(queries, {starts[n]}, computing_type(queries));
  auto* columns = column.mutable_data_ptr<int32_t>();
  auto* weights = weight.mutable_data_ptr<acc_t>();
  for_each_task(n, [&](int64_t i, int64_t worker) {
    int64_t entry = starts[i];
    merge(i, worker, [&](int32_t c, double mean) {
      columns[entry] = c;
      weights[entry++] = static_cast<acc_t>(mean);
    });
  });
  const Tensor far = torch::stable::new_empty(queries, {queries.size(0)}, ScalarType::Double);
  std::copy_n(farthest.data(), queries.size(0), far.mutable_data_ptr<double>());
  return {start, column, weight, far};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> k_reciprocal_cpu(const Tensor& query_features,
                                                            const Tensor& gallery_features,
                                                            std::string metric, int64_t k1,
                                                            int64_t k2) {
  check_features("k_reciprocal: ", query_features, gallery_features, metric);
  const Sizes sizes(query_features.size(0) + gallery_features.size(0), k1, k2);
  std::tuple<Tensor, Tensor, Tensor, Tensor> result;
  dispatch_floating("k_reciprocal", query_features.scalar_type(), [&](auto zero) {
    result = encode_all<decltype(zero)>(torch::stable::contiguous(query_features),
                                        torch::stable::contiguous(gallery_features),
                                        metric == "cosine", sizes);
  });
  return result;
}

// ----------------------------------------------------------------------------------- distances

// A wrong index would write outside of a row.
void check_values(const EncodedRows& in) {
  const auto within = [](const Tensor& values, int64_t limit) {
    const int32_t* value = values.const_data_ptr<int32_t>();
    return std::all_of(value, value + values.numel(),
                       [=](int32_t v) { return v >= 0 && v < limit; });
  };
  const auto ascends = [](const Tensor& values, int64_t limit) {
    const int64_t *first = values.const_data_ptr<int64_t>(), *last = first + values.numel() - 1;
    return *first >= 0 && *last <= limit && std::is_sorted(first, last + 1);
  };
  check(in.item_start.numel() > 0 && ascends(in.start, in.column.numel()) &&
            ascends(in.item_start, in.item.numel()) &&
            within(in.column, in.item_start.numel() - 1) && within(in.item, in.gallery),
        "k_reciprocal_distances: start, column, item_start and item must be those of k_reciprocal "
        "for these features.");
}

template <typename scalar_t>
void write_distances(const EncodedRows& in, double lambda, Tensor& out) {
  using acc_t = acc_of<scalar_t>;
  const FeatureRows<scalar_t> queries({in.query_features}, in.cosine);
  const FeatureRows<scalar_t> gallery({in.gallery_features}, in.cosine);
  const auto* start = in.start.const_data_ptr<int64_t>();
  const auto* column = in.column.const_data_ptr<int32_t>();
  const auto* weight = in.weight.const_data_ptr<acc_t>();
  const auto* item_start = in.item_start.const_data_ptr<int64_t>();
  const auto* item = in.item.const_data_ptr<int32_t>();
  const auto* item_weight = in.item_weight.const_data_ptr<acc_t>();
  const auto* farthest = in.farthest.const_data_ptr<double>();
  auto* distances = out.mutable_data_ptr<acc_t>();
  const acc_t* bias = gallery.bias();
  ScoreStrip<scalar_t> strip(queries, gallery);
  for (int64_t first = 0; first < in.queries; first += kStrip) {
    const int64_t count = std::min(kStrip, in.queries - first);
    strip.multiply(first, count, 0, [](int64_t, int64_t) {});
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> shared(in.gallery);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t q = first + i;
        std::fill(shared.begin(), shared.end(), 0.0);
        for (int64_t entry = start[q]; entry < start[q + 1]; ++entry) {
          for (int64_t k = item_start[column[entry]]; k < item_start[column[entry] + 1]; ++k) {
            shared[item[k]] += static_cast<double>(std::min(weight[entry], item_weight[k]));
          }
        }
        const acc_t* score = strip.row(i);
        for (int64_t g = 0; g < in.gallery; ++g) {
          const double distance = queries.offset(q) - static_cast<double>(score[g] - bias[g]);
          distances[q * in.gallery + g] =
              static_cast<acc_t>(reranked_distance(shared[g], distance, farthest[q], lambda));
        }
      }
    });
  }
}

Tensor k_reciprocal_distances_cpu(const Tensor& query_features, const Tensor& gallery_features,
                                  const Tensor& start, const Tensor& column, const Tensor& weight,
                                  const Tensor& item_start, const Tensor& item,
                                  const Tensor& item_weight, const Tensor& farthest,
                                  std::string metric, double lambda) {
  const EncodedRows in = checked_encoding(query_features, gallery_features, start, column, weight,
                                          item_start, item, item_weight, farthest, metric);
  check_values(in);
  Tensor out = torch::stable::new_empty(in.query_features, {in.queries, in.gallery},
                                        computing_type(in.query_features));
  dispatch_floating("k_reciprocal_distances", query_features.scalar_type(),
                    [&](auto zero) { write_distances<decltype(zero)>(in, lambda, out); });
  return out;
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("k_reciprocal", TORCH_BOX(&oskt::retrieval::k_reciprocal_cpu));
  m.impl("k_reciprocal_distances", TORCH_BOX(&oskt::retrieval::k_reciprocal_distances_cpu));
}
