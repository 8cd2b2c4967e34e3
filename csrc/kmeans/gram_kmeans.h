// k-means of one problem on its Gram matrix G = X X^T alone: no step depends on D.
//
//   sq_dist(i, j)        = G[i, i] + G[j, j] - 2 G[i, j]
//   sq_dist(i, mean_c)   = G[i, i] - 2 S[c, i] / n_c + Q[c] / n_c^2,
//   S[c, i] = sum over members j of c of G[j, i],  Q[c] = sum over members i of c of S[c, i]
//
// Seeding is greedy k-means++ (the best of 2 + ln K candidates per step). Lloyd runs until no
// label changes. Hartigan then moves single points where the sum of squares falls,
//   n_a / (n_a - 1) sq_dist(i, mean_a) > n_b / (n_b + 1) sq_dist(i, mean_b),
// which leaves local optima of Lloyd and cannot empty a cluster (Slonim, Aharoni and Crammer,
// IJCAI 2013). A pass finds candidates with all sums fixed, then checks each again, in ascending
// order, against the sums of that moment: every move made is an improvement.
//
// The text is written for a team (common/team.h): a CPU thread or a CUDA block.
#pragma once

#include <cstdint>

#include "kmeans/steps.h"
#include "kmeans/ward.h"

namespace oskt::kmeans {

// One problem: its Gram matrix, symmetric, row-major without padding, and its number of clusters.
template <typename T>
struct Gram {
  const T* entries;
  int64_t n;
  int64_t k;

  OSKT_HOST_DEVICE const T* row(int64_t i) const { return entries + i * n; }
};

// Scratch of one (problem, restart). `label` is the result, and the start under Init::kLabels
// together with `minimum`, the squared distances to the given centres.
template <typename T>
struct Workspace {
  double* lanes;      // kTeamLanes
  double* self;       // k: Q
  T* constant;        // k: Q / n^2
  T* slope;           // k: 2 / n
  T* grown;           // k: n / (n + 1)
  T* sums;            // k x n: S
  T* diagonal;        // n
  T* minimum;         // n: squared distance to the own centre, or a gain
  int32_t* label;     // n
  int32_t* previous;  // n
  int32_t* order;     // n
  int32_t* start;     // k + 1
  int32_t* size;      // k
  int32_t* touched;   // k: S and Q must be summed again
  WardTree<T> tree;   // Init::kWard only

  // Lays the arrays out from `base`, aligned to 64 bytes, and returns the bytes taken.
  OSKT_HOST_DEVICE int64_t lay_out(char* base, int64_t n, int64_t k, Init init) {
    Layout layout{base, 0};
    layout.take(lanes, kTeamLanes);
    layout.take(self, k);
    layout.take(constant, k);
    layout.take(slope, k);
    layout.take(grown, k);
    layout.take(sums, k * n);
    layout.take(diagonal, n);
    layout.take(minimum, n);
    layout.take(label, n);
    layout.take(previous, n);
    layout.take(order, n);
    layout.take(start, k + 1);
    layout.take(size, k);
    layout.take(touched, k);
    if (init == Init::kWard) tree.lay_out(layout, n);
    return layout.used;
  }
};

template <typename T, typename Team>
class GramKmeans {
 public:
  OSKT_HOST_DEVICE GramKmeans(Team& team, const Gram<T>& gram, const Settings& settings,
                              uint64_t restart, const Workspace<T>& workspace)
      : team_(team), g_(gram), settings_(settings), restart_(restart), w_(workspace) {}

  OSKT_HOST_DEVICE Outcome run() {
    const int64_t n = g_.n;
    team_.for_each(n, [=](int64_t i) { w_.diagonal[i] = g_.entries[i * n + i]; });
    start();
    team_.for_each(g_.k, [=](int64_t c) { w_.touched[c] = 1; });
    sum_touched();
    int64_t n_iter = lloyd();
    if (settings_.hartigan) n_iter += hartigan(settings_.max_iter - n_iter);
    const double total = team_.sum(n, [=](int64_t i) { return w_.diagonal[i]; });
    const double kept = team_.sum(g_.k, [=](int64_t c) { return w_.self[c] / w_.size[c]; });
    return {total > kept ? total - kept : 0.0, kRounding<T> * total, n_iter};
  }

