#include "engine/dry_penalty.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>

#include "base/error.h"

namespace qw {
namespace {

/// out[k]: how many tokens before and at the k-th from the end are the same as at the end; out[0]
/// is 0. Gusfield's Z algorithm, from behind: each token is compared a constant number of times.
std::vector<size_t> common_ends(std::span<const int32_t> ids) {
  const size_t n = ids.size();
  const auto at = [&](size_t i) { return ids[n - 1 - i]; };  // from the end
  std::vector<size_t> out(n);
  size_t begin = 0,
         end = 0;  // the match that reaches farthest: [begin, end) is as [0, end - begin)
  for (size_t k = 1; k < n; ++k) {
    size_t length = k < end ? std::min(end - k, out[k - begin]) : 0;
    while (k + length < n && at(length) == at(k + length))
      ++length;
    out[k] = length;
    if (k + length > end) {
      begin = k;
      end = k + length;
    }
  }
  return out;
}

}  // namespace

DryPenalty::DryPenalty(DryOptions options, std::shared_ptr<const Tokenizer> tokenizer)
    : options_(std::move(options)), tokenizer_(std::move(tokenizer)) {
  QW_CHECK(tokenizer_ != nullptr || options_.breakers.empty());
}

bool DryPenalty::breaks(int32_t id) const {
  return std::ranges::any_of(options_.breakers, [&](const std::string& breaker) {
    return tokenizer_->token_bytes(id).find(breaker) != std::string_view::npos;
  });
}

size_t DryPenalty::tokens_since_breaker(std::span<const int32_t> window) const {
  if (options_.breakers.empty()) return window.size();
  std::string text;
  std::vector<size_t> ends;  // of each token
  for (const int32_t id : window) {
    text += tokenizer_->token_bytes(id);
    ends.push_back(text.size());
  }
  size_t last_end = 0;
  for (const std::string& breaker : options_.breakers) {
    const size_t at = text.rfind(breaker);
    if (at != std::string::npos) last_end = std::max(last_end, at + breaker.size());
  }
  if (last_end == 0) return window.size();
  const auto token = std::ranges::lower_bound(ends, last_end);
  return static_cast<size_t>(ends.end() - token) - 1;
}

void DryPenalty::process(const TokenHistory& history, LogitsRow& row) const {
  std::span<const int32_t> window = history.ids;
  if (options_.last_n >= 0 && std::ssize(window) > options_.last_n)
    window = window.last(static_cast<size_t>(options_.last_n));
  const size_t reach = tokens_since_breaker(window);
  const auto allowed = static_cast<size_t>(options_.allowed_length);
  if (reach < allowed) return;
  const std::vector<size_t> common = common_ends(window);
  std::map<int32_t, size_t> longest;  // repetition that a token goes on with
  for (size_t k = 1; k < window.size(); ++k) {
    const size_t length = std::min(common[k], reach);
    if (length < allowed) continue;
    size_t& most = longest[window[window.size() - k]];
    most = std::max(most, length);
  }
  constexpr double kMost = std::numeric_limits<float>::max();
  for (const auto& [id, length] : longest) {
    if (breaks(id)) continue;
    const double factor = std::pow(options_.base, static_cast<double>(length - allowed));
    row[id] -= static_cast<float>(std::min(options_.multiplier * factor, kMost));
  }
}

}  // namespace qw
