// Numbers that take long to measure, in a file as soon as they are: a run that was interrupted goes
// on with the next one.
//
// Level 6 (quantize). OUTPUT.measured/journal.jsonl: a line {"job": TEXT}, then a line {"of": NAME,
// "values": [...]} for each measurement, appended and on the disk before the next is begun. Doubles
// are written with the fewest digits that give the same bits again.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/descriptor.h"

namespace qw::quantize {

class MeasurementJournal {
 public:
  /// Makes the directory, or goes on with the one that is there. What a killed process left of a
  /// last line is cut off. `job`: all that the numbers depend on. Errors: invalid_argument
  /// (another job's, or none of ours), io.
  MeasurementJournal(std::string directory, const std::string& job);

  /// Whether it was there.
  bool is_resumed() const noexcept { return is_resumed_; }
  /// Where it is kept, with other files of the same job.
  const std::string& directory() const noexcept { return directory_; }

  /// Measurements in it.
  size_t size() const noexcept { return known_.size(); }
  /// What was measured under this name; NaN is what was null.
  std::optional<std::vector<double>> find(const std::string& name) const;
  /// Appends. Values that are not finite become null. Errors: io.
  void add(const std::string& name, const std::vector<double>& values);

  /// Removes the directory with all that is in it. Errors: io.
  void remove();

 private:
  void read(const std::string& job);

  std::string directory_, path_;
  bool is_resumed_ = false;
  std::map<std::string, std::vector<double>> known_;
  std::optional<Descriptor> file_;
};

}  // namespace qw::quantize
