// Glue of batched k-means on CUDA: checks, and for the problems of either route one scratch tensor,
// one table and a launch; no host synchronisation.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "kmeans/direct_kernel.h"
#include "kmeans/gram_cuda.h"
#include "kmeans/kmeans.h"

namespace oskt::kmeans {
namespace {

using Result = std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor>;

// The tensors of a call.
struct Call {
  const std::vector<Tensor>& rows;
  const std::vector<int64_t>& k;
  const std::vector<Tensor>& initial_centers;
  const Arguments& arguments;
  std::vector<Tensor> centers, labels;
  Tensor inertia, n_iter;
};

// The table of one route's problems, without its scratch pointers.
template <typename Problem>
std::vector<Problem> table_of(Call& call, bool direct, DeviceTasks<Problem>& batch) {
  std::vector<Problem> table;
  for (std::size_t b = 0; b < call.rows.size(); ++b) {
    if (call.arguments.direct[b] != direct) continue;
    Problem& p = table.emplace_back();
    set_rows(p, call.rows[b]);
    p.initial_centers =
        call.initial_centers.empty() ? nullptr : call.initial_centers[b].const_data_ptr();
    p.centers = call.centers[b].mutable_data_ptr();
    p.labels = static_cast<int64_t*>(call.labels[b].mutable_data_ptr());
    p.inertia = static_cast<double*>(call.inertia.mutable_data_ptr()) + b;
    p.n_iter = static_cast<int64_t*>(call.n_iter.mutable_data_ptr()) + b;
    p.k = call.k[b];
  }
  batch.storage = storage_of("kmeans", call.rows[0]);
  batch.cosine = call.arguments.cosine;
  batch.restarts = call.arguments.restarts;
  batch.settings = call.arguments.settings;
  return table;
}

template <typename Problem>
void count_clusters(std::vector<Problem>& table, DeviceTasks<Problem>& batch) {
  for (Problem& p : table) {
    p.first_cluster = batch.clusters;
    batch.clusters += p.k;
  }
}

// Hands out scratch for the table itself and every problem; with a null base it only measures.
int64_t lay_out(char* base, std::vector<DeviceProblem>& table, DeviceBatch& batch) {
  Layout layout{base, 0};
  layout.take(batch.problems, batch.size);
  for (DeviceProblem& p : table) {
    take_scratch(layout, table, p);
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

int64_t lay_out(char* base, std::vector<DirectProblem>& table, DirectBatch& batch) {
  Layout layout{base, 0};
  layout.take(batch.problems, batch.size);
  for (DirectProblem& p : table) {
    layout.take(p.scale, p.n);
    layout.take(p.offset, p.dims);
    layout.take(p.tile_sum, p.tiles * p.dims);
    layout.take(p.tile_squares, p.tiles);
    layout.take(p.best, 1);
    if (batch.rounds) layout.take(p.rounded_rows, p.n * p.operand_bytes);
    const auto bytes_of = [&](auto workspace) {
      return workspace.lay_out(nullptr, p.n, p.dims, p.k, p.operand_bytes, batch.settings.init);
    };
    p.workspace_bytes = batch.storage == Storage::kFloat64 ? bytes_of(DirectWorkspace<double>{})
                                                           : bytes_of(DirectWorkspace<float>{});
    layout.take(p.workspaces, batch.restarts * p.workspace_bytes);
  }
  return layout.used;
}

template <typename Problem, typename Batch, typename Launch>
void run(Call& call, std::vector<Problem>& table, Batch& batch, const Launch& launch) {
  const int64_t bytes = lay_out(nullptr, table, batch);
  Tensor scratch = torch::stable::new_empty(call.rows[0], {bytes}, ScalarType::Byte);
  lay_out(static_cast<char*>(scratch.mutable_data_ptr()), table, batch);
  check_launch("kmeans", launch(table.data(), batch, current_stream(call.rows[0])));
}

void run_gram(Call& call) {
  DeviceBatch batch{};
  std::vector<DeviceProblem> table = table_of(call, false, batch);
  if (table.empty()) return;
  const auto cost = [](const DeviceProblem& p) { return p.n * (p.n + 8 * p.k); };
  sort_and_count(table, batch, cost, gram_tiles<DeviceProblem>);
  count_clusters(table, batch);
  run(call, table, batch, launch_kmeans);
}

void check_tensor_cores(int device) {
  int capability = 0;
  check_launch("kmeans",
               cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device));
  check(capability >= 8,
        "kmeans: precision must be 'highest' on a device of compute capability below 8.0, got "
        "'high' on one of ",
        capability, ".x. Take precision='highest'.");
}

void run_direct(Call& call) {
  DirectBatch batch{};
  std::vector<DirectProblem> table = table_of(call, true, batch);
  if (table.empty()) return;
  batch.rounds = call.arguments.rounds && batch.storage != Storage::kFloat64;
  if (batch.rounds) check_tensor_cores(call.rows[0].get_device_index());
  const auto tiles = [](const std::vector<DirectProblem>&, const DirectProblem& p) {
    return (p.n + kRowTile - 1) / kRowTile;
  };
  sort_and_count(table, batch, [](const DirectProblem& p) { return p.n * p.k; }, tiles);
  count_clusters(table, batch);
  for (DirectProblem& p : table) {
    p.tiles = tiles(table, p);
    p.operand_bytes = operand_bytes(p.dims, batch.storage, batch.rounds);
    batch.most_clusters = std::max(batch.most_clusters, p.k);
  }
  run(call, table, batch, launch_direct);
}

Result kmeans_cuda(std::vector<Tensor> rows, std::vector<int64_t> k, std::string metric,
                   std::string init, std::vector<Tensor> initial_centers, std::string algorithm,
                   int64_t n_init, int64_t max_iter, int64_t seed, std::string route,
                   std::string precision) {
  const Arguments arguments = check_arguments(rows, k, metric, init, initial_centers, algorithm,
                                              n_init, max_iter, seed, route, precision);
  const auto size = static_cast<int64_t>(rows.size());
  const torch::stable::accelerator::DeviceGuard guard(rows[0].get_device_index());
  Call call{rows,
            k,
            initial_centers,
            arguments,
            {},
            {},
            torch::stable::new_empty(rows[0], {size}, ScalarType::Double),
            torch::stable::new_empty(rows[0], {size}, ScalarType::Long)};
  for (std::size_t b = 0; b < rows.size(); ++b) {
    call.centers.push_back(torch::stable::new_empty(rows[b], {k[b], rows[b].size(1)}));
    call.labels.push_back(torch::stable::new_empty(rows[b], {rows[b].size(0)}, ScalarType::Long));
  }
  run_gram(call);
  run_direct(call);
  return {call.centers, call.labels, call.inertia, call.n_iter};
}

}  // namespace
}  // namespace oskt::kmeans

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("kmeans", TORCH_BOX(&oskt::kmeans::kmeans_cuda));
}
