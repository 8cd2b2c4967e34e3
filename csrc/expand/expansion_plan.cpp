#include "expand/expansion_plan.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "expand/expand.h"

namespace py = pybind11;

namespace oskt {
namespace {

using namespace oskt::expand;

template <typename... Parts>
void require(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  message << "ExpansionPlan: ";
  ((message << parts), ...);
  throw std::invalid_argument(message.str());
}

constexpr const char* kBuildMaps = ". Build maps with IndexMap.identity, .select or .lists.";

// Entry i reads sum over p in [offsets[i], offsets[i + 1]) of weight[p] * source[index[p]].
struct Map {
  std::vector<int32_t> offsets{0}, index;
  std::vector<double> weight;
  int64_t size = 0;

  int64_t entries() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

Map identity_map(int64_t size) {
  Map map;
  map.size = size;
  for (int32_t i = 0; i < size; ++i) {
    map.index.push_back(i);
    map.weight.push_back(1.0);
    map.offsets.push_back(i + 1);
  }
  return map;
}

struct Item {
  int64_t rows, columns, area;  // rows and columns are positions in the list of maps
};

template <typename T>
std::vector<T> to_vector(const py::array& array, size_t map, const char* name, const char* dtype) {
  require(array.ndim() == 1, name, " of map ", map, " must be one-dimensional, got ", array.ndim(),
          " dimensions", kBuildMaps);
  require(py::isinstance<py::array_t<T>>(array), name, " of map ", map, " must be ", dtype,
          ", got ", py::str(array.dtype()).cast<std::string>(), kBuildMaps);
  const auto packed = py::array_t<T, py::array::c_style>(array);
  return {packed.data(), packed.data() + packed.size()};
}

Map checked_map(const std::tuple<py::array, py::array, py::array, int64_t>& parts, size_t which) {
  Map map;
  map.offsets = to_vector<int32_t>(std::get<0>(parts), which, "offsets", "int32");
  map.index = to_vector<int32_t>(std::get<1>(parts), which, "index", "int32");
  map.weight = to_vector<double>(std::get<2>(parts), which, "weight", "float64");
  map.size = std::get<3>(parts);
  require(map.size >= 0 && map.size <= INT32_MAX, "size of map ", which,
          " must be in [0, 2^31), got ", map.size, kBuildMaps);
  require(map.weight.size() == map.index.size(), "weight of map ", which, " must have ",
          map.index.size(), " values, one per index, got ", map.weight.size(), kBuildMaps);
  require(!map.offsets.empty() && map.offsets.front() == 0, "offsets of map ", which,
          " must start at 0, got ",
          map.offsets.empty() ? "none" : std::to_string(map.offsets.front()), kBuildMaps);
  const auto fall = std::is_sorted_until(map.offsets.begin(), map.offsets.end());
  require(fall == map.offsets.end(), "offsets of map ", which, " must ascend, got a fall at entry ",
          fall - map.offsets.begin(), kBuildMaps);
  require(map.offsets.back() == static_cast<int64_t>(map.index.size()), "offsets of map ", which,
          " must end at ", map.index.size(), ", the length of index, got ", map.offsets.back(),
          kBuildMaps);
  for (size_t p = 0; p < map.index.size(); ++p)
    require(map.index[p] >= 0 && map.index[p] < map.size, "index of map ", which,
            " must be in [0, ", map.size, "), got ", map.index[p], " at position ", p, kBuildMaps);
  return map;
}

// The map of the transposed matrix; the readers of a source stay in ascending order.
Map transposed(const Map& map) {
  Map result;
  result.size = map.entries();
  result.offsets.assign(map.size + 1, 0);
  for (int32_t source : map.index) ++result.offsets[source + 1];
  for (int64_t i = 0; i < map.size; ++i) result.offsets[i + 1] += result.offsets[i];
  std::vector<int32_t> next(result.offsets.begin(), result.offsets.end() - 1);
  result.index.resize(map.index.size());
  result.weight.resize(map.index.size());
  for (int32_t entry = 0; entry < map.entries(); ++entry)
    for (int32_t p = map.offsets[entry]; p < map.offsets[entry + 1]; ++p) {
      const int32_t slot = next[map.index[p]]++;
      result.index[slot] = entry;
      result.weight[slot] = map.weight[p];
    }
  return result;
}

// The entries of a map with identical (list, weights), in order of first appearance.
struct Groups {
  Map reads, writes;
};

Groups grouped(const Map& map) {
  std::unordered_map<std::string, size_t> seen;
  std::vector<std::vector<int32_t>> writers;
  Groups groups;
  groups.reads.size = map.size;
  for (int32_t entry = 0; entry < map.entries(); ++entry) {
    const int32_t begin = map.offsets[entry], length = map.offsets[entry + 1] - begin;
    std::string key(reinterpret_cast<const char*>(map.index.data() + begin), length * 4);
    key.append(reinterpret_cast<const char*>(map.weight.data() + begin), length * 8);
    const auto [found, is_new] = seen.try_emplace(std::move(key), writers.size());
    if (is_new) {
      writers.emplace_back();
      Map& reads = groups.reads;
      const auto index = map.index.begin() + begin;
      const auto weight = map.weight.begin() + begin;
      reads.index.insert(reads.index.end(), index, index + length);
      reads.weight.insert(reads.weight.end(), weight, weight + length);
      reads.offsets.push_back(static_cast<int32_t>(reads.index.size()));
    }
    writers[found->second].push_back(entry);
  }
  groups.writes.size = map.entries();
  for (const auto& rows : writers) {
    groups.writes.index.insert(groups.writes.index.end(), rows.begin(), rows.end());
    groups.writes.offsets.push_back(static_cast<int32_t>(groups.writes.index.size()));
  }
  groups.writes.weight.assign(groups.writes.index.size(), 1.0);
  return groups;
}

bool all_ones(const Map& map) {
  return std::all_of(map.weight.begin(), map.weight.end(), [](double w) { return w == 1.0; });
}

ColumnKind column_kind(const Map& map) {
  const int64_t n = map.entries();
  if (static_cast<int64_t>(map.index.size()) != n || !all_ones(map)) return kSum;
  bool run = n > 0;
  for (int32_t i = 0; i < n; ++i) {
    if (map.offsets[i] != i) return kSum;
    run = run && map.index[i] == map.index[0] + i;
  }
  return run ? kRun : kSelect;
}

// Packs one direction of a plan into the layout of expand.h.
class Packer {
 public:
  Packer(const std::vector<Map>& maps, const std::vector<Item>& items) : maps_(maps) {
    for (const Item& item : items) add(item);
    finish();
  }

