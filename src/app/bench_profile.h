// Where the time of a bench went, operation by operation, beside the machine's limits.
//
// Level 8 (app).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "app/host_limits.h"
#include "backend/profile.h"

namespace qw::app {

/// A table, slowest operation first: the layers of an operation added up, its share of `seconds`
/// (the wall time of all that `profile` noted), its rates, and its worst layer. A line sums up the
/// linear layers; the last one is what lay outside every operation.
std::string profile_table(const Profile& profile, double seconds, const HostLimits& limits);

/// [{"operation", "layer" (-1: outside the layers), "kernel", "calls", "seconds", "gb_per_second",
/// "gop_per_second"}], one per operation and layer.
nlohmann::ordered_json profile_json(const Profile& profile);

}  // namespace qw::app
