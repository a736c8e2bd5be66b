#include "engine/grammar/token_masks.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace qw {

using grammar::ConfigId;
using grammar::Head;
using grammar::kDead;
using grammar::kUnknownFrame;
using grammar::StateMask;

namespace {

/// Lists of ids up to this length are cheaper than bits: 151,936 bits are 19 kB.
constexpr int64_t kMaxSparse = 2048;
/// Repetitions that tokens are told apart by; few tokens are longer.
constexpr size_t kMaxLayers = 33;
/// Of each grammar. A mask as bits is 19 kB; those of states come to so much if nothing is shared.
constexpr size_t kMaxMaskBytes = 4'000'000, kMaxStateMaskBytes = 10'000'000;
constexpr size_t kMaxMasks = 20'000;
/// Configurations and frames that are kept between sessions.
constexpr size_t kMaxKeptObjects = 20'000, kMaxKeptBytes = 10'000'000;

size_t words_for(const GrammarVocabulary& vocabulary) {
  return (static_cast<size_t>(vocabulary.size()) + 63) / 64;
}

void set_bit(std::vector<uint64_t>& bits, int32_t id) {
  bits[static_cast<size_t>(id) / 64] |= uint64_t{1} << (static_cast<size_t>(id) % 64);
}

int64_t count_bits(const std::vector<uint64_t>& bits) {
  int64_t n = 0;
  for (const uint64_t word : bits)
    n += std::popcount(word);
  return n;
}

std::vector<int32_t> ids_of(const std::vector<uint64_t>& bits) {
  std::vector<int32_t> out;
  for (size_t i = 0; i < bits.size(); ++i) {
    for (uint64_t word = bits[i]; word != 0; word &= word - 1)
      out.push_back(static_cast<int32_t>(i * 64) + std::countr_zero(word));
  }
  return out;
}

void sort_ends(std::span<const GrammarVocabulary::Node> nodes, StateMask& mask) {
  std::stable_sort(mask.ends.begin(), mask.ends.end(), [&](const auto& a, const auto& b) {
    return nodes[a.node].byte < nodes[b.node].byte;
  });
  for (const StateMask::End& end : mask.ends)
    ++mask.ends_begin[nodes[end.node].byte + 1u];
  for (size_t byte = 0; byte < 256; ++byte)
    mask.ends_begin[byte + 1] += mask.ends_begin[byte];
}

/// Tokens of up to kMaxLayers - 1 more repetitions as bits.
void make_layers(StateMask& mask, size_t n_words) {
  size_t n = 0;
  while (n < mask.few.size() && mask.few[n].count < kMaxLayers) {
    if (mask.layers.empty()) {
      mask.layers.emplace_back(n_words, 0);
    } else {
      mask.layers.push_back(mask.layers.back());
    }
    for (; n < mask.few.size() && mask.few[n].count < mask.layers.size(); ++n)
      set_bit(mask.layers.back(), mask.few[n].id);
  }
  mask.few.erase(mask.few.begin(), mask.few.begin() + static_cast<std::ptrdiff_t>(n));
  mask.few.shrink_to_fit();
}

}  // namespace

size_t grammar::StateMask::bytes() const {
  size_t sum = sizeof(*this) + few.size() * sizeof(Counted) + ends.size() * sizeof(End);
  for (const std::vector<uint64_t>& layer : layers)
    sum += layer.size() * sizeof(uint64_t);
  return sum;
}

bool TokenMask::allows(int32_t id) const {
  if (is_sparse) return std::binary_search(ids.begin(), ids.end(), id);
  const auto i = static_cast<size_t>(id);
  return id >= 0 && i / 64 < bits.size() && (bits[i / 64] >> (i % 64) & 1) != 0;
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar,
                               std::shared_ptr<const GrammarVocabulary> vocabulary)
    : grammar_(std::move(grammar)),
      vocabulary_(std::move(vocabulary)),
      configs_(grammar_->fsm()),
      path_(vocabulary_->max_depth() + 1) {
  note_bytes();
}

