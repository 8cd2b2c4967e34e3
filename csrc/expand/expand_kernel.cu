// expand on CUDA: every tensor of a student from the flat buffer of a chain, in one launch.
//
//   student[i, j, o] = sum over s in R(i) of a_s * sum over t in C(j) of b_t * source[s, t, o]
//
// Bound: bytes. A ResNet-50 chain of width 1/8 to half width reads 12 MB and writes 24 MB, 8 us at
// 4.3 TB/s. Additions are as many as source elements.
//
// Plan: a fixed grid walks the task list of the plan, so the host need not know how long it is.
// Inside a task, the elements of the groups lie side by side, one thread each: it sums its lists in
// registers and stores to every row of its group. Neighbouring threads read the same source rows,
// so the scattered columns of area 1 are served by L1, and stores are coalesced. The outer loop
// runs over source rows, for the same reason. Elements with many reads (narrow cuts of a nested
// chain) get a warp each.
// Rejected: staging rows in shared memory (a row is read by one block only and fits L1; staging
// adds a barrier per row) and atomics (order of summation).
//
// Every sum has one owner and a fixed order: results are bitwise repeatable on every device.

#include "common/storage.cuh"
#include "common/warp.cuh"
#include "expand/expand.h"
#include "expand/expand_kernel.h"

namespace oskt::expand {
namespace {

struct Traits {
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 132 * 8;        // the same work on any device
  static constexpr int64_t kReadsPerWarp = 128;  // from here on a warp shares one element
  static_assert(kThreads % 32 == 0, "warps are whole");
};

// Sums the lists of one group element; `lane` of `lanes` threads takes its share.
template <typename acc_t, typename scalar_t>
__device__ __forceinline__ acc_t sum_element(const PlanItem& item, const List& rows,
                                             const List& columns, int32_t group, int32_t column,
                                             uint32_t o, int lane, int lanes,
                                             const scalar_t* __restrict__ source) {
  const int32_t first_column = columns.begin(column), last_column = columns.end(column);
  // Lanes share the longer loop: the columns, or the rows when there is but one column.
  const bool by_column = last_column - first_column > 1;
  const int row_lane = by_column ? 0 : lane, row_step = by_column ? 1 : lanes;
  const int column_lane = by_column ? lane : 0, column_step = by_column ? lanes : 1;
  const int64_t area = item.area, pitch = item.source_columns * area;
  acc_t sum = 0;
#pragma unroll 1
  for (int32_t s = rows.begin(group) + row_lane; s < rows.end(group); s += row_step) {
    const scalar_t* __restrict__ row = source + rows.index[s] * pitch + o;
    acc_t row_sum = 0;
    if (columns.weight) {
#pragma unroll 1
      for (int32_t t = first_column + column_lane; t < last_column; t += column_step)
        row_sum += static_cast<acc_t>(columns.weight[t]) * load_acc(row[columns.index[t] * area]);
    } else {
#pragma unroll 4
      for (int32_t t = first_column + column_lane; t < last_column; t += column_step)
        row_sum += load_acc(row[columns.index[t] * area]);
    }
    sum += rows.weight ? static_cast<acc_t>(rows.weight[s]) * row_sum : row_sum;
  }
  return sum;
}

template <typename scalar_t>
__device__ __forceinline__ void run_task(const PlanReader& plan, const PlanTask& task,
                                         const scalar_t* __restrict__ source,
                                         scalar_t* __restrict__ student) {
  using acc_t = acc_of<scalar_t>;
  const PlanItem& item = plan.item(task.item);
  const List rows = plan.list(item.row_reads), writes = plan.list(item.row_writes);
  const List columns = plan.list(item.column_reads);
  source += item.source_at;
  student += item.student_at;
  // A task is about kTaskCost elements, or one column of an area below 2^31: 32 bits suffice.
  const auto area = static_cast<uint32_t>(item.area);
  const uint32_t width = (task.column_end - task.column_begin) * area;
  const uint32_t elements = (task.group_end - task.group_begin) * width;
  const int64_t student_pitch = item.student_columns * item.area;
  const int lanes = item.reads_per_element >= Traits::kReadsPerWarp ? 32 : 1;
  const int lane = threadIdx.x % lanes;
  for (uint32_t f = threadIdx.x / lanes; f < elements; f += Traits::kThreads / lanes) {
    const auto group = static_cast<int32_t>(task.group_begin + f / width);
    const uint32_t e = f % width, o = e % area;
    const auto column = static_cast<int32_t>(task.column_begin + e / area);
    acc_t sum = sum_element<acc_t>(item, rows, columns, group, column, o, lane, lanes, source);
    // `f` is one for the whole warp when lanes is 32, so every lane is here.
    if (lanes == 32) sum = warp_sum(sum);
    const int64_t at = column * item.area + o;
    for (int32_t w = writes.begin(group) + lane; w < writes.end(group); w += lanes)
      store_acc(student + writes.index[w] * student_pitch + at, sum);
  }
}

// Two blocks per SM at least: below 72 registers the pointers of three lists and four loads spill.
template <typename scalar_t>
__global__ void __launch_bounds__(Traits::kThreads, 2) expand_kernel(const ExpandParams params) {
  const PlanReader plan{params.table, params.coefficient};
  const PlanHeader& header = plan.header();
  // The host cannot look into the table without a synchronisation; a foreign one must not be read.
  // The trap is seen at the next synchronisation, and no kernel of the process runs after it.
  if (header.magic != kMagic || header.words != params.table_numel ||
      header.coefficients != params.coefficient_numel ||
      header.source_numel != params.source_numel || header.student_numel != params.student_numel)
    __trap();
  const auto* source = static_cast<const scalar_t*>(params.source);
  auto* student = static_cast<scalar_t*>(params.student);
  for (int64_t t = blockIdx.x; t < header.num_tasks; t += gridDim.x)
    run_task(plan, plan.task(t), source, student);
}

}  // namespace

cudaError_t launch_expand(const ExpandParams& params, Storage storage, cudaStream_t stream) {
  if (params.student_numel == 0) return cudaSuccess;
  return dispatch_storage(storage, [&](auto zero) {
    expand_kernel<decltype(zero)><<<Traits::kBlocks, Traits::kThreads, 0, stream>>>(params);
    return cudaGetLastError();
  });
}

}  // namespace oskt::expand
