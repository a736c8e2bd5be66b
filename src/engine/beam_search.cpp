#include "engine/beam_search.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/forced_words.h"

namespace qw {

BeamGroup::BeamGroup(Options options) : options_(std::move(options)) {}

int64_t BeamGroup::n_candidates() const {
  return std::max<int64_t>(2, 1 + static_cast<int64_t>(options_.eos.size())) * options_.size;
}

std::vector<BeamCandidate> BeamGroup::process(std::span<const BeamCandidate> candidates,
                                              std::span<const std::span<const int32_t>> beams) {
  QW_CHECK(!done_ && !candidates.empty());
  std::vector<BeamCandidate> next;
  // The length that the candidates' scores are sums over.
  const int64_t length = static_cast<int64_t>(beams[0].size()) + 1;
  for (size_t rank = 0; rank < candidates.size(); ++rank) {
    const BeamCandidate& candidate = candidates[rank];
    if (ends(candidate)) {
      // An end below the best `size` candidates is dropped: its beam did not get that far.
      if (static_cast<int>(rank) >= options_.size) continue;
      end(candidate, beams[static_cast<size_t>(candidate.beam)]);
    } else {
      next.push_back(candidate);
    }
    if (static_cast<int>(next.size()) == options_.size) break;
  }
  float best = candidates[0].score;
  for (const BeamCandidate& candidate : candidates)
    best = std::max(best, candidate.score);
  done_ = is_done(best, length);
  return next;
}

bool BeamGroup::ends(const BeamCandidate& candidate) const {
  return candidate.stops ||
         std::find(options_.eos.begin(), options_.eos.end(), candidate.token) != options_.eos.end();
}

void BeamGroup::end(const BeamCandidate& candidate, std::span<const int32_t> beam) {
  Hypothesis hypothesis;
  hypothesis.generated.assign(beam.begin(), beam.end());
  hypothesis.ended = !candidate.stops;
  hypothesis.trace = candidate.trace;
  if (hypothesis.ended) hypothesis.end = candidate.token;
  if (candidate.stops) hypothesis.generated.push_back(candidate.token);
  if (options_.forced != nullptr && !options_.forced->all_said(hypothesis.generated)) return;
  add(std::move(hypothesis), candidate.score, std::ssize(beam) + 1);
}

void BeamGroup::add(Hypothesis hypothesis, float sum, int64_t length) {
  const double score =
      static_cast<double>(sum) / std::pow(static_cast<double>(length), options_.length_penalty);
  const auto full = static_cast<size_t>(options_.size);
  if (hypotheses_.size() >= full && !(score > worst_)) return;
  hypothesis.score = score;
  hypotheses_.push_back(std::move(hypothesis));
  if (hypotheses_.size() <= full) {
    worst_ = std::min(score, worst_);
    return;
  }
  const auto by_score = [](const Hypothesis& a, const Hypothesis& b) { return a.score < b.score; };
  hypotheses_.erase(std::min_element(hypotheses_.begin(), hypotheses_.end(), by_score));
  worst_ = std::min_element(hypotheses_.begin(), hypotheses_.end(), by_score)->score;
}

bool BeamGroup::is_done(float best_sum, int64_t length) const {
  if (hypotheses_.size() < static_cast<size_t>(options_.size)) return false;
  if (options_.early_stopping == EarlyStopping::kTrue) return true;
  // The best score that an open beam could still reach. "never" with a positive penalty assumes the
  // longest answer, since longer answers are then divided by more.
  const bool to_the_end =
      options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0;
  const auto divisor = static_cast<double>(to_the_end ? options_.max_new : length);
  return worst_ >= static_cast<double>(best_sum) / std::pow(divisor, options_.length_penalty);
}

void BeamGroup::close(std::span<const std::span<const int32_t>> beams,
                      std::span<const float> scores, std::span<const int64_t> traces) {
  if (done_) return;
  std::vector<bool> is_whole(beams.size(), true);
  for (size_t b = 0; options_.forced != nullptr && b < beams.size(); ++b)
    is_whole[b] = options_.forced->all_said(beams[b]);
  const auto add_those = [&](bool whole) {
    for (size_t b = 0; b < beams.size(); ++b) {
      if (is_whole[b] == whole)
        add({0, {beams[b].begin(), beams[b].end()}, false, traces[b]}, scores[b],
            std::ssize(beams[b]));
    }
  };
  add_those(true);
  // Only the open beams count: an answer that has ended before does not keep a half-said one out.
  if (std::count(is_whole.begin(), is_whole.end(), true) < options_.n_answers) add_those(false);
}

std::vector<Hypothesis> best_hypotheses(std::span<const BeamGroup> groups, int64_t n) {
  std::vector<Hypothesis> all;
  for (const BeamGroup& group : groups)
    all.insert(all.end(), group.hypotheses().begin(), group.hypotheses().end());
  std::stable_sort(all.begin(), all.end(),
                   [](const Hypothesis& a, const Hypothesis& b) { return a.score < b.score; });
  std::reverse(all.begin(), all.end());
  if (static_cast<int64_t>(all.size()) > n) all.resize(static_cast<size_t>(n));
  return all;
}

}  // namespace qw