void GrammarMatcher::note_bytes() noexcept {
  bytes_.store(grammar_->fsm().bytes_held() + configs_.bytes() + state_mask_bytes_ + mask_bytes_,
               std::memory_order_relaxed);
}

GrammarMatcher::Session::Session(GrammarMatcher& matcher)
    : matcher_(matcher), lock_(matcher.mutex_) {
  const grammar::Configurations& configs = matcher.configs_;
  if (configs.n_objects() <= kMaxKeptObjects && configs.bytes() <= kMaxKeptBytes) return;
  matcher.configs_.clear();
  matcher.masks_.clear();
  matcher.mask_bytes_ = 0;
  ++matcher.generation_;
}

ConfigId GrammarMatcher::Session::advance(ConfigId config, std::string_view bytes) {
  for (const char byte : bytes) {
    if (config == kDead) break;
    config = matcher_.configs_.step(config, static_cast<uint8_t>(byte));
  }
  return config;
}

ConfigId GrammarMatcher::Session::advance(ConfigId config, int32_t id) {
  const std::string_view bytes = matcher_.vocabulary_->bytes(id);
  return bytes.empty() ? kDead : advance(config, bytes);
}

std::shared_ptr<const TokenMask> GrammarMatcher::Session::mask(ConfigId config) {
  auto& masks = matcher_.masks_;
  if (const auto it = masks.find(config); it != masks.end()) return it->second;
  std::shared_ptr<const TokenMask> mask = matcher_.compute_mask(config);
  if (matcher_.mask_bytes_ >= kMaxMaskBytes || masks.size() >= kMaxMasks) {
    masks.clear();
    matcher_.mask_bytes_ = 0;
  }
  matcher_.mask_bytes_ += mask->bytes();
  masks.emplace(config, mask);
  return mask;
}

template <typename F>
void GrammarMatcher::walk(uint32_t node, ConfigId config, F&& on_node) {
  const std::span<const GrammarVocabulary::Node> nodes = vocabulary_->nodes();
  path_[nodes[node].depth] = config;
  const uint32_t end = nodes[node].end;
  for (uint32_t i = node + 1; i < end;) {
    const GrammarVocabulary::Node& at = nodes[i];
    const ConfigId next = configs_.step(path_[at.depth - 1u], at.byte);
    if (next == kDead) {
      i = at.end;
      continue;
    }
    path_[at.depth] = next;
    on_node(i, next);
    ++i;
  }
}

void GrammarMatcher::add_ends(uint32_t node, ConfigId config, StateMask& out) {
  const std::span<const GrammarVocabulary::Node> nodes = vocabulary_->nodes();
  for (const uint32_t count : configs_.unknown_ends(config)) {
    for (uint32_t child = node + 1; child < nodes[node].end; child = nodes[child].end)
      out.ends.push_back({child, count});
  }
}

std::shared_ptr<const StateMask> GrammarMatcher::compute_state_mask(uint32_t state) {
  auto out = std::make_shared<StateMask>();
  const bool repeats = grammar_->fsm().rules[grammar_->fsm().states[state].rule].repeats;
  const auto note = [&](uint32_t node, ConfigId config) {
    if (const auto tokens = vocabulary_->tokens_at(node); !tokens.empty()) {
      uint32_t count = repeats ? UINT32_MAX : 0;
      for (const Head& head : configs_.heads(config))
        count = std::min(count, configs_.base_count(head));
      for (const int32_t id : tokens)
        out->few.push_back({repeats ? count : 0, id});
    }
    add_ends(node, config, *out);
  };
  // The first byte by the state's own edges: where calls lead are other heads, with other masks.
  const std::span<const GrammarVocabulary::Node> nodes = vocabulary_->nodes();
  for (uint32_t node = 1; node < nodes.size(); node = nodes[node].end) {
    const ConfigId next = configs_.step_bytes({state, 0, kUnknownFrame}, nodes[node].byte);
    if (next == kDead) continue;
    note(node, next);
    walk(node, next, note);
  }
  sort_ends(vocabulary_->nodes(), *out);
  std::stable_sort(out->few.begin(), out->few.end(),
                   [](const auto& a, const auto& b) { return a.count < b.count; });
  if (std::ssize(out->few) > kMaxSparse) make_layers(*out, words_for(*vocabulary_));
  return out;
}

