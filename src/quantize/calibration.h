// What quantisers see a network's inputs on: samples of ids, cut into sequences.
//
// Level 6 (quantize). Reading files and making ids of texts and chats is the caller's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qw::quantize {

struct CalibrationOptions {
  int64_t length = 512;         // of the longest sequence, in tokens
  int64_t max_tokens = 65'536;  // 0: all that is given
};

struct CalibrationSet {
  static constexpr int64_t kLeastTokens = 128;

  std::vector<std::vector<int32_t>> sequences;
  int64_t n_samples = 0;       // as given
  int64_t n_tokens = 0;        // of the sequences
  int64_t n_tokens_given = 0;  // of the samples

  std::string summary() const;  // "65536 of 83000 tokens of 120 samples, in 128 sequences"
};

/// Cuts samples that are longer than options.length; nothing of a sample is dropped for its length.
/// What is beyond max_tokens is left out evenly: of every so many sequences one. Errors:
/// invalid_argument (length below 2; fewer than kLeastTokens in all, as a limit, or within it).
CalibrationSet cut_calibration(const std::vector<std::vector<int32_t>>& samples,
                               const CalibrationOptions& options);

/// SHA-256 of all sequences, to tell one set from another.
std::string calibration_name(const CalibrationSet& set);

/// The set that is used when none is given, a JSON object a line: {"text"} or {"messages"}.
std::string_view default_calibration();

}  // namespace qw::quantize