 private:
  OSKT_HOST_DEVICE T sq_dist(int64_t i, int64_t j) const {
    const T value = w_.diagonal[i] + w_.diagonal[j] - 2 * g_.row(i)[j];
    return value > 0 ? value : T(0);
  }

  OSKT_HOST_DEVICE void start() {
    if (settings_.init == Init::kWard) {
      WardChain<T, Team>(team_, g_.entries, g_.n, w_.tree).grow();
      cut_tree(team_, g_.n, g_.k, w_.tree, w_.label);
      team_.count(g_.n, g_.k, w_.label, w_.size);
      return;
    }
    if (settings_.init == Init::kPlusPlus) seed_plus_plus();
    fill_empty(team_, g_.n, g_.k, w_.label, w_.minimum, w_.size);
  }

  OSKT_HOST_DEVICE void seed_plus_plus() {
    const int64_t n = g_.n, k = g_.k;
    const int trials = trials_of(k);
    const int64_t first = static_cast<int64_t>(uniform(settings_.seed, restart_, 0, 0) * n);
    team_.for_each(n, [=](int64_t i) {
      w_.minimum[i] = sq_dist(first, i);
      w_.label[i] = 0;
    });
    for (int64_t step = 1; step < k; ++step) {
      const bool spent = !prepare_draws(team_, n, w_.minimum, w_.lanes);
      int64_t chosen = step;
      double lowest = kInfinity<double>;
      for (int trial = 0; !spent && trial < trials; ++trial) {
        const int64_t candidate =
            draw_row(n, w_.minimum, w_.lanes, uniform(settings_.seed, restart_, step, trial));
        const double potential = team_.sum(n, [=](int64_t i) {
          const T distance = sq_dist(candidate, i), kept = w_.minimum[i];
          return distance < kept ? distance : kept;
        });
        if (potential < lowest) {
          lowest = potential;
          chosen = candidate;
        }
      }
      const int32_t label = static_cast<int32_t>(step);
      team_.for_each(n, [=](int64_t i) {
        const T distance = sq_dist(chosen, i), kept = w_.minimum[i];
        w_.label[i] = distance < kept ? label : w_.label[i];
        w_.minimum[i] = distance < kept ? distance : kept;
      });
    }
  }

  // Sums S and Q of the touched clusters from their members, so that no rounding accumulates.
  OSKT_HOST_DEVICE void sum_touched() {
    const int64_t n = g_.n;
    team_.members(n, g_.k, w_.label, w_.start, w_.order);
    for (int64_t c = 0; c < g_.k; ++c) {
      if (!w_.touched[c]) continue;
      team_.add_rows(
          n, [=](int64_t j) { return g_.row(j); }, w_.order + w_.start[c], w_.size[c],
          w_.sums + c * n);
    }
    team_.for_each(g_.k, [=](int64_t c) {
      double self = 0;
      for (int32_t m = w_.start[c]; m < w_.start[c + 1]; ++m) self += w_.sums[c * n + w_.order[m]];
      const double size = w_.size[c];
      w_.self[c] = self;
      w_.constant[c] = static_cast<T>(self / size / size);
      w_.slope[c] = static_cast<T>(2 / size);
      w_.grown[c] = static_cast<T>(size / (size + 1));
      w_.touched[c] = 0;
    });
  }

