// k-means of one problem without its Gram matrix, on the CPU: every distance is formed from the
// rows, in O(N + K D) memory and, while that is little, a packed copy of the rows. The route for
// many rows; the steps, ties, draws and rules for empty clusters are those of gram_kmeans.h, and
// results agree with it to rounding.
//
// Rows pass by in tiles that any thread may take: a tile's products with the means are one gemm_nt,
// a mean is the float64 sum of its members in ascending order. Seeding and single-row moves use
// distances by definition, sum_d (x_d - y_d)^2.
#pragma once

#include <numeric>
#include <vector>

#include "common/host_team.h"
#include "kmeans/gram_cpu.h"
#include "kmeans/steps.h"

namespace oskt::kmeans {

template <typename S, typename T>
class DirectKmeans {
 public:
  DirectKmeans(const RowProblem<S, T>& problem, int64_t k, const Settings& settings)
      : p_(problem),
        k_(k),
        settings_(settings),
        workers_(num_workers()),
        mean_(k * problem.dims),
        origin_(problem.dims),
        square_(k),
        grown_(k, T(1)),
        diagonal_(problem.n),
        minimum_(problem.n),
        label_(problem.n),
        previous_(problem.n),
        order_(problem.n),
        start_(k + 1),
        size_(k),
        touched_(k) {
    const std::size_t size = gemm_panel_size<T>(k, p_.dims);
    packed_means_ = packed_memory_.template at_least<T>(size);
    std::fill_n(packed_means_, size, T(0));  // what is beyond the last mean is multiplied, too
    const std::size_t rows = gemm_panel_size<T>(p_.n, p_.dims);
    if (rows <= kKept / sizeof(T)) kept_rows_ = kept_memory_.template at_least<T>(rows);
    for_each_tile([&](int64_t first, int64_t count, int64_t worker) {
      if (kept_rows_ != nullptr)
        p_.pack(first, count, buffer(worker), kept_rows_ + first * p_.dims);
      const std::vector<double> offset(p_.offset.begin(), p_.offset.end());
      for (int64_t i = first; i < first + count; ++i) {
        const T* row = p_.row(i, buffer(worker));
        diagonal_[i] = static_cast<T>(sq_dist_to(row, p_.dims, p_.scale[i], offset.data()));
      }
    });
  }

  // One restart; under Init::kLabels the start is the K given means (K, D). The labels are label().
  Outcome run(uint64_t restart, const S* initial_means) {
    HostTeam team;
    if (settings_.init == Init::kPlusPlus) {
      seed_plus_plus(restart);
    } else {
      for (int64_t i = 0; i < k_ * p_.dims; ++i) mean_[i] = static_cast<double>(initial_means[i]);
      for (int64_t c = 0; c < k_; ++c) pack_mean(c);
      find_nearest(false);
      label_ = previous_;
    }
    fill_empty(team, p_.n, k_, label_.data(), minimum_.data(), size_.data());
    std::fill(touched_.begin(), touched_.end(), 1);
    find_means();
    int64_t n_iter = lloyd();
    if (settings_.hartigan) n_iter += hartigan(settings_.max_iter - n_iter);
    std::vector<double> own(p_.n);
    for_each_tile([&](int64_t first, int64_t count, int64_t worker) {
      for (int64_t i = first; i < first + count; ++i) own[i] = sq_dist(i, label_[i], worker);
    });
    const double total = std::accumulate(diagonal_.begin(), diagonal_.end(), 0.0);
    return {std::accumulate(own.begin(), own.end(), 0.0), kRounding<T> * total, n_iter};
  }

  const std::vector<int32_t>& label() const { return label_; }

 private:
  // Bytes of packed rows that are kept; more are packed by tiles in every pass.
  static constexpr std::size_t kKept = std::size_t{1} << 30;

  template <typename F>
  void for_each_tile(const F& f) {
    for_each_task(p_.tiles(), [&](int64_t tile, int64_t worker) {
      f(tile * kTile, p_.tile_rows(tile), worker);
    });
  }

  // Scratch of a worker: room for a tile of rows, a panel of rows and a block of products.
  T* tile_rows(int64_t worker) {
    return workers_[worker].template at_least<T>((kTile + kPanelWidth<T>)*p_.dims + kTile * kTile);
  }
  T* buffer(int64_t worker) { return tile_rows(worker) + kTile * p_.dims; }
  T* products(int64_t worker) { return buffer(worker) + kPanelWidth<T> * p_.dims; }

  // The rows of a tile as gemm_nt reads them.
  const T* packed_rows(int64_t first, int64_t count, int64_t worker) {
    if (kept_rows_ != nullptr) return kept_rows_ + first * p_.dims;
    p_.pack(first, count, buffer(worker), tile_rows(worker));
    return tile_rows(worker);
  }

