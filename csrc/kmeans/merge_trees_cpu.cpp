// Merge trees on the CPU; see merge_trees.h for the contract. Gram matrices are spread over threads
// by tiles; a tree is grown on one thread while others go on, the longest first.

#include <torch/csrc/stable/library.h>

#include "common/host_team.h"
#include "common/simd.h"
#include "kmeans/gram_cpu.h"
#include "kmeans/merge_trees.h"

namespace oskt::kmeans {

// One instantiation per Gram type in a plain function: it is compiled for three instruction sets.
OSKT_SIMD_CLONES __attribute__((flatten)) void grow_host(const float* gram, int64_t n,
                                                         const WardTree<float>& tree,
                                                         const Dendrogram& out) {
  HostTeam team;
  grow_dendrogram(team, gram, n, tree, out);
}

OSKT_SIMD_CLONES __attribute__((flatten)) void grow_host(const double* gram, int64_t n,
                                                         const WardTree<double>& tree,
                                                         const Dendrogram& out) {
  HostTeam team;
  grow_dendrogram(team, gram, n, tree, out);
}

namespace {

template <typename S, typename T>
void grow(const std::vector<Tensor>& rows, MergeTrees& trees) {
  std::vector<RowProblem<S, T>> problems(rows.size());
  for (std::size_t b = 0; b < rows.size(); ++b) problems[b].set_rows(rows[b]);
  std::vector<Scratch> workers(num_workers());
  HostGrams<S, T> grams(false);
  std::vector<Stage> stages = grams.stages(problems);
  stages.push_back({[](int64_t) { return 1; },
                    [&](int64_t b, int64_t, int64_t worker) {
                      RowProblem<S, T>& p = problems[b];
                      WardTree<T> tree;
                      Layout measure{nullptr, 0};
                      tree.lay_out(measure, p.n);
                      Layout layout{workers[worker].template at_least<char>(measure.used), 0};
                      tree.lay_out(layout, p.n);
                      grow_host(p.gram, p.n, tree, dendrogram_of(trees, b));
                      grams.close(p);
                    }});
  run_stages(by_cost(problems), stages);
}

MergeTrees merge_trees_cpu(std::vector<Tensor> rows) {
  check_rows("merge_trees", rows);
  for (std::size_t b = 0; b < rows.size(); ++b) check_gram_rows("merge_trees", rows[b], b);
  MergeTrees trees = new_merge_trees(rows);
  dispatch_floating("merge_trees", rows[0].scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = acc_of<S>;
    grow<S, T>(rows, trees);
  });
  return trees;
}

}  // namespace
}  // namespace oskt::kmeans

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("merge_trees", TORCH_BOX(&oskt::kmeans::merge_trees_cpu));
}
