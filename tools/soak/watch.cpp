#include "soak/watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>
#include <thread>

namespace qw::soak {

namespace {

/// The values of /metrics: the sum over all labels, and lines whose labels matter.
struct Metrics {
  std::map<std::string, double> sums;
  std::vector<std::string> lines;

  static Metrics read(const Place& place) {
    testing::HttpClient client(place.port, place.patience);
    std::istringstream text(client.get("/metrics").body);
    Metrics out;
    for (std::string line; std::getline(text, line);) {
      if (line.empty() || line[0] == '#') continue;
      const size_t space = line.rfind(' ');
      out.sums[line.substr(0, line.find_first_of("{ "))] += std::stod(line.substr(space + 1));
      out.lines.push_back(std::move(line));
    }
    return out;
  }
  double of(const std::string& name) const {
    const auto found = sums.find(name);
    return found == sums.end() ? 0 : found->second;
  }
};

std::vector<std::string> faults_of(const Metrics& metrics, const Footprint& first,
                                   const Footprint& now) {
  std::vector<std::string> out;
  const auto expect = [&](const char* what, double expected, double got) {
    if (expected != got)
      out.push_back(fmt::format("at rest: {} is {}, not {}", what, got, expected));
  };
  for (const char* name :
       {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"})
    expect(name, 0, metrics.of(name));
  expect("qianwen_connections", 1, metrics.of("qianwen_connections"));
  expect("qianwen_ended_requests_total", metrics.of("qianwen_accepted_requests_total"),
         metrics.of("qianwen_ended_requests_total"));
  for (const std::string& line : metrics.lines) {
    if (line.find("status=\"500\"") != std::string::npos && !line.ends_with(" 0"))
      out.push_back("an internal error: " + line);
  }
  // Fewer are fine: a client may have asked for the model to be unloaded.
  expect("the number of threads beyond those of the beginning", 0,
         static_cast<double>(std::max<int64_t>(now.n_threads - first.n_threads, 0)));
  expect("the number of open files beyond those of the beginning", 0,
         static_cast<double>(std::max<int64_t>(now.n_files - first.n_files, 0)));
  return out;
}

}  // namespace

std::vector<std::string> Watch::faults_at_rest(const Place& place, Child& child, bool restarted) {
  std::vector<std::string> faults;
  for (int i = 0; i < 150; ++i) {
    last_ = child.footprint();
    if (restarted) first_ = last_;  // those of the first process say nothing of this one
    const Metrics metrics = Metrics::read(place);
    faults = faults_of(metrics, first_, last_);
    grammar_bytes_ = static_cast<int64_t>(metrics.of("qianwen_grammar_bytes"));
    if (faults.empty()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return faults;
}

double Watch::median(double from, double to) const {
  if (samples_.empty()) return 0;
  const auto at = [&](double share) {
    return static_cast<size_t>(share * static_cast<double>(samples_.size() - 1));
  };
  std::vector<int64_t> bytes;
  for (size_t i = at(from); i <= at(to); ++i)
    bytes.push_back(samples_[i].footprint.anonymous_bytes);
  std::ranges::sort(bytes);
  return mib(bytes[bytes.size() / 2]);
}

std::string Watch::growth_fault(double max_mib) const {
  if (max_mib <= 0 || growth() <= max_mib) return "";
  return fmt::format("memory: it grew by {:.1f} MiB, of which {:.1f} are allowed", growth(),
                     max_mib);
}

std::string Watch::summary() const {
  if (samples_.empty()) return "";
  const double hours = 0.6 * samples_.back().seconds / 3600;  // between the two medians
  return fmt::format(
      "memory: {:.1f} MiB of its own at the beginning, {:.1f} early, {:.1f} late, {:.1f} at rest "
      "({:+.1f} MiB, {:+.1f} MiB/h); resident {:.1f} to {:.1f} MiB; compiled grammars {:.1f} MiB\n"
      "threads: {} to {}; open files: {} to {}\n",
      mib(first_.anonymous_bytes), median(0.2, 0.4), median(0.8, 1), mib(last_.anonymous_bytes),
      growth(), growth() / hours, mib(first_.resident_bytes), mib(last_.resident_bytes),
      mib(grammar_bytes_), first_.n_threads, last_.n_threads, first_.n_files, last_.n_files);
}

}  // namespace qw::soak
