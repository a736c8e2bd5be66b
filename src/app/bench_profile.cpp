#include "app/bench_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

namespace qw::app {

namespace {

double rate(double amount, double seconds) {
  return seconds > 0 ? amount / seconds * 1e-9 : 0;
}

struct Row {
  std::string operation;
  OpRecord sum;
  double floor_s = 0;  // what its operations would take at the peak
  int worst_layer = -1;
  double worst_s = 0;  // seconds per call of the worst layer
};

void add(Row& row, const OpRecord& record, const HostLimits& limits) {
  row.sum.calls += record.calls;
  row.sum.seconds += record.seconds;
  row.sum.bytes += record.bytes;
  row.sum.operations += record.operations;
  row.floor_s += record.operations * 1e-9 / limits.peak(compute_unit(record.kernel));
}

std::string line(const Row& row, double seconds, const HostLimits& limits) {
  const double gb = rate(row.sum.bytes, row.sum.seconds);
  std::string out = fmt::format(
      "  {:<16} {:>7} {:>10.2f} {:>6.1f} {:>8.2f} {:>7.1f} {:>9.1f} {:>9.1f}", row.operation,
      row.sum.calls, 1e3 * row.sum.seconds, 100 * row.sum.seconds / seconds, gb,
      100 * gb / limits.read_gb_per_second, rate(row.sum.operations, row.sum.seconds),
      row.sum.seconds > 0 ? 100 * row.floor_s / row.sum.seconds : 0);
  if (row.worst_layer >= 0)
    out += fmt::format("  {:>5} {:>9.1f}", row.worst_layer, 1e6 * row.worst_s);
  if (!row.sum.kernel.empty()) out += "  " + row.sum.kernel;
  return out + "\n";
}

}  // namespace

std::string profile_table(const Profile& profile, double seconds, const HostLimits& limits) {
  std::map<std::pair<std::string, std::string>, Row> by_kernel;
  Row linear{"linear layers", {}, 0, -1, 0}, outside{"outside", {}, 0, -1, 0};
  for (const auto& [key, record] : profile.records()) {
    Row& row = by_kernel[{key.first, record.kernel}];
    row.operation = key.first;
    row.sum.kernel = record.kernel;
    add(row, record, limits);
    if (!record.kernel.empty()) add(linear, record, limits);
    const double per_call = record.seconds / static_cast<double>(record.calls);
    if (key.second >= 0 && per_call > row.worst_s) {
      row.worst_s = per_call;
      row.worst_layer = key.second;
    }
  }
  outside.sum.seconds = std::max(0.0, seconds - profile.seconds());
  std::vector<Row> rows;
  rows.reserve(by_kernel.size() + 2);
  for (const auto& [key, row] : by_kernel)
    rows.push_back(row);
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.sum.seconds > b.sum.seconds; });
  rows.push_back(linear);
  rows.push_back(outside);
  std::string out = fmt::format("  {:<16} {:>7} {:>10} {:>6} {:>8} {:>7} {:>9} {:>9}  {}\n",
                                "operation", "calls", "ms", "%", "GB/s", "% read", "GOP/s",
                                "% compute", "worst layer, us a call; kernel");
  for (const Row& row : rows)
    out += line(row, seconds, limits);
  return out;
}

nlohmann::ordered_json profile_json(const Profile& profile) {
  auto out = nlohmann::ordered_json::array();
  for (const auto& [key, record] : profile.records()) {
    out.push_back({{"operation", key.first},
                   {"layer", key.second},
                   {"kernel", record.kernel},
                   {"calls", record.calls},
                   {"seconds", record.seconds},
                   {"gb_per_second", rate(record.bytes, record.seconds)},
                   {"gop_per_second", rate(record.operations, record.seconds)}});
  }
  return out;
}

}  // namespace qw::app
