// The operator library on one screen: every schema, and the Python module of host-side objects.
// Kernels register themselves for CPU and CUDA in <op>_cpu.cpp and <op>_cuda.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <string>

#include "expand/expansion_plan.h"
#include "oskt_build_info.h"

STABLE_TORCH_LIBRARY(oskt_ext, m) {
  m.def(
      "expand(Tensor source, Tensor table, Tensor coefficient, Tensor transposed_table, "
      "Tensor transposed_coefficient, int student_numel) -> Tensor");
  m.def(
      "refining_loss(Tensor[] teacher, Tensor chain, Tensor table, Tensor weight, float scale, "
      "bool teacher_needs_gradient, bool chain_needs_gradient) "
      "-> (Tensor loss, Tensor[] teacher_gradient, Tensor chain_gradient)");
  m.def("refining_loss_scale_(Tensor(a!)[] gradients, Tensor factor) -> ()");
  m.def(
      "kmeans(Tensor[] rows, int[] k, str metric, str init, Tensor[] initial_centers, "
      "str algorithm, int n_init, int max_iter, int seed, str route=\"auto\", "
      "str precision=\"highest\") "
      "-> (Tensor[] centers, Tensor[] labels, Tensor inertia, Tensor n_iter)");
  m.def("merge_trees(Tensor[] rows) -> (Tensor[] order, Tensor[] parent, Tensor[] height)");
  m.def(
      "retrieval_metrics(Tensor query_features, Tensor gallery_features, Tensor query_ids, "
      "Tensor gallery_ids, Tensor query_cameras, Tensor gallery_cameras, str metric, "
      "int max_rank) -> (Tensor cmc, Tensor average_precision, Tensor inverse_negative_penalty, "
      "Tensor trapezoid_average_precision)");
  m.def(
      "distance_metrics(Tensor distances, Tensor query_ids, Tensor gallery_ids, "
      "Tensor query_cameras, Tensor gallery_cameras) -> (Tensor first_hit, "
      "Tensor average_precision, Tensor inverse_negative_penalty, "
      "Tensor trapezoid_average_precision)");
  m.def(
      "k_reciprocal(Tensor query_features, Tensor gallery_features, str metric, int k1, int k2) "
      "-> (Tensor start, Tensor column, Tensor weight, Tensor farthest)");
  m.def(
      "k_reciprocal_distances(Tensor query_features, Tensor gallery_features, Tensor start, "
      "Tensor column, Tensor weight, Tensor item_start, Tensor item, Tensor item_weight, "
      "Tensor farthest, str metric, float lambda_) -> Tensor");
}

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"version", OSKT_VERSION},         {"source_hash", OSKT_SOURCE_HASH},
      {"torch", OSKT_TORCH_AT_BUILD},    {"compiler", __VERSION__},
      {"cuda", OSKT_CUDA_AT_BUILD},      {"cuda_architectures", OSKT_CUDA_ARCHS},
      {"cuda_reason", OSKT_CUDA_REASON},
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side objects of oskt_ext; importing it registers torch.ops.oskt_ext.*.";
  m.def("build_info", &build_info);
  oskt::bind_expansion_plan(m);
}
