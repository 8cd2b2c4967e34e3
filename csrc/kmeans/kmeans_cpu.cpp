// Batched k-means on the CPU; see kmeans.h for the contract and the stages.
//
// The Gram matrices take most of the time (N^2 D multiply-adds, half of them by symmetry) and are
// spread over threads by tiles, one for all problems of the same rows; a clustering runs on one
// thread while others go on, the longest first. A problem on the direct route (direct_kmeans.h) has
// all threads to itself.

#include <torch/csrc/stable/library.h>

#include <algorithm>
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
struct Problem {
  RowProblem<S, T>* matrix;
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
    matrices_.reserve(rows.size());  // problems point to them
    for (std::size_t b = 0; b < rows.size(); ++b) {
      const auto known =
          std::find_if(matrices_.begin(), matrices_.end(),
                       [&](const RowProblem<S, T>& matrix) { return matrix.has_rows(rows[b]); });
      const std::size_t m = known - matrices_.begin();
      if (known == matrices_.end()) {
        matrices_.emplace_back().set_rows(rows[b]);
        problems_of_.emplace_back();
      }
      problems_of_[m].push_back(static_cast<int64_t>(b));
      Problem<S, T>& p = problems_[b];
      p.matrix = &matrices_[m];
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
    const auto choose_best = [&](int64_t b, int64_t, int64_t) {
      n_iter[b] = choose(problems_[b], static_cast<int64_t*>(labels[b].mutable_data_ptr()));
    };
    const auto find_some_means = [&](int64_t b, int64_t run, int64_t worker) {
      S* out = static_cast<S*>(centers[b].mutable_data_ptr());
      find_means(problems_[b], run, out, workers_[worker]);
    };
    std::vector<Stage> stages = grams_.stages(matrices_);
    if (!initial_centers.empty()) {
      stages.push_back(on_gram(one, [&](int64_t b, int64_t, int64_t worker) {
        find_initial_labels(problems_[b], initial_centers[b], workers_[worker]);
      }));
    }
    stages.push_back(on_gram(restarts, [&](int64_t b, int64_t restart, int64_t worker) {
      cluster(problems_[b], restart, workers_[worker]);
    }));
    stages.push_back({one, [&](int64_t m, int64_t, int64_t) { grams_.close(matrices_[m]); }});
    stages.push_back(on_gram(one, choose_best));
    stages.push_back(on_gram(runs, find_some_means));
    std::vector<int64_t> with_gram;
    for (int64_t m : by_cost(matrices_)) {
      bool gram = false;
      for (int64_t b : problems_of_[m]) {
        if (!arguments_.direct[b]) {
          gram = true;
          continue;
        }
        run_direct(problems_[b], initial_centers.empty() ? nullptr : &initial_centers[b]);
        choose_best(b, 0, 0);
        for_each_task(runs(b), [&](int64_t run, int64_t w) { find_some_means(b, run, w); });
      }
      if (gram) with_gram.push_back(m);
    }
    run_stages(with_gram, stages);
    for (std::size_t b = 0; b < problems_.size(); ++b) {
      const std::vector<double>& partial = problems_[b].partial;
      inertia[b] = std::accumulate(partial.begin(), partial.end(), 0.0);
    }
  }

 private:
  static constexpr int64_t kRun = 32;  // clusters of one task

  // A stage of the problems of a matrix that go by its Gram matrix, `tasks(problem)` each.
  template <typename Tasks, typename Run>
  Stage on_gram(const Tasks& tasks, const Run& run) {
    const auto count = [this, tasks](int64_t b) { return arguments_.direct[b] ? 0 : tasks(b); };
    return {[this, count](int64_t m) {
              int64_t total = 0;
              for (int64_t b : problems_of_[m]) total += count(b);
              return total;
            },
            [this, count, run](int64_t m, int64_t task, int64_t worker) {
              auto b = problems_of_[m].begin();
              for (; task >= count(*b); ++b) task -= count(*b);
              run(*b, task, worker);
            }};
  }

  // Every restart on all threads, one after another.
  void run_direct(Problem<S, T>& p, const Tensor* initial_centers) {
    find_scale_and_offset(*p.matrix, arguments_.cosine);
    DirectKmeans<S, T> direct(*p.matrix, p.k, arguments_.settings);
    const void* start = initial_centers ? initial_centers->const_data_ptr() : nullptr;
    for (int64_t restart = 0; restart < arguments_.restarts; ++restart) {
      p.outcome[restart] = direct.run(restart, static_cast<const S*>(start));
      p.label[restart] = direct.label();
    }
  }

