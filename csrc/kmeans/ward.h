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
  T* mask;           // n scratch: the diagonal, then 0, or infinity for a retired slot
  int32_t* size;     // n scratch
  int32_t* chain;    // n scratch

  OSKT_HOST_DEVICE void lay_out(Layout& layout, int64_t n) {
    layout.take(height, n);
    layout.take(kept, n);
    layout.take(retired, n);
    layout.take(rank, n);
    layout.take(distance, n * n);
    layout.take(mask, n);
    layout.take(size, n);
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

template <typename T, typename Team>
OSKT_HOST_DEVICE void ward_tree(Team& team, const T* gram, int64_t n, const WardTree<T>& tree) {
  constexpr T infinity = kInfinity<T>;
  const T* diagonal = tree.mask;
  team.for_each(n, [=](int64_t i) { tree.mask[i] = gram[i * n + i]; });
  for (int64_t i = 0; i < n; ++i) {
    team.for_each(n, [=](int64_t j) {
      const T value = diagonal[i] + diagonal[j] - 2 * gram[i * n + j];
      tree.distance[i * n + j] = i == j ? infinity : value > 0 ? value : T(0);
    });
  }
  team.for_each(n, [=](int64_t i) {
    tree.mask[i] = 0;
    tree.size[i] = 1;
  });
  int64_t length = 0;
  for (int64_t merge = 0; merge + 1 < n; ++merge) {
    if (length == 0) {
      team.once([=] { tree.chain[0] = 0; });  // slot 0 is kept by every merge it takes part in
      length = 1;
    }
    int64_t last, nearest;
    T height;
    while (true) {
      last = tree.chain[length - 1];
      const T* row = tree.distance + last * n;
      const Candidate<T> found = team.argmin(n, [=](int64_t j) { return row[j] + tree.mask[j]; });
      nearest = found.index;
      height = found.value;
      if (length > 1 && (!(height < row[tree.chain[length - 2]]) || length == n)) {
        nearest = tree.chain[length - 2];
        height = row[nearest];
        break;
      }
      if (nearest == last || tree.mask[nearest] != 0) {  // only without finite distances
        nearest = 0;
        while (nearest == last || tree.mask[nearest] != 0) ++nearest;
      }
      team.once([=] { tree.chain[length] = static_cast<int32_t>(nearest); });
      ++length;
    }
    length -= 2;
    const int64_t a = last < nearest ? last : nearest, b = last < nearest ? nearest : last;
    const T size_a = T(tree.size[a]), size_b = T(tree.size[b]);
    T* row_a = tree.distance + a * n;
    const T* row_b = tree.distance + b * n;
    team.for_each(n, [=](int64_t c) {
      const T size_c = T(tree.size[c]);
      const T merged =
          ((size_a + size_c) * row_a[c] + (size_b + size_c) * row_b[c] - size_c * height) /
          (size_a + size_b + size_c);
      row_a[c] = c == a || c == b ? infinity : merged;
    });
    team.for_each(n, [=](int64_t c) { tree.distance[c * n + a] = row_a[c]; });
    team.once([=] {
      tree.mask[b] = infinity;
      tree.size[a] += tree.size[b];
      tree.kept[merge] = static_cast<int32_t>(a);
      tree.retired[merge] = static_cast<int32_t>(b);
      tree.height[merge] = height;
    });
  }
}

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
  ward_tree(team, gram, n, tree);
  write_dendrogram(team, n, tree, out);
  if (total < kInfinity<double>) return;
  team.for_each(n, [=](int64_t i) { out.height[i] = total - total; });
}

}  // namespace oskt::kmeans