  std::vector<int64_t> table;
  std::vector<double> coefficient;
  PlanHeader header{};

 private:
  struct PackedRows {
    Groups groups;
    ListRef reads, writes;
  };
  struct PackedColumns {
    ListRef reads;
    ColumnKind kind;
  };

  int64_t append(const std::vector<int32_t>& values) {
    const size_t at = lists_.size();
    lists_.resize(at + (values.size() + 1) / 2);
    if (!values.empty()) std::memcpy(lists_.data() + at, values.data(), values.size() * 4);
    return static_cast<int64_t>(at);
  }

  // Positions stay relative to the start of the lists until finish() knows where that is.
  ListRef append(const Map& map) {
    ListRef ref{append(map.offsets), append(map.index), kAllOnes};
    if (!all_ones(map)) {
      ref.weight_at = static_cast<int64_t>(coefficient.size());
      coefficient.insert(coefficient.end(), map.weight.begin(), map.weight.end());
    }
    return ref;
  }

  const PackedRows& packed_rows(int64_t which) {
    auto found = rows_.find(which);
    if (found == rows_.end()) {
      PackedRows rows{grouped(maps_[which]), {}, {}};
      rows.reads = append(rows.groups.reads);
      rows.writes = append(rows.groups.writes);
      found = rows_.emplace(which, std::move(rows)).first;
    }
    return found->second;
  }

  const PackedColumns& packed_columns(int64_t which) {
    auto found = columns_.find(which);
    if (found == columns_.end()) {
      const Map& map = maps_[which];
      found = columns_.emplace(which, PackedColumns{append(map), column_kind(map)}).first;
    }
    return found->second;
  }

