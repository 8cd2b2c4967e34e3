#pragma once

#include <pybind11/pybind11.h>

namespace oskt {
void bind_expansion_plan(pybind11::module_& m);
}