  // The nearest given centre of every row; ties go to the lower centre.
  void find_initial_labels(Problem<S, T>& p, const Tensor& initial_centers, Scratch& scratch) {
    const RowProblem<S, T>& matrix = *p.matrix;
    RowProblem<S, T> centers;
    centers.set_rows(initial_centers);
    centers.offset = matrix.offset;
    const int64_t panel = gemm_panel_size<T>(p.k, matrix.dims),
                  buffer = kPanelWidth<T> * matrix.dims;
    T* packed = scratch.template at_least<T>(panel + std::max(buffer, kTile * p.k));
    T* product = packed + panel;  // after the packing
    centers.pack(0, p.k, packed + panel, packed);
    std::vector<T> square(p.k), base(matrix.n);
    for (int64_t c = 0; c < p.k; ++c) {
      double sum = 0;
      const T* first =
          packed + c / kPanelWidth<T> * kPanelWidth<T> * matrix.dims + c % kPanelWidth<T>;
      for (int64_t d = 0; d < matrix.dims; ++d) {
        const double x = first[d * kPanelWidth<T>];
        sum += x * x;
      }
      square[c] = static_cast<T>(sum);
    }
    p.initial_label.assign(matrix.n, 0);
    p.initial_sq_dist.assign(matrix.n, kInfinity<T>);
    for (int64_t tile = 0; tile < matrix.tiles(); ++tile) {
      const int64_t first = tile * kTile, count = matrix.tile_rows(tile);
      gemm_nt(packed, p.k, matrix.panels + first * matrix.dims, count, matrix.dims, product, kTile);
      nearest_of(product, kTile, count, p.k, 0, square.data(), nullptr, base.data() + first,
                 nullptr, p.initial_sq_dist.data() + first, p.initial_label.data() + first);
    }
    for (int64_t i = 0; i < matrix.n; ++i) {
      p.initial_sq_dist[i] = std::max(T(0), matrix.gram[i * matrix.n + i] + p.initial_sq_dist[i]);
    }
  }

  void cluster(Problem<S, T>& p, int64_t restart, Scratch& scratch) {
    const int64_t n = p.matrix->n;
    const Init init = arguments_.settings.init;
    Workspace<T> workspace;
    const int64_t bytes = workspace.lay_out(nullptr, n, p.k, init);
    workspace.lay_out(scratch.template at_least<char>(bytes), n, p.k, init);
    if (init == Init::kLabels) {
      std::copy(p.initial_label.begin(), p.initial_label.end(), workspace.label);
      std::copy(p.initial_sq_dist.begin(), p.initial_sq_dist.end(), workspace.minimum);
    }
    p.outcome[restart] =
        run_host(Gram<T>{p.matrix->gram, n, p.k}, arguments_.settings, restart, workspace);
    p.label[restart].assign(workspace.label, workspace.label + n);
  }

  // Takes the restart of the lowest inertia, among equal ones the first; returns its iterations.
  int64_t choose(Problem<S, T>& p, int64_t* label) {
    const int64_t n = p.matrix->n;
    std::size_t best = 0;
    for (std::size_t restart = 1; restart < p.outcome.size(); ++restart) {
      if (p.outcome[best].worse_than(p.outcome[restart])) best = restart;
    }
    std::copy(p.label[best].begin(), p.label[best].end(), label);
    p.start.resize(p.k + 1);
    p.order.resize(n);
    p.partial.resize(p.k);
    HostTeam().members(n, p.k, p.label[best].data(), p.start.data(), p.order.data());
    return p.outcome[best].n_iter;
  }

  // Means and inertia of a run of clusters in float64; members are read twice, the second time from
  // cache.
  void find_means(Problem<S, T>& p, int64_t run, S* centers, Scratch& scratch) {
    const RowProblem<S, T>& matrix = *p.matrix;
    double* mean = scratch.template at_least<double>(2 * matrix.dims);
    T* buffer = reinterpret_cast<T*>(mean + matrix.dims);
    for (int64_t c = run * kRun; c < std::min((run + 1) * kRun, p.k); ++c) {
      const int32_t *first = p.order.data() + p.start[c], *last = p.order.data() + p.start[c + 1];
      std::fill(mean, mean + matrix.dims, 0.0);
      for (const int32_t* i = first; i < last; ++i) {
        add_row(matrix.row(*i, buffer), matrix.dims, matrix.scale[*i], mean);
      }
      const double members = static_cast<double>(last - first);
      for (int64_t d = 0; d < matrix.dims; ++d) {
        mean[d] /= members;
        centers[c * matrix.dims + d] = static_cast<S>(mean[d]);
      }
      p.partial[c] = 0;
      for (const int32_t* i = first; i < last; ++i) {
        p.partial[c] += sq_dist_to(matrix.row(*i, buffer), matrix.dims, matrix.scale[*i], mean);
      }
    }
  }

  const Arguments arguments_;
  std::vector<RowProblem<S, T>> matrices_;         // each once
  std::vector<std::vector<int64_t>> problems_of_;  // per matrix
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