  void add(const Item& item) {
    const Map &row_map = maps_[item.rows], &column_map = maps_[item.columns];
    const PackedRows& rows = packed_rows(item.rows);
    const PackedColumns& columns = packed_columns(item.columns);
    const int64_t groups = rows.groups.reads.entries();
    const int64_t row_nnz = static_cast<int64_t>(rows.groups.reads.index.size());
    const int64_t column_nnz = static_cast<int64_t>(column_map.index.size());
    const int64_t elements = std::max<int64_t>(1, groups * column_map.entries());
    items_.push_back({header.source_numel, header.student_numel, column_map.size,
                      column_map.entries(), item.area, columns.kind,
                      static_cast<int64_t>(double(row_nnz) * column_nnz / elements), rows.reads,
                      rows.writes, columns.reads});
    if (column_map.entries() > 0) cut(rows.groups, column_map.entries(), column_nnz, item.area);
    header.source_numel += row_map.size * column_map.size * item.area;
    header.student_numel += row_map.entries() * column_map.entries() * item.area;
  }

  // Cuts the item last added into tasks of about kTaskCost elements.
  void cut(const Groups& groups, int64_t columns, int64_t column_nnz, int64_t area) {
    const auto item = static_cast<int32_t>(items_.size() - 1);
    const auto count = static_cast<int32_t>(groups.reads.entries());
    const auto push = [&](int32_t begin, int32_t end, int64_t first, int64_t last) {
      tasks_.push_back(
          {item, begin, end, static_cast<int32_t>(first), static_cast<int32_t>(last), 0});
    };
    int32_t begin = 0;
    int64_t cost = 0;
    for (int32_t group = 0; group < count; ++group) {
      const int64_t reads = groups.reads.offsets[group + 1] - groups.reads.offsets[group];
      const int64_t writes = groups.writes.offsets[group + 1] - groups.writes.offsets[group];
      const int64_t own = (reads * column_nnz + writes * columns) * area;
      const int64_t parts = std::min(columns, own / kTaskCost);
      if (cost > 0 && (cost + own > kTaskCost || parts > 1)) {
        push(begin, group, 0, columns);
        begin = group;
        cost = 0;
      }
      if (parts > 1) {
        for (int64_t part = 0; part < parts; ++part)
          push(group, group + 1, columns * part / parts, columns * (part + 1) / parts);
        begin = group + 1;
      } else {
        cost += own;
      }
    }
    if (begin < count) push(begin, count, 0, columns);
  }

  template <typename T>
  void write(const std::vector<T>& values) {
    const size_t at = table.size();
    table.resize(at + values.size() * sizeof(T) / 8);
    if (!values.empty()) std::memcpy(&table[at], values.data(), values.size() * sizeof(T));
  }

  void finish() {
    constexpr auto kWords = [](size_t bytes) { return static_cast<int64_t>(bytes / 8); };
    header.magic = kMagic;
    header.num_items = static_cast<int64_t>(items_.size());
    header.num_tasks = static_cast<int64_t>(tasks_.size());
    header.items_at = kWords(sizeof(PlanHeader));
    header.tasks_at = header.items_at + header.num_items * kWords(sizeof(PlanItem));
    const int64_t lists_at = header.tasks_at + header.num_tasks * kWords(sizeof(PlanTask));
    header.words = lists_at + static_cast<int64_t>(lists_.size());
    header.coefficients = static_cast<int64_t>(coefficient.size());
    for (PlanItem& item : items_)
      for (ListRef* ref : {&item.row_reads, &item.row_writes, &item.column_reads}) {
        ref->offsets_at += lists_at;
        ref->index_at += lists_at;
      }
    write(std::vector<PlanHeader>{header});
    write(items_);
    write(tasks_);
    write(lists_);
  }

  const std::vector<Map>& maps_;
  std::map<int64_t, PackedRows> rows_;
  std::map<int64_t, PackedColumns> columns_;
  std::vector<PlanItem> items_;
  std::vector<PlanTask> tasks_;
  std::vector<int64_t> lists_;
};

// Both directions of a plan: forward reads the source, transposed reads a gradient of the student.
class ExpansionPlan {
 public:
  using MapParts = std::tuple<py::array, py::array, py::array, int64_t>;
  using ItemParts = std::tuple<int64_t, int64_t, int64_t>;

