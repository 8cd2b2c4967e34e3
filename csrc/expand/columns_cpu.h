// The column sums of the CPU kernel of expand: student[j] = sum over t in C(j) of b_t * row[t], in
// list order, for one row or for several at once.
//
// Columns of area 1 are scattered single numbers: each costs an index and each list ends in a
// branch that is mispredicted. So up to kBatch rows are interleaved first (interleave.h); then a
// column is a short contiguous vector over the rows, and the sums go back by the same
// transposition. Columns of a larger area are short runs already and go row by row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/interleave.h"
#include "common/storage.h"
#include "expand/expand.h"

// Short sums over short vectors: unroll-and-jam would turn each vector into scalars in memory.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-loop-unroll-and-jam")
#endif

namespace oskt::expand {

constexpr int kBatch = 16;  // rows at once: one cache line of floats per column
constexpr int kAnyArea = 0;

// sum + weight * x, rounded once on every processor and in every loop, so that a result depends
// neither on what the compiler fuses nor on which rows are summed together.
template <bool kOnes, typename acc_t>
OSKT_INLINE acc_t add_term(acc_t sum, acc_t weight, acc_t x) {
  return kOnes ? sum + x : std::fma(weight, x, sum);
}

// Source rows that are needed soon: `rows` of them, one behind the other.
template <typename scalar_t>
struct Ahead {
  const scalar_t* at;
  int64_t rows;
};

// Reduced rows of an item, the student rows that their columns go to, and what the next call will
// read, which is fetched meanwhile: rows are too short for the processor to see a stream in them.
template <typename scalar_t>
struct Rows {
  int count;  // <= kBatch
  const acc_of<scalar_t>* from[kBatch];
  scalar_t* to[kBatch];
  Ahead<scalar_t> ahead[kBatch];
};

// Fetches the share of `ahead` that belongs to elements [begin, end) of a row.
template <typename scalar_t>
OSKT_INLINE void fetch(const Ahead<scalar_t>& ahead, int64_t begin, int64_t end) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  for (int64_t e = begin * ahead.rows; e < end * ahead.rows; e += kLine)
    __builtin_prefetch(ahead.at + e, 0, 2);
}

// Columns of area 1 of kRows rows, number by number.
template <int kRows, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_numbers(const List& list, const Rows<scalar_t>& rows, int first, int32_t begin,
                             int32_t end) {
  using acc_t = acc_of<scalar_t>;
  for (int32_t j = begin; j < end; ++j) {
    acc_t sum[kRows] = {};
    for (int32_t p = list.begin(j), last = list.end(j); p < last; ++p) {
      const acc_t weight = kOnes ? acc_t(1) : static_cast<acc_t>(list.weight[p]);
      for (int r = 0; r < kRows; ++r)
        sum[r] = add_term<kOnes>(sum[r], weight, rows.from[first + r][list.index[p]]);
    }
    for (int r = 0; r < kRows; ++r) rows.to[first + r][j] = static_cast<scalar_t>(sum[r]);
  }
}

// Columns of area 1 of up to kRows rows, interleaved in `tile`, which holds kRows * columns.
template <int kRows, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_vectors(const List& list, const Rows<scalar_t>& rows, int32_t columns,
                             int32_t begin, int32_t end, acc_of<scalar_t>* tile) {
  using acc_t = acc_of<scalar_t>;
  constexpr int32_t kBlock = 64;
  const acc_t* from[kRows];
  for (int32_t first = 0; first < columns; first += kBlock) {
    const int32_t last = std::min(first + kBlock, columns);
    for (int r = 0; r < kRows; ++r) {
      const int row = std::min(r, rows.count - 1);  // lanes without a row repeat the last one
      from[r] = rows.from[row] + first;
      if (r < rows.count) fetch(rows.ahead[r], first, last);
    }
    interleave<kRows>(from, last - first, tile + first * kRows);
  }
  acc_t block[kBlock * kRows];
  scalar_t* to[kRows];
  for (int32_t first = begin; first < end; first += kBlock) {
    const int32_t width = std::min(kBlock, end - first);
    for (int32_t j = 0; j < width; ++j) {
      acc_t sum[kRows] = {};
      for (int32_t p = list.begin(first + j), last = list.end(first + j); p < last; ++p) {
        const acc_t* column = tile + list.index[p] * kRows;
        const acc_t weight = kOnes ? acc_t(1) : static_cast<acc_t>(list.weight[p]);
#pragma omp simd
        for (int r = 0; r < kRows; ++r) sum[r] = add_term<kOnes>(sum[r], weight, column[r]);
      }
#pragma omp simd
      for (int r = 0; r < kRows; ++r) block[j * kRows + r] = sum[r];
    }
    for (int r = 0; r < rows.count; ++r) to[r] = rows.to[r] + first;
    deinterleave<kRows>(block, width, rows.count, to);
  }
}

