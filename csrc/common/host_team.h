// The team (team.h) of one CPU thread: every inner loop is a plain one over contiguous memory that
// the compiler vectorises.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/team.h"

namespace oskt {

class HostTeam {
 public:
  template <typename F>
  void once(const F& f) {
    f();
  }

  template <typename F>
  void for_each(int64_t n, const F& f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  template <typename F>
  double sum(int64_t n, const F& f) {
    double lane[kLanesOfSum] = {};
    int64_t i = 0;
    for (; i + kLanesOfSum <= n; i += kLanesOfSum) {
#pragma omp simd
      for (int l = 0; l < kLanesOfSum; ++l) lane[l] += static_cast<double>(f(i + l));
    }
    for (int l = 0; i < n; ++i, ++l) lane[l] += static_cast<double>(f(i));
    double total = 0;
    for (int l = 0; l < kLanesOfSum; ++l) total += lane[l];
    return total;
  }

  template <typename F>
  void lane_sums(int64_t n, const F& f, double* lanes_out) {
    std::fill(lanes_out, lanes_out + kTeamLanes, 0.0);
    for (int64_t first = 0; first < n; first += kTeamLanes) {
      const int64_t count = std::min<int64_t>(kTeamLanes, n - first);
#pragma omp simd
      for (int64_t l = 0; l < count; ++l) lanes_out[l] += static_cast<double>(f(first + l));
    }
  }

  void prefix(int64_t n, double* value) {
    for (int64_t i = 1; i < n; ++i) value[i] += value[i - 1];
  }

  template <typename F>
  auto argmin(int64_t n, const F& f) {
    using T = decltype(f(int64_t{0}));
    // The first strip that holds the minimum is searched again for its place.
    constexpr int64_t kStrip = 256;
    T best = kInfinity<T>;
    int64_t index = 0;
    for (int64_t first = 0; first < n; first += kStrip) {
      const int64_t last = std::min(first + kStrip, n);
      T lowest = kInfinity<T>;
#pragma omp simd reduction(min : lowest)
      for (int64_t i = first; i < last; ++i) lowest = std::min(lowest, f(i));
      if (first == 0 || lowest < best) {
        best = lowest;
        index = first;
      }
    }
    while (index < n && !(f(index) == best)) ++index;
    return Candidate<T>{best, index < n ? index : 0};
  }

  template <typename T, typename F>
  void argmin_over(int64_t n, int64_t k, const F& f, T* best, int32_t* arg) {
    // A strip of best and arg stays in L1 while the k rows pass by.
    constexpr int64_t kStrip = 1024;
    for (int64_t first = 0; first < n; first += kStrip) {
      const int64_t last = std::min(first + kStrip, n);
      std::fill(best + first, best + last, kInfinity<T>);
      std::fill(arg + first, arg + last, 0);
      for (int64_t c = 0; c < k; ++c) {
        const auto value_of = f(c);
        const int32_t label = static_cast<int32_t>(c);
#pragma omp simd
        for (int64_t i = first; i < last; ++i) {
          const T value = value_of(i);
          const bool better = value < best[i];
          best[i] = better ? value : best[i];
          arg[i] = better ? label : arg[i];
        }
      }
    }
  }

  template <typename T, typename Rows>
  void add_rows(int64_t n, const Rows& rows, const int32_t* list, int64_t length, T* out) {
    std::fill(out, out + n, T(0));
    int64_t m = 0;
    for (; m + 4 <= length; m += 4) {
      const T *a = rows(list[m]), *b = rows(list[m + 1]), *c = rows(list[m + 2]),
              *d = rows(list[m + 3]);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = (((out[i] + a[i]) + b[i]) + c[i]) + d[i];
    }
    for (; m < length; ++m) {
      const T* a = rows(list[m]);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] += a[i];
    }
  }

  void count(int64_t n, int64_t k, const int32_t* label, int32_t* size) {
    std::fill_n(size, k, 0);
    for (int64_t i = 0; i < n; ++i) ++size[label[i]];
  }

  void members(int64_t n, int64_t k, const int32_t* label, int32_t* start, int32_t* order) {
    std::fill_n(start, k + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++start[label[i] + 1];
    for (int64_t c = 0; c < k; ++c) start[c + 1] += start[c];
    for (int64_t i = 0; i < n; ++i) order[start[label[i]]++] = static_cast<int32_t>(i);
    for (int64_t c = k; c > 0; --c) start[c] = start[c - 1];
    start[0] = 0;
  }

  // `place` is scratch of length n.
  template <typename T>
  void ranks(int64_t n, const T* value, int32_t* rank, int32_t* place) {
    for (int64_t i = 0; i < n; ++i) place[i] = static_cast<int32_t>(i);
    std::sort(place, place + n, [=](int32_t a, int32_t b) {
      return precedes(Candidate<T>{value[a], a}, Candidate<T>{value[b], b});
    });
    for (int64_t i = 0; i < n; ++i) rank[place[i]] = static_cast<int32_t>(i);
  }

 private:
  static constexpr int kLanesOfSum = 32;
};

}  // namespace oskt