  OSKT_HOST_DEVICE int64_t lloyd() {
    const int64_t n = g_.n;
    for (int64_t iteration = 0; iteration < settings_.max_iter; ++iteration) {
      team_.for_each(n, [=](int64_t i) { w_.previous[i] = w_.label[i]; });
      team_.argmin_over(
          n, g_.k,
          [=](int64_t c) {
            const T* sums = w_.sums + c * n;
            const T constant = w_.constant[c], slope = w_.slope[c];
            return [=](int64_t i) { return constant - slope * sums[i]; };
          },
          w_.minimum, w_.label);
      team_.for_each(n, [=](int64_t i) {
        const T distance = w_.diagonal[i] + w_.minimum[i];
        w_.minimum[i] = distance > 0 ? distance : T(0);
      });
      fill_empty(team_, g_.n, g_.k, w_.label, w_.minimum, w_.size);
      const double moved =
          team_.sum(n, [=](int64_t i) { return w_.label[i] != w_.previous[i] ? 1.0 : 0.0; });
      if (moved == 0) return iteration + 1;
      team_.for_each(n, [=](int64_t i) {
        if (w_.label[i] == w_.previous[i]) return;
        w_.touched[w_.label[i]] = 1;
        w_.touched[w_.previous[i]] = 1;
      });
      sum_touched();
      if (all_at_means(team_, n, w_.minimum, w_.diagonal)) return iteration + 1;
    }
    return settings_.max_iter;
  }

  // n_c / (n_c + step) sq_dist(i, mean_c): the cost that row i adds (step 1) or frees (step -1).
  OSKT_HOST_DEVICE double cost(int64_t i, int64_t c, int step) const {
    const double size = w_.size[c];
    const double distance =
        w_.diagonal[i] + (w_.self[c] / size - 2.0 * w_.sums[c * g_.n + i]) / size;
    return size / (size + step) * distance;
  }

  OSKT_HOST_DEVICE int64_t hartigan(int64_t max_passes) {
    const int64_t n = g_.n;
    for (int64_t pass = 0; pass < max_passes; ++pass) {
      team_.argmin_over(
          n, g_.k,
          [=](int64_t c) {
            const T* sums = w_.sums + c * n;
            const T* diagonal = w_.diagonal;
            const T constant = w_.constant[c], slope = w_.slope[c], grown = w_.grown[c];
            const int32_t* label = w_.label;
            const int32_t own = static_cast<int32_t>(c);
            return [=](int64_t i) {
              const T added = grown * (diagonal[i] + constant - slope * sums[i]);
              return label[i] == own ? kInfinity<T> : added;
            };
          },
          w_.minimum, w_.previous);
      team_.for_each(n, [=](int64_t i) {
        const int32_t own = w_.label[i];
        w_.minimum[i] = w_.size[own] > 1 ? static_cast<T>(cost(i, own, -1)) - w_.minimum[i] : T(0);
      });
      bool moved = false;
      for (int64_t i = 0; i < n; ++i) {
        if (w_.minimum[i] > 0) moved = move(i, w_.label[i], w_.previous[i]) || moved;
      }
      if (!moved) return pass + 1;
      sum_touched();
    }
    return max_passes > 0 ? max_passes : 0;
  }

  // Moves row i from cluster a to b if that lowers the inertia by more than rounding could feign.
  OSKT_HOST_DEVICE bool move(int64_t i, int32_t a, int32_t b) {
    const int64_t n = g_.n;
    const double gain = w_.size[a] > 1 ? cost(i, a, -1) - cost(i, b, 1) : 0.0;
    const double scale = w_.diagonal[i] + w_.self[a] / w_.size[a] / w_.size[a] +
                         w_.self[b] / w_.size[b] / w_.size[b];
    if (!(gain > kRounding<T> * scale)) return false;
    team_.once([=] {
      w_.self[a] += w_.diagonal[i] - 2.0 * w_.sums[a * n + i];
      w_.self[b] += w_.diagonal[i] + 2.0 * w_.sums[b * n + i];
      --w_.size[a];
      ++w_.size[b];
      w_.label[i] = b;
      w_.touched[a] = w_.touched[b] = 1;
    });
    const T* row = g_.row(i);
    T *from = w_.sums + a * n, *to = w_.sums + b * n;
    team_.for_each(n, [=](int64_t j) {
      from[j] -= row[j];
      to[j] += row[j];
    });
    return true;
  }

  Team& team_;
  const Gram<T> g_;
  const Settings settings_;
  const uint64_t restart_;
  const Workspace<T>& w_;
};

}  // namespace oskt::kmeans
