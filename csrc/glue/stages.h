// A batch of problems taken through the same stages, without a barrier between problems.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "glue/parallel.h"

namespace oskt {

// One stage: run(problem, task, worker) for task = 0 .. tasks(problem) - 1, at least one, in any
// order and at the same time. It begins when the problem's previous stage is done.
struct Stage {
  std::function<int64_t(int64_t problem)> tasks;
  std::function<void(int64_t problem, int64_t task, int64_t worker)> run;
};

// Takes the problems through the stages. Earlier problems go first, and one is begun only when
// those begun have no task to hand out: at most workers + 1 are begun and not finished at a time.
// After an exception no task is begun, and it is thrown again when those that run are done.
inline void run_stages(const std::vector<int64_t>& problems, const std::vector<Stage>& stages) {
  struct Progress {
    int64_t problem;
    std::size_t stage;
    int64_t tasks, next, left;
  };
  std::vector<Progress> begun;
  std::size_t first_waiting = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr failure;
  const auto enter = [&](Progress& p, std::size_t stage) {
    p.stage = stage;
    p.tasks = p.left = stages[stage].tasks(p.problem);
    p.next = 0;
  };
  const auto work = [&](int64_t worker) {
    std::unique_lock<std::mutex> lock(mutex);
    while (!failure) {
      const auto ready = std::find_if(begun.begin(), begun.end(),
                                      [](const Progress& p) { return p.next < p.tasks; });
      if (ready == begun.end()) {
        if (first_waiting < problems.size()) {
          begun.push_back({problems[first_waiting++], 0, 0, 0, 0});
          enter(begun.back(), 0);
        } else if (begun.empty()) {
          return;
        } else {
          changed.wait(lock);
        }
        continue;
      }
      const int64_t problem = ready->problem, task = ready->next++;
      const Stage& stage = stages[ready->stage];
      lock.unlock();
      std::exception_ptr thrown;
      try {
        stage.run(problem, task, worker);
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      if (thrown) {
        failure = thrown;
        changed.notify_all();
        return;
      }
      const auto mine = std::find_if(begun.begin(), begun.end(),
                                     [problem](const Progress& p) { return p.problem == problem; });
      if (--mine->left > 0) continue;
      if (mine->stage + 1 < stages.size()) {
        enter(*mine, mine->stage + 1);
      } else {
        begun.erase(mine);
      }
      changed.notify_all();
    }
  };
  torch::stable::parallel_for(0, num_workers(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work(worker);
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace oskt
