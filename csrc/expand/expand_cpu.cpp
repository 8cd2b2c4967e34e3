// CPU kernel of expand: the layout and the mathematics stand in expand.h.
//
// Bound by bytes: every source element is read once per group that needs it, every student element
// written once. Per group: (1) the weighted sum of its source rows, contiguous over C * O, skipped
// when it is one row of weight 1; (2) the column sums, into the first row of the group; (3) copies
// of that row. Columns of area 1 are gathers, so kBatch groups share each index that is loaded and
// each mispredicted end of a list. One thread owns a student row and every sum runs in list order,
// so the result does not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/simd.h"
#include "expand/expand.h"
#include "glue/checks.h"

namespace oskt {
namespace {

using namespace oskt::expand;

constexpr int kBatch = 8;
constexpr int kAnyArea = 0;

template <typename scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// Up to kBatch reduced rows of an item and the student rows that their columns go to.
template <typename scalar_t>
struct Rows {
  const acc_of<scalar_t>* from[kBatch];
  scalar_t* to[kBatch];
};

template <typename scalar_t>
OSKT_INLINE acc_of<scalar_t> load(const scalar_t& value) {
  return static_cast<acc_of<scalar_t>>(value);
}

// The weighted sum of source rows `begin` to `end` of a list, over `length` elements.
template <typename scalar_t>
OSKT_INLINE void sum_rows(const List& list, int32_t begin, int32_t end, const scalar_t* source,
                          int64_t length, acc_of<scalar_t>* out) {
  using acc_t = acc_of<scalar_t>;
  if (begin == end) std::fill(out, out + length, acc_t(0));
  for (int32_t p = begin; p < end; ++p) {
    const scalar_t* row = source + list.index[p] * length;
    const acc_t weight = list.weight ? static_cast<acc_t>(list.weight[p]) : acc_t(1);
    if (p == begin) {
#pragma omp simd
      for (int64_t e = 0; e < length; ++e) out[e] = weight * load(row[e]);
    } else {
#pragma omp simd
      for (int64_t e = 0; e < length; ++e) out[e] += weight * load(row[e]);
    }
  }
}

// Columns of area 1 of kRows rows at once.
template <int kRows, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_columns(const List& list, const Rows<scalar_t>& rows, int32_t begin,
                             int32_t end) {
  using acc_t = acc_of<scalar_t>;
  for (int32_t j = begin; j < end; ++j) {
    acc_t sum[kRows] = {};
    for (int32_t p = list.begin(j), last = list.end(j); p < last; ++p) {
      const int32_t column = list.index[p];
      const acc_t weight = kOnes ? acc_t(1) : static_cast<acc_t>(list.weight[p]);
      for (int r = 0; r < kRows; ++r) sum[r] += weight * rows.from[r][column];
    }
    for (int r = 0; r < kRows; ++r) rows.to[r][j] = static_cast<scalar_t>(sum[r]);
  }
}

// Columns of one row, in runs of kArea elements (kAnyArea: `any_area`).
template <int kArea, bool kOnes, typename scalar_t>
OSKT_INLINE void sum_column_runs(const List& list, const Rows<scalar_t>& rows, int32_t begin,
                                 int32_t end, int64_t any_area) {
  using acc_t = acc_of<scalar_t>;
  constexpr int64_t kTile = kArea == kAnyArea ? 32 : kArea;
  const int64_t area = kArea == kAnyArea ? any_area : kArea;
  for (int32_t j = begin; j < end; ++j)
    for (int64_t first = 0; first < area; first += kTile) {
      const int64_t width = kArea == kAnyArea ? std::min(kTile, area - first) : kTile;
      acc_t sum[kTile] = {};
      for (int32_t p = list.begin(j), last = list.end(j); p < last; ++p) {
        const acc_t* run = rows.from[0] + list.index[p] * area + first;
        const acc_t weight = kOnes ? acc_t(1) : static_cast<acc_t>(list.weight[p]);
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) sum[o] += weight * run[o];
      }
      scalar_t* out = rows.to[0] + j * area + first;
      for (int64_t o = 0; o < width; ++o) out[o] = static_cast<scalar_t>(sum[o]);
    }
}

// Columns that each read one column with weight 1: a copy, or a gather.
template <typename scalar_t>
OSKT_INLINE void copy_columns(const PlanItem& item, const List& list, const Rows<scalar_t>& rows,
                              int32_t begin, int32_t end) {
  using acc_t = acc_of<scalar_t>;
  const acc_t* from = rows.from[0];
  scalar_t* to = rows.to[0];
  const int64_t area = item.area;
  if (item.column_kind == kIdentity) {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      std::memcpy(to + begin * area, from + begin * area, (end - begin) * area * sizeof(acc_t));
    } else {
      for (int64_t e = begin * area; e < end * area; ++e) to[e] = static_cast<scalar_t>(from[e]);
    }
  } else if (area == 1) {
#pragma omp simd
    for (int32_t j = begin; j < end; ++j) to[j] = static_cast<scalar_t>(from[list.index[j]]);
  } else {
    for (int32_t j = begin; j < end; ++j) {
      const acc_t* run = from + list.index[j] * area;
      for (int64_t o = 0; o < area; ++o) to[j * area + o] = static_cast<scalar_t>(run[o]);
    }
  }
}

