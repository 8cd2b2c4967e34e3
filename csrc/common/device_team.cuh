// The team (team.h) of one CUDA block: kTeamLanes threads, a lane each. Scalars are computed by
// every thread alike; sums run over lanes first, then over lanes within warps, then over warps, so
// that a result depends on no schedule. Integer atomics only.
#pragma once

#include <cstdint>

#include "common/team.h"

namespace oskt {

class DeviceTeam {
 public:
  static constexpr int kThreads = kTeamLanes;
  static constexpr int kWarp = 32;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr unsigned kAll = 0xffffffffu;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "one warp must hold a value per warp");

  struct Shared {
    double value[kWarps];
    int64_t index[kWarps];
  };

  __device__ explicit DeviceTeam(Shared& shared) : shared_(shared) {}

  template <typename F>
  __device__ void once(const F& f) {
    __syncthreads();
    if (threadIdx.x == 0) f();
    __syncthreads();
  }

  template <typename F>
  __device__ void for_each(int64_t n, const F& f) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) f(i);
    __syncthreads();
  }

  template <typename F>
  __device__ double sum(int64_t n, const F& f) {
    double own = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) own += static_cast<double>(f(i));
    for (int step = kWarp / 2; step > 0; step /= 2) own += __shfl_down_sync(kAll, own, step);
    __syncthreads();  // the last reader of shared_ is done
    if (threadIdx.x % kWarp == 0) shared_.value[threadIdx.x / kWarp] = own;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += shared_.value[w];
    return total;
  }

  template <typename F>
  __device__ void lane_sums(int64_t n, const F& f, double* lanes) {
    double own = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) own += static_cast<double>(f(i));
    __syncthreads();
    lanes[threadIdx.x] = own;
    __syncthreads();
  }

  __device__ void prefix(int64_t n, double* value) {
    __syncthreads();
    const double own = threadIdx.x < n ? value[threadIdx.x] : 0.0;
    const double inclusive = scan(own, shared_.value);
    if (threadIdx.x < n) value[threadIdx.x] = inclusive;
    __syncthreads();
  }

  template <typename F>
  __device__ auto argmin(int64_t n, const F& f) {
    using T = decltype(f(int64_t{0}));
    Candidate<T> best{kInfinity<T>, 0};
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const Candidate<T> own{f(i), i};
      if (own.value < best.value) best = own;  // i ascends: equal values keep the lower index
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const Candidate<T> other{__shfl_down_sync(kAll, best.value, step),
                               __shfl_down_sync(kAll, best.index, step)};
      if (precedes(other, best)) best = other;
    }
    __syncthreads();
    if (threadIdx.x % kWarp == 0) {
      shared_.value[threadIdx.x / kWarp] = best.value;
      shared_.index[threadIdx.x / kWarp] = best.index;
    }
    __syncthreads();
    best = {static_cast<T>(shared_.value[0]), shared_.index[0]};
    for (int w = 1; w < kWarps; ++w) {
      const Candidate<T> other{static_cast<T>(shared_.value[w]), shared_.index[w]};
      if (precedes(other, best)) best = other;
    }
    return best;
  }

  template <typename T, typename F>
  __device__ void argmin_over(int64_t n, int64_t k, const F& f, T* best, int32_t* arg) {
    for_each(n, [&](int64_t i) {
      T lowest = kInfinity<T>;
      int32_t label = 0;
      for (int64_t c = 0; c < k; ++c) {
        const T value = f(c)(i);
        if (value < lowest) {
          lowest = value;
          label = static_cast<int32_t>(c);
        }
      }
      best[i] = lowest;
      arg[i] = label;
    });
  }

  template <typename T, typename Rows>
  __device__ void add_rows(int64_t n, const Rows& rows, const int32_t* list, int64_t length,
                           T* out) {
    for_each(n, [&](int64_t i) {
      T sum = 0;
      for (int64_t m = 0; m < length; ++m) sum += rows(list[m])[i];
      out[i] = sum;
    });
  }

  __device__ void count(int64_t n, int64_t k, const int32_t* label, int32_t* size) {
    for_each(k, [&](int64_t c) { size[c] = 0; });
    for_each(n, [&](int64_t i) { atomicAdd(size + label[i], 1); });
  }

  __device__ void members(int64_t n, int64_t k, const int32_t* label, int32_t* start,
                          int32_t* order) {
    count(n, k, label, start + 1);
    int32_t carry = 0;
    for (int64_t first = 0; first < k; first += kThreads) {
      const int64_t c = first + threadIdx.x;
      const int32_t own = c < k ? start[c + 1] : 0;
      const int32_t inclusive = carry + scan(own, shared_.index);
      if (c < k) start[c + 1] = inclusive;
      carry += static_cast<int32_t>(total(shared_.index));
      __syncthreads();
    }
    once([&] { start[0] = 0; });
    for_each(k, [&](int64_t c) {
      int32_t* place = order + start[c];
      for (int64_t i = 0; i < n; ++i) {
        if (label[i] == c) *place++ = static_cast<int32_t>(i);
      }
    });
  }

  template <typename T>
  __device__ void ranks(int64_t n, const T* value, int32_t* rank, int32_t*) {
    for_each(n, [&](int64_t i) {
      int32_t before = 0;
      for (int64_t j = 0; j < n; ++j) {
        before += precedes(Candidate<T>{value[j], j}, Candidate<T>{value[i], i});
      }
      rank[i] = before;
    });
  }

 private:
  // The inclusive prefix sum of one value per thread; leaves the sums of the warps in `warps`.
  template <typename V, typename W>
  __device__ V scan(V own, W* warps) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int step = 1; step < kWarp; step *= 2) {
      const V other = __shfl_up_sync(kAll, own, step);
      if (lane >= step) own += other;
    }
    __syncthreads();
    if (lane == kWarp - 1) warps[warp] = own;
    __syncthreads();
    V before = 0;
    for (int w = 0; w < warp; ++w) before += static_cast<V>(warps[w]);
    return before + own;
  }

  template <typename W>
  __device__ W total(const W* warps) const {
    W sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += warps[w];
    return sum;
  }

  Shared& shared_;
};

}  // namespace oskt
