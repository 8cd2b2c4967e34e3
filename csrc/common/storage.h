// The storage types of tensors, as launchers are told of them without a torch header, and the type
// that each is computed in.
#pragma once

#include <type_traits>

namespace oskt {

enum class Storage { kFloat64, kFloat32, kFloat16, kBFloat16 };

template <typename scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

}  // namespace oskt