template <bool kOnes, typename scalar_t>
OSKT_INLINE void reduce_columns(const PlanItem& item, const List& list, const Rows<scalar_t>& rows,
                                int count, int32_t begin, int32_t end) {
  if (item.area == 1 && count == kBatch) return sum_columns<kBatch, kOnes>(list, rows, begin, end);
  for (int r = 0; r < count; ++r) {
    const Rows<scalar_t> row{{rows.from[r]}, {rows.to[r]}};
    if (item.column_kind != kSum)
      copy_columns(item, list, row, begin, end);
    else if (item.area == 1)
      sum_columns<1, kOnes>(list, row, begin, end);
    else if (item.area == 9)
      sum_column_runs<9, kOnes>(list, row, begin, end, 9);
    else
      sum_column_runs<kAnyArea, kOnes>(list, row, begin, end, item.area);
  }
}

// Items with one element per row, the per-channel vectors, have no columns worth a loop.
template <typename scalar_t>
OSKT_INLINE void run_vector(const PlanReader& plan, const PlanItem& item, const PlanTask& task,
                            const scalar_t* source, scalar_t* student) {
  using acc_t = acc_of<scalar_t>;
  const List reads = plan.list(item.row_reads), writes = plan.list(item.row_writes);
  for (int32_t group = task.group_begin; group < task.group_end; ++group) {
    acc_t sum = 0;
    for (int32_t p = reads.begin(group); p < reads.end(group); ++p) {
      const acc_t weight = reads.weight ? static_cast<acc_t>(reads.weight[p]) : acc_t(1);
      sum += weight * load(source[reads.index[p]]);
    }
    for (int32_t w = writes.begin(group); w < writes.end(group); ++w)
      student[writes.index[w]] = static_cast<scalar_t>(sum);
  }
}

template <typename scalar_t>
OSKT_INLINE void run_matrix(const PlanReader& plan, const PlanItem& item, const PlanTask& task,
                            const scalar_t* source, scalar_t* student,
                            std::vector<acc_of<scalar_t>>& scratch) {
  using acc_t = acc_of<scalar_t>;
  const List reads = plan.list(item.row_reads), writes = plan.list(item.row_writes);
  const List columns = plan.list(item.column_reads);
  const int64_t source_pitch = item.source_columns * item.area;
  const int64_t student_pitch = item.student_columns * item.area;
  const int64_t run_begin = task.column_begin * item.area, run_end = task.column_end * item.area;
  const int batch = item.area == 1 ? kBatch : 1;
  scratch.resize(std::max<size_t>(scratch.size(), batch * source_pitch));
  for (int32_t first = task.group_begin; first < task.group_end; first += batch) {
    const int count = std::min<int>(batch, task.group_end - first);
    Rows<scalar_t> rows;
    for (int r = 0; r < count; ++r) {
      const int32_t group = first + r, begin = reads.begin(group), end = reads.end(group);
      rows.to[r] = student + writes.index[writes.begin(group)] * student_pitch;
      rows.from[r] = scratch.data() + r * source_pitch;
      if constexpr (std::is_same_v<scalar_t, acc_t>)
        if (end - begin == 1 && (!reads.weight || reads.weight[begin] == 1.0)) {
          rows.from[r] = source + reads.index[begin] * source_pitch;
          continue;
        }
      sum_rows(reads, begin, end, source, source_pitch, scratch.data() + r * source_pitch);
    }
    if (columns.weight)
      reduce_columns<false>(item, columns, rows, count, task.column_begin, task.column_end);
    else
      reduce_columns<true>(item, columns, rows, count, task.column_begin, task.column_end);
    for (int r = 0; r < count; ++r)
      for (int32_t w = writes.begin(first + r) + 1; w < writes.end(first + r); ++w)
        std::memcpy(student + writes.index[w] * student_pitch + run_begin, rows.to[r] + run_begin,
                    (run_end - run_begin) * sizeof(scalar_t));
  }
}

// Grows `task` by its successor when the two are one rectangle of an item.
bool extend(PlanTask& task, const PlanTask& next) {
  if (next.item != task.item) return false;
  if (next.group_begin == task.group_begin && next.column_begin == task.column_end) {
    task.column_end = next.column_end;
    return true;
  }
  const bool same_columns =
      next.column_begin == task.column_begin && next.column_end == task.column_end;
  if (same_columns) task.group_end = next.group_end;
  return same_columns;
}

template <typename scalar_t>
OSKT_SIMD_CLONES void run_tasks(const PlanReader& plan, const scalar_t* source, scalar_t* student,
                                int64_t begin, int64_t end) {
  std::vector<acc_of<scalar_t>> scratch;
  for (int64_t t = begin; t < end;) {
    PlanTask task = plan.task(t++);
    while (t < end && extend(task, plan.task(t))) ++t;
    const PlanItem& item = plan.item(task.item);
    const scalar_t* from = source + item.source_at;
    scalar_t* to = student + item.student_at;
    if (item.source_columns * item.area == 1 && item.column_kind == kIdentity)
      run_vector(plan, item, task, from, to);
    else
      run_matrix(plan, item, task, from, to, scratch);
  }
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
  const PlanHeader& header = PlanReader{table.const_data_ptr<int64_t>(), nullptr}.header();
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
  const PlanReader plan{table.const_data_ptr<int64_t>(), coefficient.const_data_ptr<double>()};
  dispatch_floating("expand", source.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* from = static_cast<const scalar_t*>(source.const_data_ptr());
    auto* to = static_cast<scalar_t*>(student.mutable_data_ptr());
    // A task is some microseconds of work; fewer than eight are not worth waking a thread.
    torch::stable::parallel_for(0, plan.header().num_tasks, 8, [&](int64_t begin, int64_t end) {
      run_tasks(plan, from, to, begin, end);
    });
  });
  return student;
}

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CPU, m) { m.impl("expand", TORCH_BOX(&expand_cpu)); }

}  // namespace
}  // namespace oskt
