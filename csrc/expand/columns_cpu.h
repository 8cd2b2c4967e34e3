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

// What the next call will read, fetched meanwhile: source rows are too short for the processor to
// see a stream in them. It drops prefetches that come in a burst, so they are spread over the steps
// of a call.
template <typename scalar_t>
class Ahead {
 public:
  Ahead() = default;
  // The rows row[0] .. row[count - 1] of a matrix, as far as they leave room in L2.
  Ahead(const scalar_t* source, const int32_t* row, int64_t count, int64_t pitch)
      : source_(source), row_(row), pitch_(pitch) {
    const int64_t room = kRoom / std::max<int64_t>(1, pitch * sizeof(scalar_t));
    end_ = row + std::min(count, std::max<int64_t>(1, room));
  }

  // Spreads the rows over `steps` steps.
  OSKT_INLINE void spread(int64_t steps) {
    const int64_t lines = (end_ - row_) * ((pitch_ + kLine - 1) / kLine);
    rate_ = lines * kOne / std::max<int64_t>(1, steps) + 1;
  }

  OSKT_INLINE void step(int64_t steps = 1) {
    for (due_ += steps * rate_; due_ >= kOne && row_ < end_; due_ -= kOne) {
      __builtin_prefetch(source_ + *row_ * pitch_ + at_, 0, 3);
      if ((at_ += kLine) < pitch_) continue;
      at_ = 0;
      ++row_;
    }
  }

