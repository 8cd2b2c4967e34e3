// The Gram stages on the CPU: G = X X^T of every problem of a ragged batch, in tiles that any
// thread may take. A sum depends on its rows alone: results depend neither on threads nor on the
// batch.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "common/gemm_nt.h"
#include "common/storage.h"
#include "glue/checks.h"
#include "glue/stages.h"
#include "kmeans/rows_simd.h"

namespace oskt::kmeans {

inline constexpr int64_t kTile = 128;  // rows of one Gram task, a multiple of every panel width

// Rows as they are stored (S), and the matrix whose Gram matrix is formed (T):
// x[i, d] * scale[i] - offset[d]. The offset cancels in every distance; without it, rows far from
// the origin would lose their digits in the Gram matrix.
template <typename S, typename T>
struct RowProblem {
  const S* rows;
  int64_t n, dims;
  std::vector<double> scale;  // n
  std::vector<T> offset;      // dims
  std::unique_ptr<Scratch> panels_memory, gram_memory;
  T* panels;  // every row, packed
  T* gram;    // n x n

  bool has_rows(const Tensor& tensor) const {
    return rows == tensor.const_data_ptr() && n == tensor.size(0) && dims == tensor.size(1);
  }

  void set_rows(const Tensor& tensor) {
    rows = static_cast<const S*>(tensor.const_data_ptr());
    n = tensor.size(0);
    dims = tensor.size(1);
    scale.assign(n, 1.0);
    offset.assign(dims, T(0));
  }

  int64_t tiles() const { return (n + kTile - 1) / kTile; }
  int64_t tile_rows(int64_t tile) const { return std::min(kTile, n - tile * kTile); }

  // Row i in T: where it lies, or converted into `buffer`.
  const T* row(int64_t i, T* buffer) const {
    if constexpr (std::is_same_v<S, T>) {
      return rows + i * dims;
    } else {
      for (int64_t d = 0; d < dims; ++d) buffer[d] = static_cast<T>(rows[i * dims + d]);
      return buffer;
    }
  }

  // Packs `count` rows from `first`, a multiple of the panel width. `buffer` holds a panel of rows.
  void pack(int64_t first, int64_t count, T* buffer, T* out) const {
    constexpr int64_t kWidth = kPanelWidth<T>;
    const T* lines[kWidth];
    for (int64_t i = first; i < first + count; i += kWidth, out += kWidth * dims) {
      const int64_t filled = std::min(kWidth, first + count - i);
      for (int64_t r = 0; r < filled; ++r) lines[r] = row(i + r, buffer + r * dims);
      pack_panel(lines, filled, dims, scale.data() + i, offset.data(), out);
    }
  }
};

// Indices of problems by falling cost of the Gram matrix and what follows it, so that no long one
// starts last.
template <typename S, typename T>
std::vector<int64_t> by_cost(const std::vector<RowProblem<S, T>>& problems) {
  const auto cost = [&](int64_t b) {
    const RowProblem<S, T>& p = problems[b];
    return p.n * p.n * (p.dims + kTile);
  };
  std::vector<int64_t> order(problems.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  return order;
}

// Scales every row to length 1 under cosine; zero rows stay. Then takes the mean off where it
// outweighs the spread, rounded to a power of two no coarser than the spread: integers and other
// exact inputs stay exact, and ties stay ties.
template <typename S, typename T>
void find_scale_and_offset(RowProblem<S, T>& p, bool cosine) {
  std::vector<double> sum(p.dims, 0.0);
  std::vector<T> buffer(p.dims);
  double squares = 0;
  for (int64_t i = 0; i < p.n; ++i) {
    const T* row = p.row(i, buffer.data());
    if (cosine) {
      const double square = add_row(row, p.dims, 1.0, sum.data());
      if (square > 0) p.scale[i] = 1.0 / std::sqrt(square);
    } else {
      squares += add_row(row, p.dims, 1.0, sum.data());
    }
  }
  if (cosine) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t i = 0; i < p.n; ++i) {
      squares += add_row(p.row(i, buffer.data()), p.dims, p.scale[i], sum.data());
    }
  }
  double mean_squares = 0;
  for (double s : sum) mean_squares += s / p.n * s;
  const double spread = squares - mean_squares;
  if (!(mean_squares > spread) || !(spread > 0) || !std::isfinite(squares)) return;
  const double grid = std::exp2(std::floor(std::log2(std::sqrt(spread / p.n / p.dims))));
  for (int64_t d = 0; d < p.dims; ++d) {
    p.offset[d] = static_cast<T>(std::rint(sum[d] / p.n / grid) * grid);
  }
}

