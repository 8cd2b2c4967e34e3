// CPU kernel of expand: the layout and the mathematics stand in expand.h.
//
// Bound by bytes: every source element is read once per group that needs it, every student element
// written once. Per group: (1) the weighted sum of its source rows, contiguous over C * O, skipped
// when it is one row of weight 1; (2) the column sums (columns_cpu.h), into the first row of the
// group; (3) copies of that row. Columns of area 1 are scattered single numbers, so kBatch groups
// go through (2) together. One thread owns a student row and every sum runs in list order, so the
// result does not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/simd.h"
#include "common/stream_copy.h"
#include "expand/columns_cpu.h"
#include "expand/expand.h"
#include "glue/checks.h"
#include "glue/fresh_memory.h"
#include "glue/parallel.h"

namespace oskt {
namespace {

using namespace oskt::expand;

constexpr int64_t kLeastTasks = 16;

// What a thread keeps from call to call, because memory that is new costs more than its use: the
// sums of a batch of source rows, the same rows interleaved, and student rows on their way.
struct Workspace {
  Scratch sums, tile, out;

  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }
};

// Adds kCount rows of a list from position `p` on to `out`, or starts it with them.
template <int kCount, bool kStart, typename scalar_t>
OSKT_INLINE void add_rows(const List& list, int32_t p, const scalar_t* source, int64_t length,
                          acc_of<scalar_t>* out) {
  using acc_t = acc_of<scalar_t>;
  const scalar_t* row[kCount];
  acc_t weight[kCount];
  for (int q = 0; q < kCount; ++q) {
    row[q] = source + list.index[p + q] * length;
    weight[q] = list.weight ? static_cast<acc_t>(list.weight[p + q]) : acc_t(1);
  }
#pragma omp simd
  for (int64_t e = 0; e < length; ++e) {
    acc_t sum = kStart ? weight[0] * static_cast<acc_t>(row[0][e])
                       : add_term<false>(out[e], weight[0], static_cast<acc_t>(row[0][e]));
    for (int q = 1; q < kCount; ++q)
      sum = add_term<false>(sum, weight[q], static_cast<acc_t>(row[q][e]));
    out[e] = sum;
  }
}

// The weighted sum of source rows `begin` to `end` of a list, over `length` elements.
template <typename scalar_t>
OSKT_INLINE void sum_rows(const List& list, int32_t begin, int32_t end, const scalar_t* source,
                          int64_t length, acc_of<scalar_t>* out) {
  if (begin == end) return std::fill(out, out + length, acc_of<scalar_t>(0));
  int32_t p = begin;
  if (end - begin == 1) return add_rows<1, true>(list, p, source, length, out);
  if (end - begin == 2) return add_rows<2, true>(list, p, source, length, out);
  add_rows<3, true>(list, p, source, length, out);
  for (p += 3; p + 4 <= end; p += 4) add_rows<4, false>(list, p, source, length, out);
  for (; p < end; ++p) add_rows<1, false>(list, p, source, length, out);
}

// The source row that a group is, where it is one as it lies; else nullptr.
template <typename scalar_t>
OSKT_INLINE const acc_of<scalar_t>* one_row(const List& reads, int32_t group,
                                            const scalar_t* source, int64_t pitch) {
  if constexpr (std::is_same_v<scalar_t, acc_of<scalar_t>>) {
    const int32_t begin = reads.begin(group);
    if (reads.end(group) - begin == 1 && (!reads.weight || reads.weight[begin] == 1.0))
      return source + reads.index[begin] * pitch;
  }
  return nullptr;
}

// Groups that go together: numbers of several rows make vectors, and while short runs are copied
// the next ones are on their way.
int batch_of(const PlanItem& item) {
  constexpr int64_t kShort = 1024;
  const bool copied = item.column_kind == kRun;
  const bool together = copied ? item.student_columns * item.area <= kShort : item.area == 1;
  return together ? kBatch : 1;
}

// The source rows of the batch of a task that begins with group `first`.
template <typename scalar_t>
OSKT_INLINE Ahead<scalar_t> rows_of(const PlanReader& plan, const PlanTask& task, int32_t first,
                                    const scalar_t* source) {
  const PlanItem& item = plan.item(task.item);
  const List reads = plan.list(item.row_reads);
  const int32_t begin = reads.begin(first);
  const int32_t end = reads.end(std::min(first + batch_of(item), task.group_end) - 1);
  return {source + item.source_at, reads.index + begin, end - begin,
          item.source_columns * item.area};
}

// One rectangle of an item; `next` is the one that comes after it. A streamed student goes past
// the caches.
template <typename scalar_t>
OSKT_INLINE void run_task(const PlanReader& plan, const PlanTask& task, const PlanTask* next,
                          const scalar_t* flat_source, scalar_t* flat_student, bool streamed,
                          Workspace& workspace) {
  using acc_t = acc_of<scalar_t>;
  const PlanItem& item = plan.item(task.item);
  const scalar_t* source = flat_source + item.source_at;
  scalar_t* student = flat_student + item.student_at;
  const List reads = plan.list(item.row_reads), writes = plan.list(item.row_writes);
  const List columns = plan.list(item.column_reads);
  const int64_t source_pitch = item.source_columns * item.area;
  const int64_t student_pitch = item.student_columns * item.area;
  const int64_t run_begin = task.column_begin * item.area, run_end = task.column_end * item.area;
  const int64_t run_bytes = (run_end - run_begin) * sizeof(scalar_t);
  const int batch = batch_of(item);
  acc_t* sums = workspace.sums.at_least<acc_t>(batch * source_pitch);
  acc_t* tile = workspace.tile.at_least<acc_t>(batch * source_pitch);
  // Rows a power of two apart would share the sets of a cache.
  const int64_t out_pitch = (student_pitch + 31) / 16 * 16;
  scalar_t* out = streamed ? workspace.out.at_least<scalar_t>(batch * out_pitch) : nullptr;
  for (int32_t first = task.group_begin; first < task.group_end; first += batch) {
    Rows<scalar_t> rows;
    rows.count = std::min<int>(batch, task.group_end - first);
    if (first + batch < task.group_end)
      rows.ahead = rows_of(plan, task, first + batch, flat_source);
    else if (next != nullptr)
      rows.ahead = rows_of(plan, *next, next->group_begin, flat_source);
    for (int r = 0; r < rows.count; ++r) {
      const int32_t group = first + r;
      rows.to[r] = streamed ? out + r * out_pitch
                            : student + writes.index[writes.begin(group)] * student_pitch;
      rows.from[r] = one_row(reads, group, source, source_pitch);
      if (rows.from[r] != nullptr) continue;
      rows.from[r] = sums + r * source_pitch;
      sum_rows(reads, reads.begin(group), reads.end(group), source, source_pitch,
               sums + r * source_pitch);
    }
    if (columns.weight)
      reduce_columns<false>(item, columns, rows, task.column_begin, task.column_end, tile);
    else
      reduce_columns<true>(item, columns, rows, task.column_begin, task.column_end, tile);
    for (int r = 0; r < rows.count; ++r)
      for (int32_t w = writes.begin(first + r) + !streamed; w < writes.end(first + r); ++w) {
        scalar_t* to = student + writes.index[w] * student_pitch + run_begin;
        if (streamed)
          stream_copy(to, rows.to[r] + run_begin, run_bytes);
        else
          std::memcpy(to, rows.to[r] + run_begin, run_bytes);
      }
  }
}

// The rectangle of one group, or of whole ones, that begins with task `t`; moves `t` behind it.
PlanTask take_group(const PlanReader& plan, int64_t& t, int64_t end) {
  PlanTask task = plan.task(t++);
  for (; t < end; ++t) {
    const PlanTask& next = plan.task(t);
    const bool continues = next.item == task.item && next.group_begin == task.group_begin &&
                           next.column_begin == task.column_end;
    if (!continues) break;
    task.column_end = next.column_end;
  }
  return task;
}

// The largest rectangle that begins with task `t`; moves `t` behind it.
PlanTask take_rectangle(const PlanReader& plan, int64_t& t, int64_t end) {
  PlanTask task = take_group(plan, t, end);
  while (t < end) {
    int64_t after = t;
    const PlanTask next = take_group(plan, after, end);
    if (next.item != task.item || next.column_begin != task.column_begin ||
        next.column_end != task.column_end)
      break;
    task.group_end = next.group_end;
    t = after;
  }
  return task;
}

template <typename scalar_t>
OSKT_SIMD_CLONES void run_tasks(const PlanReader& plan, const scalar_t* source, scalar_t* student,
                                int64_t begin, int64_t end, bool streamed, Workspace& workspace) {
  if (begin == end) return;
  PlanTask task = take_rectangle(plan, begin, end);
  while (begin < end) {
    const PlanTask next = take_rectangle(plan, begin, end);
    run_task(plan, task, &next, source, student, streamed, workspace);
    task = next;
  }
  run_task<scalar_t>(plan, task, nullptr, source, student, streamed, workspace);
  stream_fence();
}

void check_plan(const Tensor& source, const Tensor& table, const Tensor& coefficient,
                int64_t student_numel) {
  check(source.dim() == 1 && source.is_contiguous(),
        "expand: source must be one-dimensional and contiguous, got ", source.dim(),
        " dimensions.");
  check(table.is_cpu() && coefficient.is_cpu(),
        "expand: the plan must be on the device of source, got another one.");
  check(table.scalar_type() == ScalarType::Long && table.is_contiguous() &&
            coefficient.scalar_type() == ScalarType::Double && coefficient.is_contiguous() &&
            table.numel() * sizeof(int64_t) >= sizeof(PlanHeader),
        "expand: table must be the int64 table of an ExpansionPlan, got something else.");
  const PlanReader plan{table.const_data_ptr<int64_t>(), nullptr};
  const PlanHeader& header = plan.header();
  check(header.magic == kMagic && header.words == table.numel() &&
            header.coefficients == coefficient.numel(),
        "expand: table must be the int64 table of an ExpansionPlan, got something else.");
  check(header.source_numel == source.numel() && header.student_numel == student_numel,
        "expand: source and student must have ", header.source_numel, " and ", header.student_numel,
        " elements, got ", source.numel(), " and ", student_numel, ".");
}

Tensor expand_cpu(Tensor source, Tensor table, Tensor coefficient, Tensor transposed_table,
                  Tensor transposed_coefficient, int64_t student_numel) {
  check_plan(source, table, coefficient, student_numel);
  Tensor student = torch::stable::new_empty(source, {student_numel});
  expect_writes(student);
  const PlanReader plan{table.const_data_ptr<int64_t>(), coefficient.const_data_ptr<double>()};
  dispatch_floating("expand", source.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* from = static_cast<const scalar_t*>(source.const_data_ptr());
    auto* to = static_cast<scalar_t*>(student.mutable_data_ptr());
    // Runs of tasks long enough to be worth a thread, short enough that threads end together.
    const int64_t tasks = plan.header().num_tasks;
    const int64_t run = std::max<int64_t>(kLeastTasks, tasks / (4 * num_workers()));
    const bool streamed = student_numel * static_cast<int64_t>(sizeof(scalar_t)) >= kStreamBytes;
    for_each_task((tasks + run - 1) / run, [&](int64_t part, int64_t) {
      run_tasks(plan, from, to, part * run, std::min(tasks, (part + 1) * run), streamed,
                Workspace::of_this_thread());
    });
  });
  return student;
}

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) { m.impl("expand", TORCH_BOX(&expand_cpu)); }

}  // namespace
}  // namespace oskt
