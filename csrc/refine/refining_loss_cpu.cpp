// CPU kernel of refining_loss: the layout and the mathematics stand in refining_loss.h.
//
// Bound by bytes: the teacher and the chain are read once, both gradients written once. A task
// walks its clusters in strips of kStrip columns, so that the chain row and the sum of its
// residuals stay in L1 while the members stream by. A strip is too short for the processor to see a
// stream in it, so the next member's is fetched meanwhile; a teacher's gradient larger than the
// caches goes past them. Everything between load and store is float64: the conversions hide behind
// memory, and a loss near zero or a cancelling chain gradient keeps its digits.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/simd.h"
#include "common/storage.h"
#include "common/stream_copy.h"
#include "glue/checks.h"
#include "glue/fresh_memory.h"
#include "glue/parallel.h"
#include "refine/gradient_checks.h"
#include "refine/refining_loss.h"

namespace oskt {
namespace {

using namespace oskt::refine;

constexpr int64_t kStrip = 2048;
constexpr int64_t kBlock = 64;    // columns between two looks at memory
constexpr int64_t kAhead = 2048;  // elements from a fetch to its use, more than a latency
constexpr int64_t kLanes = 32;    // independent sums, so that the loop has no chain of additions

// Half types convert from float only.
template <typename scalar_t>
OSKT_INLINE scalar_t store(double value) {
  if constexpr (std::is_same_v<scalar_t, double>)
    return value;
  else
    return static_cast<scalar_t>(static_cast<float>(value));
}

// One cluster's strip of columns: its chain row, and the sum of its members' residuals.
struct Strip {
  double center[kStrip], sum[kStrip];
  double lanes[kLanes] = {};  // sums of squares
};

// Adds one member's strip of `width` columns and writes its gradient, where asked for; fetches
// `next`, the strip that comes after it.
template <typename scalar_t, bool kTeacher, bool kChain, bool kWeighted>
OSKT_INLINE void add_member(Strip& strip, int64_t width, double weight, double factor,
                            const scalar_t* teacher, const scalar_t* next, scalar_t* gradient,
                            bool streamed) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  scalar_t block[kBlock];
  double lanes[kLanes];
  std::copy(strip.lanes, strip.lanes + kLanes, lanes);
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t count = std::min(kBlock, width - first), whole = count - count % kLanes;
    for (int64_t e = 0; e < count; e += kLine) __builtin_prefetch(next + first + e, 0, 3);
    scalar_t* to = streamed ? block : gradient + first;
    const auto step = [&](int64_t e, double& lane) {
      const double residual = static_cast<double>(teacher[first + e]) - strip.center[first + e];
      const double weighted = kWeighted ? weight * residual : residual;
      lane += weighted * residual;
      if constexpr (kChain) strip.sum[first + e] += weighted;
      if constexpr (kTeacher) to[e] = store<scalar_t>(factor * weighted);
    };
    for (int64_t e = 0; e < whole; e += kLanes) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) step(e + lane, lanes[lane]);
    }
    for (int64_t e = whole; e < count; ++e) step(e, lanes[e - whole]);
    if (kTeacher && streamed) stream_copy(gradient + first, block, count * sizeof(scalar_t));
  }
  std::copy(lanes, lanes + kLanes, strip.lanes);
}

// Writes the gradients of one task, where asked for, and returns its sum of squared residuals.
template <typename scalar_t, bool kTeacher, bool kChain>
OSKT_INLINE double run_task(const LossReader& plan, const LossTask& task, const double* weight,
                            double factor, const scalar_t* teacher, scalar_t* teacher_gradient,
                            const scalar_t* chain, scalar_t* chain_gradient, bool streamed) {
  const LossItem& item = plan.item(task.item);
  const int64_t* starts = plan.table + item.starts_at;
  const int64_t* members = plan.table + item.members_at;
  const double* row_weight =
      item.row_weights_at == kAllOnes ? nullptr : weight + item.row_weights_at;
  Strip strip;
  for (int64_t k = task.cluster_begin; k < task.cluster_end; ++k)
    for (int64_t d = task.column_begin; d < task.column_end; d += kStrip) {
      const int64_t width = std::min(kStrip, task.column_end - d);
      const int64_t chain_at = item.chain_at + k * item.row_length + d;
      for (int64_t e = 0; e < width; ++e)
        strip.center[e] = static_cast<double>(chain[chain_at + e]);
      for (int64_t e = 0; kChain && e < width; ++e) strip.sum[e] = 0.0;
      for (int64_t m = starts[k]; m < starts[k + 1]; ++m) {
        const int64_t at = members[m] * item.row_length + d;
        // What comes kAhead elements later: a member of this or a later cluster; of rows longer
        // than a strip the next strip, at the end of which the cluster's next one begins.
        const bool last = m + 1 == starts[k + 1], more = d + kStrip < task.column_end;
        const int64_t step = std::max<int64_t>(1, kAhead / width);
        const int64_t then = last && more ? starts[k] : std::min(m + step, item.rows - 1);
        const int64_t then_at = members[then] * item.row_length + (last && more ? d + kStrip : d);
        const auto add = [&](auto weighted, double w) {
          add_member<scalar_t, kTeacher, kChain, decltype(weighted)::value>(
              strip, width, w, factor, teacher + at, teacher + then_at,
              kTeacher ? teacher_gradient + at : nullptr, streamed);
        };
        if (row_weight)
          add(std::true_type{}, row_weight[members[m]]);
        else
          add(std::false_type{}, 1.0);
      }
      for (int64_t e = 0; kChain && e < width; ++e)
        chain_gradient[chain_at + e] = store<scalar_t>(-factor * strip.sum[e]);
    }
  double total = 0.0;
  for (double lane : strip.lanes) total += lane;
  return total;
}

