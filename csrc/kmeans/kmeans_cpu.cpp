// Batched k-means on the CPU; see kmeans.h for the contract and the stages.
//
// The Gram matrices take most of the time (N^2 D multiply-adds, half of them by symmetry) and are
// spread over threads by tiles; a clustering runs on one thread, the longest first.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <numeric>
#include <tuple>

#include "common/gemm_nt.h"
#include "common/host_team.h"
#include "common/simd.h"
#include "glue/parallel.h"
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

constexpr int64_t kTile = 128;  // rows of one Gram task, a multiple of every panel width

// The matrix that is clustered: x[i, d] * scale[i] - offset[d] of the stored rows. The offset
// cancels in every distance; without it, rows far from the origin would lose their digits in the
// Gram matrix.
template <typename S, typename T>
struct Problem {
  const S* rows;
  int64_t n, dims, k;
  std::vector<double> scale;  // n
  std::vector<T> offset;      // dims
  std::vector<int32_t> initial_label;
  std::vector<T> initial_sq_dist;
  T* gram;

  double scaled(int64_t i, int64_t d) const {
    return static_cast<double>(rows[i * dims + d]) * scale[i];
  }
};

template <typename S, typename T>
class Batch {
 public:
  Batch(const std::vector<Tensor>& rows, const std::vector<int64_t>& k, const Arguments& arguments)
      : arguments_(arguments), problems_(rows.size()), workers_(num_workers()) {
    for (std::size_t b = 0; b < rows.size(); ++b) {
      Problem<S, T>& p = problems_[b];
      p.rows = static_cast<const S*>(rows[b].const_data_ptr());
      p.n = rows[b].size(0);
      p.dims = rows[b].size(1);
      p.k = k[b];
      p.scale.assign(p.n, 1.0);
      p.offset.assign(p.dims, T(0));
    }
  }

  void run(const std::vector<Tensor>& initial_centers, std::vector<Tensor>& centers,
           std::vector<Tensor>& labels, double* inertia, int64_t* n_iter) {
    if (arguments_.cosine) find_scales();
    find_offsets();
    find_grams(initial_centers);
    cluster(labels, n_iter);
    finish(labels, centers, inertia);
  }

 private:
  int64_t size() const { return static_cast<int64_t>(problems_.size()); }

  // Problems by falling cost, so that no long one starts last.
  template <typename Cost>
  std::vector<int64_t> by_cost(const Cost& cost) const {
    std::vector<int64_t> order(problems_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return cost(problems_[a]) > cost(problems_[b]); });
    return order;
  }

  void find_scales() {
    for_each_task(size(), [&](int64_t task, int64_t) {
      Problem<S, T>& p = problems_[task];
      for (int64_t i = 0; i < p.n; ++i) {
        double square = 0;
        for (int64_t d = 0; d < p.dims; ++d) square += p.scaled(i, d) * p.scaled(i, d);
        if (square > 0) p.scale[i] = 1.0 / std::sqrt(square);
      }
    });
  }

  // Takes the mean off where it outweighs the spread, rounded to a power of two no coarser than
  // the spread: integers and other exact inputs stay exact, and ties stay ties.
  void find_offsets() {
    for_each_task(size(), [&](int64_t task, int64_t) {
      Problem<S, T>& p = problems_[task];
      std::vector<double> sum(p.dims, 0.0);
      double squares = 0;
      for (int64_t i = 0; i < p.n; ++i) {
        const S* row = p.rows + i * p.dims;
        const double scale = p.scale[i];
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < p.dims; ++d) {
          const double value = static_cast<double>(row[d]) * scale;
          sum[d] += value;
          squares += value * value;
        }
      }
      double mean_squares = 0;
      for (double s : sum) mean_squares += s / p.n * s;
      const double spread = squares - mean_squares;
      if (!(mean_squares > spread) || !(spread > 0) || !std::isfinite(squares)) return;
      const double grid = std::exp2(std::floor(std::log2(std::sqrt(spread / p.n / p.dims))));
      for (int64_t d = 0; d < p.dims; ++d) {
        p.offset[d] = static_cast<T>(std::rint(sum[d] / p.n / grid) * grid);
      }
    });
  }

  void find_grams(const std::vector<Tensor>& initial_centers) {
    int64_t total = 0;
    for (const auto& p : problems_) total += p.n * p.n;
    T* next = grams_.template at_least<T>(total);
    for (auto& p : problems_) {
      p.gram = next;
      next += p.n * p.n;
    }
    for (int64_t b = 0; b < size(); ++b) {
      Problem<S, T>& p = problems_[b];
      T* panels = panels_.template at_least<T>(gemm_panel_size<T>(p.n, p.dims));
      const auto value = [&p](int64_t i, int64_t d) {
        return static_cast<T>(p.rows[i * p.dims + d]) * static_cast<T>(p.scale[i]) - p.offset[d];
      };
      const int64_t tiles = (p.n + kTile - 1) / kTile;
      const auto rows_of = [&p](int64_t tile) { return std::min(kTile, p.n - tile * kTile); };
      for_each_task(tiles, [&](int64_t tile, int64_t) {
        const int64_t first = tile * kTile;
        gemm_pack<T>(
            rows_of(tile), p.dims, [&](int64_t i, int64_t d) { return value(first + i, d); },
            panels + first * p.dims);
      });
      for_each_task(tiles * (tiles + 1) / 2, [&](int64_t task, int64_t) {
        int64_t i = 0;
        while ((i + 1) * (i + 2) / 2 <= task) ++i;
        const int64_t j = task - i * (i + 1) / 2;
        T* block = p.gram + i * kTile * p.n + j * kTile;
        gemm_nt(panels + i * kTile * p.dims, rows_of(i), panels + j * kTile * p.dims, rows_of(j),
                p.dims, block, p.n, i == j);
        T* mirror = p.gram + j * kTile * p.n + i * kTile;
        for (int64_t s = 0; s < rows_of(j); ++s) {
          for (int64_t r = i == j ? s + 1 : 0; r < rows_of(i); ++r) {
            mirror[s * p.n + r] = block[r * p.n + s];
          }
        }
      });
      if (!initial_centers.empty()) find_initial_labels(p, panels, initial_centers[b]);
    }
  }

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
    const auto order = by_cost([](const Problem<S, T>& p) { return p.n * (p.n + 8 * p.k); });
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
  Scratch grams_, panels_;
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
