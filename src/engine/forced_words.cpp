#include "engine/forced_words.h"

#include <algorithm>

#include "engine/logits_math.h"

namespace qw {

// ---- one sequence ------------------------------------------------------------------------------

std::vector<int32_t> ForcedWordsState::Word::next() const {
  std::vector<int32_t> out;
  for (const std::vector<int32_t>& form : word->forms) {
    if (form.size() <= said.size() || !std::equal(said.begin(), said.end(), form.begin())) continue;
    const int32_t token = form[said.size()];
    if (std::find(out.begin(), out.end(), token) == out.end()) out.push_back(token);
  }
  return out;
}

bool ForcedWordsState::Word::is_complete() const {
  return std::find(word->forms.begin(), word->forms.end(), said) != word->forms.end();
}

int64_t ForcedWordsState::Word::longest() const {
  size_t longest = 0;
  for (const std::vector<int32_t>& form : word->forms)
    longest = std::max(longest, form.size());
  return static_cast<int64_t>(longest);
}

ForcedWordsState::ForcedWordsState(const std::vector<ForcedWord>& words) {
  for (const ForcedWord& word : words) {
    pending_.push_back({&word, {}});
    longest_ = std::max(longest_, pending_.back().longest());
  }
}

void ForcedWordsState::add(int32_t token) {
  const auto continues = [token](const Word& word) {
    const std::vector<int32_t> next = word.next();
    return std::find(next.begin(), next.end(), token) != next.end();
  };
  if (in_progress_ && !continues(*in_progress_)) {
    // The word has to be begun again; the token is not looked at as the beginning of another.
    in_progress_->said.clear();
    pending_.push_back(std::move(*in_progress_));
    in_progress_.reset();
    return;
  }
  if (!in_progress_) {
    const auto begun = std::find_if(pending_.begin(), pending_.end(), continues);
    if (begun == pending_.end()) return;
    in_progress_ = std::move(*begun);
    pending_.erase(begun);
  }
  in_progress_->said.push_back(token);
  if (!in_progress_->is_complete()) return;
  in_progress_.reset();
  ++n_said_;
}

std::vector<int32_t> ForcedWordsState::advances() const {
  if (in_progress_) return in_progress_->next();
  std::vector<int32_t> out;
  for (const Word& word : pending_) {
    const std::vector<int32_t> next = word.next();
    out.insert(out.end(), next.begin(), next.end());
  }
  return out;
}

int64_t ForcedWordsState::bank() const noexcept {
  int64_t bank = n_said_ * longest_;
  if (in_progress_) {
    const int64_t remaining = in_progress_->longest() - std::ssize(in_progress_->said);
    bank += longest_ - remaining;
  }
  return bank;
}

// ---- all beams ---------------------------------------------------------------------------------

ForcedWords::ForcedWords(std::vector<ForcedWord> words, std::span<const int32_t> prompt)
    : words_(std::move(words)), after_prompt_(words_) {
  for (const int32_t token : prompt)
    after_prompt_.add(token);
}

ForcedWordsState ForcedWords::state_after(std::span<const int32_t> generated) const {
  ForcedWordsState state = after_prompt_;
  for (const int32_t token : generated)
    state.add(token);
  return state;
}

std::vector<BeamCandidate> ForcedWords::steer(std::span<const BeamCandidate> chosen,
                                              std::span<const std::span<const int32_t>> beams,
                                              const std::function<float(int, int32_t)>& score,
                                              size_t size) const {
  struct Option {
    BeamCandidate candidate;
    int64_t bank = 0;
    size_t rank = 0;  // within its bank
  };
  std::vector<ForcedWordsState> states;
  for (const std::span<const int32_t> beam : beams)
    states.push_back(state_after(beam));
  std::vector<Option> options;
  const auto add = [&](const BeamCandidate& candidate) {
    ForcedWordsState state = states[static_cast<size_t>(candidate.beam)];
    state.add(candidate.token);
    options.push_back({candidate, state.bank()});
  };
  for (const BeamCandidate& candidate : chosen)
    add(candidate);
  // Before the beams have parted several of them are the same sequence.
  const auto is_there = [&](int beam, int32_t token) {
    const std::span<const int32_t> tokens = beams[static_cast<size_t>(beam)];
    return std::any_of(options.begin(), options.end(), [&](const Option& option) {
      const std::span<const int32_t> other = beams[static_cast<size_t>(option.candidate.beam)];
      return option.candidate.token == token &&
             std::equal(tokens.begin(), tokens.end(), other.begin(), other.end());
    });
  };
  for (int beam = 0; beam < static_cast<int>(beams.size()); ++beam) {
    for (const int32_t token : states[static_cast<size_t>(beam)].advances()) {
      const float sum = score(beam, token);
      if (sum != kMinusInfinity && !is_there(beam, token)) add({beam, token, sum});
    }
  }

  const auto value = [](const Option& option) {  // Transformers' way to sort by both at once
    return static_cast<float>(option.bank) * 100.0f + option.candidate.score;
  };
  std::stable_sort(options.begin(), options.end(),
                   [&](const Option& a, const Option& b) { return value(a) > value(b); });
  for (size_t i = 1; i < options.size(); ++i) {
    const bool same = options[i].bank == options[i - 1].bank;
    options[i].rank = same ? options[i - 1].rank + 1 : 0;
  }
  std::stable_sort(options.begin(), options.end(),
                   [](const Option& a, const Option& b) { return a.rank < b.rank; });
  std::vector<BeamCandidate> out;
  for (const Option& option : options) {
    if (out.size() < size) out.push_back(option.candidate);
  }
  return out;
}

}  // namespace qw
