// What k-means has in common on either route: settings, outcome, draws and empty clusters. Written
// for a team (common/team.h), as the steps of gram_kmeans.h are.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/rng.h"
#include "common/team.h"

namespace oskt::kmeans {

// Of a distance formed from products, relative to the squared lengths in it.
template <typename T>
inline constexpr double kRounding = 16 * kEpsilon<T>;

enum class Init : int32_t { kPlusPlus, kWard, kLabels };

struct Settings {
  Init init;
  bool hartigan;
  int32_t max_iter;
  uint64_t seed;
};

struct Outcome {
  double inertia;
  double rounding;  // inertias this close are equal
  int64_t n_iter;

  // Whether a later restart replaces this one.
  OSKT_HOST_DEVICE bool worse_than(const Outcome& later) const {
    return later.inertia < inertia - rounding;
  }
};

// Inclusive prefix sums of `minimum` by lanes, for draw_row. False if all rows coincide with a
// centre: then any row will do.
template <typename T, typename Team>
OSKT_HOST_DEVICE bool prepare_draws(Team& team, int64_t n, const T* minimum, double* lanes) {
  const int64_t count = n < kTeamLanes ? n : kTeamLanes;
  team.lane_sums(n, [=](int64_t i) { return minimum[i]; }, lanes);
  team.prefix(count, lanes);
  return lanes[count - 1] > 0;
}

// Draws row i with probability minimum[i] / sum.
template <typename T>
OSKT_HOST_DEVICE int64_t draw_row(int64_t n, const T* minimum, const double* lanes, double u) {
  const int64_t count = n < kTeamLanes ? n : kTeamLanes;
  const double target = u * lanes[count - 1];
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (lanes[middle] > target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  double rest = target - (low > 0 ? lanes[low - 1] : 0.0);
  int64_t drawn = low;
  for (int64_t i = low; i < n; i += kTeamLanes) {
    if (!(minimum[i] > 0)) continue;  // a chosen row, or its duplicate
    drawn = i;
    rest -= static_cast<double>(minimum[i]);
    if (rest < 0) break;
  }
  return drawn;
}

// Whether every row lies at its own mean, to rounding: with more clusters than distinct rows labels
// could change for ever, for nothing.
template <typename T, typename Team>
OSKT_HOST_DEVICE bool all_at_means(Team& team, int64_t n, const T* minimum, const T* diagonal) {
  return team.sum(n, [=](int64_t i) {
    return minimum[i] > static_cast<T>(kRounding<T>) * diagonal[i] ? 1.0 : 0.0;
  }) == 0;
}

// Whether what a row's move gains is more than rounding could feign, of squared distances `from`
// its own mean and `to` another that were formed from entries, not from products. Their rounding is
// that of the row, of squared length square(): means closer than 1e-10 of its length are not told
// apart, or equal rows in two clusters of one mean would move back and forth.
template <typename Square>
OSKT_HOST_DEVICE bool worth_moving(double gain, double from, double to, const Square& square) {
  return gain > 1e-12 * (from + to) && gain > 1e-20 * square();
}

// Candidates per step of greedy k-means++.
OSKT_HOST_DEVICE int trials_of(int64_t k) {
  return 2 + static_cast<int>(std::log(static_cast<double>(k)));
}

// Counts the clusters; an empty one takes the row farthest from its centre, from a cluster of more
// than one. `minimum` holds the squared distances to the own centres.
template <typename T, typename Team>
OSKT_HOST_DEVICE void fill_empty(Team& team, int64_t n, int64_t k, int32_t* label, T* minimum,
                                 int32_t* size) {
  team.count(n, k, label, size);
  const double empty = team.sum(k, [=](int64_t c) { return size[c] == 0 ? 1.0 : 0.0; });
  if (empty == 0) return;
  for (int64_t c = 0; c < k; ++c) {
    if (size[c] != 0) continue;
    const int64_t far =
        team.argmin(n, [=](int64_t i) { return size[label[i]] > 1 ? -minimum[i] : kInfinity<T>; })
            .index;
    team.once([=] {
      --size[label[far]];
      size[c] = 1;
      label[far] = static_cast<int32_t>(c);
      minimum[far] = 0;
    });
  }
}

}  // namespace oskt::kmeans