  double sq_dist(int64_t i, int64_t c, int64_t worker) {
    return sq_dist_to(p_.row(i, buffer(worker)), p_.dims, p_.scale[i], &mean_[c * p_.dims]);
  }

  // Greedy k-means++: the candidates of a step, and what each would leave of the sum of distances,
  // are measured in one pass over the rows.
  void seed_plus_plus(uint64_t restart) {
    constexpr int64_t kWidth = kPanelWidth<T>;
    HostTeam team;
    const int64_t n = p_.n, dims = p_.dims, trials = trials_of(k_);
    std::vector<double> lanes(kTeamLanes), partial(p_.tiles() * trials);
    std::vector<T> distance(n * trials), candidates(trials * dims);
    std::vector<int64_t> chosen(trials);
    const auto measure = [&](int64_t count) {
      for (int64_t t = 0; t < count; ++t) {
        T* packed = tile_rows(0);  // as the rows are, so that a row is at 0 from its equals
        p_.pack(chosen[t], 1, buffer(0), packed);
        for (int64_t d = 0; d < dims; ++d) candidates[t * dims + d] = packed[d * kWidth];
      }
      for_each_tile([&](int64_t first, int64_t rows, int64_t worker) {
        const T* packed = packed_rows(first, rows, worker);
        T* out = products(worker);
        for (int64_t r = 0; r < rows; r += kWidth) {
          sq_dists_to(packed + r * dims, dims, candidates.data(), count, out);
          const int64_t filled = std::min(kWidth, rows - r);
          for (int64_t t = 0; t < count; ++t)
            std::copy_n(out + t * kWidth, filled, &distance[t * n + first + r]);
        }
        for (int64_t t = 0; t < count; ++t)
          partial[first / kTile * trials + t] =
              sum_of_minima(&distance[t * n + first], &minimum_[first], rows);
      });
    };
    const auto take = [&](int64_t t, int32_t step) {
      const T* nearer = &distance[t * n];
      for_each_tile([&](int64_t first, int64_t rows, int64_t) {
        for (int64_t i = first; i < first + rows; ++i) {
          if (!(nearer[i] < minimum_[i])) continue;
          minimum_[i] = nearer[i];
          label_[i] = step;
        }
      });
    };
    std::fill(minimum_.begin(), minimum_.end(), kInfinity<T>);
    std::fill(label_.begin(), label_.end(), 0);
    chosen[0] = static_cast<int64_t>(uniform(settings_.seed, restart, 0, 0) * n);
    measure(1);
    take(0, 0);
    for (int64_t step = 1; step < k_; ++step) {
      const bool spent = !prepare_draws(team, n, minimum_.data(), lanes.data());
      const int64_t count = spent ? 1 : trials;
      for (int64_t t = 0; t < count; ++t) {
        const double u = uniform(settings_.seed, restart, step, t);
        chosen[t] = spent ? step : draw_row(n, minimum_.data(), lanes.data(), u);
      }
      measure(count);
      int64_t best = 0;
      double lowest = kInfinity<double>;
      for (int64_t t = 0; t < count; ++t) {
        double potential = 0;
        for (int64_t tile = 0; tile < p_.tiles(); ++tile) potential += partial[tile * trials + t];
        if (potential < lowest) {
          lowest = potential;
          best = t;
        }
      }
      take(best, static_cast<int32_t>(step));
    }
  }

  // The mean of cluster c as gemm_nt reads it, and its squared length.
  void pack_mean(int64_t c) {
    constexpr int64_t kWidth = kPanelWidth<T>;
    T* out = packed_means_ + c / kWidth * kWidth * p_.dims + c % kWidth;
    double sum = 0;
    for (int64_t d = 0; d < p_.dims; ++d) {
      const T x = static_cast<T>(mean_[c * p_.dims + d] - static_cast<double>(p_.offset[d]));
      out[d * kWidth] = x;
      sum += static_cast<double>(x) * x;
    }
    square_[c] = static_cast<T>(sum);
  }

  // Means of the touched clusters from their members, so that no rounding accumulates.
  void find_means() {
    HostTeam().members(p_.n, k_, label_.data(), start_.data(), order_.data());
    for_each_task(k_, [&](int64_t c, int64_t worker) {
      if (!touched_[c]) return;
      touched_[c] = 0;
      double* mean = &mean_[c * p_.dims];
      std::fill(mean, mean + p_.dims, 0.0);
      for (int32_t m = start_[c]; m < start_[c + 1]; ++m) {
        const int64_t i = order_[m];
        add_row(p_.row(i, buffer(worker)), p_.dims, p_.scale[i], mean);
      }
      for (int64_t d = 0; d < p_.dims; ++d) mean[d] /= size_[c];
      pack_mean(c);
    });
  }

