// refining_loss on CUDA: the loss and both of its gradients in one pass over teacher and chain.
//
//   loss = scale * sum over items l of weight_l * sum over rows n of w_n |T_l[n] - C_l[label(n)]|^2
//
// Bound: bytes. ResNet-50 (94 MB teacher, 12 MB chain, float32) with both gradients moves 211 MB:
// 49 us at 4.3 TB/s. A float64 subtraction and two multiply-adds per element stay far below that on
// data-centre GPUs.
//
// Plan: a fixed grid walks the tasks of up to kChunk tensors. A thread owns one element of one
// chain row: it keeps it in a register, streams the members of its cluster past it (coalesced over
// the columns), stores their gradients, and ends with the chain's gradient. So the chain gradient
// needs no atomics. Each block leaves one float64 partial; a second kernel adds them in order.
// Rejected: one launch per tensor (53 launches cost more than the pass).
//
// Backward scales the gradients in one launch, too: 211 MB again, or none where the factor is 1.

#include "common/block_sum.cuh"
#include "common/storage.cuh"
#include "refine/refining_loss.h"
#include "refine/refining_loss_kernel.h"

namespace oskt::refine {
namespace {

constexpr int kThreads = 256;

template <typename scalar_t>
__device__ __forceinline__ void store_double(scalar_t* to, double value) {
  store_acc(to, static_cast<acc_of<scalar_t>>(value));
}

// Writes the gradients of one task and returns this thread's part of the sum of squares.
template <typename scalar_t>
__device__ double run_task(const LossReader& plan, const LossTask& task,
                           const double* __restrict__ weight, double factor,
                           const scalar_t* __restrict__ teacher,
                           scalar_t* __restrict__ teacher_gradient,
                           const scalar_t* __restrict__ chain,
                           scalar_t* __restrict__ chain_gradient) {
  const LossItem item = plan.item(task.item);
  const int64_t* starts = plan.table + item.starts_at;
  const int64_t* members = plan.table + item.members_at;
  const double* row_weight =
      item.row_weights_at == kAllOnes ? nullptr : weight + item.row_weights_at;
  // A task is about 8192 elements: 32 bits suffice, and a 64-bit division is a function call.
  const auto width = static_cast<uint32_t>(task.column_end - task.column_begin);
  const auto elements = static_cast<uint32_t>(task.cluster_end - task.cluster_begin) * width;
  double squares = 0.0;
  for (uint32_t f = threadIdx.x; f < elements; f += kThreads) {
    const int64_t cluster = task.cluster_begin + f / width;
    const int64_t column = task.column_begin + f % width;
    const int64_t at = item.chain_at + cluster * item.row_length + column;
    const auto center = static_cast<double>(load_acc(chain[at]));
    double sum = 0.0;
    const int64_t end = starts[cluster + 1];
#pragma unroll 4
    for (int64_t m = starts[cluster]; m < end; ++m) {
      const int64_t element = members[m] * item.row_length + column;
      const double residual = static_cast<double>(load_acc(teacher[element])) - center;
      const double weighted = row_weight ? row_weight[members[m]] * residual : residual;
      squares += weighted * residual;
      sum += weighted;
      if (teacher_gradient) store_double(teacher_gradient + element, factor * weighted);
    }
    if (chain_gradient) store_double(chain_gradient + at, -factor * sum);
  }
  return squares;
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    refining_loss_kernel(const LossParams params, const __grid_constant__ LossChunk chunk) {
  const LossReader plan{params.table};
  const LossHeader& header = plan.header();
  // The host cannot look into the table without a synchronisation; a foreign one must not be read.
  if (header.magic != kMagic || header.words != params.table_numel ||
      header.num_items != params.num_items || header.num_weights != params.num_weights ||
      header.chain_numel > params.chain_numel)
    __trap();
  const int64_t begin = plan.tasks_before(chunk.first_item);
  const int64_t end = plan.tasks_before(chunk.first_item + chunk.count);
  double loss = 0.0;
  for (int64_t t = begin + blockIdx.x; t < end; t += gridDim.x) {
    const LossTask task = plan.task(t);
    const int64_t slot = task.item - chunk.first_item;
    if (chunk.numel[slot] != plan.item(task.item).rows * plan.item(task.item).row_length) __trap();
    const double factor = params.scale * params.weight[task.item];
    loss += factor * run_task(plan, task, params.weight, 2.0 * factor,
                              static_cast<const scalar_t*>(chunk.teacher[slot]),
                              static_cast<scalar_t*>(chunk.teacher_gradient[slot]),
                              static_cast<const scalar_t*>(params.chain),
                              static_cast<scalar_t*>(params.chain_gradient));
  }
  const double total = block_sum<kThreads>(loss);
  if (threadIdx.x == 0) chunk.partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads)
    loss_sum_kernel(const double* __restrict__ partial, int64_t count, void* loss, bool wide) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  const double total = block_sum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  if (wide)
    *static_cast<double*>(loss) = total;
  else
    *static_cast<float*>(loss) = static_cast<float>(total);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleChunk chunk) {
  constexpr int kEach = kStretch / kThreads;  // loads in flight of a thread
  const acc_of<scalar_t> factor = *static_cast<const acc_of<scalar_t>*>(chunk.factor);
  if (factor == 1) return;
  int slot = 0;
  for (int64_t s = blockIdx.x; s < chunk.stretches; s += gridDim.x) {
    while (s >= chunk.stretches_end[slot]) ++slot;
    auto* gradient = static_cast<scalar_t*>(chunk.gradient[slot]);
    const int64_t numel = chunk.numel[slot];
    const int64_t before = slot == 0 ? 0 : chunk.stretches_end[slot - 1];
    const int64_t first = (s - before) * kStretch + threadIdx.x;
    scalar_t value[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (first + e * kThreads < numel) value[e] = gradient[first + e * kThreads];
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (first + e * kThreads < numel)
        store_acc(gradient + first + e * kThreads, load_acc(value[e]) * factor);
    }
  }
}

}  // namespace

cudaError_t launch_refining_loss(const LossParams& params, const LossChunk& chunk, Storage storage,
                                 cudaStream_t stream) {
  return dispatch_storage(storage, [&](auto zero) {
    refining_loss_kernel<decltype(zero)><<<kBlocks, kThreads, 0, stream>>>(params, chunk);
    return cudaGetLastError();
  });
}

cudaError_t launch_loss_sum(const double* partial, int64_t count, void* loss, bool wide,
                            cudaStream_t stream) {
  loss_sum_kernel<<<1, kThreads, 0, stream>>>(partial, count, loss, wide);
  return cudaGetLastError();
}

cudaError_t launch_scale(const ScaleChunk& chunk, Storage storage, cudaStream_t stream) {
  return dispatch_storage(storage, [&](auto zero) {
    scale_kernel<decltype(zero)><<<kBlocks, kThreads, 0, stream>>>(chunk);
    return cudaGetLastError();
  });
}

}  // namespace oskt::refine
