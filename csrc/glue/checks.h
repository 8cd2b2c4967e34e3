// Checks and dtype dispatch shared by the operators' glue: the only header here that names torch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace oskt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws "<op>: <argument> must be <condition>, got <value>." when `ok` is false. Public checks
// with remedies live in oskt_ext/*.py; these keep a direct torch.ops call from reading wild memory.
template <typename... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  ((message << parts), ...);
  throw std::invalid_argument(message.str());
}

// Runs body.operator()<scalar_t>() for the storage type of a tensor.
//   dispatch_floating("expand", source.scalar_type(), [&](auto zero) {
//     using scalar_t = decltype(zero); ... });
template <typename Body>
inline void dispatch_floating(const char* op, ScalarType type, Body&& body) {
  switch (type) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(c10::Half{});
    case ScalarType::BFloat16:
      return body(c10::BFloat16{});
    default:
      check(false, op, ": tensors must be float32, float64, float16 or bfloat16, got scalar type ",
            static_cast<int>(type), ".");
  }
}

}  // namespace oskt
