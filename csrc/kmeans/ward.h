// Ward's merge tree of one problem from its Gram matrix: nearest-neighbour chain with the
// Lance-Williams recurrence on squared distances, O(N^2) time and memory.
//
//   d(i, j) = |x_i - x_j|^2,
//   d(c, a + b) = ((n_a + n_c) d(a, c) + (n_b + n_c) d(b, c) - n_c d(a, b)) / (n_a + n_b + n_c)
//
// A cluster lives in the slot of its first row, so that a merge is (kept slot, retired slot,
// height) with kept < retired and the height twice the rise of the sum of squares. Ties go to the
// previous element of the chain, which ends it, and then to the lower index. Merges stand in the
// order found; `ranks` of the heights gives their order in the dendrogram, so that among equal
// heights the merge found first is the lower one.
#pragma once

#include <cstdint>

#include "common/team.h"
#include "kmeans/layout.h"

namespace oskt::kmeans {

template <typename T>
struct WardTree {
  T* height;         // n - 1 merges
  int32_t* kept;     // n - 1
  int32_t* retired;  // n - 1
  int32_t* rank;     // n - 1, written by cut_tree and write_dendrogram
  T* distance;       // n x n scratch
  T* diagonal;       // n scratch
  T* mask;           // n scratch: 0, or infinity for a retired slot
  int32_t* size;     // n scratch
  int32_t* seen;     // n scratch: merges that a row of `distance` knows of; -1: not yet filled
  int32_t* merged;   // n scratch: the last merge of a slot in use; -1: none
  int32_t* chain;    // n scratch

  OSKT_HOST_DEVICE void lay_out(Layout& layout, int64_t n) {
    layout.take(height, n);
    layout.take(kept, n);
    layout.take(retired, n);
    layout.take(rank, n);
    layout.take(distance, n * n);
    layout.take(diagonal, n);
    layout.take(mask, n);
    layout.take(size, n);
    layout.take(seen, n);
    layout.take(merged, n);
    layout.take(chain, n);
  }
};

// The tree by position: position i > 0 splits off from position parent[i] < i, where row order[i]
// leaves with its own, and takes height[i] off the sum of squares.
struct Dendrogram {
  int64_t* order;   // n
  int64_t* parent;  // n
  double* height;   // n
};

// A merge rewrites the row of the kept slot alone. The other rows learn of it when they are next
// read: distances are symmetric, so that row i takes entry a from row a, where the merges since its
// last reading tell which. Columns are never written, most entries never copied.
template <typename T, typename Team>
class WardChain {
 public:
  OSKT_HOST_DEVICE WardChain(Team& team, const T* gram, int64_t n, const WardTree<T>& tree)
      : team_(team), gram_(gram), n_(n), tree_(tree) {}

  OSKT_HOST_DEVICE void grow() {
    const T* gram = gram_;
    const int64_t n = n_;
    const WardTree<T>& tree = tree_;
    team_.for_each(n, [=](int64_t i) {
      tree.diagonal[i] = gram[i * n + i];
      tree.mask[i] = 0;
      tree.size[i] = 1;
      tree.seen[i] = tree.merged[i] = -1;
    });
    int64_t length = 0;
    for (merges_ = 0; merges_ + 1 < n; ++merges_) length = extend_and_merge(length);
  }

 private:
  // Row i, up to date; entries of retired slots are stale.
  OSKT_HOST_DEVICE T* row(int64_t i) {
    const int64_t n = n_, seen = tree_.seen[i];
    const WardTree<T>& tree = tree_;
    T* out = tree.distance + i * n;
    if (seen < 0) {
      const T* products = gram_ + i * n;
      const T own = tree.diagonal[i];
      team_.for_each(n, [=](int64_t j) {
        const T value = own + tree.diagonal[j] - 2 * products[j];
        out[j] = i == j ? kInfinity<T> : value > 0 ? value : T(0);
      });
    }
    const int64_t first = seen > 0 ? seen : 0;
    team_.for_each(merges_ - first, [=](int64_t m) {
      const int64_t a = tree.kept[first + m];
      if (tree.merged[a] == first + m) out[a] = tree.distance[a * n + i];
    });
    team_.once([=] { tree.seen[i] = static_cast<int32_t>(merges_); });
    return out;
  }

  // Extends the chain until its last two elements are nearest to each other, merges them and
  // returns the length left.
  OSKT_HOST_DEVICE int64_t extend_and_merge(int64_t length) {
    const WardTree<T>& tree = tree_;
    if (length == 0) {
      team_.once([=] { tree.chain[0] = 0; });  // slot 0 is kept by every merge it takes part in
      length = 1;
    }
    while (true) {
      const int64_t last = tree.chain[length - 1];
      const T* distance = row(last);
      Candidate<T> found = team_.argmin(n_, [=](int64_t j) { return distance[j] + tree.mask[j]; });
      if (length > 1) {
        const int64_t previous = tree.chain[length - 2];
        if (!(found.value < distance[previous]) || length == n_) {
          merge(last < previous ? last : previous, last < previous ? previous : last,
                distance[previous]);
          return length - 2;
        }
      }
      if (found.index == last || tree.mask[found.index] != 0) {  // only without finite distances
        found.index = 0;
        while (found.index == last || tree.mask[found.index] != 0) ++found.index;
      }
      team_.once([=] { tree.chain[length] = static_cast<int32_t>(found.index); });
      ++length;
    }
  }