// Columns of one row, in runs of kArea elements (kAnyArea: `any_area`).
template <int kArea, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_runs(const List& list, const Rows<scalar_t>& rows, int32_t columns,
                          int32_t begin, int32_t end, int64_t any_area) {
  using acc_t = acc_of<scalar_t>;
  constexpr int64_t kTile = kArea == kAnyArea ? 32 : kArea;
  const int64_t area = kArea == kAnyArea ? any_area : kArea;
  const int64_t pace = columns * area / std::max(1, end - begin) + 1;
  for (int32_t j = begin; j < end; ++j) {
    fetch(rows.ahead[0], (j - begin) * pace, (j - begin + 1) * pace);
    for (int64_t first = 0; first < area; first += kTile) {
      const int64_t width = kArea == kAnyArea ? std::min(kTile, area - first) : kTile;
      acc_t sum[kTile] = {};
      for (int32_t p = list.begin(j), last = list.end(j); p < last; ++p) {
        const acc_t* run = rows.from[0] + list.index[p] * area + first;
        const acc_t weight = kOnes ? acc_t(1) : static_cast<acc_t>(list.weight[p]);
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) sum[o] = add_term<kOnes>(sum[o], weight, run[o]);
      }
      scalar_t* out = rows.to[0] + j * area + first;
      for (int64_t o = 0; o < width; ++o) out[o] = static_cast<scalar_t>(sum[o]);
    }
  }
}

// Columns of one row that are the columns as they are.
template <typename scalar_t>
OSKT_INLINE void copy_columns(const Rows<scalar_t>& rows, int64_t begin, int64_t end) {
  const auto* from = rows.from[0];
  scalar_t* to = rows.to[0];
  if constexpr (std::is_same_v<scalar_t, acc_of<scalar_t>>)
    std::memcpy(to + begin, from + begin, (end - begin) * sizeof(scalar_t));
  else
    for (int64_t e = begin; e < end; ++e) to[e] = static_cast<scalar_t>(from[e]);
}

// All columns [begin, end) of the rows of an item; one row unless its area is 1.
template <bool kOnes, typename scalar_t>
OSKT_INLINE void reduce_columns(const PlanItem& item, const List& list, const Rows<scalar_t>& rows,
                                int32_t begin, int32_t end, acc_of<scalar_t>* tile) {
  const auto columns = static_cast<int32_t>(item.source_columns);
  if (item.column_kind == kIdentity)
    copy_columns(rows, begin * item.area, end * item.area);
  else if (item.area == 9)
    sum_runs<9, kOnes>(list, rows, columns, begin, end, 9);
  else if (item.area > 1)
    sum_runs<kAnyArea, kOnes>(list, rows, columns, begin, end, item.area);
  else if (rows.count > 8)
    sum_vectors<16, kOnes>(list, rows, columns, begin, end, tile);
  else if (rows.count > 4)
    sum_vectors<8, kOnes>(list, rows, columns, begin, end, tile);
  else
    for (int r = 0; r < rows.count;)
      if (rows.count - r >= 2)
        sum_numbers<2, kOnes>(list, rows, r, begin, end), r += 2;
      else
        sum_numbers<1, kOnes>(list, rows, r, begin, end), r += 1;
}

}  // namespace oskt::expand