// One tile of the Gram matrix on or below the diagonal, and its mirror image.
template <typename S, typename T>
void find_gram_tile(RowProblem<S, T>& p, int64_t task, Scratch& scratch) {
  int64_t i = 0;
  while ((i + 1) * (i + 2) / 2 <= task) ++i;
  const int64_t j = task - i * (i + 1) / 2;
  constexpr int64_t kStride = kTile + 64 / sizeof(T);  // lines of a column fall into many sets
  T* block = scratch.template at_least<T>(kTile * kStride);
  gemm_nt(p.panels + i * kTile * p.dims, p.tile_rows(i), p.panels + j * kTile * p.dims,
          p.tile_rows(j), p.dims, block, kStride, i == j);
  write_mirrored(block, kStride, p.tile_rows(i), p.tile_rows(j), i == j,
                 p.gram + i * kTile * p.n + j * kTile, p.gram + j * kTile * p.n + i * kTile, p.n);
}

// The Gram matrices of a batch as stages; a problem's matrix lives from `open` to `close`.
template <typename S, typename T>
class HostGrams {
 public:
  explicit HostGrams(bool cosine) : cosine_(cosine), workers_(num_workers()) {}

  std::vector<Stage> stages(std::vector<RowProblem<S, T>>& problems) {
    const auto open = [&](int64_t b, int64_t, int64_t) {
      RowProblem<S, T>& p = problems[b];
      find_scale_and_offset(p, cosine_);
      const int64_t panels = gemm_panel_size<T>(p.n, p.dims);
      p.panels_memory = borrow(panels);
      p.gram_memory = borrow(p.n * p.n);
      p.panels = p.panels_memory->template at_least<T>(panels);
      p.gram = p.gram_memory->template at_least<T>(p.n * p.n);
    };
    const auto pack = [&](int64_t b, int64_t tile, int64_t worker) {
      const RowProblem<S, T>& p = problems[b];
      T* buffer = workers_[worker].template at_least<T>(kPanelWidth<T> * p.dims);
      p.pack(tile * kTile, p.tile_rows(tile), buffer, p.panels + tile * kTile * p.dims);
    };
    const auto multiply = [&](int64_t b, int64_t task, int64_t worker) {
      find_gram_tile<S, T>(problems[b], task, workers_[worker]);
    };
    const auto tiles = [&](int64_t b) { return problems[b].tiles(); };
    const auto pairs = [&](int64_t b) {
      return problems[b].tiles() * (problems[b].tiles() + 1) / 2;
    };
    return {{[](int64_t) { return 1; }, open}, {tiles, pack}, {pairs, multiply}};
  }

  // Takes the memory of a problem back, for the next.
  void close(RowProblem<S, T>& p) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(p.panels_memory));
    free_.push_back(std::move(p.gram_memory));
  }

 private:
  // The least of what is free that holds so many numbers, or else the largest, which then grows:
  // memory that is new costs more than its use.
  std::unique_ptr<Scratch> borrow(int64_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Scratch>();
    const std::size_t wanted = static_cast<std::size_t>(count) * sizeof(T);
    const auto fits_better = [=](const auto& a, const auto& b) {
      const bool fits_a = a->bytes() >= wanted, fits_b = b->bytes() >= wanted;
      if (fits_a != fits_b) return fits_a;
      return fits_a ? a->bytes() < b->bytes() : a->bytes() > b->bytes();
    };
    const auto best = std::min_element(free_.begin(), free_.end(), fits_better);
    std::unique_ptr<Scratch> memory = std::move(*best);
    free_.erase(best);
    return memory;
  }

  const bool cosine_;
  std::vector<Scratch> workers_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

}  // namespace oskt::kmeans
