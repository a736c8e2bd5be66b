#include "quantize/calibration.h"

#include <algorithm>

#include "base/error.h"
#include "base/sha256.h"

namespace qw::quantize {

std::string CalibrationSet::summary() const {
  std::string tokens = n_tokens == n_tokens_given
                           ? fmt::format("all {} tokens", n_tokens)
                           : fmt::format("{} of {} tokens", n_tokens, n_tokens_given);
  return fmt::format("{} of {} sample{}, in {} sequence{}", tokens, n_samples,
                     n_samples == 1 ? "" : "s", sequences.size(), sequences.size() == 1 ? "" : "s");
}

CalibrationSet cut_calibration(const std::vector<std::vector<int32_t>>& samples,
                               const CalibrationOptions& options) {
  if (options.length < 2) {
    fail(ErrorKind::kInvalidArgument, "calibration", "length: expected at least 2 tokens, got {}",
         options.length);
  }
  constexpr int64_t kLeast = CalibrationSet::kLeastTokens;
  if (options.max_tokens > 0 && options.max_tokens < kLeast) {
    fail(ErrorKind::kInvalidArgument, "calibration",
         "tokens: expected at least {} (or 0, no limit), got {}", kLeast, options.max_tokens);
  }
  CalibrationSet out;
  std::vector<std::vector<int32_t>> all;
  for (const std::vector<int32_t>& sample : samples) {
    ++out.n_samples;
    out.n_tokens_given += std::ssize(sample);
    for (auto begin = sample.begin(); begin != sample.end();) {
      const auto end = begin + std::min(options.length, static_cast<int64_t>(sample.end() - begin));
      all.emplace_back(begin, end);
      begin = end;
    }
  }
  if (out.n_tokens_given < kLeast) {
    fail(ErrorKind::kInvalidArgument, "calibration",
         "samples: expected at least {} tokens in all, got {} in {} samples", kLeast,
         out.n_tokens_given, out.n_samples);
  }
  const int64_t most = options.max_tokens > 0 ? options.max_tokens : out.n_tokens_given;
  // The place of a sequence among all tokens, scaled to the tokens wanted: where that reaches what
  // was taken so far, the sequence is taken.
  const double share = static_cast<double>(most) / static_cast<double>(out.n_tokens_given);
  int64_t passed = 0;
  for (std::vector<int32_t>& sequence : all) {
    const auto size = std::ssize(sequence);
    passed += size;
    const bool is_due =
        static_cast<double>(passed) * share >= static_cast<double>(out.n_tokens + size) - 0.5;
    if (share < 1 && !(is_due && out.n_tokens + size <= most)) continue;
    out.n_tokens += size;
    out.sequences.push_back(std::move(sequence));
  }
  if (out.n_tokens < kLeast) {
    fail(ErrorKind::kInvalidArgument, "calibration",
         "tokens: expected a limit within which at least {} fit in whole sequences, got {}, within "
         "which {} do",
         kLeast, most, out.n_tokens);
  }
  return out;
}

std::string calibration_name(const CalibrationSet& set) {
  Sha256 hash;
  for (const std::vector<int32_t>& sequence : set.sequences) {
    const auto size = static_cast<int64_t>(sequence.size());
    hash.update(std::as_bytes(std::span(&size, 1)));
    hash.update(std::as_bytes(std::span(sequence)));
  }
  return to_hex(hash.finish());
}

}  // namespace qw::quantize
