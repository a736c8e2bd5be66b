// Made traces of the loads that servers meet, each the same for the same seed.
//
// Level 6 (engine). The shapes follow what is published of real loads (conversations and their
// think times, system prompts of unequal popularity, bursts); rates suit the default Machine of
// simulator.h, which they keep busy without drowning it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/simulation/trace.h"

namespace qw::simulation {

struct Workload {
  std::string_view name;
  std::string_view description;
  Trace (*make)(int64_t n_requests, uint64_t seed);
};

const std::vector<Workload>& workloads();
/// Errors: invalid_argument, with the names there are.
const Workload& workload_named(std::string_view name);

}  // namespace qw::simulation
