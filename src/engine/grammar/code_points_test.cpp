// Sets of characters, and their bytes.
#include "engine/grammar/code_points.h"

#include <gtest/gtest.h>

#include <random>

#include "base/utf8.h"

namespace qw::grammar {
namespace {

/// How many sequences a character's bytes fit.
int n_matching(const std::vector<Utf8Sequence>& sequences, uint32_t code_point) {
  std::string bytes;
  append_utf8(bytes, code_point);
  int n = 0;
  for (const Utf8Sequence& sequence : sequences) {
    bool fits = static_cast<size_t>(sequence.length) == bytes.size();
    for (size_t i = 0; fits && i < bytes.size(); ++i) {
      const auto byte = static_cast<uint8_t>(bytes[i]);
      fits = sequence.bytes[i].first <= byte && byte <= sequence.bytes[i].last;
    }
    n += fits ? 1 : 0;
  }
  return n;
}

TEST(CodePoints, RangesAsUtf8) {
  std::mt19937 random(1);
  const std::vector<uint32_t> places = {
      0,      0x3F,   0x7F,   0x80,    0xFF,    0x100,   0x7FF,   0x800,    0xFFF,   0x1000,
      0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x1FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF};
  for (int n = 0; n < 300; ++n) {
    uint32_t first = places[random() % places.size()], last = places[random() % places.size()];
    if (random() % 2 == 0)
      first = std::min(kLastCodePoint, first + static_cast<uint32_t>(random() % 200));
    if (random() % 2 == 0)
      last = std::min(kLastCodePoint, last + static_cast<uint32_t>(random() % 200));
    const CodePointSet set{{std::min(first, last), std::max(first, last)}};
    std::vector<Utf8Sequence> sequences;
    uint64_t n_members = 0, n_covered = 0;
    for (const CodePointRange& range : set.ranges()) {
      append_utf8_sequences(range.first, range.last, sequences);
      n_members += range.last - range.first + 1;
    }
    for (const Utf8Sequence& sequence : sequences) {
      uint64_t covered = 1;
      for (int i = 0; i < sequence.length; ++i) {
        const ByteRange range = sequence.bytes[static_cast<size_t>(i)];
        covered *= range.last - range.first + 1u;
      }
      n_covered += covered;
    }
    EXPECT_EQ(n_covered, n_members) << first << " " << last;
    for (const uint32_t place : places) {
      for (uint32_t c = place < 70 ? 0 : place - 70; c <= std::min(kLastCodePoint, place + 270);
           ++c) {
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        ASSERT_EQ(n_matching(sequences, c), set.contains(c) ? 1 : 0) << first << " " << last;
      }
    }
  }
}

TEST(CodePoints, Sets) {
  CodePointSet set{{5, 9}, {20, 30}, {10, 12}};
  EXPECT_EQ(set.ranges().size(), 2u);
  set.add(13, 19);
  ASSERT_EQ(set.ranges().size(), 1u);
  EXPECT_EQ(set.ranges()[0], (CodePointRange{5, 30}));
  EXPECT_EQ(set.complement().complement(), set);
  EXPECT_FALSE(CodePointSet::all().contains(0xD800));
  EXPECT_TRUE(CodePointSet::all().complement().empty());
  EXPECT_EQ(set.without({{7, 7}}), (CodePointSet{{5, 6}, {8, 30}}));
  EXPECT_EQ(set.intersected_with({{0, 5}, {30, 99}}), (CodePointSet{{5, 5}, {30, 30}}));
}

}  // namespace
}  // namespace qw::grammar