  // previous_[i] and minimum_[i]: the nearest mean and its squared distance; with `others`, the
  // cluster other than the own one that row i would raise least by joining, and by how much.
  void find_nearest(bool others) {
    for (int64_t c = 0; others && c < k_; ++c) grown_[c] = size_[c] / (size_[c] + T(1));
    for_each_tile([&](int64_t first, int64_t count, int64_t worker) {
      const T* packed = packed_rows(first, count, worker);
      std::fill_n(&minimum_[first], count, kInfinity<T>);
      std::fill_n(&previous_[first], count, 0);
      for (int64_t c = 0; c < k_; c += kTile) {
        const int64_t columns = std::min(kTile, k_ - c);
        gemm_nt(packed_means_ + c * p_.dims, columns, packed, count, p_.dims, products(worker),
                kTile);
        nearest_of(products(worker), kTile, count, columns, c, &square_[c],
                   others ? &grown_[c] : nullptr, &diagonal_[first],
                   others ? &label_[first] : nullptr, &minimum_[first], &previous_[first]);
      }
      for (int64_t i = first; i < first + count; ++i) minimum_[i] = std::max(T(0), minimum_[i]);
    });
  }

  int64_t lloyd() {
    HostTeam team;
    for (int64_t iteration = 0; iteration < settings_.max_iter; ++iteration) {
      find_nearest(false);
      std::swap(label_, previous_);
      fill_empty(team, p_.n, k_, label_.data(), minimum_.data(), size_.data());
      bool moved = false;
      for (int64_t i = 0; i < p_.n; ++i) {
        if (label_[i] == previous_[i]) continue;
        touched_[label_[i]] = touched_[previous_[i]] = 1;
        moved = true;
      }
      if (!moved) return iteration + 1;
      find_means();
      if (all_at_means(team, p_.n, minimum_.data(), diagonal_.data())) return iteration + 1;
    }
    return settings_.max_iter;
  }

  int64_t hartigan(int64_t max_passes) {
    for (int64_t pass = 0; pass < max_passes; ++pass) {
      find_nearest(true);
      for_each_tile([&](int64_t first, int64_t count, int64_t worker) {
        for (int64_t i = first; i < first + count; ++i) {
          const double size = size_[label_[i]];
          const double freed = size > 1 ? size / (size - 1) * sq_dist(i, label_[i], worker) : 0.0;
          minimum_[i] = size > 1 ? static_cast<T>(freed) - minimum_[i] : T(0);
        }
      });
      bool moved = false;
      for (int64_t i = 0; i < p_.n; ++i) {
        if (minimum_[i] > 0) moved = move(i, label_[i], previous_[i]) || moved;
      }
      if (!moved) return pass + 1;
      find_means();
    }
    return max_passes > 0 ? max_passes : 0;
  }

  // Moves row i from cluster a to b if that lowers the inertia by more than rounding could feign.
  bool move(int64_t i, int32_t a, int32_t b) {
    if (size_[a] <= 1) return false;
    const double from = sq_dist(i, a, 0), to = sq_dist(i, b, 0);
    const double size_a = size_[a], size_b = size_[b];
    const double gain = size_a / (size_a - 1) * from - size_b / (size_b + 1) * to;
    const T* row = p_.row(i, buffer(0));
    const auto square = [&] { return sq_dist_to(row, p_.dims, p_.scale[i], origin_.data()); };
    if (!worth_moving(gain, from, to, square)) return false;
    double *mean_a = &mean_[a * p_.dims], *mean_b = &mean_[b * p_.dims];
    const double of_a = 1 / (size_a - 1), of_b = 1 / (size_b + 1);
    for (int64_t d = 0; d < p_.dims; ++d) {
      const double x = static_cast<double>(row[d]) * p_.scale[i];
      mean_a[d] += (mean_a[d] - x) * of_a;
      mean_b[d] += (x - mean_b[d]) * of_b;
    }
    --size_[a];
    ++size_[b];
    label_[i] = b;
    touched_[a] = touched_[b] = 1;
    return true;
  }

  const RowProblem<S, T>& p_;
  const int64_t k_;
  const Settings settings_;
  std::vector<Scratch> workers_;
  Scratch packed_memory_;
  T* packed_means_;  // k rows, packed
  Scratch kept_memory_;
  T* kept_rows_ = nullptr;                         // n rows, packed, or none
  std::vector<double> mean_;                       // k x dims, of the scaled rows
  std::vector<double> origin_;                     // dims: zeros
  std::vector<T> square_;                          // k: |mean - offset|^2
  std::vector<T> grown_;                           // k: n / (n + 1)
  std::vector<T> diagonal_;                        // n: |row - offset|^2
  std::vector<T> minimum_;                         // n: squared distance to the own mean, or a gain
  std::vector<int32_t> label_, previous_, order_;  // n
  std::vector<int32_t> start_, size_, touched_;    // k + 1, k, k
};

}  // namespace oskt::kmeans