// The flat tensors that a call reads and writes; a null gradient is not computed.
template <typename scalar_t>
struct Buffers {
  std::vector<const scalar_t*> teacher;
  std::vector<scalar_t*> teacher_gradient;
  const scalar_t* chain;
  scalar_t* chain_gradient;
  bool streamed;  // teacher_gradient goes past the caches
};

// Whether task `t` is a further stretch of the columns of the clusters of the task before it.
bool continues(const LossReader& plan, int64_t t) {
  if (t == 0 || t == plan.header().num_tasks) return false;
  const LossTask &last = plan.task(t - 1), &task = plan.task(t);
  return task.item == last.item && task.cluster_begin == last.cluster_begin &&
         task.column_begin == last.column_end;
}

// The tasks [begin, end), those that belong together as one: rows that are read whole cost fewer
// page table walks. Neither bound may cut such a run, so that no sum depends on the bounds.
template <typename scalar_t, bool kTeacher, bool kChain>
OSKT_SIMD_CLONES void run_tasks(const LossReader& plan, const double* weight, double scale,
                                const Buffers<scalar_t>& buffers, double* partial, int64_t begin,
                                int64_t end) {
  for (int64_t t = begin; t < end;) {
    double* sum = partial + t;
    LossTask task = plan.task(t++);
    for (; continues(plan, t); ++t) task.column_end = plan.task(t).column_end;
    const double factor = scale * weight[task.item];
    scalar_t* teacher_gradient = kTeacher ? buffers.teacher_gradient[task.item] : nullptr;
    *sum = factor * run_task<scalar_t, kTeacher, kChain>(
                        plan, task, weight, 2.0 * factor, buffers.teacher[task.item],
                        teacher_gradient, buffers.chain, buffers.chain_gradient, buffers.streamed);
  }
  stream_fence();
}

template <typename scalar_t>
double run(const LossReader& plan, const double* weight, double scale,
           const Buffers<scalar_t>& buffers) {
  const int64_t tasks = plan.header().num_tasks;
  std::vector<double> partial(tasks);
  const auto bound = [&](int64_t t) {
    while (continues(plan, t)) ++t;
    return t;
  };
  const auto body = [&](auto teacher, auto chain) {
    // Runs long enough to be worth a thread, short enough that threads end together.
    const int64_t run = std::max<int64_t>(4, tasks / (8 * num_workers()));
    for_each_task((tasks + run - 1) / run, [&](int64_t part, int64_t) {
      run_tasks<scalar_t, decltype(teacher)::value, decltype(chain)::value>(
          plan, weight, scale, buffers, partial.data(), bound(part * run),
          bound(std::min(tasks, (part + 1) * run)));
    });
  };
  const bool teacher = !buffers.teacher_gradient.empty(), chain = buffers.chain_gradient;
  if (teacher && chain) body(std::true_type{}, std::true_type{});
  if (teacher && !chain) body(std::true_type{}, std::false_type{});
  if (!teacher && chain) body(std::false_type{}, std::true_type{});
  if (!teacher && !chain) body(std::false_type{}, std::false_type{});
  double total = 0.0;
  for (double value : partial) total += value;
  return total;
}

void check_plan(const std::vector<Tensor>& teacher, const Tensor& chain, const Tensor& table,
                const Tensor& weight) {
  check(table.is_cpu() && weight.is_cpu(),
        "refining_loss: the plan must be on the device of chain, got another one.");
  check(table.scalar_type() == ScalarType::Long && table.is_contiguous() &&
            weight.scalar_type() == ScalarType::Double && weight.is_contiguous() &&
            table.numel() * sizeof(int64_t) >= sizeof(LossHeader),
        "refining_loss: table must be the int64 table of a RefiningPlan, got something else.");
  const LossReader plan{table.const_data_ptr<int64_t>()};
  const LossHeader& header = plan.header();
  check(header.magic == kMagic && header.words == table.numel() &&
            header.num_weights == weight.numel(),
        "refining_loss: table must be the int64 table of a RefiningPlan, got something else.");
  check(header.num_items == static_cast<int64_t>(teacher.size()),
        "refining_loss: teacher must have ", header.num_items, " tensors, got ", teacher.size(),
        ".");
  check(chain.is_contiguous() && chain.numel() >= header.chain_numel,
        "refining_loss: chain must be contiguous with at least ", header.chain_numel,
        " elements, got ", chain.numel(), ".");
  for (size_t i = 0; i < teacher.size(); ++i)
    check(teacher[i].is_cpu() && teacher[i].is_contiguous() &&
              teacher[i].scalar_type() == chain.scalar_type() &&
              teacher[i].numel() == plan.item(i).rows * plan.item(i).row_length,
          "refining_loss: teacher[", i, "] must be contiguous, of the dtype of chain, with ",
          plan.item(i).rows * plan.item(i).row_length, " elements, got ", teacher[i].numel(), ".");
}

