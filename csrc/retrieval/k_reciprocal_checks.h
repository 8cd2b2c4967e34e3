// Checks and inputs of k_reciprocal and k_reciprocal_distances, the same for the CPU and CUDA glue.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "retrieval/retrieval_checks.h"

namespace oskt::retrieval {

// Sizes of the neighbourhoods among `rows` rows.
struct Sizes {
  int64_t list;        // K, entries of a list
  int32_t near, half;  // see k_reciprocal.h
  int32_t mean;        // k2

  Sizes(int64_t rows, int64_t k1, int64_t k2) {
    constexpr const char* op = "k_reciprocal: ";
    check(rows <= kMaxGallery, op, "features must have fewer than 2^31 - 1 rows, got ", rows, ".");
    check(k1 >= 1 && k2 >= 1, op, "k1 and k2 must be at least 1, got ", k1, " and ", k2, ".");
    const auto at_most_rows = [&](int64_t k) { return static_cast<int32_t>(std::min(k, rows)); };
    near = at_most_rows(std::min(k1, rows) + 1);
    half = at_most_rows(static_cast<int64_t>(std::nearbyint(0.5 * std::min(k1, 2 * rows))) + 1);
    mean = at_most_rows(k2);
    list = std::max(near, mean);
  }
};

struct EncodedRows {  // V' of the queries by row, of the gallery by column; start may begin above 0
  Tensor query_features, gallery_features;
  Tensor start, column, weight;          // [queries + 1] int64, int32, the computing type
  Tensor item_start, item, item_weight;  // [rows + 1] int64, int32, the computing type
  Tensor farthest;                       // [queries] float64
  int64_t queries, gallery;
  bool cosine;
};

inline ScalarType computing_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Shapes, dtypes and devices; the values of start, column and item are k_reciprocal's own.
inline EncodedRows checked_encoding(const Tensor& query_features, const Tensor& gallery_features,
                                    const Tensor& start, const Tensor& column, const Tensor& weight,
                                    const Tensor& item_start, const Tensor& item,
                                    const Tensor& item_weight, const Tensor& farthest,
                                    const std::string& metric) {
  constexpr const char* op = "k_reciprocal_distances: ";
  check_features(op, query_features, gallery_features, metric);
  const auto checked = [&](const char* name, const Tensor& values, ScalarType type, int64_t size) {
    check(values.dim() == 1 && values.scalar_type() == type && values.numel() == size &&
              values.device() == query_features.device(),
          op, name, " must be a vector of k_reciprocal on the device of the features.");
    return torch::stable::contiguous(values);
  };
  const ScalarType type = computing_type(query_features);
  return {torch::stable::contiguous(query_features),
          torch::stable::contiguous(gallery_features),
          checked("start", start, ScalarType::Long, query_features.size(0) + 1),
          checked("column", column, ScalarType::Int, column.numel()),
          checked("weight", weight, type, column.numel()),
          checked("item_start", item_start, ScalarType::Long, item_start.numel()),
          checked("item", item, ScalarType::Int, item.numel()),
          checked("item_weight", item_weight, type, item.numel()),
          checked("farthest", farthest, ScalarType::Double, query_features.size(0)),
          query_features.size(0),
          gallery_features.size(0),
          metric == "cosine"};
}

}  // namespace oskt::retrieval
