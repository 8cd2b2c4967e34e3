// The contract between a RefiningPlan and the kernels of refining_loss.
//
//   loss = scale * sum over items l of weight_l * sum over rows n of w_n |T_l[n] - C_l[label(n)]|^2
//   dloss/dT_l[n] =  2 * scale * weight_l * w_n (T_l[n] - C_l[label(n)])
//   dloss/dC_l[k] = -2 * scale * weight_l * sum over members n of k of w_n (T_l[n] - C_l[k])
//
// The gradients are formed with the loss, for a factor of 1 of whatever is made of it; backward
// multiplies them by the factor that came (refining_loss_scale_), in place, and not at all by 1.
//
// A plan is one int64 table: LossHeader, items[num_items], tasks[num_tasks], then per item the
// members of its clusters as a ragged list (starts[M + 1], members[N]); and float64 weights: one
// per item, then the w of the rows of those items whose w are not all 1. A position named *_at
// counts words from the start of the table, row_weights_at from the start of the weights. Items do
// not overlap in the chain.
//
// A TASK is a rectangle of one item: clusters times columns. Every task owns its part of both
// gradients and one float64 partial of the loss; partials are added in the order of the tasks.
// Tasks are ordered by item and built in oskt_ext/refining_loss.py.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oskt::refine {

constexpr int64_t kMagic = 0x6f736b7472656602;  // "osktref", layout 2
constexpr int64_t kAllOnes = -1;                // row_weights_at of rows without weights

struct LossHeader {
  int64_t magic, words;
  int64_t chain_numel;  // the chain has at least as many elements
  int64_t num_items, num_tasks;
  int64_t num_weights;
};

struct LossItem {
  int64_t rows, row_length;  // N, D of the teacher tensor
  int64_t chain_at;          // first element in the flat chain
  int64_t starts_at, members_at;
  int64_t first_task;
  int64_t row_weights_at;
};

struct LossTask {
  int64_t item, cluster_begin, cluster_end, column_begin, column_end;
};

struct LossReader {
  const int64_t* table;

  OSKT_HOST_DEVICE const LossHeader& header() const {
    return *reinterpret_cast<const LossHeader*>(table);
  }
  OSKT_HOST_DEVICE const LossItem& item(int64_t i) const {
    return reinterpret_cast<const LossItem*>(table + sizeof(LossHeader) / 8)[i];
  }
  OSKT_HOST_DEVICE const LossTask& task(int64_t i) const {
    const int64_t* items_end =
        table + (sizeof(LossHeader) + header().num_items * sizeof(LossItem)) / 8;
    return reinterpret_cast<const LossTask*>(items_end)[i];
  }
  // One past the last task of the items before `end_item`.
  OSKT_HOST_DEVICE int64_t tasks_before(int64_t end_item) const {
    return end_item < header().num_items ? item(end_item).first_task : header().num_tasks;
  }
};

}  // namespace oskt::refine
