#include "engine/grammar/code_points.h"

#include <algorithm>

#include "base/utf8.h"
#include "engine/grammar/work.h"

namespace qw::grammar {
namespace {

constexpr uint32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

}  // namespace

CodePointSet::CodePointSet(std::initializer_list<CodePointRange> ranges) {
  for (const CodePointRange& range : ranges)
    add(range.first, range.last);
}

CodePointSet CodePointSet::all() {
  return CodePointSet{{0, kLastCodePoint}};
}

void CodePointSet::insert(uint32_t first, uint32_t last) {
  if (first > last) return;
  CompileWork::charge(1 + ranges_.size() / 64);  // of what is moved
  // The ranges that touch or overlap first..last become one with it.
  auto begin =
      std::lower_bound(ranges_.begin(), ranges_.end(), first,
                       [](const CodePointRange& r, uint32_t value) { return r.last + 1 < value; });
  auto end = begin;
  while (end != ranges_.end() && end->first <= last + 1) {
    first = std::min(first, end->first);
    last = std::max(last, end->last);
    ++end;
  }
  begin = ranges_.erase(begin, end);
  ranges_.insert(begin, {first, last});
}

void CodePointSet::add(uint32_t first, uint32_t last) {
  last = std::min(last, kLastCodePoint);
  if (first > last) return;
  if (first < kFirstSurrogate) insert(first, std::min(last, kFirstSurrogate - 1));
  if (last > kLastSurrogate) insert(std::max(first, kLastSurrogate + 1), last);
}

void CodePointSet::add(const CodePointSet& other) {
  for (const CodePointRange& range : other.ranges_)
    insert(range.first, range.last);
}

CodePointSet CodePointSet::complement() const {
  CodePointSet out;
  uint32_t next = 0;
  for (const CodePointRange& range : ranges_) {
    if (range.first > next) out.add(next, range.first - 1);
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) out.add(next, kLastCodePoint);
  return out;
}

CodePointSet CodePointSet::intersected_with(const CodePointSet& other) const {
  CodePointSet out;
  size_t i = 0, j = 0;
  while (i < ranges_.size() && j < other.ranges_.size()) {
    const CodePointRange a = ranges_[i], b = other.ranges_[j];
    const uint32_t first = std::max(a.first, b.first), last = std::min(a.last, b.last);
    if (first <= last) out.insert(first, last);
    if (a.last < b.last) {
      ++i;
    } else {
      ++j;
    }
  }
  return out;
}

bool CodePointSet::contains(uint32_t code_point) const {
  auto it =
      std::lower_bound(ranges_.begin(), ranges_.end(), code_point,
                       [](const CodePointRange& r, uint32_t value) { return r.last < value; });
  return it != ranges_.end() && it->first <= code_point;
}

void append_utf8_sequences(uint32_t first, uint32_t last, std::vector<Utf8Sequence>& out) {
  if (first > last) return;
  for (const uint32_t end : {0x7Fu, 0x7FFu, 0xFFFFu}) {  // one length of bytes at a time
    if (first <= end && end < last) {
      append_utf8_sequences(first, end, out);
      append_utf8_sequences(end + 1, last, out);
      return;
    }
  }
  // Both ends must agree on all leading bytes but where the rest runs through everything.
  for (const uint32_t bits : {6u, 12u, 18u}) {
    const uint32_t mask = (1u << bits) - 1;
    if (first < 0x80 || (first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      append_utf8_sequences(first, first | mask, out);
      append_utf8_sequences((first | mask) + 1, last, out);
      return;
    }
    if ((last & mask) != mask) {
      append_utf8_sequences(first, (last & ~mask) - 1, out);
      append_utf8_sequences(last & ~mask, last, out);
      return;
    }
  }
  std::string low, high;
  append_utf8(low, first);
  append_utf8(high, last);
  Utf8Sequence sequence;
  sequence.length = static_cast<int>(low.size());
  for (size_t i = 0; i < low.size(); ++i)
    sequence.bytes[i] = {static_cast<uint8_t>(low[i]), static_cast<uint8_t>(high[i])};
  out.push_back(sequence);
}

}  // namespace qw::grammar