  ExpansionPlan(const std::vector<MapParts>& map_parts, const std::vector<ItemParts>& item_parts)
      : maps_(checked_maps(map_parts)),
        items_(turned(checked_items(item_parts, maps_), maps_)),
        transposed_maps_(transposed_maps(maps_)),
        forward_(maps_, items_),
        backward_(transposed_maps_, items_) {}

  int64_t source_numel() const { return forward_.header.source_numel; }
  int64_t student_numel() const { return forward_.header.student_numel; }
  py::array_t<int64_t> table(bool transposed) const { return copy(direction(transposed).table); }
  py::array_t<double> coefficient(bool transposed) const {
    return copy(direction(transposed).coefficient);
  }

 private:
  const Packer& direction(bool transposed) const { return transposed ? backward_ : forward_; }

  template <typename T>
  static py::array_t<T> copy(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
  }

  static std::vector<Map> checked_maps(const std::vector<MapParts>& parts) {
    std::vector<Map> maps;
    for (size_t i = 0; i < parts.size(); ++i) maps.push_back(checked_map(parts[i], i));
    return maps;
  }

  static std::vector<Map> transposed_maps(const std::vector<Map>& maps) {
    std::vector<Map> result;
    for (const Map& map : maps) result.push_back(transposed(map));
    return result;
  }

  static std::vector<Item> checked_items(const std::vector<ItemParts>& parts,
                                         const std::vector<Map>& maps) {
    std::vector<Item> items;
    const auto count = static_cast<int64_t>(maps.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto [rows, columns, area] = parts[i];
      require(rows >= 0 && rows < count && columns >= 0 && columns < count, "maps of item ", i,
              " must be in [0, ", count, "), got ", rows, " and ", columns, ".");
      require(area >= 1 && area <= INT32_MAX, "area of item ", i, " must be in [1, 2^31), got ",
              area, ". A matrix or a vector has area 1.");
      const Map &r = maps[rows], &c = maps[columns];
      const double largest = std::max(double(r.size) * c.size, double(r.entries()) * c.entries());
      require(largest * area < 0x1p62, "item ", i, " must have fewer than 2^62 elements, got ",
              largest * area, ".");
      items.push_back({rows, columns, area});
    }
    return items;
  }

  // An item with one column is turned: its rows become the columns of a matrix of one row, where a
  // sum needs no pass over a row for each of its terms. Neighbours that are read alike, such as the
  // vectors of a norm, become rows of one matrix.
  static std::vector<Item> turned(const std::vector<Item>& items, std::vector<Map>& maps) {
    std::vector<Item> result;
    std::map<int64_t, int64_t> identity;  // size -> position in maps
    for (size_t i = 0; i < items.size();) {
      size_t end = i + 1;
      const Item& item = items[i];
      const Map& columns = maps[item.columns];
      if (columns.size != 1 || columns.entries() != 1 || column_kind(columns) != kRun) {
        result.push_back(items[i++]);
        continue;
      }
      while (end < items.size() && items[end].rows == item.rows && items[end].area == item.area &&
             items[end].columns == item.columns)
        ++end;
      const auto count = static_cast<int64_t>(end - i);
      const auto [found, is_new] = identity.try_emplace(count, maps.size());
      if (is_new) maps.push_back(identity_map(count));
      result.push_back({found->second, item.rows, item.area});
      i = end;
    }
    return result;
  }

  std::vector<Map> maps_;
  std::vector<Item> items_;
  std::vector<Map> transposed_maps_;
  Packer forward_, backward_;
};

}  // namespace

void bind_expansion_plan(py::module_& m) {
  py::class_<ExpansionPlan>(m, "ExpansionPlan")
      .def(py::init<const std::vector<ExpansionPlan::MapParts>&,
                    const std::vector<ExpansionPlan::ItemParts>&>(),
           py::arg("maps"), py::arg("items"))
      .def_property_readonly("source_numel", &ExpansionPlan::source_numel)
      .def_property_readonly("student_numel", &ExpansionPlan::student_numel)
      .def("table", &ExpansionPlan::table, py::arg("transposed") = false)
      .def("coefficient", &ExpansionPlan::coefficient, py::arg("transposed") = false);
}

}  // namespace oskt
