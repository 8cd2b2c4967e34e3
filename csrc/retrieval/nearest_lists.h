// The K nearest of every row among all rows on the CPU, from half of the products and one strip of
// scores.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/numeric.h"
#include "common/simd.h"
#include "retrieval/feature_rows.h"

namespace oskt::retrieval {
namespace {

// Lowers lowest[j] to score[j] - bias; whether any of them reaches its bound.
template <typename T>
OSKT_INLINE bool scan_column_text(const T* score, T bias, const T* bound, T* lowest, int64_t n) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (int64_t j = 0; j < n; ++j) {
    const T s = score[j] - bias;
    lowest[j] = s < lowest[j] ? s : lowest[j];
    any |= s >= bound[j];
  }
  return any != 0;
}
OSKT_SIMD_CLONES bool scan_column(const float* score, float bias, const float* bound, float* lowest,
                                  int64_t n) {
  return scan_column_text(score, bias, bound, lowest, n);
}
OSKT_SIMD_CLONES bool scan_column(const double* score, double bias, const double* bound,
                                  double* lowest, int64_t n) {
  return scan_column_text(score, bias, bound, lowest, n);
}

// The same for one row: a bias per score, one bound, one lowest.
template <typename T>
OSKT_INLINE bool scan_row_text(const T* score, const T* bias, T bound, T* lowest, int64_t n) {
  T least = *lowest, most = -kInfinity<T>;
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t j = 0; j < n; ++j) {
    const T s = score[j] - bias[j];
    least = s < least ? s : least;
    most = s > most ? s : most;
  }
  *lowest = least;
  return most >= bound;
}
OSKT_SIMD_CLONES bool scan_row(const float* score, const float* bias, float bound, float* lowest,
                               int64_t n) {
  return scan_row_text(score, bias, bound, lowest, n);
}
OSKT_SIMD_CLONES bool scan_row(const double* score, const double* bias, double bound,
                               double* lowest, int64_t n) {
  return scan_row_text(score, bias, bound, lowest, n);
}

// Per row the K highest scores in the order (score, index), which is total: whoever is offered, and
// when, the list is the same. One thread at a time may offer to a row.
template <typename acc_t>
struct NearestLists {
  int64_t length;
  std::vector<acc_t> score, bound, lowest;  // [rows, length], [rows]: the last of a list, [rows]
  std::vector<int32_t> index;               // [rows, length]

  NearestLists(int64_t rows, int64_t length)
      : length(length),
        score(rows * length, -kInfinity<acc_t>),
        bound(rows, -kInfinity<acc_t>),
        lowest(rows, kInfinity<acc_t>),
        index(rows * length, std::numeric_limits<int32_t>::max()) {}

  void offer(int64_t i, acc_t s, int32_t j) {
    acc_t* scores = score.data() + i * length;
    int32_t* indices = index.data() + i * length;
    const auto precedes = [&](int64_t k) {
      return s > scores[k] || (s == scores[k] && j < indices[k]);
    };
    int64_t place = length - 1;
    if (!precedes(place)) return;
    for (; place > 0 && precedes(place - 1); --place) {
      scores[place] = scores[place - 1];
      indices[place] = indices[place - 1];
    }
    scores[place] = s;
    indices[place] = j;
    bound[i] = scores[length - 1];
  }
};

// Every pair is multiplied once: its later row is offered the earlier one by the thread that made
// the block of later rows, its earlier row the later one when the strip is complete.
template <typename scalar_t>
NearestLists<acc_of<scalar_t>> find_nearest(const FeatureRows<scalar_t>& rows, int64_t length) {
  using acc_t = acc_of<scalar_t>;
  const int64_t n = rows.count();
  const acc_t* bias = rows.bias();
  NearestLists<acc_t> nearest(n, length);
  ScoreStrip<scalar_t> strip(rows, rows);
  for (int64_t first = 0; first < n; first += kStrip) {
    const int64_t count = std::min(kStrip, n - first);
    strip.multiply(first, count, first, [&](int64_t begin, int64_t end) {
      if (begin < first + count) return;
      for (int64_t i = 0; i < count; ++i) {
        const acc_t* score = strip.row(i);
        if (!scan_column(score + begin, bias[first + i], nearest.bound.data() + begin,
                         nearest.lowest.data() + begin, end - begin)) {
          continue;
        }
        for (int64_t j = begin; j < end; ++j) {
          const acc_t s = score[j] - bias[first + i];
          if (s >= nearest.bound[j]) nearest.offer(j, s, static_cast<int32_t>(first + i));
        }
      }
    });
    for_each_task(count, [&](int64_t task, int64_t) {
      constexpr int64_t kRun = 256;
      const int64_t i = first + task;
      const acc_t* score = strip.row(task);
      for (int64_t begin = first; begin < n; begin += kRun) {
        const int64_t end = std::min(begin + kRun, n);
        if (!scan_row(score + begin, bias + begin, nearest.bound[i], &nearest.lowest[i],
                      end - begin)) {
          continue;
        }
        for (int64_t j = begin; j < end; ++j) {
          const acc_t s = score[j] - bias[j];
          if (s >= nearest.bound[i]) nearest.offer(i, s, static_cast<int32_t>(j));
        }
      }
    });
  }
  return nearest;
}

}  // namespace
}  // namespace oskt::retrieval
