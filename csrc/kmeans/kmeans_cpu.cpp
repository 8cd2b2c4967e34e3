// Batched k-means on the CPU; see kmeans.h for the contract and the stages.
//
// The Gram matrices take most of the time (N^2 D multiply-adds, half of them by symmetry) and are
// spread over threads by tiles; a clustering runs on one thread while others go on, the longest
// first. A problem on the direct route (direct_kmeans.h) has all threads to itself.

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <tuple>

#include "common/host_team.h"
#include "common/simd.h"
#include "kmeans/direct_kmeans.h"
#include "kmeans/gram_cpu.h"
#include "kmeans/gram_kmeans.h"
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
  std::vector<std::vector<int32_t>> label;  // per restart
  std::vector<Outcome> outcome;
  std::vector<int32_t> start, order;  // the members of cluster c: order[start[c] .. start[c + 1])
  std::vector<double> partial;        // k: inertia
};

template <typename S, typename T>
class Batch {
 public:
  Batch(const std::vector<Tensor>& rows, const std::vector<int64_t>& k, const Arguments& arguments)
      : arguments_(arguments),
        problems_(rows.size()),
        workers_(num_workers()),
        grams_(arguments.cosine) {
    for (std::size_t b = 0; b < rows.size(); ++b) {
      Problem<S, T>& p = problems_[b];
      p.set_rows(rows[b]);
      p.k = k[b];
      p.label.resize(arguments.restarts);
      p.outcome.resize(arguments.restarts);
    }
  }

  void run(const std::vector<Tensor>& initial_centers, const std::vector<Tensor>& centers,
           const std::vector<Tensor>& labels, double* inertia, int64_t* n_iter) {
    const auto one = [](int64_t) { return 1; };
    const auto restarts = [&](int64_t) { return arguments_.restarts; };
    const auto runs = [&](int64_t b) { return (problems_[b].k + kRun - 1) / kRun; };
    std::vector<Stage> stages = grams_.stages(problems_);
    if (!initial_centers.empty()) {
      stages.push_back({one, [&](int64_t b, int64_t, int64_t worker) {
                          find_initial_labels(problems_[b], initial_centers[b], workers_[worker]);
                        }});
    }
    stages.push_back({restarts, [&](int64_t b, int64_t restart, int64_t worker) {
                        cluster(problems_[b], restart, workers_[worker]);
                      }});
    stages.push_back({one, [&](int64_t b, int64_t, int64_t) {
                        grams_.close(problems_[b]);
                        n_iter[b] = choose(problems_[b],
                                           static_cast<int64_t*>(labels[b].mutable_data_ptr()));
                      }});
    stages.push_back({runs, [&](int64_t b, int64_t run, int64_t worker) {
                        S* out = static_cast<S*>(centers[b].mutable_data_ptr());
                        find_means(problems_[b], run, out, workers_[worker]);
                      }});
    std::vector<int64_t> on_gram;
    for (int64_t b : by_cost(problems_)) {
      if (!arguments_.direct[b]) {
        on_gram.push_back(b);
        continue;
      }
      run_direct(problems_[b], initial_centers.empty() ? nullptr : &initial_centers[b]);
      n_iter[b] = choose(problems_[b], static_cast<int64_t*>(labels[b].mutable_data_ptr()));
      for_each_task(runs(b),
                    [&](int64_t run, int64_t worker) { stages.back().run(b, run, worker); });
    }
    run_stages(on_gram, stages);
    for (std::size_t b = 0; b < problems_.size(); ++b) {
      const std::vector<double>& partial = problems_[b].partial;
      inertia[b] = std::accumulate(partial.begin(), partial.end(), 0.0);
    }
  }

 private:
  static constexpr int64_t kRun = 32;  // clusters of one task

  // Every restart on all threads, one after another.
  void run_direct(Problem<S, T>& p, const Tensor* initial_centers) {
    find_scale_and_offset(p, arguments_.cosine);
    DirectKmeans<S, T> direct(p, p.k, arguments_.settings);
    const void* start = initial_centers ? initial_centers->const_data_ptr() : nullptr;
    for (int64_t restart = 0; restart < arguments_.restarts; ++restart) {
      p.outcome[restart] = direct.run(restart, static_cast<const S*>(start));
      p.label[restart] = direct.label();
    }
  }

