// Batched k-means on the CPU; see kmeans.h for the contract and the stages.
//
// The Gram matrices take most of the time (N^2 D multiply-adds, half of them by symmetry) and are
// spread over threads by tiles; a clustering runs on one thread, the longest first.

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <tuple>

#include "common/host_team.h"
#include "common/simd.h"
#include "kmeans/gram_cpu.h"
#include "kmeans/kmeans.h"

namespace oskt::kmeans {

// One instantiation per Gram type in a plain function: it is compiled for three instruction sets.
OSKT_SIMD_CLONES __attribute__((flatten)) Outcome run_host(const Gram<float>& gram,
                                                           const Settings& settings,
                                                           uint64_t restart,
                                                           const Workspace<float>& workspace) {
  HostTeam team;
  return GramKmeans<float, HostTeam>(team, gram, settings, restart, workspace).run();
}

OSKT_SIMD_CLONES __attribute__((flatten)) Outcome run_host(const Gram<double>& gram,
                                                           const Settings& settings,
                                                           uint64_t restart,
                                                           const Workspace<double>& workspace) {
  HostTeam team;
  return GramKmeans<double, HostTeam>(team, gram, settings, restart, workspace).run();
}

namespace {

template <typename S, typename T>
struct Problem : RowProblem<S, T> {
  int64_t k;
  std::vector<int32_t> initial_label;
  std::vector<T> initial_sq_dist;
};

template <typename S, typename T>
class Batch {
 public:
  Batch(const std::vector<Tensor>& rows, const std::vector<int64_t>& k, const Arguments& arguments)
      : arguments_(arguments), problems_(rows.size()), workers_(num_workers()) {
    for (std::size_t b = 0; b < rows.size(); ++b) {
      Problem<S, T>& p = problems_[b];
      p.set_rows(rows[b]);
      p.k = k[b];
    }
  }

  void run(const std::vector<Tensor>& initial_centers, std::vector<Tensor>& centers,
           std::vector<Tensor>& labels, double* inertia, int64_t* n_iter) {
    grams_.find(problems_, arguments_.cosine, [&](std::size_t b, const T* panels) {
      if (!initial_centers.empty()) find_initial_labels(problems_[b], panels, initial_centers[b]);
    });
    cluster(labels, n_iter);
    finish(labels, centers, inertia);
  }

 private:
  int64_t size() const { return static_cast<int64_t>(problems_.size()); }

  // The nearest given centre of every row; ties go to the lower centre.
  void find_initial_labels(Problem<S, T>& p, const T* panels, const Tensor& initial_centers) {
    const S* centers = static_cast<const S*>(initial_centers.const_data_ptr());
    std::vector<T> square(p.k);
    const auto value = [&](int64_t c, int64_t d) {
      return static_cast<T>(centers[c * p.dims + d]) - p.offset[d];
    };
    Scratch center_panels;
    T* packed = center_panels.template at_least<T>(gemm_panel_size<T>(p.k, p.dims));
    gemm_pack<T>(p.k, p.dims, value, packed);
    for (int64_t c = 0; c < p.k; ++c) {
      double sum = 0;
      for (int64_t d = 0; d < p.dims; ++d) sum += static_cast<double>(value(c, d)) * value(c, d);
      square[c] = static_cast<T>(sum);
    }
    p.initial_label.assign(p.n, 0);
    p.initial_sq_dist.assign(p.n, T(0));
    for_each_task((p.n + kTile - 1) / kTile, [&](int64_t tile, int64_t worker) {
      const int64_t first = tile * kTile, count = std::min(kTile, p.n - first);
      T* product = workers_[worker].template at_least<T>(count * p.k);
      gemm_nt(panels + first * p.dims, count, packed, p.k, p.dims, product, p.k);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t i = first + r;
        Candidate<T> best{kInfinity<T>, 0};
        for (int64_t c = 0; c < p.k; ++c) {
          const T value = square[c] - 2 * product[r * p.k + c];
          if (value < best.value) best = {value, c};
        }
        p.initial_label[i] = static_cast<int32_t>(best.index);
        p.initial_sq_dist[i] = std::max(T(0), p.gram[i * p.n + i] + best.value);
      }
    });
  }

