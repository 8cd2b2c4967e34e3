// Glue of the Gram stage on CUDA: the part of a table that every operator fills alike.
#pragma once

#include <algorithm>
#include <vector>

#include "glue/cuda.h"
#include "kmeans/gram_kernel.h"
#include "kmeans/layout.h"

namespace oskt::kmeans {

inline void set_rows(DeviceRows& p, const Tensor& rows) {
  p.rows = rows.const_data_ptr();
  p.n = rows.size(0);
  p.dims = rows.size(1);
}

// The first problem of a table with the rows of p, whose Gram matrix is p's, too.
template <typename Problem>
const Problem& first_like(const std::vector<Problem>& table, const Problem& p) {
  return *std::find_if(table.begin(), table.end(), [&](const Problem& q) {
    return q.rows == p.rows && q.n == p.n && q.dims == p.dims;
  });
}

// Tiles of the lower half of a Gram matrix; none of another problem's.
template <typename Problem>
int64_t gram_tiles(const std::vector<Problem>& table, const Problem& p) {
  if (&first_like(table, p) != &p) return 0;
  const int64_t side = (p.n + kGramTile - 1) / kGramTile;
  return side * (side + 1) / 2;
}

// Sorts a table by falling cost and counts its rows and tiles(table, problem) into the batch.
template <typename Problem, typename Cost, typename Tiles>
void sort_and_count(std::vector<Problem>& table, DeviceGrams<Problem>& batch, const Cost& cost,
                    const Tiles& tiles) {
  std::stable_sort(table.begin(), table.end(),
                   [&](const Problem& a, const Problem& b) { return cost(a) > cost(b); });
  batch.size = static_cast<int64_t>(table.size());
  for (Problem& p : table) {
    p.first_row = batch.rows;
    p.first_tile = batch.tiles;
    batch.rows += p.n;
    batch.tiles += tiles(table, p);
  }
}

// What the Gram stage of p needs, after that of the problems before it in the table.
template <typename Problem>
void take_scratch(Layout& layout, const std::vector<Problem>& table, Problem& p) {
  layout.take(p.scale, p.n);
  layout.take(p.offset, p.dims);
  const Problem& first = first_like(table, p);
  if (&first == &p) {
    layout.take(p.gram, p.n * p.n);
  } else {
    p.gram = first.gram;
  }
}

}  // namespace oskt::kmeans
