#include "engine/grammar/configurations.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"

namespace qw::grammar {
namespace {

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 32);
}

}  // namespace

size_t Configurations::HeadsHash::operator()(const std::vector<Head>& heads) const noexcept {
  uint64_t hash = heads.size();
  for (const Head& head : heads)
    hash = mix(mix(hash, static_cast<uint64_t>(head.state) << 32 | head.count), head.frame);
  return static_cast<size_t>(hash);
}

size_t Configurations::FrameKeyHash::operator()(const FrameKey& key) const noexcept {
  return static_cast<size_t>(mix(mix(1, key.place), key.parent));
}

Configurations::Configurations(const Fsm& fsm) : fsm_(fsm), n_classes_(fsm.n_classes) {
  clear();
}

void Configurations::clear() {
  frames_.assign(2, Frame{});  // kBottomFrame, kUnknownFrame
  frame_ids_.clear();
  configs_.clear();
  config_ids_.clear();
  nexts_.clear();
  n_heads_ = 0;
  configs_.emplace_back();  // id 0 stands for "not computed yet"
  nexts_.resize(n_classes_, 0);
  const ConfigId dead = of_heads({});
  QW_CHECK(dead == kDead);
  std::fill_n(nexts_.begin() + static_cast<std::ptrdiff_t>(kDead * n_classes_), n_classes_, kDead);
}

ConfigId Configurations::start() {
  return of_heads({{fsm_.rules[fsm_.root].start, 0, kBottomFrame}});
}

ConfigId Configurations::of_heads(std::vector<Head> heads) {
  std::sort(heads.begin(), heads.end());
  heads.erase(std::unique(heads.begin(), heads.end()), heads.end());
  const auto it = config_ids_.find(heads);
  if (it != config_ids_.end()) return it->second;
  if (heads.size() > kMaxHeads || n_objects() > kMaxObjects) {
    fail(ErrorKind::kUnsupported, "grammar",
         "text so far: expected that it can be read in at most {} ways at a time, got more; the "
         "grammar is too ambiguous",
         kMaxHeads);
  }
  const auto id = static_cast<ConfigId>(configs_.size());
  configs_.push_back({heads, nullptr});
  n_heads_ += 2 * heads.size();
  nexts_.resize(nexts_.size() + n_classes_, 0);
  config_ids_.emplace(std::move(heads), id);
  return id;
}

FrameId Configurations::frame_of(uint32_t state, uint32_t count, FrameId parent) {
  const FrameKey key{static_cast<uint64_t>(state) << 32 | count, parent};
  const auto [it, is_new] = frame_ids_.try_emplace(key, static_cast<FrameId>(frames_.size()));
  if (is_new) {
    const uint32_t base = parent == kUnknownFrame ? count : frames_[parent].base_count;
    frames_.push_back({state, count, parent, base});
  }
  return it->second;
}

void Configurations::settle(Head& head) const {
  while (fsm_.states[head.state].is_end && head.frame > kUnknownFrame)
    head = after(head.frame);
}

const Configurations::Closed& Configurations::closed(ConfigId config) {
  if (!configs_[config].closed) {
    auto out = std::make_unique<Closed>();
    close(*out, configs_[config].heads);
    n_heads_ += out->heads.size();
    configs_[config].closed = std::move(out);
  }
  return *configs_[config].closed;
}

void Configurations::close(Closed& out, const std::vector<Head>& from) {
  std::vector<Head> work = from;
  std::set<Head> seen(from.begin(), from.end());
  std::vector<Head> found;
  while (!work.empty()) {
    const Head head = work.back();
    work.pop_back();
    found.clear();
    visit(head, found, out);
    for (const Head& next : found)
      if (seen.insert(next).second) work.push_back(next);
    if (seen.size() > 4 * kMaxHeads) {
      fail(ErrorKind::kUnsupported, "grammar",
           "text so far: expected that it can be read in at most {} ways at a time, got more; the "
           "grammar is too ambiguous",
           4 * kMaxHeads);
    }
  }
  std::sort(out.unknown_ends.begin(), out.unknown_ends.end());
  out.unknown_ends.erase(std::unique(out.unknown_ends.begin(), out.unknown_ends.end()),
                         out.unknown_ends.end());
}

void Configurations::visit(const Head& head, std::vector<Head>& work, Closed& out) {
  const Fsm::State& state = fsm_.states[head.state];
  const Fsm::Rule& rule = fsm_.rules[state.rule];
  if (state.bytes_begin != state.bytes_end) out.heads.push_back(head);
  for (const CallEdge& call : fsm_.calls_of(state)) {
    // Over kUnknownFrame only the stack's own rule may be met without a frame: it counts from 0.
    const bool is_tail = call.is_tail && head.frame != kUnknownFrame;
    const FrameId frame = is_tail ? head.frame : frame_of(call.target, head.count, head.frame);
    const Fsm::Rule& called = fsm_.rules[call.rule];
    work.push_back({called.start, 0, frame});
    if (called.repeats && called.min == 0) leave(frame, 0, work, out);
  }
  if (!state.accepting) return;
  if (!rule.repeats) return leave(head.frame, 0, work, out);
  uint32_t count = head.count + 1;
  const bool bounded = head.frame != kUnknownFrame;
  if (bounded && rule.max == kUnbounded) count = std::min(count, rule.min);
  if (!bounded || rule.max == kUnbounded || count < rule.max)
    work.push_back({rule.start, count, head.frame});
  if (!bounded || count >= rule.min) leave(head.frame, count, work, out);
}

void Configurations::leave(FrameId frame, uint32_t count, std::vector<Head>& work, Closed& out) {
  if (frame == kBottomFrame) {
    out.accepts = true;
  } else if (frame == kUnknownFrame) {
    out.unknown_ends.push_back(count);
  } else {
    work.push_back(after(frame));
  }
}

void Configurations::add_steps(const Head& head, uint8_t byte, std::vector<Head>& out) const {
  for (const ByteEdge& edge : fsm_.bytes_of(fsm_.states[head.state])) {
    if (byte < edge.first || byte > edge.last) continue;
    Head to{edge.target, head.count, head.frame};
    settle(to);
    out.push_back(to);
  }
}

ConfigId Configurations::step_bytes(const Head& head, uint8_t byte) {
  std::vector<Head> next;
  add_steps(head, byte, next);
  return of_heads(std::move(next));
}

ConfigId Configurations::compute_step(ConfigId config, uint8_t byte_class) {
  const uint8_t byte = fsm_.byte_of_class[byte_class];
  std::vector<Head> next;
  for (const Head& head : closed(config).heads)
    add_steps(head, byte, next);
  const ConfigId id = of_heads(std::move(next));
  nexts_[static_cast<size_t>(config) * n_classes_ + byte_class] = id;
  return id;
}

}  // namespace qw::grammar