const StateMask& GrammarMatcher::state_mask(uint32_t state) {
  if (const auto it = state_masks_.find(state); it != state_masks_.end()) return *it->second;
  const grammar::Fsm& fsm = grammar_->fsm();
  const uint32_t rule = fsm.states[state].rule;
  const std::string& rule_key = fsm.rules[rule].key;
  std::string key;
  std::shared_ptr<const StateMask> mask;
  if (!rule_key.empty()) {
    key = fmt::format("{} {}", state - fsm.rules[rule].first_state, rule_key);
    mask = vocabulary_->shared_mask(key);
  }
  if (!mask) {
    mask = compute_state_mask(state);
    if (!rule_key.empty()) vocabulary_->share_mask(key, mask);
  }
  if (state_mask_bytes_ >= kMaxStateMaskBytes) {
    state_masks_.clear();
    state_mask_bytes_ = 0;
  }
  state_mask_bytes_ += mask->bytes();
  return *state_masks_.emplace(state, std::move(mask)).first->second;
}

void GrammarMatcher::add_head(const Head& head) {
  const grammar::Fsm::Rule& rule = grammar_->fsm().rules[grammar_->fsm().states[head.state].rule];
  const StateMask& mask = state_mask(head.state);
  // A token may begin as many repetitions as are left after the one under way.
  const uint64_t max = rule.max == grammar::kUnbounded ? UINT64_MAX : rule.max;
  const uint64_t left = max - head.count - 1;
  if (!mask.layers.empty()) {
    const auto& layer = mask.layers[std::min<uint64_t>(left, mask.layers.size() - 1)];
    for (size_t i = 0; i < layer.size(); ++i)
      bits_[i] |= layer[i];
  }
  for (const StateMask::Counted& counted : mask.few) {
    if (counted.count > left) break;
    set_bit(bits_, counted.id);
  }
  if (head.frame == grammar::kBottomFrame) return;  // after the root's end nothing follows
  Head after = configs_.after(head.frame);
  configs_.settle(after);
  const ConfigId context = configs_.of_heads({after});
  const auto set_tokens = [&](uint32_t node, ConfigId) {
    for (const int32_t id : vocabulary_->tokens_at(node))
      set_bit(bits_, id);
  };
  for (size_t byte = 0; byte < 256; ++byte) {
    const uint32_t begin = mask.ends_begin[byte], end = mask.ends_begin[byte + 1];
    if (begin == end) continue;
    const ConfigId next = configs_.step(context, static_cast<uint8_t>(byte));
    if (next == kDead) continue;
    for (uint32_t i = begin; i < end; ++i) {
      const uint64_t count = uint64_t{head.count} + mask.ends[i].count;
      if (rule.repeats && (count < rule.min || count > max)) continue;
      set_tokens(mask.ends[i].node, next);
      walk(mask.ends[i].node, next, set_tokens);
    }
  }
}

std::shared_ptr<const TokenMask> GrammarMatcher::compute_mask(ConfigId config) {
  bits_.assign(words_for(*vocabulary_), 0);
  const auto heads = configs_.closed_heads(config);
  for (const Head& head : std::vector<Head>(heads.begin(), heads.end()))
    add_head(head);
  auto out = std::make_shared<TokenMask>();
  out->accepts = configs_.accepts(config);
  out->n_tokens = count_bits(bits_);
  out->is_sparse = out->n_tokens <= kMaxSparse;
  if (out->is_sparse) {
    out->ids = ids_of(bits_);
  } else {
    out->bits = bits_;
  }
  return out;
}

}  // namespace qw
