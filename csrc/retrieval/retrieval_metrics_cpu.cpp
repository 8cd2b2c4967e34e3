// Retrieval metrics on the CPU. Cost: Q G D multiply-adds, then per score P vector compares for a
// query with P hits (log P scalar steps where P is large): at Market-1501 size (P = 17, D = 512)
// about 1 vector compare per 30 fused multiply-adds, so the product decides. Workspace: kQueries
// rows of G scores per thread.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/gemm_nt.h"
#include "common/simd.h"
#include "glue/checks.h"
#include "retrieval/retrieval_checks.h"
#include "retrieval/retrieval_metrics.h"

namespace oskt::retrieval {
namespace {

constexpr int64_t kQueries = 128;  // per product: the gallery is read Q / kQueries times
constexpr int64_t kPanelsPerTask = 8;
constexpr std::size_t kCountedHits = 128;  // beyond about these, searching is faster
static_assert(kQueries % kPanelWidth<float> == 0, "a chunk of queries starts a panel");

// Number of scores before a hit that precede it (ties do), and after it (ties do not).
OSKT_SIMD_CLONES int32_t count_at_least(const float* score, int64_t n, float bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += score[i] >= bound;
  return count;
}
OSKT_SIMD_CLONES int32_t count_at_least(const double* score, int64_t n, double bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += score[i] >= bound;
  return count;
}
OSKT_SIMD_CLONES int32_t count_above(const float* score, int64_t n, float bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += score[i] > bound;
  return count;
}
OSKT_SIMD_CLONES int32_t count_above(const double* score, int64_t n, double bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += score[i] > bound;
  return count;
}

// Sum of squares in double, in eight fixed lanes: equal rows have equal norms at any address.
template <typename scalar_t>
double squared_norm(const scalar_t* row, int64_t width) {
  std::array<double, 8> lane{};
  int64_t d = 0;
  for (; d + 8 <= width; d += 8) {
    for (int64_t l = 0; l < 8; ++l) {
      const double x = static_cast<double>(row[d + l]);
      lane[l] += x * x;
    }
  }
  for (; d < width; ++d) {
    const double x = static_cast<double>(row[d]);
    lane[d % 8] += x * x;
  }
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

template <typename acc_t>
struct Rows {
  Tensor panels;            // as gemm_nt reads them; torch aligns CPU memory to 64 bytes
  std::vector<acc_t> bias;  // [count]
};

// The rows in the accumulation type; cosine scales them to length 1 and keeps zero rows zero.
template <typename acc_t, typename scalar_t>
Rows<acc_t> prepare_rows(const Tensor& features, bool cosine) {
  constexpr int64_t kWidth = kPanelWidth<acc_t>;
  const int64_t count = features.size(0), width = features.size(1);
  const auto* data = static_cast<const scalar_t*>(features.const_data_ptr());
  Rows<acc_t> rows{torch::stable::new_empty(
                       features, {static_cast<int64_t>(gemm_panel_size<acc_t>(count, width))},
                       std::is_same_v<acc_t, double> ? ScalarType::Double : ScalarType::Float),
                   std::vector<acc_t>(count)};
  acc_t* panels = rows.panels.template mutable_data_ptr<acc_t>();
  const int64_t panel_count = (count + kWidth - 1) / kWidth;
  torch::stable::parallel_for(0, panel_count, kPanelsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kWidth, filled = std::min(kWidth, count - first);
      std::array<double, kWidth> scale;
      for (int64_t r = 0; r < filled; ++r) {
        const double norm2 = squared_norm(data + (first + r) * width, width);
        scale[r] = !cosine ? 1.0 : norm2 > 0.0 ? 1.0 / std::sqrt(norm2) : 0.0;
        rows.bias[first + r] = cosine ? acc_t{0} : static_cast<acc_t>(0.5 * norm2);
      }
      const auto load = [&](int64_t r, int64_t d) {
        return static_cast<double>(data[(first + r) * width + d]) * scale[r];
      };
      gemm_pack<acc_t>(filled, width, load, panels + first * width);
    }
  });
  return rows;
}

// Gallery indices grouped by id, ascending inside a group.
class GalleryById {
 public:
  GalleryById(const int64_t* ids, int64_t count) : ids_(ids), order_(count) {
    std::iota(order_.begin(), order_.end(), int32_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [ids](int32_t a, int32_t b) { return ids[a] < ids[b]; });
  }

  template <typename Visit>
  void for_each(int64_t id, Visit&& visit) const {
    auto item = std::lower_bound(order_.begin(), order_.end(), id,
                                 [this](int32_t g, int64_t value) { return ids_[g] < value; });
    for (; item != order_.end() && ids_[*item] == id; ++item) visit(*item);
  }

