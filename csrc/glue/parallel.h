// Dynamic scheduling over torch's threads: a worker takes the next task when it is done with one.
#pragma once

#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace oskt {

// Runs f(task, worker) for task = 0 .. tasks - 1; f must not throw. A worker runs one task at a
// time, so that worker < num_workers() may index scratch.
inline int64_t num_workers() { return std::max<int64_t>(1, torch::stable::get_num_threads()); }

template <typename F>
inline void for_each_task(int64_t tasks, const F& f) {
  const int64_t workers = std::min(tasks, num_workers());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next++; task < tasks; task = next++) f(task, worker);
    }
  });
}

// Scratch memory aligned to cache lines that only grows; its contents do not survive growth.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  template <typename T>
  T* at_least(int64_t count) {
    const std::size_t wanted = static_cast<std::size_t>(count) * sizeof(T);
    if (wanted > bytes_) {
      std::free(data_);
      bytes_ = 0;
      // Large blocks lie on huge pages where the system has them: fresh memory costs by the page.
      const std::size_t page = wanted < kHugePage ? 64 : kHugePage;
      const std::size_t bytes = (wanted + page - 1) / page * page;
      data_ = std::aligned_alloc(page, bytes);
      if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
      if (page == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      bytes_ = bytes;
    }
    return static_cast<T*>(data_);
  }

  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kHugePage = 2 << 20;

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace oskt