  OSKT_HOST_DEVICE void merge(int64_t a, int64_t b, T height) {
    const WardTree<T>& tree = tree_;
    const int64_t merge = merges_;
    const T size_a = T(tree.size[a]), size_b = T(tree.size[b]);
    T* row_a = row(a);
    const T* row_b = row(b);
    team_.for_each(n_, [=](int64_t c) {
      const T size_c = T(tree.size[c]);
      row_a[c] = ((size_a + size_c) * row_a[c] + (size_b + size_c) * row_b[c] - size_c * height) /
                 (size_a + size_b + size_c);
    });
    team_.once([=] {
      row_a[a] = row_a[b] = kInfinity<T>;
      tree.mask[b] = kInfinity<T>;
      tree.size[a] += tree.size[b];
      tree.seen[a] = static_cast<int32_t>(merge + 1);
      tree.merged[a] = static_cast<int32_t>(merge);
      tree.merged[b] = -1;
      tree.kept[merge] = static_cast<int32_t>(a);
      tree.retired[merge] = static_cast<int32_t>(b);
      tree.height[merge] = height;
    });
  }

  Team& team_;
  const T* gram_;
  const int64_t n_;
  const WardTree<T>& tree_;
  int64_t merges_ = 0;
};

// Labels of the k clusters that the n - k lowest merges leave, numbered by their first rows.
template <typename T, typename Team>
OSKT_HOST_DEVICE void cut_tree(Team& team, int64_t n, int64_t k, const WardTree<T>& tree,
                               int32_t* label) {
  int32_t* parent = tree.chain;
  team.ranks(n - 1, tree.height, tree.rank, tree.size);
  team.for_each(n, [=](int64_t i) { parent[i] = static_cast<int32_t>(i); });
  team.for_each(n - 1, [=](int64_t m) {
    if (tree.rank[m] < n - k) parent[tree.retired[m]] = tree.kept[m];
  });
  team.once([=] {
    int32_t next = 0;
    for (int64_t i = 0; i < n; ++i) label[i] = parent[i] == i ? next++ : label[parent[i]];
  });
}

// Numbers the slots by falling height of the merge that retires them; slot 0 is position 0. Heights
// are first made monotone, which rounding may have prevented: with the order found as tie rule, a
// merge then ranks above those that made its two clusters, and parents stand before children.
template <typename T, typename Team>
OSKT_HOST_DEVICE void write_dendrogram(Team& team, int64_t n, const WardTree<T>& tree,
                                       const Dendrogram& out) {
  T* top = tree.mask;  // height of the last merge that a slot took part in
  int32_t* position = tree.chain;
  team.for_each(n, [=](int64_t i) { top[i] = 0; });
  team.once([=] {
    for (int64_t m = 0; m + 1 < n; ++m) {
      const T below = top[tree.kept[m]], beside = top[tree.retired[m]];
      const T least = below > beside ? below : beside;
      if (!(tree.height[m] > least)) tree.height[m] = least;
      top[tree.kept[m]] = tree.height[m];
    }
  });
  team.ranks(n - 1, tree.height, tree.rank, tree.size);
  team.once([=] {
    position[0] = 0;
    out.order[0] = 0;
    out.parent[0] = -1;
    out.height[0] = 0;
  });
  team.for_each(n - 1, [=](int64_t m) {
    position[tree.retired[m]] = static_cast<int32_t>(n - 1 - tree.rank[m]);
  });
  team.for_each(n - 1, [=](int64_t m) {
    const int64_t i = position[tree.retired[m]];
    out.order[i] = tree.retired[m];
    out.parent[i] = position[tree.kept[m]];
    out.height[i] = tree.height[m] / 2.0;
  });
}

// The dendrogram of a Gram matrix; its heights are NaN if a squared length is not finite.
template <typename T, typename Team>
OSKT_HOST_DEVICE void grow_dendrogram(Team& team, const T* gram, int64_t n, const WardTree<T>& tree,
                                      const Dendrogram& out) {
  const double total = team.sum(n, [=](int64_t i) { return gram[i * n + i]; });
  WardChain<T, Team>(team, gram, n, tree).grow();
  write_dendrogram(team, n, tree, out);
  if (total < kInfinity<double>) return;
  team.for_each(n, [=](int64_t i) { out.height[i] = total - total; });
}

}  // namespace oskt::kmeans
