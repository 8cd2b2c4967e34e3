// The contract between an ExpansionPlan and the kernels: how one direction of a plan is packed.
//
// For every item q with rows R, columns C and area O:
//   student[i, j, o] = sum over s in R(i) of a_s * sum over t in C(j) of b_t * source[s, t, o].
//
// Student rows of an item whose (list, weights) are identical form one GROUP: a group is computed
// once and written to each of its rows. So copies of a chain row cost one reduction and k stores,
// a mean over a cluster reads every member once, and the transposed plan enjoys the same.
//
// A plan is two flat arrays that travel to the device as they are:
//   table        int64: PlanHeader, items[num_items], tasks[num_tasks], then the ragged lists,
//                which are runs of int32 padded to a whole word and shared between items;
//   coefficient  float64: the weights of the lists whose weights are not all 1.
// A position named *_at counts int64 words from the start of the table.
//
// A TASK is a rectangle of one item: groups [group_begin, group_end) times columns [column_begin,
// column_end), about kTaskCost elements read and written. Tasks tile the plan, are ordered by
// item, group, column, and only a group that is alone in its task is cut by columns.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oskt::expand {

constexpr int64_t kMagic = 0x6f736b7465787001;  // "osktexp", layout 1
constexpr int64_t kTaskCost = 4096;
constexpr int64_t kAllOnes = -1;  // weight_at of a list whose weights are all 1

struct PlanHeader {
  int64_t magic, words, coefficients;
  int64_t source_numel, student_numel;
  int64_t items_at, num_items;
  int64_t tasks_at, num_tasks;
};

// A ragged list: entry i holds index[offsets[i]] .. index[offsets[i + 1] - 1].
struct ListRef {
  int64_t offsets_at, index_at, weight_at;  // weight_at is a position in `coefficient`
};

enum ColumnKind : int64_t {
  kRun,     // column j reads column f + j, weight 1; f is the first that is read
  kSelect,  // column j reads one column, weight 1
  kSum,     // anything else
};

struct PlanItem {
  int64_t source_at, student_at;            // first element in the flat buffers
  int64_t source_columns, student_columns;  // C of the source, of the student
  int64_t area;
  int64_t column_kind;
  int64_t reads_per_element;  // mean number of source elements behind a student element
  ListRef row_reads;          // group -> source rows
  ListRef row_writes;         // group -> student rows, weights all 1
  ListRef column_reads;       // student column -> source columns
};

struct PlanTask {
  int32_t item, group_begin, group_end, column_begin, column_end, unused;
};

static_assert(sizeof(PlanHeader) == 9 * 8 && sizeof(PlanItem) == 16 * 8 && sizeof(PlanTask) == 24,
              "packed structures are whole words without holes");

struct List {
  const int32_t* offsets;
  const int32_t* index;
  const double* weight;  // nullptr: all 1

  OSKT_HOST_DEVICE int32_t begin(int32_t entry) const { return offsets[entry]; }
  OSKT_HOST_DEVICE int32_t end(int32_t entry) const { return offsets[entry + 1]; }
};

// Reads the packed arrays, on either side.
struct PlanReader {
  const int64_t* table;
  const double* coefficient;

  OSKT_HOST_DEVICE const PlanHeader& header() const {
    return *reinterpret_cast<const PlanHeader*>(table);
  }
  OSKT_HOST_DEVICE const PlanItem& item(int64_t i) const {
    return reinterpret_cast<const PlanItem*>(table + header().items_at)[i];
  }
  OSKT_HOST_DEVICE const PlanTask& task(int64_t i) const {
    return reinterpret_cast<const PlanTask*>(table + header().tasks_at)[i];
  }
  OSKT_HOST_DEVICE List list(const ListRef& ref) const {
    return {reinterpret_cast<const int32_t*>(table + ref.offsets_at),
            reinterpret_cast<const int32_t*>(table + ref.index_at),
            ref.weight_at == kAllOnes ? nullptr : coefficient + ref.weight_at};
  }
};

}  // namespace oskt::expand
