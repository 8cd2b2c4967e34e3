// Glue of merge trees on CUDA: checks, one scratch tensor for the whole batch, one table, launch;
// no host synchronisation.

#include <torch/csrc/stable/library.h>

#include "kmeans/gram_cuda.h"
#include "kmeans/merge_trees.h"
#include "kmeans/merge_trees_kernel.h"

namespace oskt::kmeans {
namespace {

// Hands out scratch for the table itself and every problem; with a null base it only measures.
int64_t lay_out(char* base, std::vector<TreeProblem>& table, DeviceGrams<TreeProblem>& batch) {
  Layout layout{base, 0};
  layout.take(batch.problems, batch.size);
  for (TreeProblem& p : table) {
    take_scratch(layout, table, p);
    p.tree.lay_out(layout, p.n);
  }
  return layout.used;
}

MergeTrees merge_trees_cuda(std::vector<Tensor> rows) {
  check_rows("merge_trees", rows);
  for (std::size_t b = 0; b < rows.size(); ++b) check_gram_rows("merge_trees", rows[b], b);
  const torch::stable::accelerator::DeviceGuard guard(rows[0].get_device_index());
  MergeTrees trees = new_merge_trees(rows);
  std::vector<TreeProblem> table(rows.size());
  for (std::size_t b = 0; b < rows.size(); ++b) {
    set_rows(table[b], rows[b]);
    table[b].out = dendrogram_of(trees, b);
  }
  DeviceGrams<TreeProblem> batch{};
  batch.storage = storage_of("merge_trees", rows[0]);
  sort_and_count(table, batch, [](const TreeProblem& p) { return p.n; }, gram_tiles<TreeProblem>);
  const int64_t bytes = lay_out(nullptr, table, batch);
  Tensor scratch = torch::stable::new_empty(rows[0], {bytes}, ScalarType::Byte);
  lay_out(static_cast<char*>(scratch.mutable_data_ptr()), table, batch);
  check_launch("merge_trees", launch_merge_trees(table.data(), batch, current_stream(rows[0])));
  return trees;
}

}  // namespace
}  // namespace oskt::kmeans

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("merge_trees", TORCH_BOX(&oskt::kmeans::merge_trees_cuda));
}
