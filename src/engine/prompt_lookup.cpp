#include "engine/prompt_lookup.h"

#include <algorithm>

namespace qw {

std::vector<int32_t> look_up(std::span<const int32_t> history, int64_t max_ngram, int64_t n) {
  const auto size = std::ssize(history);
  std::ptrdiff_t begin = 0;  // of the guess: where the best match ends; 0: none
  int64_t longest = 0;
  for (std::ptrdiff_t end = size - 1; end > 0 && longest < max_ngram; --end) {
    const int64_t limit = std::min<int64_t>(max_ngram, end);
    int64_t length = 0;
    while (length < limit && history[static_cast<size_t>(end - 1 - length)] ==
                                 history[static_cast<size_t>(size - 1 - length)])
      ++length;
    if (length <= longest) continue;
    longest = length;
    begin = end;
  }
  std::vector<int32_t> guess;
  if (begin == 0) return guess;
  const auto period = size - begin;
  for (int64_t i = 0; i < n; ++i) {
    guess.push_back(i < period ? history[static_cast<size_t>(begin + i)]
                               : guess[static_cast<size_t>(i - period)]);
  }
  return guess;
}

void LookupDrafter::propose(std::span<DraftQuery> queries) {
  for (DraftQuery& query : queries)
    query.guess = look_up(query.tokens, query.config->max_matching_ngram_size, query.n);
}

}  // namespace qw