  // The nearest given centre of every row; ties go to the lower centre.
  void find_initial_labels(Problem<S, T>& p, const Tensor& initial_centers, Scratch& scratch) {
    RowProblem<S, T> centers;
    centers.set_rows(initial_centers);
    centers.offset = p.offset;
    const int64_t panel = gemm_panel_size<T>(p.k, p.dims), buffer = kPanelWidth<T> * p.dims;
    T* packed = scratch.template at_least<T>(panel + buffer + kTile * p.k);
    T* product = packed + panel;  // after the packing
    centers.pack(0, p.k, packed + panel, packed);
    std::vector<T> square(p.k), base(p.n);
    for (int64_t c = 0; c < p.k; ++c) {
      double sum = 0;
      const T* first = packed + c / kPanelWidth<T> * kPanelWidth<T> * p.dims + c % kPanelWidth<T>;
      for (int64_t d = 0; d < p.dims; ++d) {
        const double x = first[d * kPanelWidth<T>];
        sum += x * x;
      }
      square[c] = static_cast<T>(sum);
    }
    p.initial_label.assign(p.n, 0);
    p.initial_sq_dist.assign(p.n, kInfinity<T>);
    for (int64_t tile = 0; tile < p.tiles(); ++tile) {
      const int64_t first = tile * kTile, count = p.tile_rows(tile);
      gemm_nt(p.panels + first * p.dims, count, packed, p.k, p.dims, product, p.k);
      nearest_of(product, p.k, count, p.k, 0, square.data(), nullptr, base.data() + first, nullptr,
                 p.initial_sq_dist.data() + first, p.initial_label.data() + first);
    }
    for (int64_t i = 0; i < p.n; ++i) {
      p.initial_sq_dist[i] = std::max(T(0), p.gram[i * p.n + i] + p.initial_sq_dist[i]);
    }
  }

  void cluster(Problem<S, T>& p, int64_t restart, Scratch& scratch) {
    const Init init = arguments_.settings.init;
    Workspace<T> workspace;
    const int64_t bytes = workspace.lay_out(nullptr, p.n, p.k, init);
    workspace.lay_out(scratch.template at_least<char>(bytes), p.n, p.k, init);
    if (init == Init::kLabels) {
      std::copy(p.initial_label.begin(), p.initial_label.end(), workspace.label);
      std::copy(p.initial_sq_dist.begin(), p.initial_sq_dist.end(), workspace.minimum);
    }
    p.outcome[restart] =
        run_host(Gram<T>{p.gram, p.n, p.k}, arguments_.settings, restart, workspace);
    p.label[restart].assign(workspace.label, workspace.label + p.n);
  }

  // Takes the restart of the lowest inertia, among equal ones the first; returns its iterations.
  int64_t choose(Problem<S, T>& p, int64_t* label) {
    std::size_t best = 0;
    for (std::size_t restart = 1; restart < p.outcome.size(); ++restart) {
      if (p.outcome[best].worse_than(p.outcome[restart])) best = restart;
    }
    std::copy(p.label[best].begin(), p.label[best].end(), label);
    p.start.resize(p.k + 1);
    p.order.resize(p.n);
    p.partial.resize(p.k);
    HostTeam().members(p.n, p.k, p.label[best].data(), p.start.data(), p.order.data());
    return p.outcome[best].n_iter;
  }

  // Means and inertia of a run of clusters in float64; members are read twice, the second time from
  // cache.
  void find_means(Problem<S, T>& p, int64_t run, S* centers, Scratch& scratch) {
    double* mean = scratch.template at_least<double>(2 * p.dims);
    T* buffer = reinterpret_cast<T*>(mean + p.dims);
    for (int64_t c = run * kRun; c < std::min((run + 1) * kRun, p.k); ++c) {
      const int32_t *first = p.order.data() + p.start[c], *last = p.order.data() + p.start[c + 1];
      std::fill(mean, mean + p.dims, 0.0);
      for (const int32_t* i = first; i < last; ++i) {
        add_row(p.row(*i, buffer), p.dims, p.scale[*i], mean);
      }
      const double members = static_cast<double>(last - first);
      for (int64_t d = 0; d < p.dims; ++d) {
        mean[d] /= members;
        centers[c * p.dims + d] = static_cast<S>(mean[d]);
      }
      p.partial[c] = 0;
      for (const int32_t* i = first; i < last; ++i) {
        p.partial[c] += sq_dist_to(p.row(*i, buffer), p.dims, p.scale[*i], mean);
      }
    }
  }

  const Arguments arguments_;
  std::vector<Problem<S, T>> problems_;
  std::vector<Scratch> workers_;
  HostGrams<S, T> grams_;
};

using Result = std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor>;

Result kmeans_cpu(std::vector<Tensor> rows, std::vector<int64_t> k, std::string metric,
                  std::string init, std::vector<Tensor> initial_centers, std::string algorithm,
                  int64_t n_init, int64_t max_iter, int64_t seed, std::string route,
                  std::string precision) {
  const Arguments arguments = check_arguments(rows, k, metric, init, initial_centers, algorithm,
                                              n_init, max_iter, seed, route, precision);
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
    using T = acc_of<S>;
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
