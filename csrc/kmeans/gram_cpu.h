// The Gram stage on the CPU: G = X X^T of every problem of a ragged batch, spread over threads by
// tiles. A sum depends on its rows alone: results depend neither on threads nor on the batch.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "common/gemm_nt.h"
#include "glue/checks.h"
#include "glue/parallel.h"

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
  T* gram;                    // n x n

  void set_rows(const Tensor& tensor) {
    rows = static_cast<const S*>(tensor.const_data_ptr());
    n = tensor.size(0);
    dims = tensor.size(1);
    scale.assign(n, 1.0);
    offset.assign(dims, T(0));
  }

  double scaled(int64_t i, int64_t d) const {
    return static_cast<double>(rows[i * dims + d]) * scale[i];
  }

  T value(int64_t i, int64_t d) const {
    return static_cast<T>(rows[i * dims + d]) * static_cast<T>(scale[i]) - offset[d];
  }
};

// Indices of problems by falling cost, so that no long one starts last.
template <typename Problem, typename Cost>
std::vector<int64_t> by_cost(const std::vector<Problem>& problems, const Cost& cost) {
  std::vector<int64_t> order(problems.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return cost(problems[a]) > cost(problems[b]); });
  return order;
}

// Scales every row to length 1; zero rows stay.
template <typename S, typename T>
void find_scale(RowProblem<S, T>& p) {
  for (int64_t i = 0; i < p.n; ++i) {
    double square = 0;
    for (int64_t d = 0; d < p.dims; ++d) square += p.scaled(i, d) * p.scaled(i, d);
    if (square > 0) p.scale[i] = 1.0 / std::sqrt(square);
  }
}

// Takes the mean off where it outweighs the spread, rounded to a power of two no coarser than the
// spread: integers and other exact inputs stay exact, and ties stay ties.
template <typename S, typename T>
void find_offset(RowProblem<S, T>& p) {
  std::vector<double> sum(p.dims, 0.0);
  double squares = 0;
  for (int64_t i = 0; i < p.n; ++i) {
    const S* row = p.rows + i * p.dims;
    const double scale = p.scale[i];
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < p.dims; ++d) {
      const double value = static_cast<double>(row[d]) * scale;
      sum[d] += value;
      squares += value * value;
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

// Forms the Gram matrix of p.gram from packed rows, which are left in `panels`.
template <typename S, typename T>
void find_gram(RowProblem<S, T>& p, T* panels) {
  const int64_t tiles = (p.n + kTile - 1) / kTile;
  const auto rows_of = [&p](int64_t tile) { return std::min(kTile, p.n - tile * kTile); };
  for_each_task(tiles, [&](int64_t tile, int64_t) {
    const int64_t first = tile * kTile;
    gemm_pack<T>(
        rows_of(tile), p.dims, [&](int64_t i, int64_t d) { return p.value(first + i, d); },
        panels + first * p.dims);
  });
  for_each_task(tiles * (tiles + 1) / 2, [&](int64_t task, int64_t) {
    int64_t i = 0;
    while ((i + 1) * (i + 2) / 2 <= task) ++i;
    const int64_t j = task - i * (i + 1) / 2;
    T* block = p.gram + i * kTile * p.n + j * kTile;
    gemm_nt(panels + i * kTile * p.dims, rows_of(i), panels + j * kTile * p.dims, rows_of(j),
            p.dims, block, p.n, i == j);
    T* mirror = p.gram + j * kTile * p.n + i * kTile;
    for (int64_t s = 0; s < rows_of(j); ++s) {
      for (int64_t r = i == j ? s + 1 : 0; r < rows_of(i); ++r) {
        mirror[s * p.n + r] = block[r * p.n + s];
      }
    }
  });
}

// Every Gram matrix of a batch, alive as long as this is. `visit(b, panels)` sees each problem's
// packed rows before the next problem's take their place.
template <typename T>
class HostGrams {
 public:
  template <typename Problem, typename Visit>
  void find(std::vector<Problem>& problems, bool cosine, const Visit& visit) {
    for_each_task(static_cast<int64_t>(problems.size()), [&](int64_t b, int64_t) {
      if (cosine) find_scale(problems[b]);
      find_offset(problems[b]);
    });
    int64_t total = 0;
    for (const Problem& p : problems) total += p.n * p.n;
    T* next = entries_.template at_least<T>(total);
    for (std::size_t b = 0; b < problems.size(); ++b) {
      Problem& p = problems[b];
      p.gram = next;
      next += p.n * p.n;
      T* panels = panels_.template at_least<T>(gemm_panel_size<T>(p.n, p.dims));
      find_gram(p, panels);
      visit(b, panels);
    }
  }

 private:
  Scratch entries_, panels_;
};

}  // namespace oskt::kmeans
