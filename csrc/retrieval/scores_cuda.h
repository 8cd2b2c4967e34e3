// Feature rows and chunks of scores of the CUDA glue: what retrieval_metrics and k_reciprocal have
// in common.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "glue/cuda.h"
#include "retrieval/retrieval_metrics_kernel.h"

namespace oskt::retrieval {

// Scores of a chunk, 256 MB of floats: against MSMT17's gallery 768 queries, a block each and more
// than an H200 runs at once.
constexpr int64_t kChunkScores = int64_t{1} << 26;
constexpr int64_t kMaxChunk = int64_t{1} << 15;  // queries of a chunk: the grid's second side

template <typename acc_t>
constexpr ScalarType kAccType =
    std::is_same_v<acc_t, double> ? ScalarType::Double : ScalarType::Float;

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows of a chunk of scores, a multiple of kTile.
inline int64_t chunk_rows(int64_t rows, int64_t score_pitch) {
  return std::min(round_up(rows, kTile), std::clamp(kChunkScores / score_pitch / kTile * kTile,
                                                    int64_t{kTile}, kMaxChunk));
}

// Rows in the computing type, one matrix after the other, with room for `parts`.
template <typename acc_t>
class DeviceRows {
 public:
  DeviceRows(const char* op, const std::vector<Tensor>& parts, bool cosine, cudaStream_t stream)
      : pitch(round_up(parts[0].size(1), kDepth)) {
    for (const Tensor& part : parts) count += part.size(0);
    rows_ = torch::stable::new_empty(parts[0], {count, pitch}, kAccType<acc_t>);
    bias_ = torch::stable::new_empty(parts[0], {count}, kAccType<acc_t>);
    int64_t first = 0;
    for (const Tensor& part : parts) {
      check_launch(op, launch_rows<acc_t>({part.const_data_ptr(), storage_of(op, part),
                                           rows_.template mutable_data_ptr<acc_t>() + first * pitch,
                                           bias_.template mutable_data_ptr<acc_t>() + first,
                                           part.size(0), part.size(1), pitch, cosine},
                                          stream));
      first += part.size(0);
    }
  }

  const acc_t* rows() const { return rows_.template const_data_ptr<acc_t>(); }
  const acc_t* bias() const { return bias_.template const_data_ptr<acc_t>(); }

  int64_t pitch, count = 0;

 private:
  Tensor rows_, bias_;
};

// Scores of rows [first, first + count) against all items.
template <typename acc_t>
void multiply(const char* op, const DeviceRows<acc_t>& rows, int64_t first, int64_t count,
              const DeviceRows<acc_t>& items, acc_t* scores, int64_t score_pitch,
              cudaStream_t stream) {
  check_launch(op,
               launch_scores<acc_t>({rows.rows() + first * rows.pitch, items.rows(), items.bias(),
                                     scores, count, items.count, rows.pitch, score_pitch},
                                    stream));
}

}  // namespace oskt::retrieval
