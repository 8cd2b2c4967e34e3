// Glue of refining_loss on CUDA: checks, allocation, one launch per kChunk teacher tensors and one
// for the sum, one per kChunk gradients in backward, on the current stream, no host
// synchronisation.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "glue/cuda.h"
#include "refine/gradient_checks.h"
#include "refine/refining_loss.h"
#include "refine/refining_loss_kernel.h"

namespace oskt {
namespace {

using namespace oskt::refine;

void check_inputs(const std::vector<Tensor>& teacher, const Tensor& chain, const Tensor& table,
                  const Tensor& weight) {
  const auto here = [&](const Tensor& tensor) {
    return tensor.is_cuda() && tensor.get_device_index() == chain.get_device_index() &&
           tensor.is_contiguous();
  };
  check(here(table) && here(weight) && table.scalar_type() == ScalarType::Long &&
            weight.scalar_type() == ScalarType::Double &&
            table.numel() * sizeof(int64_t) >= sizeof(LossHeader),
        "refining_loss: table and weight must be those of a RefiningPlan on the device of chain, "
        "got something else.");
  check(weight.numel() >= static_cast<int64_t>(teacher.size()),
        "refining_loss: teacher must have at most ", weight.numel(), " tensors, got ",
        teacher.size(), ".");
  check(chain.is_cuda() && chain.is_contiguous(),
        "refining_loss: chain must be contiguous, on a CUDA device.");
  for (size_t i = 0; i < teacher.size(); ++i)
    check(here(teacher[i]) && teacher[i].scalar_type() == chain.scalar_type(),
          "refining_loss: teacher[", i,
          "] must be contiguous, of the dtype and on the device of chain.");
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> refining_loss_cuda(std::vector<Tensor> teacher,
                                                                   Tensor chain, Tensor table,
                                                                   Tensor weight, double scale,
                                                                   bool teacher_needs_gradient,
                                                                   bool chain_needs_gradient) {
  check_inputs(teacher, chain, table, weight);
  const Storage storage = storage_of("refining_loss", chain);
  const torch::stable::accelerator::DeviceGuard guard(chain.get_device_index());
  const cudaStream_t stream = current_stream(chain);
  const bool wide = storage == Storage::kFloat64;
  const auto items = static_cast<int64_t>(teacher.size());
  const int64_t partials = (items + kChunk - 1) / kChunk * kBlocks;
  Tensor loss = torch::stable::new_empty(chain, {}, wide ? ScalarType::Double : ScalarType::Float);
  Tensor partial = torch::stable::new_empty(chain, {partials}, ScalarType::Double);
  std::vector<Tensor> teacher_gradient;
  if (teacher_needs_gradient)
    for (const Tensor& tensor : teacher)
      teacher_gradient.push_back(torch::stable::empty_like(tensor));
  Tensor chain_gradient =
      torch::stable::new_zeros(chain, {chain_needs_gradient ? chain.numel() : 0});

  const LossParams params{table.const_data_ptr<int64_t>(),
                          weight.const_data_ptr<double>(),
                          chain.const_data_ptr(),
                          chain_needs_gradient ? chain_gradient.mutable_data_ptr() : nullptr,
                          scale,
                          table.numel(),
                          weight.numel(),
                          items,
                          chain.numel()};
  auto* partial_at = static_cast<double*>(partial.mutable_data_ptr());
  for (int64_t first = 0; first < items; first += kChunk) {
    LossChunk chunk{};
    chunk.first_item = first;
    chunk.count = std::min<int64_t>(kChunk, items - first);
    chunk.partial = partial_at + first / kChunk * kBlocks;
    for (int64_t i = 0; i < chunk.count; ++i) {
      chunk.teacher[i] = teacher[first + i].const_data_ptr();
      chunk.numel[i] = teacher[first + i].numel();
      if (teacher_needs_gradient)
        chunk.teacher_gradient[i] = teacher_gradient[first + i].mutable_data_ptr();
    }
    check_launch("refining_loss", launch_refining_loss(params, chunk, storage, stream));
  }
  check_launch("refining_loss",
               launch_loss_sum(partial_at, partials, loss.mutable_data_ptr(), wide, stream));
  return {loss, teacher_gradient, chain_gradient};
}

void refining_loss_scale_cuda(std::vector<Tensor> gradients, Tensor factor) {
  check(factor.is_cuda(), "refining_loss_scale_: factor must be on a CUDA device.");
  check_gradients(gradients, factor);
  if (gradients.empty()) return;
  const Storage storage = storage_of("refining_loss_scale_", gradients[0]);
  const torch::stable::accelerator::DeviceGuard guard(factor.get_device_index());
  const cudaStream_t stream = current_stream(factor);
  for (std::size_t first = 0; first < gradients.size(); first += kChunk) {
    const std::size_t count = std::min<std::size_t>(kChunk, gradients.size() - first);
    ScaleChunk chunk{};
    chunk.factor = factor.const_data_ptr();
    for (std::size_t i = 0; i < count; ++i) {
      chunk.gradient[i] = gradients[first + i].mutable_data_ptr();
      chunk.numel[i] = gradients[first + i].numel();
      chunk.stretches += (chunk.numel[i] + kStretch - 1) / kStretch;
      chunk.stretches_end[i] = chunk.stretches;
    }
    check_launch("refining_loss_scale_", launch_scale(chunk, storage, stream));
  }
}

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) {
  m.impl("refining_loss", TORCH_BOX(&refining_loss_cuda));
  m.impl("refining_loss_scale_", TORCH_BOX(&refining_loss_scale_cuda));
}

}  // namespace
}  // namespace oskt
