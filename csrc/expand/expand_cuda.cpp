// Glue of expand on CUDA: checks, allocation, one launch on the current stream, no host
// synchronisation. The kernel itself verifies the header of the table, which lies on the device.

#include <torch/csrc/stable/library.h>

#include "expand/expand.h"
#include "expand/expand_kernel.h"
#include "glue/cuda.h"

namespace oskt {
namespace {

Tensor expand_cuda(Tensor source, Tensor table, Tensor coefficient, Tensor transposed_table,
                   Tensor transposed_coefficient, int64_t student_numel) {
  check(source.dim() == 1 && source.is_contiguous(),
        "expand: source must be one-dimensional and contiguous, got ", source.dim(),
        " dimensions.");
  check(source.is_cuda(), "expand: source must be on the device of the plan, got another one.");
  const auto device = source.get_device_index();
  check(table.is_cuda() && coefficient.is_cuda() && table.get_device_index() == device &&
            coefficient.get_device_index() == device,
        "expand: the plan must be on the device of source, got another one.");
  check(table.scalar_type() == ScalarType::Long && table.is_contiguous() &&
            coefficient.scalar_type() == ScalarType::Double && coefficient.is_contiguous() &&
            table.numel() * sizeof(int64_t) >= sizeof(expand::PlanHeader),
        "expand: table must be the int64 table of an ExpansionPlan, got something else.");
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor student = torch::stable::new_empty(source, {student_numel});
  const expand::ExpandParams params{source.const_data_ptr(),
                                    student.mutable_data_ptr(),
                                    table.const_data_ptr<int64_t>(),
                                    coefficient.const_data_ptr<double>(),
                                    table.numel(),
                                    coefficient.numel(),
                                    source.numel(),
                                    student_numel};
  check_launch("expand",
               expand::launch_expand(params, storage_of("expand", source), current_stream(source)));
  return student;
}

STABLE_TORCH_LIBRARY_IMPL(oskt_ext, CUDA, m) { m.impl("expand", TORCH_BOX(&expand_cuda)); }

}  // namespace
}  // namespace oskt