  // Runs every restart of every problem; the lowest inertia wins, among equal ones the lowest
  // restart.
  void cluster(std::vector<Tensor>& labels, int64_t* n_iter) {
    const int64_t restarts = arguments_.restarts;
    const auto order =
        by_cost(problems_, [](const Problem<S, T>& p) { return p.n * (p.n + 8 * p.k); });
    std::vector<std::vector<int32_t>> label(size() * restarts);
    std::vector<Outcome> outcome(size() * restarts);
    for_each_task(size() * restarts, [&](int64_t task, int64_t worker) {
      const int64_t b = order[task / restarts], restart = task % restarts;
      const Problem<S, T>& p = problems_[b];
      Workspace<T> workspace;
      const int64_t bytes = workspace.lay_out(nullptr, p.n, p.k, arguments_.settings.init);
      workspace.lay_out(workers_[worker].template at_least<char>(bytes), p.n, p.k,
                        arguments_.settings.init);
      if (arguments_.settings.init == Init::kLabels) {
        std::copy(p.initial_label.begin(), p.initial_label.end(), workspace.label);
        std::copy(p.initial_sq_dist.begin(), p.initial_sq_dist.end(), workspace.minimum);
      }
      const int64_t slot = b * restarts + restart;
      outcome[slot] = run_host(Gram<T>{p.gram, p.n, p.k}, arguments_.settings, restart, workspace);
      label[slot].assign(workspace.label, workspace.label + p.n);
    });
    for (int64_t b = 0; b < size(); ++b) {
      int64_t best = b * restarts;
      for (int64_t slot = best + 1; slot < (b + 1) * restarts; ++slot) {
        if (outcome[best].worse_than(outcome[slot])) best = slot;
      }
      std::copy(label[best].begin(), label[best].end(),
                static_cast<int64_t*>(labels[b].mutable_data_ptr()));
      n_iter[b] = outcome[best].n_iter;
    }
  }

  // Means and inertia in float64: a task takes a run of clusters and reads their members twice,
  // the second time from cache.
  void finish(const std::vector<Tensor>& labels, std::vector<Tensor>& centers, double* inertia) {
    std::vector<std::pair<int64_t, int64_t>> tasks;  // (problem, cluster)
    std::vector<std::vector<int32_t>> start(size()), order(size());
    std::vector<std::vector<double>> partial(size());
    for (int64_t b = 0; b < size(); ++b) {
      const Problem<S, T>& p = problems_[b];
      const int64_t* label = static_cast<const int64_t*>(labels[b].const_data_ptr());
      const std::vector<int32_t> narrow(label, label + p.n);
      start[b].resize(p.k + 1);
      order[b].resize(p.n);
      partial[b].resize(p.k);
      HostTeam().members(p.n, p.k, narrow.data(), start[b].data(), order[b].data());
      for (int64_t c = 0; c < p.k; ++c) tasks.emplace_back(b, c);
    }
    for_each_task(static_cast<int64_t>(tasks.size()), [&](int64_t task, int64_t worker) {
      const auto [b, c] = tasks[task];
      const Problem<S, T>& p = problems_[b];
      const int32_t *first = order[b].data() + start[b][c],
                    *last = order[b].data() + start[b][c + 1];
      double* mean = workers_[worker].template at_least<double>(p.dims);
      std::fill(mean, mean + p.dims, 0.0);
      for (const int32_t* i = first; i < last; ++i) {
        for (int64_t d = 0; d < p.dims; ++d) mean[d] += p.scaled(*i, d);
      }
      S* center = static_cast<S*>(centers[b].mutable_data_ptr()) + c * p.dims;
      const double members = static_cast<double>(last - first);
      for (int64_t d = 0; d < p.dims; ++d) {
        mean[d] /= members;
        center[d] = static_cast<S>(mean[d]);
      }
      double sum = 0;
      for (const int32_t* i = first; i < last; ++i) {
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < p.dims; ++d) {
          const double residual = p.scaled(*i, d) - mean[d];
          sum += residual * residual;
        }
      }
      partial[b][c] = sum;
    });
    for (int64_t b = 0; b < size(); ++b) {
      inertia[b] = std::accumulate(partial[b].begin(), partial[b].end(), 0.0);
    }
  }

  const Arguments arguments_;
  std::vector<Problem<S, T>> problems_;
  std::vector<Scratch> workers_;
  HostGrams<T> grams_;
};

using Result = std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor>;

Result kmeans_cpu(std::vector<Tensor> rows, std::vector<int64_t> k, std::string metric,
                  std::string init, std::vector<Tensor> initial_centers, std::string algorithm,
                  int64_t n_init, int64_t max_iter, int64_t seed) {
  const Arguments arguments =
      check_arguments(rows, k, metric, init, initial_centers, algorithm, n_init, max_iter, seed);
  const auto size = static_cast<int64_t>(rows.size());
  std::vector<Tensor> centers, labels;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    centers.push_back(torch::stable::new_empty(rows[b], {k[b], rows[b].size(1)}));
    labels.push_back(torch::stable::new_empty(rows[b], {rows[b].size(0)}, ScalarType::Long));
  }
  Tensor inertia = torch::stable::new_empty(rows[0], {size}, ScalarType::Double);
  Tensor n_iter = torch::stable::new_empty(rows[0], {size}, ScalarType::Long);
  dispatch_floating("kmeans", rows[0].scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
    Batch<S, T>(rows, k, arguments)
        .run(initial_centers, centers, labels, static_cast<double*>(inertia.mutable_data_ptr()),
             static_cast<int64_t*>(n_iter.mutable_data_ptr()));
  });
  return {centers, labels, inertia, n_iter};
}

}  // namespace
}  // namespace oskt::kmeans

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("kmeans", TORCH_BOX(&oskt::kmeans::kmeans_cpu));
}
