// A team runs one algorithm text on a CPU thread (HostTeam, host_team.h) or on a CUDA thread block
// (DeviceTeam, device_team.cuh). The text is written from every member's point of view: scalars
// are equal in all members, arrays are shared, and each primitive begins and ends with a barrier.
//
//   for_each(n, f)                 f(i) for every i, in any order
//   sum(n, f)                      sum of f(i), in a fixed order
//   argmin(n, f)                   Candidate of the smallest f(i) under the tie rule
//   lane_sums(n, f, lanes)         lanes[l] = sum of f(i) over i = l mod kTeamLanes
//   prefix(n, value)               value[i] = value[0] + ... + value[i], n <= kTeamLanes
//   argmin_over(n, k, f, best, arg)   per i: minimum over c < k of f(c)(i), lowest c first
//   add_rows(n, rows, list, length, out)  out[i] = sum over list of rows(j)[i], in list order
//   count(n, k, label, size)       size[c] = number of i with label c
//   members(n, k, label, start, order)    order[start[c] .. start[c + 1]) = the i of cluster c,
//                                         ascending
//   ranks(n, value, rank, place)   rank[i] = place of i in the stable ascending order of value
//   once(f)                        f() by one member
#pragma once

#include "common/tie_rule.h"

namespace oskt {

inline constexpr int kTeamLanes = 512;

}  // namespace oskt
