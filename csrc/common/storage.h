// The storage types of tensors, as launchers are told of them without a torch header.
#pragma once

namespace oskt {

enum class Storage { kFloat64, kFloat32, kFloat16, kBFloat16 };

}  // namespace oskt
