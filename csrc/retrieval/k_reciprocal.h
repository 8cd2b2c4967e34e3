// Contract of k_reciprocal, and the steps that the CPU and the CUDA path share as one text.
//
// All rows, queries first and the gallery after them, are ranked against all rows, themselves
// included. Row i has the list of its K nearest, in the order of retrieval_metrics.h, and
//   d(i, j)    = |i - j|^2 / 2; under cosine 1 - cos, which is the same for rows of length 1
//   far(i)     = max_j d(i, j)
//   mutual(i, n) = {j among the first n of i's list with i among the first n of j's}
//   set(i)     = mutual(i, near), and mutual(c, half) of every c in it of which more than two
//                thirds lie in it
//   V(i, j)    = exp(-d(i, j) / far(i)) on set(i), scaled to sum 1
//   V'(i)      = mean of V over the first k2 of i's list
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace oskt::retrieval {

struct Nearest {
  const int32_t* index;  // [rows, pitch], nearest first
  int64_t pitch;
  int32_t near, half;  // k1 + 1 and round(k1 / 2) + 1, at most the number of rows

  OSKT_HOST_DEVICE const int32_t* list(int32_t i) const { return index + i * pitch; }

  OSKT_HOST_DEVICE bool lists(int32_t i, int32_t first, int32_t j) const {
    bool found = false;
    for (int32_t k = 0; k < first; ++k) found |= list(i)[k] == j;
    return found;
  }

  // Longest set that members() may write: of a mutual(c, half) that is taken in, less than a third
  // is new.
  OSKT_HOST_DEVICE int64_t max_members() const { return near * (1 + (half - int64_t{1}) / 3); }

  // Writes set(i), ascending; returns its size.
  OSKT_HOST_DEVICE int32_t members(int32_t i, int32_t* out) const {
    int32_t size = 0;
    for (int32_t a = 0; a < near; ++a) {
      const int32_t c = list(i)[a];
      if (!lists(c, near, i)) continue;
      size = insert(c, out, size);
      int32_t mutual = 0, common = 0;
      for (int32_t b = 0; b < half; ++b) {
        const int32_t j = list(c)[b];
        if (!lists(j, half, c)) continue;
        ++mutual;
        common += lists(i, near, j) && lists(j, near, i);
      }
      if (3 * common <= 2 * mutual) continue;
      for (int32_t b = 0; b < half; ++b) {
        const int32_t j = list(c)[b];
        if (lists(j, half, c)) size = insert(j, out, size);
      }
    }
    return size;
  }

 private:
  // Into an ascending list without repetition.
  OSKT_HOST_DEVICE static int32_t insert(int32_t value, int32_t* out, int32_t size) {
    int32_t place = size;
    while (place > 0 && out[place - 1] > value) --place;
    if (place > 0 && out[place - 1] == value) return size;
    for (int32_t k = size; k > place; --k) out[k] = out[k - 1];
    out[place] = value;
    return size + 1;
  }
};

// Rows of V as written by members(): row i is the first size[i] of `pitch` entries.
template <typename acc_t>
struct SparseRows {
  int32_t* column;  // [rows, pitch], ascending
  acc_t* weight;    // [rows, pitch]
  int32_t* size;    // [rows]
  int64_t pitch;
};

OSKT_HOST_DEVICE double share_of_farthest(double distance, double farthest) {
  return farthest > 0.0 && distance > 0.0 ? distance / farthest : 0.0;
}

// V'(i) with k2 = `count`: columns ascending, each sum in the order of i's list. Calls
// emit(column, mean) and returns how often; `head` is scratch [count].
template <typename acc_t, typename Emit>
OSKT_HOST_DEVICE int64_t merge_rows(const SparseRows<acc_t>& v, const Nearest& nearest, int32_t i,
                                    int32_t count, int32_t* head, const Emit& emit) {
  const int32_t* rows = count == 1 ? &i : nearest.list(i);  // k2 = 1 leaves V as it is
  for (int32_t r = 0; r < count; ++r) head[r] = 0;
  for (int64_t written = 0;; ++written) {
    int32_t column = INT32_MAX;
    for (int32_t r = 0; r < count; ++r) {
      if (head[r] == v.size[rows[r]]) continue;
      const int32_t c = v.column[rows[r] * v.pitch + head[r]];
      column = c < column ? c : column;
    }
    if (column == INT32_MAX) return written;
    double sum = 0.0;
    for (int32_t r = 0; r < count; ++r) {
      const int64_t entry = rows[r] * v.pitch + head[r];
      if (head[r] == v.size[rows[r]] || v.column[entry] != column) continue;
      sum += static_cast<double>(v.weight[entry]);
      ++head[r];
    }
    emit(column, sum / count);
  }
}

// The distance that the gallery is ranked by. `shared` = sum over columns of min(V'(q), V'(g)); the
// sum of max is 2 - shared, as both rows sum to 1.
OSKT_HOST_DEVICE double reranked_distance(double shared, double distance, double farthest,
                                          double lambda) {
  const double jaccard = 1.0 - shared / (2.0 - shared);
  return (1.0 - lambda) * jaccard + lambda * share_of_farthest(distance, farthest);
}

}  // namespace oskt::retrieval
