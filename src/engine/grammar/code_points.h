// Sets of Unicode code points, and how a range of them looks as UTF-8 bytes.
//
// Level 6 (engine/grammar). What regular expressions and grammars say in characters, automata that
// must follow tokens say in bytes, since a token may end within a character. Source of the split:
// Unicode 15, table 3-6; the idea is that of Russ Cox's RE2 (utf8 ranges).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace qw::grammar {

struct CodePointRange {
  uint32_t first = 0, last = 0;  // both included
  bool operator==(const CodePointRange&) const = default;
};

inline constexpr uint32_t kLastCodePoint = 0x10FFFF;

/// A set of Unicode scalar values: surrogates are no members of any set.
class CodePointSet {
 public:
  CodePointSet() = default;
  CodePointSet(std::initializer_list<CodePointRange> ranges);
  static CodePointSet all();

  /// Adds first..last; surrogates among them are left out.
  void add(uint32_t first, uint32_t last);
  void add(uint32_t code_point) { add(code_point, code_point); }
  void add(const CodePointSet& other);
  CodePointSet complement() const;
  CodePointSet intersected_with(const CodePointSet& other) const;
  CodePointSet without(const CodePointSet& other) const {
    return intersected_with(other.complement());
  }
  bool contains(uint32_t code_point) const;
  bool empty() const noexcept { return ranges_.empty(); }
  /// Sorted, disjoint, not adjacent.
  std::span<const CodePointRange> ranges() const noexcept { return ranges_; }
  bool operator==(const CodePointSet&) const = default;

 private:
  void insert(uint32_t first, uint32_t last);
  std::vector<CodePointRange> ranges_;
};

struct ByteRange {
  uint8_t first = 0, last = 0;
};
/// The bytes of some characters: one range for each of `length` places.
struct Utf8Sequence {
  std::array<ByteRange, 4> bytes;
  int length = 0;
};
/// Appends sequences that together are the UTF-8 forms of first..last (no surrogate among them).
void append_utf8_sequences(uint32_t first, uint32_t last, std::vector<Utf8Sequence>& out);

}  // namespace qw::grammar
