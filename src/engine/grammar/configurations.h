// Where a grammar can be after some bytes: sets of stacks, told apart by small numbers.
//
// Level 6 (engine/grammar). A configuration is a set of heads, each a state with the stack of calls
// to come back to. Equal stacks and equal sets are one object, so steps are remembered per
// configuration and class of bytes: text within a string goes round one lookup a byte. One thread
// at a time; ids are good until clear().
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/grammar/fsm.h"

namespace qw::grammar {

using FrameId = uint32_t;
using ConfigId = uint32_t;

/// The bottom of every stack: the whole text ends there.
inline constexpr FrameId kBottomFrame = 0;
/// A stack that is not known: state masks are computed over it (token_masks.h). Counts over it
/// start at 0 and know no bounds.
inline constexpr FrameId kUnknownFrame = 1;
/// The configuration without heads: no text goes on from here.
inline constexpr ConfigId kDead = 1;

struct Head {
  uint32_t state = 0;
  uint32_t count = 0;  // whole repetitions said, in rules that repeat
  FrameId frame = 0;
  auto operator<=>(const Head&) const = default;
};

class Configurations {
 public:
  /// Above this many heads a grammar is too ambiguous to follow.
  static constexpr size_t kMaxHeads = 2000;
  /// Above this many objects the next step() throws; callers clear() long before.
  static constexpr size_t kMaxObjects = 1'000'000;

  explicit Configurations(const Fsm& fsm);

  /// Before the first byte.
  ConfigId start();
  /// After `byte`; kDead when nothing fits. Errors: unsupported (too ambiguous).
  ConfigId step(ConfigId config, uint8_t byte) {
    const uint32_t known = nexts_[static_cast<size_t>(config) * n_classes_ + fsm_.class_of[byte]];
    return known != 0 ? known : compute_step(config, fsm_.class_of[byte]);
  }
  /// Whether the text may end here.
  bool accepts(ConfigId config) { return closed(config).accepts; }
  std::span<const Head> heads(ConfigId config) const { return configs_[config].heads; }
  /// Every head that a byte can follow, calls made and ended.
  std::span<const Head> closed_heads(ConfigId config) { return closed(config).heads; }
  ConfigId of_heads(std::vector<Head> heads);
  /// After `byte` by the edges of the head's own state; its calls are left out.
  ConfigId step_bytes(const Head& head, uint8_t byte);
  /// The head after everything above and including `frame`'s call has ended.
  Head after(FrameId frame) const {
    return {frames_[frame].state, frames_[frame].count, frames_[frame].parent};
  }
  bool is_root_end(FrameId frame) const { return frame == kBottomFrame; }
  /// Moves out of rules in which nothing can follow.
  void settle(Head& head) const;

  /// Over kUnknownFrame: how many whole repetitions had been said each time that the stack's own
  /// rule could end here (0 in rules that do not repeat). Sorted.
  std::span<const uint32_t> unknown_ends(ConfigId config) { return closed(config).unknown_ends; }
  /// The count of the lowest rule of the head's stack over kUnknownFrame.
  uint32_t base_count(const Head& head) const {
    return head.frame == kUnknownFrame ? head.count : frames_[head.frame].base_count;
  }

  size_t n_objects() const { return configs_.size() + frames_.size(); }
  /// Of memory, about.
  size_t bytes() const {
    return configs_.size() * (kConfigBytes + n_classes_ * sizeof(ConfigId)) +
           frames_.size() * kFrameBytes + n_heads_ * sizeof(Head);
  }
  /// Forgets everything; ids from before mean nothing from now on.
  void clear();

 private:
  struct Frame {
    uint32_t state = 0, count = 0;  // where to go on
    FrameId parent = 0;
    uint32_t base_count = 0;
  };
  struct Closed {
    std::vector<Head> heads;  // those with byte edges
    std::vector<uint32_t> unknown_ends;
    bool accepts = false;
  };
  struct Config {
    std::vector<Head> heads;
    std::unique_ptr<Closed> closed;
  };
  struct HeadsHash {
    size_t operator()(const std::vector<Head>& heads) const noexcept;
  };
  struct FrameKey {
    uint64_t place;
    uint64_t parent;
    bool operator==(const FrameKey&) const = default;
  };
  struct FrameKeyHash {
    size_t operator()(const FrameKey& key) const noexcept;
  };

  /// With their places in hash tables.
  static constexpr size_t kConfigBytes = sizeof(Config) + 64, kFrameBytes = sizeof(Frame) + 48;

  ConfigId compute_step(ConfigId config, uint8_t byte_class);
  void add_steps(const Head& head, uint8_t byte, std::vector<Head>& out) const;
  const Closed& closed(ConfigId config);
  void close(Closed& out, const std::vector<Head>& from);
  void visit(const Head& head, std::vector<Head>& work, Closed& out);
  void leave(FrameId frame, uint32_t count, std::vector<Head>& work, Closed& out);
  FrameId frame_of(uint32_t state, uint32_t count, FrameId parent);

  const Fsm& fsm_;
  const uint32_t n_classes_;
  std::vector<Frame> frames_;
  std::unordered_map<FrameKey, FrameId, FrameKeyHash> frame_ids_;
  std::vector<Config> configs_;
  std::vector<ConfigId> nexts_;  // [config][class]; 0: not computed yet
  std::unordered_map<std::vector<Head>, ConfigId, HeadsHash> config_ids_;
  size_t n_heads_ = 0;  // of all configurations, wherever they are kept
};

}  // namespace qw::grammar
