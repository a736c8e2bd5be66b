#include "engine/grammar/vocabulary.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "engine/grammar/token_masks.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

/// Longer tokens are possible in a hand-made vocabulary only; nobody would miss them.
constexpr size_t kMaxTokenBytes = 4096;
constexpr size_t kMaxSharedMasks = 256;

}  // namespace

GrammarVocabulary::GrammarVocabulary(const Tokenizer& tokenizer) {
  std::vector<std::string_view> bytes(static_cast<size_t>(tokenizer.size()));
  for (int32_t id = 0; id < tokenizer.size(); ++id) {
    if (!tokenizer.is_special(id)) bytes[static_cast<size_t>(id)] = tokenizer.token_bytes(id);
  }
  build(bytes);
}

GrammarVocabulary::GrammarVocabulary(const std::vector<std::string>& bytes) {
  build({bytes.begin(), bytes.end()});
}

GrammarVocabulary::~GrammarVocabulary() = default;

void GrammarVocabulary::build(const std::vector<std::string_view>& bytes) {
  size_ = static_cast<int32_t>(bytes.size());
  for (const std::string_view text : bytes) {
    offsets_.push_back(static_cast<uint32_t>(arena_.size()));
    if (text.size() <= kMaxTokenBytes) arena_ += text;
  }
  offsets_.push_back(static_cast<uint32_t>(arena_.size()));
  tokens_.resize(bytes.size());
  std::iota(tokens_.begin(), tokens_.end(), 0);
  std::erase_if(tokens_, [&](int32_t id) { return this->bytes(id).empty(); });
  std::sort(tokens_.begin(), tokens_.end(), [&](int32_t a, int32_t b) {
    const int order = this->bytes(a).compare(this->bytes(b));
    return order != 0 ? order < 0 : a < b;
  });
  nodes_.emplace_back();
  std::vector<uint32_t> path{0};  // the nodes of the token before, by depth
  std::string_view before;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string_view text = this->bytes(tokens_[i]);
    const auto shared = static_cast<size_t>(
        std::mismatch(text.begin(), text.end(), before.begin(), before.end()).first - text.begin());
    for (size_t depth = shared + 1; depth < path.size(); ++depth)
      nodes_[path[depth]].end = static_cast<uint32_t>(nodes_.size());
    path.resize(shared + 1);
    for (size_t depth = shared; depth < text.size(); ++depth) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({0, static_cast<uint32_t>(i), static_cast<uint16_t>(depth + 1),
                        static_cast<uint8_t>(text[depth])});
    }
    // A node's tokens end where the next node's begin.
    max_depth_ = std::max(max_depth_, text.size());
    before = text;
  }
  for (const uint32_t node : path)
    nodes_[node].end = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back({0, static_cast<uint32_t>(tokens_.size()), 0, 0});
}

std::string_view GrammarVocabulary::bytes(int32_t id) const noexcept {
  if (id < 0 || id >= size_) return {};
  const auto i = static_cast<size_t>(id);
  return std::string_view(arena_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

std::shared_ptr<const grammar::StateMask> GrammarVocabulary::shared_mask(
    const std::string& key) const {
  const std::lock_guard lock(mutex_);
  const auto it = masks_.find(key);
  return it == masks_.end() ? nullptr : it->second;
}

void GrammarVocabulary::share_mask(const std::string& key,
                                   std::shared_ptr<const grammar::StateMask> mask) const {
  const std::lock_guard lock(mutex_);
  if (masks_.size() >= kMaxSharedMasks) masks_.clear();
  masks_.emplace(key, std::move(mask));
}

}  // namespace qw
