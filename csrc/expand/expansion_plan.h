// The host-side builder of expansion plans; it knows NumPy and no torch.
#pragma once

#include <pybind11/pybind11.h>

namespace oskt {

void bind_expansion_plan(pybind11::module_& m);

}  // namespace oskt
