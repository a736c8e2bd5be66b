#include "text/stop_strings.h"

#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace qw {
namespace {

constexpr std::string_view kComponent = "stop strings";
constexpr size_t kMaxBytes = size_t{1} << 20;

constexpr uint32_t kRoot = 0;

uint64_t edge_key(uint32_t node, unsigned char byte) noexcept {
  return uint64_t{node} << 8 | byte;
}

}  // namespace

/// Never changes once it is made.
class StopStrings::Automaton {
 public:
  struct Node {
    uint32_t depth = 0;
    uint32_t fallback = kRoot;  // the longest proper suffix that is a node
    int32_t stop = -1;          // the longest stop string that ends here
  };
  explicit Automaton(const std::vector<std::string>& strings);
  std::optional<uint32_t> child_of(uint32_t node, unsigned char byte) const;
  /// The longest of the first n strings that ends at a node; negative: none.
  int32_t stop_at(uint32_t node, size_t n) const;

  const bool is_empty;
  std::vector<size_t> lengths;  // of the strings
  std::vector<Node> nodes{1};

 private:
  void add(std::string_view text, int32_t index);
  void link();

  std::unordered_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) -> node
};

StopStrings::Automaton::Automaton(const std::vector<std::string>& strings)
    : is_empty(strings.empty()) {
  size_t n_bytes = 0;
  for (size_t i = 0; i < strings.size(); ++i) {
    const std::string& text = strings[i];
    if (text.empty()) {
      fail(ErrorKind::kInvalidArgument, kComponent,
           "stop string {}: expected a text, got an empty one", i);
    }
    if (find_invalid_utf8(text) != std::string::npos) {
      fail(ErrorKind::kInvalidArgument, kComponent,
           "stop string {}: expected valid UTF-8, got '{}'", i, printable(text));
    }
    n_bytes += text.size();
    if (n_bytes >= kMaxBytes) {
      fail(ErrorKind::kInvalidArgument, kComponent,
           "stop strings: expected under {} bytes in all, got {}", kMaxBytes, n_bytes);
    }
    add(text, static_cast<int32_t>(i));
    lengths.push_back(text.size());
  }
  link();
}

std::optional<uint32_t> StopStrings::Automaton::child_of(uint32_t node, unsigned char byte) const {
  const auto it = edges_.find(edge_key(node, byte));
  return it == edges_.end() ? std::nullopt : std::optional<uint32_t>(it->second);
}

int32_t StopStrings::Automaton::stop_at(uint32_t node, size_t n) const {
  // A node without a string of its own has its fallback's.
  while (node != kRoot && nodes[node].stop >= 0 && static_cast<size_t>(nodes[node].stop) >= n)
    node = nodes[node].fallback;
  return nodes[node].stop;
}

void StopStrings::Automaton::add(std::string_view text, int32_t index) {
  uint32_t node = kRoot;
  for (const char c : text) {
    const auto fresh_id = static_cast<uint32_t>(nodes.size());
    const auto [it, fresh] =
        edges_.try_emplace(edge_key(node, static_cast<unsigned char>(c)), fresh_id);
    if (fresh) nodes.push_back({nodes[node].depth + 1, kRoot, -1});
    node = it->second;
  }
  if (nodes[node].stop < 0) nodes[node].stop = index;  // of equal strings the first
}

void StopStrings::Automaton::link() {
  // Breadth first, so that a node's fallback, which is shorter, is complete before the node.
  std::vector<std::vector<std::pair<unsigned char, uint32_t>>> children(nodes.size());
  for (const auto& [key, child] : edges_) {
    children[static_cast<size_t>(key >> 8)].emplace_back(static_cast<unsigned char>(key & 0xFF),
                                                         child);
  }
  std::vector<uint32_t> order = {kRoot};
  for (size_t i = 0; i < order.size(); ++i) {
    const uint32_t node = order[i];
    for (const auto& [byte, child] : children[node]) {
      order.push_back(child);
      if (node == kRoot) continue;  // falls back to the root
      uint32_t suffix = nodes[node].fallback;
      while (suffix != kRoot && !child_of(suffix, byte))
        suffix = nodes[suffix].fallback;
      nodes[child].fallback = child_of(suffix, byte).value_or(kRoot);
      if (nodes[child].stop < 0) nodes[child].stop = nodes[nodes[child].fallback].stop;
    }
  }
}

StopStrings::StopStrings(const std::vector<std::string>& strings)
    : automaton_(std::make_shared<const Automaton>(strings)) {}

bool StopStrings::empty() const noexcept {
  return automaton_->is_empty;
}

StopStrings::Result StopStrings::push(std::string_view piece, size_t n_counting) {
  QW_CHECK(!matched_, "text pushed after a stop string was found");
  held_.append(piece);
  const size_t first = held_.size() - piece.size();
  for (size_t i = first; i < held_.size(); ++i) {
    const auto byte = static_cast<unsigned char>(held_[i]);
    auto next = automaton_->child_of(state_, byte);
    while (!next && state_ != kRoot) {
      state_ = automaton_->nodes[state_].fallback;
      next = automaton_->child_of(state_, byte);
    }
    state_ = next.value_or(kRoot);
    if (const int32_t stop = automaton_->stop_at(state_, n_counting); stop >= 0) {
      matched_ = true;
      const auto index = static_cast<size_t>(stop);
      return {held_.substr(0, i + 1 - automaton_->lengths[index]), index};
    }
  }
  const size_t n_final = held_.size() - automaton_->nodes[state_].depth;
  Result result{held_.substr(0, n_final), std::nullopt};
  held_.erase(0, n_final);
  return result;
}

std::string StopStrings::flush() {
  std::string rest = matched_ ? std::string() : std::move(held_);
  reset();
  return rest;
}

void StopStrings::reset() noexcept {
  state_ = kRoot;
  matched_ = false;
  held_.clear();
}

}  // namespace qw
