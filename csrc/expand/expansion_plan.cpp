#include "expand/expansion_plan.h"
namespace oskt {
void bind_expansion_plan(pybind11::module_&) {}
}