 private:
  const int64_t* ids_;
  std::vector<int32_t> order_;
};

// Turns hits (gallery indices) into their ranks, ascending: P vector compares per score.
template <typename acc_t>
void rank_by_counting(const acc_t* score, int64_t count, std::vector<int32_t>& hits) {
  for (int32_t& hit : hits) {
    const acc_t bound = score[hit];
    hit = 1 + count_at_least(score, hit, bound) +
          count_above(score + hit + 1, count - hit - 1, bound);
  }
  std::sort(hits.begin(), hits.end());
}

// The same with log P scalar steps per score: every item falls in front of some hit of the sorted
// list, and the rank of a hit is the number of items that fell up to its place.
template <typename acc_t>
void rank_by_searching(const acc_t* score, int64_t count, std::vector<int32_t>& hits) {
  std::sort(hits.begin(), hits.end(), [score](int32_t a, int32_t b) {
    return score[a] > score[b] || (score[a] == score[b] && a < b);
  });
  const std::size_t size = hits.size();
  std::vector<acc_t> bound(size);
  for (std::size_t k = 0; k < size; ++k) bound[k] = score[hits[k]];
  std::vector<int32_t> fallen(size + 1, 0);
  for (int64_t g = 0; g < count; ++g) {
    const acc_t* place = bound.data();          // to be the first bound that is not above the score
    for (std::size_t left = size; left > 0;) {  // compiles without a branch to mispredict
      const std::size_t half = (left + 1) / 2;
      place += place[half - 1] > score[g] ? half : 0;
      left -= half;
    }
    std::size_t k = place - bound.data();
    while (k < size && bound[k] == score[g] && hits[k] < g) ++k;
    ++fallen[k];
  }
  std::partial_sum(fallen.begin(), fallen.end() - 1, hits.begin());
}

// Ranks of the hits of one query, ascending. Overwrites the scores of junk.
template <typename acc_t>
void rank_hits(Identity query, const GalleryById& gallery, const int64_t* cameras, acc_t* score,
               int64_t count, std::vector<int32_t>& rank) {
  constexpr acc_t kNever = -std::numeric_limits<acc_t>::infinity();
  rank.clear();
  if (query.id == kJunkId) return;
  gallery.for_each(kJunkId, [&](int32_t g) { score[g] = kNever; });
  gallery.for_each(query.id, [&](int32_t g) {
    if (is_junk(query, {query.id, cameras[g]})) {
      score[g] = kNever;
    } else {
      rank.push_back(g);
    }
  });
  if (rank.size() <= kCountedHits) {
    rank_by_counting(score, count, rank);
  } else {
    rank_by_searching(score, count, rank);
  }
}

template <typename scalar_t>
void measure(const Inputs& in, Outputs& out) {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const auto queries = prepare_rows<acc_t, scalar_t>(in.query_features, in.cosine);
  const auto gallery = prepare_rows<acc_t, scalar_t>(in.gallery_features, in.cosine);
  const acc_t* query_panels = queries.panels.template const_data_ptr<acc_t>();
  const acc_t* gallery_panels = gallery.panels.template const_data_ptr<acc_t>();
  const int64_t* query_ids = in.query_ids.const_data_ptr<int64_t>();
  const int64_t* query_cameras = in.query_cameras.const_data_ptr<int64_t>();
  const int64_t* cameras = in.gallery_cameras.const_data_ptr<int64_t>();
  const GalleryById by_id(in.gallery_ids.const_data_ptr<int64_t>(), in.gallery);
  double* average_precision = out.average_precision.mutable_data_ptr<double>();
  double* trapezoid = out.trapezoid_average_precision.mutable_data_ptr<double>();
  double* inverse_penalty = out.inverse_negative_penalty.mutable_data_ptr<double>();
  std::vector<int32_t> first_hit(in.queries, 0);  // 0: a query without a hit

  const int64_t chunks = (in.queries + kQueries - 1) / kQueries;
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> scores(std::min(kQueries, in.queries) * in.gallery);
    std::vector<int32_t> rank;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk * kQueries;
      const int64_t rows = std::min(kQueries, in.queries - start);
      gemm_nt(query_panels + start * in.width, rows, gallery_panels, in.gallery, in.width,
              scores.data(), in.gallery);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t q = start + i;
        acc_t* score = scores.data() + i * in.gallery;
        for (int64_t g = 0; g < in.gallery; ++g) score[g] -= gallery.bias[g];
        rank_hits({query_ids[q], query_cameras[q]}, by_id, cameras, score, in.gallery, rank);
        QueryMetrics metrics{kSkipped, kSkipped, kSkipped};
        if (!rank.empty()) {
          metrics = metrics_of_hits(rank.data(), static_cast<int64_t>(rank.size()));
          first_hit[q] = rank.front();
        }
        average_precision[q] = metrics.average_precision;
        trapezoid[q] = metrics.trapezoid_average_precision;
        inverse_penalty[q] = metrics.inverse_negative_penalty;
      }
    }
  });

  const int64_t max_rank = out.cmc.numel();
  std::vector<int64_t> found(max_rank + 1, 0);
  int64_t valid = 0;
  for (const int32_t rank : first_hit) {
    if (rank == 0) continue;
    ++valid;
    if (rank <= max_rank) ++found[rank];
  }
  double* cmc = out.cmc.mutable_data_ptr<double>();
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
  Outputs out(in, max_rank);
  dispatch_floating("retrieval_metrics", query_features.scalar_type(),
                    [&](auto zero) { measure<decltype(zero)>(in, out); });
  return {out.cmc, out.average_precision, out.inverse_negative_penalty,
          out.trapezoid_average_precision};
}

}  // namespace
}  // namespace oskt::retrieval

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("retrieval_metrics", TORCH_BOX(&oskt::retrieval::retrieval_metrics_cpu));
}
