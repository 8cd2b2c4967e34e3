// Feature rows on the CPU and their inner products, computed one strip of rows at a time: a strip
// of kStrip rows against every item holds kStrip * items numbers, and nothing else grows with
// items.
//
//   const FeatureRows<float> queries({query_features}, cosine);
//   const FeatureRows<float> gallery({gallery_features}, cosine);
//   ScoreStrip<float> strip(queries, gallery);
//   strip.multiply(first, count, 0, [](int64_t, int64_t) {});
//   strip.row(i)[g];  // <query first + i, item g>
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "common/gemm_nt.h"
#include "common/storage.h"
#include "glue/checks.h"
#include "glue/parallel.h"

namespace oskt::retrieval {

// Packing an item costs about as much as 50 rows of the strip take to multiply with it.
constexpr int64_t kStrip = 512;

// Sum of squares in double, in eight fixed lanes: equal rows have equal norms at any address.
template <typename scalar_t>
double squared_norm(const scalar_t* row, int64_t width) {
  std::array<double, 8> lane{};
  int64_t d = 0;
  for (; d + 8 <= width; d += 8) {
    for (int64_t l = 0; l < 8; ++l) {
      const double x = static_cast<double>(row[d + l]);
      lane[l] += x * x;
    }
  }
  for (; d < width; ++d) {
    const double x = static_cast<double>(row[d]);
    lane[d % 8] += x * x;
  }
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

// The rows of one or two matrices, one after the other, as they are stored. Cosine scales a row to
// length 1 when it is read, and leaves a zero row zero.
template <typename scalar_t>
class FeatureRows {
 public:
  using acc_t = acc_of<scalar_t>;

  FeatureRows(const std::vector<Tensor>& parts, bool cosine)  // contiguous, of one width
      : head_(data_of(parts.front())),
        tail_(data_of(parts.back())),
        head_count_(parts.front().size(0)),
        count_(head_count_ + (parts.size() > 1 ? parts.back().size(0) : 0)),
        width_(parts.front().size(1)),
        cosine_(cosine),
        scale_(count_, 1.0),
        half_norm_(count_, 0.0),
        bias_(count_, acc_t{0}) {
    torch::stable::parallel_for(0, count_, gemm::kBlockRows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const double norm2 = squared_norm(row(i), width_);
        if (cosine_) {
          scale_[i] = norm2 > 0.0 ? 1.0 / std::sqrt(norm2) : 0.0;
        } else {
          half_norm_[i] = 0.5 * norm2;
          bias_[i] = static_cast<acc_t>(half_norm_[i]);
        }
      }
    });
  }

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  const scalar_t* row(int64_t i) const {
    return i < head_count_ ? head_ + i * width_ : tail_ + (i - head_count_) * width_;
  }
  double scale(int64_t i) const { return scale_[i]; }
  // d(i, j) = |i - j|^2 / 2, under cosine 1 - cos, = offset(i) + half_norm(j) - <i, j>.
  double offset(int64_t i) const { return cosine_ ? 1.0 : half_norm_[i]; }
  double half_norm(int64_t j) const { return half_norm_[j]; }
  const acc_t* bias() const { return bias_.data(); }  // half_norm as scores take it

  void pack(int64_t first, int64_t rows, acc_t* panels) const {
    gemm_pack<acc_t>(
        rows, width_,
        [&](int64_t r, int64_t d) {
          return static_cast<double>(row(first + r)[d]) * scale_[first + r];
        },
        panels);
  }

 private:
  static const scalar_t* data_of(const Tensor& part) {
    return static_cast<const scalar_t*>(part.const_data_ptr());
  }

  const scalar_t *head_, *tail_;
  int64_t head_count_, count_, width_;
  bool cosine_;
  std::vector<double> scale_, half_norm_;
  std::vector<acc_t> bias_;
};

template <typename scalar_t>
class ScoreStrip {
 public:
  using acc_t = acc_of<scalar_t>;

  ScoreStrip(const FeatureRows<scalar_t>& rows, const FeatureRows<scalar_t>& items)
      : rows_(rows), items_(items), block_panels_(num_workers()) {
    const int64_t height = std::min(kStrip, rows.count());
    scores_ = memory_.template at_least<acc_t>(height * items.count());
    panels_ = panel_memory_.template at_least<acc_t>(panel_size(height));
    const int64_t block = std::min(gemm::kBlockRows, items.count());
    for (Scratch& panels : block_panels_) panels.template at_least<acc_t>(panel_size(block));
  }

  // Rows [first, first + count), count <= kStrip, against the items from `start` on, a multiple of
  // the block. done(begin, end) runs when those columns are there, by the thread that made them.
  template <typename Done>
  void multiply(int64_t first, int64_t count, int64_t start, const Done& done) {
    constexpr int64_t kWidth = kPanelWidth<acc_t>, kBlock = gemm::kBlockRows;
    const int64_t width = rows_.width();
    for_each_task((count + kWidth - 1) / kWidth, [&](int64_t panel, int64_t) {
      const int64_t begin = panel * kWidth;
      rows_.pack(first + begin, std::min(kWidth, count - begin), panels_ + begin * width);
    });
    for_each_task((items_.count() - start + kBlock - 1) / kBlock, [&](int64_t b, int64_t worker) {
      const int64_t begin = start + b * kBlock, end = std::min(begin + kBlock, items_.count());
      acc_t* block = block_panels_[worker].template at_least<acc_t>(panel_size(end - begin));
      items_.pack(begin, end - begin, block);
      gemm_nt(panels_, count, block, end - begin, width, scores_ + begin, items_.count());
      done(begin, end);
    });
  }

  acc_t* row(int64_t i) { return scores_ + i * items_.count(); }

 private:
  int64_t panel_size(int64_t rows) const {
    return static_cast<int64_t>(gemm_panel_size<acc_t>(rows, rows_.width()));
  }

  const FeatureRows<scalar_t>&rows_, &items_;
  Scratch memory_, panel_memory_;
  std::vector<Scratch> block_panels_;  // one per worker
  acc_t *scores_, *panels_;
};

}  // namespace oskt::retrieval
