#include "engine/grammar/grammar_processor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <limits>

#include "base/error.h"
#include "engine/logits_math.h"

namespace qw {

using grammar::ConfigId;
using grammar::kDead;

namespace {

/// After an end token.
constexpr ConfigId kEnded = 0;
/// Sequences that are remembered: answers of one request, and its beams.
constexpr size_t kMaxTracks = 32;
/// A sequence that parts from a remembered one so near its end takes its place: what was guessed
/// ahead in vain.
constexpr size_t kGuessedAhead = 64;

/// For each byte, all ones for every float that stays.
constexpr auto kKept = [] {
  std::array<std::array<uint32_t, 8>, 256> out{};
  for (size_t byte = 0; byte < 256; ++byte) {
    for (size_t bit = 0; bit < 8; ++bit)
      out[byte][bit] = (byte >> bit & 1) != 0 ? UINT32_MAX : 0;
  }
  return out;
}();

/// values[i] <- -infinity where bit i of `word` is 0.
void keep_bits(uint64_t word, std::span<float> values) {
  constexpr int kFew = 12;
  if (values.size() < 64 || std::popcount(word) >= 64 - kFew) {
    for (uint64_t gone = ~word; gone != 0; gone &= gone - 1) {
      const auto i = static_cast<size_t>(std::countr_zero(gone));
      if (i < values.size()) values[i] = kMinusInfinity;
    }
    return;
  }
  // Half of the vocabulary may go: eight at a time, by selection.
  constexpr auto kGone = std::bit_cast<uint32_t>(-std::numeric_limits<float>::infinity());
  float* at = values.data();
  for (int group = 0; group < 8; ++group, at += 8, word >>= 8) {
    const uint32_t* kept = kKept[word & 0xFF].data();
    uint32_t bits[8];
    std::memcpy(bits, at, sizeof bits);
    for (int i = 0; i < 8; ++i)
      bits[i] = (bits[i] & kept[i]) | (kGone & ~kept[i]);
    std::memcpy(at, bits, sizeof bits);
  }
}

}  // namespace

GrammarProcessor::GrammarProcessor(std::shared_ptr<GrammarMatcher> matcher,
                                   std::vector<int32_t> eos_ids)
    : matcher_(std::move(matcher)), eos_ids_(std::move(eos_ids)) {
  std::sort(eos_ids_.begin(), eos_ids_.end());
  eos_ids_.erase(std::unique(eos_ids_.begin(), eos_ids_.end()), eos_ids_.end());
}

bool GrammarProcessor::is_eos(int32_t id) const {
  return std::binary_search(eos_ids_.begin(), eos_ids_.end(), id);
}

ConfigId GrammarProcessor::next(ConfigId config, int32_t id,
                                GrammarMatcher::Session& session) const {
  if (config == kDead) return kDead;
  if (is_eos(id)) return config == kEnded || session.accepts(config) ? kEnded : kDead;
  return config == kEnded ? kDead : session.advance(config, id);
}

GrammarProcessor::Track& GrammarProcessor::track_for(std::span<const int32_t> generated,
                                                     GrammarMatcher::Session& session) const {
  size_t best_shared = 0;
  Track* best = nullptr;
  for (Track& track : tracks_) {
    const auto shared = static_cast<size_t>(
        std::mismatch(track.ids.begin(), track.ids.end(), generated.begin(), generated.end())
            .first -
        track.ids.begin());
    if (best != nullptr && shared <= best_shared) continue;
    best = &track;
    best_shared = shared;
  }
  const bool goes_on = best != nullptr && best_shared + kGuessedAhead >= best->ids.size() &&
                       (best_shared > 0 || best->ids.empty());
  if (goes_on) return *best;
  Track fresh;
  fresh.configs.push_back(session.start());
  if (best != nullptr) {
    const auto n = static_cast<std::ptrdiff_t>(best_shared);
    fresh.ids.assign(best->ids.begin(), best->ids.begin() + n);
    fresh.configs.assign(best->configs.begin(), best->configs.begin() + n + 1);
  }
  if (tracks_.size() < kMaxTracks) return tracks_.emplace_back(std::move(fresh));
  Track& oldest = *std::ranges::min_element(tracks_, {}, &Track::last_used);
  return oldest = std::move(fresh);
}

ConfigId GrammarProcessor::config_after(std::span<const int32_t> generated,
                                        GrammarMatcher::Session& session) const {
  if (generation_ != session.generation()) {  // what was remembered is gone
    tracks_.clear();
    generation_ = session.generation();
  }
  Track& track = track_for(generated, session);
  track.last_used = ++clock_;
  const auto shared = static_cast<size_t>(
      std::mismatch(track.ids.begin(), track.ids.end(), generated.begin(), generated.end()).first -
      track.ids.begin());
  if (shared == generated.size()) return track.configs[shared];
  track.ids.resize(shared);
  track.configs.resize(shared + 1);
  for (size_t i = shared; i < generated.size(); ++i) {
    const ConfigId config = next(track.configs.back(), generated[i], session);
    if (config == kDead) {
      fail(ErrorKind::kInvalidArgument, "grammar",
           "generated tokens: expected what the grammar allows, got token {} as number {} of the "
           "answer; another parameter forces it",
           generated[i], i + 1);
    }
    track.ids.push_back(generated[i]);
    track.configs.push_back(config);
  }
  return track.configs.back();
}

void GrammarProcessor::keep(std::vector<int32_t> ids, LogitsRow& row, int64_t position) const {
  const auto size = static_cast<int32_t>(row.values().size());
  std::erase_if(ids, [&](int32_t id) { return id < 0 || id >= size; });
  if (row.is_sparse()) {
    std::vector<int32_t> both;
    std::ranges::set_intersection(ids, row.live(), std::back_inserter(both));
    ids = std::move(both);
  }
  const bool any = std::ranges::any_of(ids, [&](int32_t id) { return row[id] > kMinusInfinity; });
  if (!any) {
    fail(ErrorKind::kInvalidArgument, "grammar",
         "next token: expected that other parameters (min_new_tokens, bad_words_ids, "
         "suppress_tokens, eos_token_id, ...) leave some token that the grammar allows, got none "
         "(position {})",
         position);
  }
  row.keep_only(std::move(ids));
}

void GrammarProcessor::apply(const TokenMask& mask, LogitsRow& row, int64_t position) const {
  if (mask.is_sparse) {
    std::vector<int32_t> ids = mask.ids;
    if (mask.accepts) {
      const auto middle = static_cast<std::ptrdiff_t>(ids.size());
      ids.insert(ids.end(), eos_ids_.begin(), eos_ids_.end());
      std::inplace_merge(ids.begin(), ids.begin() + middle, ids.end());
      ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    }
    return keep(std::move(ids), row, position);
  }
  const auto allowed = [&](int32_t id) { return is_eos(id) ? mask.accepts : mask.allows(id); };
  if (row.is_sparse()) {
    std::vector<int32_t> ids(row.live().begin(), row.live().end());
    std::erase_if(ids, [&](int32_t id) { return !allowed(id); });
    return keep(std::move(ids), row, position);
  }
  std::span<float> values = row.values();
  std::vector<float> eos_values;
  for (const int32_t id : eos_ids_)
    if (static_cast<size_t>(id) < values.size()) eos_values.push_back(row[id]);
  const size_t n = std::min(values.size(), mask.bits.size() * 64);
  for (size_t begin = 0; begin < n; begin += 64) {
    const uint64_t word = mask.bits[begin / 64];
    if (word != UINT64_MAX) keep_bits(word, values.subspan(begin, std::min<size_t>(64, n - begin)));
  }
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(n), values.end(), kMinusInfinity);
  size_t next_eos = 0;
  for (const int32_t id : eos_ids_) {
    if (static_cast<size_t>(id) >= values.size()) continue;
    row[id] = mask.accepts ? eos_values[next_eos] : kMinusInfinity;
    ++next_eos;
  }
}

void GrammarProcessor::process(const TokenHistory& history, LogitsRow& row) const {
  std::shared_ptr<const TokenMask> mask;
  {
    GrammarMatcher::Session session(*matcher_);
    const std::lock_guard lock(mutex_);
    const ConfigId config = config_after(history.generated(), session);
    if (config != kEnded) mask = session.mask(config);
  }
  if (mask) return apply(*mask, row, history.size());
  keep(eos_ids_, row, history.size());
}

}  // namespace qw
