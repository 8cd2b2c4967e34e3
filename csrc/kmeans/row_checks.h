// What kmeans and merge_trees ask of a ragged batch of rows.
#pragma once

#include <vector>

#include "glue/checks.h"

namespace oskt::kmeans {

// The Gram matrix of this many rows takes 1 GiB in float32.
inline constexpr int64_t kMaxRows = 16384;

inline void check_gram_rows(const char* op, const Tensor& rows, std::size_t b) {
  check(rows.size(0) <= kMaxRows, op, ": rows[", b, "] must have at most ", kMaxRows,
        " rows for its Gram matrix, got ", rows.size(0), ".");
}

inline void check_rows(const char* op, const std::vector<Tensor>& rows) {
  check(!rows.empty(), op, ": rows must hold at least one matrix, got 0.");
  for (std::size_t b = 0; b < rows.size(); ++b) {
    check(rows[b].dim() == 2 && rows[b].is_contiguous() && rows[b].size(0) >= 1 &&
              rows[b].size(1) >= 1,
          op, ": rows[", b, "] must be a contiguous matrix with rows and columns.");
    check(rows[b].size(0) < (int64_t{1} << 31), op, ": rows[", b,
          "] must have fewer than 2^31 rows, got ", rows[b].size(0), ".");
    check(rows[b].scalar_type() == rows[0].scalar_type() && rows[b].device() == rows[0].device(),
          op, ": rows[", b, "] must have the dtype and device of rows[0].");
  }
}

}  // namespace oskt::kmeans
