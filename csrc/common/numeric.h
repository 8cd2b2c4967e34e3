#pragma once

#include <limits>

namespace oskt {

// Constants rather than calls: device code may not call the functions of numeric_limits.
template <typename T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
inline constexpr T kEpsilon = std::numeric_limits<T>::epsilon();

}  // namespace oskt
