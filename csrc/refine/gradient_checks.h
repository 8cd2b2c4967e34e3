// Checks of refining_loss_scale_ that the glue of CPU and CUDA share.
#pragma once

#include <vector>

#include "glue/checks.h"

namespace oskt::refine {

// Gradients of one floating dtype beside a factor in the type of their loss, on one device.
inline void check_gradients(const std::vector<Tensor>& gradients, const Tensor& factor) {
  const bool wide = !gradients.empty() && gradients[0].scalar_type() == ScalarType::Double;
  check(factor.numel() == 1 &&
            (gradients.empty() ||
             factor.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float)),
        "refining_loss_scale_: factor must be one number, float64 for float64 gradients and else "
        "float32, got ",
        factor.numel(), " of scalar type ", static_cast<int>(factor.scalar_type()), ".");
  for (std::size_t i = 0; i < gradients.size(); ++i)
    check(gradients[i].is_contiguous() && gradients[i].device() == factor.device() &&
              gradients[i].scalar_type() == gradients[0].scalar_type(),
          "refining_loss_scale_: gradients[", i,
          "] must be contiguous, of the dtype of gradients[0], on the device of factor.");
}

}  // namespace oskt::refine
