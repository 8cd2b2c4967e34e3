// Batched k-means of weight rows: the contract that kmeans_cpu.cpp and kmeans_cuda.cpp share.
//
//   rows             B tensors (N_b, D_b), contiguous, one floating dtype and device
//   k                B numbers, 1 <= K_b <= N_b
//   metric           "euclidean", or "cosine": rows are scaled to length 1 first, zero rows stay
//   init             "k-means++", "ward", or "centers" (initial_centers: B tensors (K_b, D_b))
//   algorithm        "hartigan" or "lloyd"
//   route            "gram": by the N x N Gram matrix, N_b <= kMaxRows; "direct": from the rows,
//                    not from "ward"; "auto": the cheaper one per problem (takes_direct)
//   precision        "highest"; "high": the direct route on CUDA may seek the nearest mean among
//                    rows and means rounded to half rows' own type, or from float32 to TF32
//   -> centers       B tensors (K_b, D_b) in the dtype of rows: means of the (scaled) rows
//      labels        B tensors int64 (N_b)
//      inertia       float64 (B): sum of squared distances of the (scaled) rows to their means
//      n_iter        int64 (B): Lloyd iterations and Hartigan passes
//
// Stages: a Gram matrix for all problems of the same rows (memory and shape); clustering per
// (problem, restart) on the Gram matrix alone (gram_kmeans.h), or by distances from the rows
// (direct_kmeans.h, direct_kernel.cu); means and inertia per cluster in one float64 pass over the
// rows, never from the expanded square.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kmeans/row_checks.h"
#include "kmeans/steps.h"

namespace oskt::kmeans {

struct Arguments {
  Settings settings;
  bool cosine;
  int64_t restarts;
  std::vector<bool> direct;  // per problem
  bool rounds;               // precision "high"
};

// The route that "auto" takes. The Gram matrix costs as much as N / 2K passes over N x K distances,
// and a run takes some thirty; small ones stay in cache and are always worth their later steps.
inline bool takes_direct(int64_t n, int64_t k) {
  constexpr int64_t kSmall = 4096, kRowsPerCluster = 64;
  return n > kMaxRows || (n > kSmall && n > kRowsPerCluster * k);
}

// Checks a call and gathers its scalars; the tensors are left where they are.
inline Arguments check_arguments(const std::vector<Tensor>& rows, const std::vector<int64_t>& k,
                                 const std::string& metric, const std::string& init,
                                 const std::vector<Tensor>& initial_centers,
                                 const std::string& algorithm, int64_t n_init, int64_t max_iter,
                                 int64_t seed, const std::string& route,
                                 const std::string& precision) {
  check_rows("kmeans", rows);
  check(rows.size() == k.size(), "kmeans: k must be one number per problem, got ", k.size(),
        " for ", rows.size(), " problems.");
  check(metric == "euclidean" || metric == "cosine",
        "kmeans: metric must be 'euclidean' or 'cosine', got '", metric, "'.");
  check(init == "k-means++" || init == "ward" || init == "centers",
        "kmeans: init must be 'k-means++', 'ward' or 'centers', got '", init, "'.");
  check(algorithm == "hartigan" || algorithm == "lloyd",
        "kmeans: algorithm must be 'hartigan' or 'lloyd', got '", algorithm, "'.");
  check(n_init >= 1 && n_init < 1 << 16, "kmeans: n_init must be in [1, 65535], got ", n_init, ".");
  check(max_iter >= 0 && max_iter <= 1 << 30, "kmeans: max_iter must be >= 0, got ", max_iter, ".");
  check(route == "auto" || route == "gram" || route == "direct",
        "kmeans: route must be 'auto', 'gram' or 'direct', got '", route, "'.");
  check(precision == "highest" || precision == "high",
        "kmeans: precision must be 'highest' or 'high', got '", precision, "'.");
  check(route != "direct" || init != "ward",
        "kmeans: route must be 'auto' or 'gram' for init 'ward', got 'direct'.");
  std::vector<bool> direct(rows.size());
  const bool given = init == "centers";
  check(initial_centers.size() == (given ? rows.size() : 0),
        "kmeans: initial_centers must be one tensor per problem if init is 'centers', else none, "
        "got ",
        initial_centers.size(), ".");
  for (std::size_t b = 0; b < rows.size(); ++b) {
    check(k[b] >= 1 && k[b] <= rows[b].size(0), "kmeans: k[", b, "] must be in 1 .. ",
          rows[b].size(0), ", got ", k[b], ".");
    direct[b] = route == "direct" ||
                (route == "auto" && init != "ward" && takes_direct(rows[b].size(0), k[b]));
    if (!direct[b]) check_gram_rows("kmeans", rows[b], b);
    if (!given) continue;
    const Tensor& centers = initial_centers[b];
    check(centers.dim() == 2 && centers.is_contiguous() && centers.size(0) == k[b] &&
              centers.size(1) == rows[b].size(1) &&
              centers.scalar_type() == rows[0].scalar_type() &&
              centers.device() == rows[0].device(),
          "kmeans: initial_centers[", b,
          "] must be a contiguous (K, D) tensor of the dtype and device of rows.");
  }
  const Init start = given ? Init::kLabels : init == "ward" ? Init::kWard : Init::kPlusPlus;
  return {
      {start, algorithm == "hartigan", static_cast<int32_t>(max_iter), static_cast<uint64_t>(seed)},
      metric == "cosine",
      start == Init::kPlusPlus ? n_init : 1,  // other starts draw nothing
      std::move(direct),
      precision == "high"};
}

}  // namespace oskt::kmeans
