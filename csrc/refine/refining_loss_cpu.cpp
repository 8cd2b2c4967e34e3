// CPU kernel of refining_loss: the layout and the mathematics stand in refining_loss.h.
//
// Bound by bytes: the teacher and the chain are read once, both gradients written once. A task
// walks its clusters in strips of kStrip columns, so that the chain row and the sum of its
// residuals stay in L1 while the members stream by. Everything between load and store is float64:
// the conversions hide behind memory, and a loss near zero or a cancelling chain gradient keeps its
// digits.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/simd.h"
#include "glue/checks.h"
#include "refine/refining_loss.h"

namespace oskt {
namespace {

using namespace oskt::refine;

constexpr int64_t kStrip = 512;
constexpr int64_t kLanes = 8;  // independent sums, so that the loop has no chain of additions

// Half types convert from float only.
template <typename scalar_t>
OSKT_INLINE scalar_t store(double value) {
  if constexpr (std::is_same_v<scalar_t, double>)
    return value;
  else
    return static_cast<scalar_t>(static_cast<float>(value));
}

// Writes the gradients of one task, where asked for, and returns its sum of squared residuals.
template <typename scalar_t, bool kTeacher, bool kChain>
OSKT_INLINE double run_task(const LossReader& plan, const LossTask& task, double factor,
                            const scalar_t* teacher, scalar_t* teacher_gradient,
                            const scalar_t* chain, scalar_t* chain_gradient) {
  const LossItem& item = plan.item(task.item);
  const int64_t* starts = plan.table + item.starts_at;
  const int64_t* members = plan.table + item.members_at;
  double lanes[kLanes] = {}, center[kStrip], sum[kStrip];
  for (int64_t k = task.cluster_begin; k < task.cluster_end; ++k)
    for (int64_t d = task.column_begin; d < task.column_end; d += kStrip) {
      const int64_t width = std::min(kStrip, task.column_end - d);
      const int64_t whole = width - width % kLanes;
      const scalar_t* from = chain + item.chain_at + k * item.row_length + d;
      for (int64_t e = 0; e < width; ++e) center[e] = static_cast<double>(from[e]);
      for (int64_t e = 0; kChain && e < width; ++e) sum[e] = 0.0;
      for (int64_t m = starts[k]; m < starts[k + 1]; ++m) {
        const int64_t at = members[m] * item.row_length + d;
        const auto step = [&](int64_t e, double& lane) {
          const double residual = static_cast<double>(teacher[at + e]) - center[e];
          lane += residual * residual;
          if constexpr (kChain) sum[e] += residual;
          if constexpr (kTeacher) teacher_gradient[at + e] = store<scalar_t>(factor * residual);
        };
        for (int64_t e = 0; e < whole; e += kLanes) {
#pragma omp simd
          for (int64_t lane = 0; lane < kLanes; ++lane) step(e + lane, lanes[lane]);
        }
        for (int64_t e = whole; e < width; ++e) step(e, lanes[e - whole]);
      }
      if constexpr (kChain) {
        scalar_t* to = chain_gradient + item.chain_at + k * item.row_length + d;
        for (int64_t e = 0; e < width; ++e) to[e] = store<scalar_t>(-factor * sum[e]);
      }
    }
  double total = 0.0;
  for (double lane : lanes) total += lane;
  return total;
}

// The flat tensors that a call reads and writes; a null gradient is not computed.
template <typename scalar_t>
struct Buffers {
  std::vector<const scalar_t*> teacher;
  std::vector<scalar_t*> teacher_gradient;
  const scalar_t* chain;
  scalar_t* chain_gradient;
};

template <typename scalar_t, bool kTeacher, bool kChain>
OSKT_SIMD_CLONES void run_tasks(const LossReader& plan, const double* weight, double scale,
                                const Buffers<scalar_t>& buffers, double* partial, int64_t begin,
                                int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const LossTask& task = plan.task(t);
    const double factor = scale * weight[task.item];
    scalar_t* teacher_gradient = kTeacher ? buffers.teacher_gradient[task.item] : nullptr;
    partial[t] = factor * run_task<scalar_t, kTeacher, kChain>(
                              plan, task, 2.0 * factor, buffers.teacher[task.item],
                              teacher_gradient, buffers.chain, buffers.chain_gradient);
  }
}

template <typename scalar_t>
double run(const LossReader& plan, const double* weight, double scale,
           const Buffers<scalar_t>& buffers) {
  std::vector<double> partial(plan.header().num_tasks);
  const auto body = [&](auto teacher, auto chain) {
    torch::stable::parallel_for(0, plan.header().num_tasks, 4, [&](int64_t begin, int64_t end) {
      run_tasks<scalar_t, decltype(teacher)::value, decltype(chain)::value>(
          plan, weight, scale, buffers, partial.data(), begin, end);
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
  check(
      header.magic == kMagic && header.words == table.numel() && header.num_items == weight.numel(),
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
      torch::stable::new_zeros(chain, {chain_needs_gradient ? chain.numel() : 0});
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
    const double total = run(LossReader{table.const_data_ptr<int64_t>()},
                             weight.const_data_ptr<double>(), scale, buffers);
    if (wide)
      *static_cast<double*>(loss.mutable_data_ptr()) = total;
    else
      *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(total);
  });
  return {loss, teacher_gradient, chain_gradient};
}

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) {
  m.impl("refining_loss", TORCH_BOX(&refining_loss_cpu));
}

}  // namespace
}  // namespace oskt
