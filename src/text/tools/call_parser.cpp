#include "text/tools/call_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace qw::tools {
namespace {

/// Where the white space at the end of `text` begins.
size_t trailing_space(std::string_view text) {
  const size_t last = text.find_last_not_of(kSpace);
  return last == std::string_view::npos ? 0 : last + 1;
}

size_t leading_space(std::string_view text) {
  return std::min(text.find_first_not_of(kSpace), text.size());
}

bool is_object(const std::string& text) {
  return text.starts_with('{') && nlohmann::json::accept(text);
}

}  // namespace

CallParser::CallParser(const ToolPrompt& prompt) : may_repeat_(prompt.may_repeat) {
  for (const ToolFunction& function : prompt.functions)
    names_.push_back(function.name);
}

std::vector<ToolEvent> CallParser::push(std::string_view text) {
  QW_CHECK(!ending_, "push before finish");
  if (done_) return {};
  buffer_ += text;
  run();
  return take_events();
}

std::vector<ToolEvent> CallParser::finish(bool truncated) {
  QW_CHECK(!ending_, "one finish");
  ending_ = true;
  truncated_ = truncated;
  if (!done_) run();
  done_ = true;
  return take_events();
}

void CallParser::run() {
  while (!done_ && step()) {
  }
  QW_CHECK(done_ || !ending_ || rest().empty(), "an ending parser takes everything");
  buffer_.erase(0, begin_);
  begin_ = 0;
}

void CallParser::take_space() noexcept {
  take(leading_space(rest()));
}

bool CallParser::take_if(char c) noexcept {
  if (rest().empty()) return false;
  if (rest().front() == c) take(1);
  return true;
}

CallParser::AtStart CallParser::at_start(std::string_view text,
                                         std::span<const std::string_view> markers) const {
  AtStart out;
  for (size_t m = 0; m < markers.size(); ++m) {
    if (text.starts_with(markers[m])) return {AtStart::Kind::kMarker, static_cast<int>(m)};
    if (!ending_ && markers[m].starts_with(text)) out.kind = AtStart::Kind::kUndecided;
  }
  return out;
}

CallParser::Found CallParser::find(std::span<const std::string_view> markers) const {
  const std::string_view text = rest();
  std::string leads;
  for (const std::string_view marker : markers)
    leads += marker.front();
  Found found;
  found.at = text.size();
  for (size_t i = text.find_first_of(leads); i < text.size();
       i = text.find_first_of(leads, i + 1)) {
    const AtStart here = at_start(text.substr(i), markers);
    if (here.kind == AtStart::Kind::kNone) continue;
    found.at = i;
    found.marker = here.marker;
    if (here.marker >= 0) found.length = markers[static_cast<size_t>(here.marker)].size();
    break;
  }
  found.space = trailing_space(text.substr(0, found.at));
  return found;
}

CallParser::Found CallParser::read_until(std::span<const std::string_view> markers,
                                         ToolEvent::Kind kind) {
  Found found = find(markers);
  const size_t n = found.marker < 0 && ending_ ? rest().size() : found.space;
  emit(kind, rest().substr(0, n));
  take(n);
  found.at -= std::min(found.at, n);
  found.space = 0;
  return found;
}

