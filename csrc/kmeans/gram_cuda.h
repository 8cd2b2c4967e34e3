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

// Tiles of the lower half of a Gram matrix.
inline int64_t gram_tiles(int64_t n) {
  const int64_t side = (n + kGramTile - 1) / kGramTile;
  return side * (side + 1) / 2;
}

// Sorts a table by falling cost and counts its rows and tiles(n) into the batch.
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
    batch.tiles += tiles(p.n);
  }
}

inline void take_scratch(Layout& layout, DeviceRows& p) {
  layout.take(p.scale, p.n);
  layout.take(p.offset, p.dims);
  layout.take(p.gram, p.n * p.n);
}

}  // namespace oskt::kmeans
