// What a search for --max-kl has written and measured so far, in a file: a run that was interrupted
// goes on with what it wrote last.
//
// Level 8 (app). The network is measured again, to the same bits; which bits come after which is
// then a question of what was measured of them, so that is all that is kept.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace qw::app {

class BudgetAttempts {
 public:
  /// Reads the file at `path` where there is one. `job`: all that what is measured of some bits
  /// depends on. Errors: invalid_argument (another job's, or none of ours), io.
  BudgetAttempts(std::string path, std::string job);

  /// Whether there was a file.
  bool is_resumed() const noexcept { return is_resumed_; }
  /// What was measured with these bits, a number for each group.
  std::optional<double> measured(const std::vector<int>& bits) const;
  /// Whether these are what was begun last, and not measured.
  bool is_begun(const std::vector<int>& bits) const { return begun_ == bits; }

  /// Into the file, before they are written. Errors: io.
  void begin(const std::vector<int>& bits);
  /// What was begun is written and measured. Errors: io.
  void finish(double kl);
  /// Removes the file. Errors: io.
  void remove();

 private:
  void save() const;

  std::string path_, job_;
  bool is_resumed_ = false;
  std::vector<std::pair<std::vector<int>, double>> measured_;
  std::vector<int> begun_;
};

}  // namespace qw::app