// Zeroes the elements of `flat`, shaped like the chain, that belong to no item.
template <typename scalar_t>
void zero_gaps(const LossReader& plan, scalar_t* flat, int64_t numel) {
  std::vector<std::pair<int64_t, int64_t>> runs{{numel, numel}};
  for (int64_t i = 0; i < plan.header().num_items; ++i) {
    const LossItem& item = plan.item(i);
    const int64_t clusters = item.members_at - item.starts_at - 1;
    runs.emplace_back(item.chain_at, item.chain_at + clusters * item.row_length);
  }
  std::sort(runs.begin(), runs.end());
  int64_t end = 0;
  for (const auto& [first, last] : runs) {
    if (end < first) std::fill(flat + end, flat + first, scalar_t(0.0f));
    end = std::max(end, last);
  }
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> refining_loss_cpu(std::vector<Tensor> teacher,
                                                                  Tensor chain, Tensor table,
                                                                  Tensor weight, double scale,
                                                                  bool teacher_needs_gradient,
                                                                  bool chain_needs_gradient) {
  check_plan(teacher, chain, table, weight);
  const bool wide = chain.scalar_type() == ScalarType::Double;
  Tensor loss = torch::stable::new_empty(chain, {}, wide ? ScalarType::Double : ScalarType::Float);
  std::vector<Tensor> teacher_gradient;
  if (teacher_needs_gradient)
    for (const Tensor& tensor : teacher)
      teacher_gradient.push_back(torch::stable::empty_like(tensor));
  Tensor chain_gradient =
      torch::stable::new_empty(chain, {chain_needs_gradient ? chain.numel() : 0});
  int64_t gradient_bytes = 0;
  for (Tensor& tensor : teacher_gradient) {
    expect_writes(tensor);
    gradient_bytes += tensor.numel() * tensor.element_size();
  }
  expect_writes(chain_gradient);
  dispatch_floating("refining_loss", chain.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    Buffers<scalar_t> buffers;
    for (const Tensor& tensor : teacher)
      buffers.teacher.push_back(static_cast<const scalar_t*>(tensor.const_data_ptr()));
    for (const Tensor& tensor : teacher_gradient)
      buffers.teacher_gradient.push_back(static_cast<scalar_t*>(tensor.mutable_data_ptr()));
    buffers.chain = static_cast<const scalar_t*>(chain.const_data_ptr());
    buffers.chain_gradient =
        chain_needs_gradient ? static_cast<scalar_t*>(chain_gradient.mutable_data_ptr()) : nullptr;
    buffers.streamed = gradient_bytes >= kStreamBytes;
    const LossReader plan{table.const_data_ptr<int64_t>()};
    if (chain_needs_gradient) zero_gaps(plan, buffers.chain_gradient, chain.numel());
    const double total = run(plan, weight.const_data_ptr<double>(), scale, buffers);
    if (wide)
      *static_cast<double*>(loss.mutable_data_ptr()) = total;
    else
      *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(total);
  });
  return {loss, teacher_gradient, chain_gradient};
}

template <typename scalar_t>
OSKT_SIMD_CLONES void scale_run(scalar_t* gradient, int64_t count, acc_of<scalar_t> factor) {
  for (int64_t e = 0; e < count; ++e)
    gradient[e] = static_cast<scalar_t>(static_cast<acc_of<scalar_t>>(gradient[e]) * factor);
}

void refining_loss_scale_cpu(std::vector<Tensor> gradients, Tensor factor) {
  constexpr int64_t kRun = 1 << 15;  // elements of a task
  check(factor.is_cpu(), "refining_loss_scale_: factor must be on the CPU.");
  check_gradients(gradients, factor);
  if (gradients.empty()) return;
  dispatch_floating("refining_loss_scale_", gradients[0].scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto by = *static_cast<const acc_of<scalar_t>*>(factor.const_data_ptr());
    if (by == 1) return;
    for (Tensor& tensor : gradients) {
      auto* gradient = static_cast<scalar_t*>(tensor.mutable_data_ptr());
      const int64_t numel = tensor.numel();
      torch::stable::parallel_for(0, numel, kRun, [&](int64_t begin, int64_t end) {
        scale_run(gradient + begin, end - begin, by);
      });
    }
  });
}

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("refining_loss", TORCH_BOX(&refining_loss_cpu));
  m.impl("refining_loss_scale_", TORCH_BOX(&refining_loss_scale_cpu));
}

}  // namespace
}  // namespace oskt
