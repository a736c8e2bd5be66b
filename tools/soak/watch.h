// What is seen of the server from outside: its memory over time, and its counts once all is quiet.
#pragma once

#include <string>
#include <vector>

#include "soak/actor.h"
#include "soak/child.h"

namespace qw::soak {

inline double mib(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

class Watch {
 public:
  void begin(const Footprint& footprint) { first_ = footprint; }
  void sample(double seconds, const Footprint& footprint) {
    samples_.push_back({seconds, footprint});
  }
  /// Once nobody asks anything: nothing is running, waiting or held, what was accepted has ended,
  /// no answer was an internal error, and threads and files are as many as at the beginning.
  std::vector<std::string> faults_at_rest(const Place& place, Child& child, bool restarted);
  /// The anonymous memory's median of the last fifth of the time, less that of the second one.
  std::string growth_fault(double max_mib) const;
  std::string summary() const;

 private:
  struct Sample {
    double seconds;
    Footprint footprint;
  };
  /// The median of the anonymous bytes between two shares of the time.
  double median(double from, double to) const;
  double growth() const { return median(0.8, 1) - median(0.2, 0.4); }

  Footprint first_, last_;
  int64_t grammar_bytes_ = 0;  // at rest
  std::vector<Sample> samples_;
};

}  // namespace qw::soak
