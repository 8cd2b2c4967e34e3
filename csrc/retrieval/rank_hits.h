// Ranks of the hits of one query on the CPU, by counting what precedes them: a vector compare per
// hit and 16 scores, log P scalar steps per score for a query of many hits P. Never a sort.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "common/simd.h"
#include "retrieval/retrieval_checks.h"
#include "retrieval/retrieval_metrics.h"

namespace oskt::retrieval {
namespace {

constexpr std::size_t kCountedHits = 128;  // beyond about these, searching is faster

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

// Ranks the hits of queries and writes what they count; `write` may run for many queries at once.
class HitRanker {
 public:
  HitRanker(const Labels& labels, const QueryRows& out, int32_t* first_hit)
      : query_ids_(labels.query_ids.const_data_ptr<int64_t>()),
        query_cameras_(labels.query_cameras.const_data_ptr<int64_t>()),
        cameras_(labels.gallery_cameras.const_data_ptr<int64_t>()),
        count_(labels.gallery_ids.numel()),
        gallery_(labels.gallery_ids.const_data_ptr<int64_t>(), count_),
        average_precision_(out.average_precision.mutable_data_ptr<double>()),
        trapezoid_(out.trapezoid_average_precision.mutable_data_ptr<double>()),
        inverse_penalty_(out.inverse_negative_penalty.mutable_data_ptr<double>()),
        first_hit_(first_hit) {}

  // score [gallery] of query q, where greater is nearer; those of junk are overwritten. `rank` is
  // scratch of the thread. first_hit[q] is 0 without a hit.
  template <typename acc_t>
  void write(int64_t q, acc_t* score, std::vector<int32_t>& rank) const {
    rank_hits({query_ids_[q], query_cameras_[q]}, score, rank);
    QueryMetrics metrics{kSkipped, kSkipped, kSkipped};
    if (!rank.empty()) metrics = metrics_of_hits(rank.data(), static_cast<int64_t>(rank.size()));
    first_hit_[q] = rank.empty() ? 0 : rank.front();
    average_precision_[q] = metrics.average_precision;
    trapezoid_[q] = metrics.trapezoid_average_precision;
    inverse_penalty_[q] = metrics.inverse_negative_penalty;
  }

 private:
  template <typename acc_t>
  void rank_hits(Identity query, acc_t* score, std::vector<int32_t>& rank) const {
    constexpr acc_t kNever = -std::numeric_limits<acc_t>::infinity();
    rank.clear();
    if (query.id == kJunkId) return;
    gallery_.for_each(kJunkId, [&](int32_t g) { score[g] = kNever; });
    gallery_.for_each(query.id, [&](int32_t g) {
      if (is_junk(query, {query.id, cameras_[g]})) {
        score[g] = kNever;
      } else {
        rank.push_back(g);
      }
    });
    if (rank.size() <= kCountedHits) {
      rank_by_counting(score, count_, rank);
    } else {
      rank_by_searching(score, count_, rank);
    }
  }

  const int64_t *query_ids_, *query_cameras_, *cameras_;
  int64_t count_;
  GalleryById gallery_;
  double *average_precision_, *trapezoid_, *inverse_penalty_;
  int32_t* first_hit_;
};

}  // namespace
}  // namespace oskt::retrieval
