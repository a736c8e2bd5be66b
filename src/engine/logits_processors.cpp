#include "engine/logits_processors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "engine/logits_math.h"

namespace qw {
namespace {

std::vector<int32_t> distinct(std::span<const int32_t> ids) {
  std::vector<int32_t> out(ids.begin(), ids.end());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

bool ends_with(std::span<const int32_t> ids, std::span<const int32_t> tail) {
  return ids.size() >= tail.size() &&
         std::equal(tail.begin(), tail.end(), ids.end() - static_cast<std::ptrdiff_t>(tail.size()));
}

/// How often each token occurs, in one pass: open addressing, never more than half full.
class TokenCounts {
 public:
  explicit TokenCounts(std::span<const int32_t> ids) : slots_(std::bit_ceil(ids.size() * 2 + 1)) {
    const size_t mask = slots_.size() - 1;
    for (const int32_t id : ids) {
      size_t i = static_cast<uint32_t>(id) * size_t{0x9E3779B1} & mask;
      while (slots_[i].count != 0 && slots_[i].id != id)
        i = (i + 1) & mask;
      slots_[i].id = id;
      ++slots_[i].count;
    }
  }

  /// visit(id, count) for every token that occurs, in no particular order.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (const Slot& slot : slots_) {
      if (slot.count != 0) visit(slot.id, slot.count);
    }
  }

 private:
  struct Slot {
    int32_t id = 0, count = 0;
  };
  std::vector<Slot> slots_;
};

void scale_against_sign(float& value, float penalty) {
  value = value < 0 ? value * penalty : value / penalty;
}

}  // namespace

void RepetitionPenalty::process(const TokenHistory& history, LogitsRow& row) const {
  std::vector<bool> seen(row.values().size());
  for (const int32_t id : history.ids) {
    if (seen[static_cast<size_t>(id)]) continue;
    seen[static_cast<size_t>(id)] = true;
    scale_against_sign(row[id], penalty_);
  }
}

EncoderRepetitionPenalty::EncoderRepetitionPenalty(double penalty, std::vector<int32_t> prompt)
    : penalty_(static_cast<float>(1 / penalty)), prompt_(distinct(prompt)) {}

void EncoderRepetitionPenalty::process(const TokenHistory&, LogitsRow& row) const {
  for (const int32_t id : prompt_)
    scale_against_sign(row[id], penalty_);
}

void PresenceFrequencyPenalty::process(const TokenHistory& history, LogitsRow& row) const {
  TokenCounts(history.generated()).for_each([&](int32_t id, int32_t count) {
    row[id] -= frequency_ * static_cast<float>(count) + presence_;
  });
}

void NoRepeatNgram::process(const TokenHistory& history, LogitsRow& row) const {
  const auto prefix_len = static_cast<size_t>(n_ - 1);
  if (history.ids.size() < prefix_len) return;
  const std::span<const int32_t> prefix = history.ids.last(prefix_len);
  const std::span<const int32_t> source =
      from_prompt_ ? std::span<const int32_t>(source_) : history.ids;
  for (size_t i = 0; i + prefix_len < source.size(); ++i) {
    if (std::equal(prefix.begin(), prefix.end(), source.begin() + static_cast<std::ptrdiff_t>(i))) {
      row[source[i + prefix_len]] = kMinusInfinity;
    }
  }
}

SequenceBiasProcessor::SequenceBiasProcessor(std::vector<SequenceBias> biases)
    : biases_(std::move(biases)) {
  // Single tokens first, then the order given: the order in which Transformers adds them up.
  std::stable_sort(biases_.begin(), biases_.end(),
                   [](const SequenceBias& a, const SequenceBias& b) {
                     if (a.ids.back() != b.ids.back()) return a.ids.back() < b.ids.back();
                     return (a.ids.size() == 1) > (b.ids.size() == 1);
                   });
}

void SequenceBiasProcessor::process(const TokenHistory& history, LogitsRow& row) const {
  for (size_t i = 0; i < biases_.size();) {
    const int32_t target = biases_[i].ids.back();
    float sum = 0;
    for (; i < biases_.size() && biases_[i].ids.back() == target; ++i) {
      const std::span<const int32_t> ids = biases_[i].ids;
      const bool fits = ids.size() == 1 || ids.size() <= history.ids.size();
      if (fits && ends_with(history.ids, ids.first(ids.size() - 1))) sum += biases_[i].bias;
    }
    if (sum != 0) row[target] += sum;
  }
}

std::vector<SequenceBias> bad_word_biases(const std::vector<std::vector<int32_t>>& bad_words,
                                          const std::vector<int32_t>& eos) {
  std::vector<SequenceBias> out;
  for (const auto& ids : bad_words) {
    const bool is_eos = ids.size() == 1 && std::find(eos.begin(), eos.end(), ids[0]) != eos.end();
    if (!is_eos) out.push_back({ids, kMinusInfinity});
  }
  return out;
}

void SuppressTokens::process(const TokenHistory& history, LogitsRow& row) const {
  if (at_length_ >= 0 && history.size() != at_length_) return;
  for (const int32_t id : ids_)
    row[id] = kMinusInfinity;
}

void MinLength::process(const TokenHistory& history, LogitsRow& row) const {
  if (history.size() >= min_length_) return;
  for (const int32_t id : eos_)
    row[id] = kMinusInfinity;
}

void ForcedTokens::process(const TokenHistory& history, LogitsRow& row) const {
  if (history.size() != at_length_) return;
  std::span<float> values = row.values();
  std::fill(values.begin(), values.end(), kMinusInfinity);
  for (const int32_t id : ids_)
    row[id] = 0;
}

ExponentialDecayLength::ExponentialDecayLength(int64_t start, double factor,
                                               std::vector<int32_t> eos)
    : start_(start), factor_(factor), eos_(distinct(eos)) {}

void ExponentialDecayLength::process(const TokenHistory& history, LogitsRow& row) const {
  if (history.size() <= start_) return;
  const double growth = std::pow(factor_, static_cast<double>(history.size() - start_)) - 1;
  // What grows beyond the floats stops at their largest: infinity times 0 would be no number, and
  // infinity no score to compare.
  constexpr float kMax = std::numeric_limits<float>::max();
  const auto capped = static_cast<float>(std::min(growth, static_cast<double>(kMax)));
  for (const int32_t id : eos_) {
    const float value = row[id];
    if (std::isfinite(value)) row[id] = std::clamp(value + std::abs(value) * capped, -kMax, kMax);
  }
}

void RemoveInvalid::process(const TokenHistory&, LogitsRow& row) const {
  remove_not_finite(row.values());
}

void Renormalize::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const double log_sum = log_sum_exp(compact.values);
  if (!std::isfinite(log_sum)) return;  // nothing is left: the sampler says so
  for (size_t i = 0; i < compact.values.size(); ++i) {
    float& v = row[compact.id(i)];
    v = static_cast<float>(static_cast<double>(v) - log_sum);
  }
}

void apply_hamming_diversity(double penalty, std::span<const int32_t> chosen_by_earlier_groups,
                             LogitsRow& row) {
  std::unordered_map<int32_t, int> counts;
  for (const int32_t id : chosen_by_earlier_groups)
    ++counts[id];
  for (const auto& [id, count] : counts) {
    row[id] -= static_cast<float>(penalty) * static_cast<float>(count);
  }
}

}  // namespace qw