bool CallParser::is_known(std::string_view name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

CallParser::Name CallParser::read_name(std::span<const std::string_view> markers) const {
  const std::string_view text = rest();
  const size_t begin = leading_space(text);
  const std::string_view tail = text.substr(begin);
  Name out;
  const auto unknown = [&] {
    out.kind = ending_ || !tail.empty() ? Name::Kind::kUnknown : Name::Kind::kUndecided;
    return out;
  };
  // The longest known name that stands here and ends where a name can end.
  for (const std::string& name : names_) {
    if (!tail.starts_with(name)) {
      if (!ending_ && std::string_view(name).starts_with(tail)) return out;  // may become it
      continue;
    }
    const std::string_view after = tail.substr(name.size());
    const size_t space = leading_space(after);
    const AtStart next = at_start(after.substr(space), markers);
    if (next.kind == AtStart::Kind::kUndecided) return out;
    const bool ends = next.kind == AtStart::Kind::kMarker || (ending_ && after.size() == space);
    if (!ends) continue;
    if (next.marker < 0 && truncated_) continue;  // arguments may have been to come
    out.kind = Name::Kind::kKnown;
    out.name = name;
    out.marker = next.marker;
    out.length = begin + name.size() + space +
                 (next.marker < 0 ? 0 : markers[static_cast<size_t>(next.marker)].size());
    return out;
  }
  return unknown();
}

CallParser::Arguments CallParser::read_arguments(std::span<const std::string_view> markers) {
  using Kind = Arguments::Kind;
  cut_ = ending_ && truncated_;  // unless their end is found
  if (place_ == Place::kBefore) {
    take(leading_space(rest()));
    if (kFence.starts_with(rest()) && !rest().starts_with(kFence) && !ending_) {
      return {Kind::kNeedsText};
    }
    json_ = {};
    place_ = rest().starts_with('{')      ? Place::kJson
             : rest().starts_with(kFence) ? Place::kFence
                                          : Place::kRaw;
  }
  if (place_ == Place::kJson) {
    const size_t n = json_.read(rest());
    add_arguments(rest().substr(0, n));
    take(n);
    if (json_.state() == JsonSpan::State::kClosed) {
      cut_ = false;
      return {Kind::kClosed};
    }
    if (json_.state() == JsonSpan::State::kOpen) return {ending_ ? Kind::kEnd : Kind::kNeedsText};
    place_ = Place::kRaw;
  }
  const bool fenced = place_ == Place::kFence;
  const Found found = find(fenced ? std::span(&kLastFence, 1) : markers);
  if (fenced && found.marker >= 0) {
    add_arguments(rest().substr(0, found.at + found.length));
    take(found.at + found.length);
    cut_ = false;
    return {Kind::kClosed};
  }
  add_arguments(rest().substr(0, found.space));
  if (found.marker >= 0) {
    cut_ = false;
    take(found.at + found.length);
    return {Kind::kMarker, found.marker};
  }
  take(ending_ ? rest().size() : found.space);
  return {ending_ ? Kind::kEnd : Kind::kNeedsText};
}

void CallParser::begin_call(std::string_view name, bool hold) {
  ++n_calls_;
  hold_ = hold;
  emit(ToolEvent::Kind::kCallBegin, name);
  arguments_.clear();
  cut_ = false;
  begin_arguments();
}

void CallParser::add_arguments(std::string_view text) {
  arguments_ += text;
  if (!hold_) emit(ToolEvent::Kind::kArguments, text);
}

void CallParser::end_call() {
  if (hold_) arguments_ = held_arguments(arguments_);
  if (arguments_.empty() && !cut_) {
    arguments_ = "{}";
    hold_ = true;  // not shown yet
  }
  if (hold_) emit(ToolEvent::Kind::kArguments, arguments_);
  emit(ToolEvent::Kind::kCallEnd, {});
  events_.back().valid = is_object(arguments_);
}

void CallParser::emit(ToolEvent::Kind kind, std::string_view text) {
  using Kind = ToolEvent::Kind;
  const bool joins = kind == Kind::kText || kind == Kind::kThought || kind == Kind::kArguments;
  if (joins && text.empty()) return;
  if (joins && !events_.empty() && events_.back().kind == kind) {
    events_.back().text += text;
    return;
  }
  const bool of_text = kind == Kind::kText || kind == Kind::kThought;
  events_.push_back({kind, of_text ? 0 : n_calls_ - 1, std::string(text), false});
}

std::vector<ToolEvent> CallParser::take_events() {
  return std::exchange(events_, {});
}

}  // namespace qw::tools
