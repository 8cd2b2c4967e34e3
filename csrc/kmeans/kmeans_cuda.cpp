// Glue of batched k-means on CUDA: checks, one scratch tensor for the whole batch, one table,
// launch; no host synchronisation.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "kmeans/gram_cuda.h"
#include "kmeans/kmeans.h"
#include "kmeans/kmeans_kernel.h"

namespace oskt::kmeans {
namespace {

using Result = std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor>;

// The table of problems, longest first, without its scratch pointers.
std::vector<DeviceProblem> table_of(const std::vector<Tensor>& rows, const std::vector<int64_t>& k,
                                    const std::vector<Tensor>& initial_centers,
                                    std::vector<Tensor>& centers, std::vector<Tensor>& labels,
                                    Tensor& inertia, Tensor& n_iter, DeviceBatch& batch) {
  std::vector<DeviceProblem> table(rows.size());
  for (std::size_t b = 0; b < rows.size(); ++b) {
    DeviceProblem& p = table[b];
    set_rows(p, rows[b]);
    p.initial_centers = initial_centers.empty() ? nullptr : initial_centers[b].const_data_ptr();
    p.centers = centers[b].mutable_data_ptr();
    p.labels = static_cast<int64_t*>(labels[b].mutable_data_ptr());
    p.inertia = static_cast<double*>(inertia.mutable_data_ptr()) + b;
    p.n_iter = static_cast<int64_t*>(n_iter.mutable_data_ptr()) + b;
    p.k = k[b];
  }
  sort_and_count(table, batch, [](const DeviceProblem& p) { return p.n * (p.n + 8 * p.k); });
  for (DeviceProblem& p : table) {
    p.first_cluster = batch.clusters;
    batch.clusters += p.k;
  }
  return table;
}

// Hands out scratch for the table itself and every problem; with a null base it only measures.
int64_t lay_out(char* base, std::vector<DeviceProblem>& table, DeviceBatch& batch) {
  Layout layout{base, 0};
  layout.take(batch.problems, batch.size);
  for (DeviceProblem& p : table) {
    take_scratch(layout, p);
    layout.take(p.partial, p.k);
    layout.take(p.outcome, batch.restarts);
    layout.take(p.best, 1);
    if (batch.settings.init == Init::kLabels) {
      layout.take(p.initial_label, p.n);
      layout.take(p.initial_sq_dist, p.n);
    }
    Workspace<double> workspace;
    p.workspace_bytes = workspace.lay_out(nullptr, p.n, p.k, batch.settings.init);
    layout.take(p.workspaces, batch.restarts * p.workspace_bytes);
  }
  return layout.used;
}

Result kmeans_cuda(std::vector<Tensor> rows, std::vector<int64_t> k, std::string metric,
                   std::string init, std::vector<Tensor> initial_centers, std::string algorithm,
                   int64_t n_init, int64_t max_iter, int64_t seed, std::string route) {
  check(route != "direct",
        "kmeans: route must be 'auto' or 'gram' on CUDA, got 'direct'. Move the rows to the CPU.");
  const Arguments arguments = check_arguments(rows, k, metric, init, initial_centers, algorithm,
                                              n_init, max_iter, seed, "gram");
  const auto size = static_cast<int64_t>(rows.size());
  const torch::stable::accelerator::DeviceGuard guard(rows[0].get_device_index());
  std::vector<Tensor> centers, labels;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    centers.push_back(torch::stable::new_empty(rows[b], {k[b], rows[b].size(1)}));
    labels.push_back(torch::stable::new_empty(rows[b], {rows[b].size(0)}, ScalarType::Long));
  }
  Tensor inertia = torch::stable::new_empty(rows[0], {size}, ScalarType::Double);
  Tensor n_iter = torch::stable::new_empty(rows[0], {size}, ScalarType::Long);

  DeviceBatch batch{};
  batch.storage = storage_of("kmeans", rows[0]);
  batch.cosine = arguments.cosine;
  batch.restarts = arguments.restarts;
  batch.settings = arguments.settings;
  std::vector<DeviceProblem> table =
      table_of(rows, k, initial_centers, centers, labels, inertia, n_iter, batch);
  const int64_t bytes = lay_out(nullptr, table, batch);
  Tensor scratch = torch::stable::new_empty(rows[0], {bytes}, ScalarType::Byte);
  lay_out(static_cast<char*>(scratch.mutable_data_ptr()), table, batch);

  check_launch("kmeans", launch_kmeans(table.data(), batch, current_stream(rows[0])));
  return {centers, labels, inertia, n_iter};
}

}  // namespace
}  // namespace oskt::kmeans

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("kmeans", TORCH_BOX(&oskt::kmeans::kmeans_cuda));
}