  // The elements [begin, end) of row[r], all that a pick or a copy of it reads.
  OSKT_INLINE void fetch(int64_t r, int64_t begin, int64_t end) const {
    if (end_ - row_ <= r) return;
    const scalar_t* row = source_ + row_[r] * pitch_;
    for (int64_t e = begin; e < end; e += kLine) __builtin_prefetch(row + e, 0, 3);
    __builtin_prefetch(row + end - 1, 0, 3);
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(scalar_t), kRoom = 256 << 10, kOne = 1 << 16;

  const scalar_t* source_ = nullptr;
  const int32_t *row_ = nullptr, *end_ = nullptr;
  int64_t pitch_ = 0, at_ = 0;
  int64_t rate_ = 0, due_ = 0;  // lines a step, in units of 1 / kOne
};

// Reduced rows of an item and the student rows that their columns go to.
template <typename scalar_t>
struct Rows {
  int count;  // <= kBatch
  const acc_of<scalar_t>* from[kBatch];
  scalar_t* to[kBatch];
  Ahead<scalar_t> ahead;
};

// Columns of area 1 of kRows rows, number by number.
template <int kRows, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_numbers(const List& list, Rows<scalar_t>& rows, int first, int32_t begin,
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
OSKT_INLINE void sum_vectors(const List& list, Rows<scalar_t>& rows, int32_t columns, int32_t begin,
                             int32_t end, acc_of<scalar_t>* tile) {
  using acc_t = acc_of<scalar_t>;
  constexpr int32_t kBlock = 64;
  const acc_t* from[kRows];
  constexpr int64_t kSumSteps = 3;  // a sum takes about as long as three columns interleaved
  rows.ahead.spread(columns + kSumSteps * (end - begin));
  for (int32_t first = 0; first < columns; first += kBlock) {
    const int32_t last = std::min(first + kBlock, columns);
    for (int r = 0; r < kRows; ++r) {
      const int row = std::min(r, rows.count - 1);  // lanes without a row repeat the last one
      from[r] = rows.from[row] + first;
    }
    rows.ahead.step(last - first);
    interleave<kRows>(from, last - first, tile + first * kRows);
  }
  alignas(64) acc_t block[kBlock * kRows];
  scalar_t* to[kRows];
  for (int32_t first = begin; first < end; first += kBlock) {
    const int32_t width = std::min(kBlock, end - first);
    for (int32_t j = 0; j < width; ++j) {
      rows.ahead.step(kSumSteps);
      acc_t sum[kRows] = {};
      for (int32_t p = list.begin(first + j), last = list.end(first + j); p < last; ++p) {
        const acc_t* column = tile + list.index[p] * kRows;
        const acc_t weight = kOnes ? acc_t(1) : static_cast<acc_t>(list.weight[p]);
#pragma omp simd
        for (int r = 0; r < kRows; ++r) sum[r] = add_term<kOnes>(sum[r], weight, column[r]);
      }
      std::memcpy(block + j * kRows, sum, sizeof sum);
    }
    for (int r = 0; r < rows.count; ++r) to[r] = rows.to[r] + first;
    deinterleave<kRows>(block, width, rows.count, to);
  }
}

// Columns of one row, in runs of kArea elements (kAnyArea: `any_area`).
template <int kArea, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_runs(const List& list, Rows<scalar_t>& rows, int32_t columns, int32_t begin,
                          int32_t end, int64_t any_area) {
  using acc_t = acc_of<scalar_t>;
  constexpr int64_t kTile = kArea == kAnyArea ? 32 : kArea;
  const int64_t area = kArea == kAnyArea ? any_area : kArea;
  rows.ahead.spread(end - begin);
  for (int32_t j = begin; j < end; ++j) {
    rows.ahead.step();
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

// Columns of area 1 that are one source column each, of kRows rows.
template <int kRows, typename scalar_t>
OSKT_INLINE void pick_numbers(const List& list, Rows<scalar_t>& rows, int first, int32_t begin,
                              int32_t end) {
  for (int32_t j = begin; j < end; ++j) {
    rows.ahead.step();
    const int64_t column = list.index[j];
    for (int r = 0; r < kRows; ++r)
      rows.to[first + r][j] = static_cast<scalar_t>(rows.from[first + r][column]);
  }
}

// Columns of one row that are one source column each, in runs of kArea elements.
template <int kArea, typename scalar_t>
OSKT_INLINE void pick_runs(const List& list, Rows<scalar_t>& rows, int32_t begin, int32_t end,
                           int64_t any_area) {
  const int64_t area = kArea == kAnyArea ? any_area : kArea;
  for (int32_t j = begin; j < end; ++j) {
    const int64_t at = list.index[j] * area;
    rows.ahead.fetch(0, at, at + area);
    const auto* from = rows.from[0] + at;
    scalar_t* to = rows.to[0] + j * area;
    for (int64_t o = 0; o < area; ++o) to[o] = static_cast<scalar_t>(from[o]);
  }
}

// Columns that are consecutive source columns: elements [begin, end) of every student row from
// element `shift + begin` of its source row on.
template <typename scalar_t>
OSKT_INLINE void copy_runs(Rows<scalar_t>& rows, int64_t shift, int64_t begin, int64_t end) {
  for (int r = 0; r < rows.count; ++r) {
    rows.ahead.fetch(r, shift + begin, shift + end);
    const auto* from = rows.from[r] + shift;
    scalar_t* to = rows.to[r];
    if constexpr (std::is_same_v<scalar_t, acc_of<scalar_t>>)
      std::memcpy(to + begin, from + begin, (end - begin) * sizeof(scalar_t));
    else
      for (int64_t e = begin; e < end; ++e) to[e] = static_cast<scalar_t>(from[e]);
  }
}

// Columns [begin, end) of the rows of an item that are one source column each.
template <typename scalar_t>
OSKT_INLINE void pick_columns(const PlanItem& item, const List& list, Rows<scalar_t>& rows,
                              int32_t begin, int32_t end) {
  if (item.area == 9) return pick_runs<9>(list, rows, begin, end, 9);
  if (item.area > 1) return pick_runs<kAnyArea>(list, rows, begin, end, item.area);
  rows.ahead.spread((end - begin) * (rows.count / 4 + rows.count % 4));
  int r = 0;
  for (; r + 4 <= rows.count; r += 4) pick_numbers<4>(list, rows, r, begin, end);
  for (; r < rows.count; ++r) pick_numbers<1>(list, rows, r, begin, end);
}

// All columns [begin, end) of the rows of an item; one row where batch_of says so.
template <bool kOnes, typename scalar_t>
OSKT_INLINE void reduce_columns(const PlanItem& item, const List& list, Rows<scalar_t>& rows,
                                int32_t begin, int32_t end, acc_of<scalar_t>* tile) {
  const auto columns = static_cast<int32_t>(item.source_columns);
  // Rows that are read whole are cheaper interleaved.
  const bool sparse = columns > 2 * item.student_columns;
  if (item.column_kind == kRun)
    copy_runs(rows, list.index[0] * item.area, begin * item.area, end * item.area);
  else if (item.column_kind == kSelect && sparse)
    pick_columns(item, list, rows, begin, end);
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
