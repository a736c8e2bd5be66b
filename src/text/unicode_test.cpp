// Character classes against the published tables, normalisation against known cases.
#include "text/unicode.h"

#include <gtest/gtest.h>

#include "support/golden_rows.h"

namespace qw {
namespace {

TEST(CharTable, ClassesAreTheReferencesOnEveryCodePoint) {
  const auto classes =
      test::read_json_file(test::project_golden("tokenizer/unicode_tables.json"))["classes"];
  std::vector<CharClass> expected(0x110000, CharClass::kOther);
  const auto fill = [&](const char* name, CharClass value) {
    for (const auto& range : classes[name]["fast_ranges"]) {
      for (uint32_t c = range[0]; c < range[1].get<uint32_t>(); ++c)
        expected[c] = value;
    }
  };
  fill("\\p{L}", CharClass::kLetter);
  fill("\\p{N}", CharClass::kNumber);
  fill("\\s", CharClass::kSpace);
  expected['\n'] = expected['\r'] = CharClass::kNewline;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;  // no UTF-8 text holds a surrogate
    ASSERT_EQ(CharTable::get().class_of(c), expected[c]) << std::hex << c;
  }
}

std::string nfc(const std::string& text) {
  std::string out = "left alone";
  if (!normalize_nfc(text, out)) {
    EXPECT_EQ(out, "left alone");
    return text;
  }
  return out;
}

TEST(Nfc, ComposesOrdersAndReplaces) {
  EXPECT_EQ(nfc(""), "");
  EXPECT_EQ(nfc("plain ASCII"), "plain ASCII");
  EXPECT_EQ(nfc("caf\u00e9"), "caf\u00e9");
  EXPECT_EQ(nfc("cafe\u0301!"), "caf\u00e9!");
  EXPECT_EQ(nfc("\u212b"), "\u00c5");               // singleton
  EXPECT_EQ(nfc("\u1100\u1161\u11a8"), "\uac01");   // Hangul
  EXPECT_EQ(nfc("e\u0301\u0323"), "\u1eb9\u0301");  // ordered, then composed
  EXPECT_EQ(nfc("\u00e9\u0323"), "\u1eb9\u0301");   // taken apart first
  EXPECT_EQ(nfc("\u0915\u093c"), "\u0915\u093c");   // excluded from composition
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093c");
  EXPECT_EQ(nfc("\u0301x"), "\u0301x");       // a mark with nothing to sit on
  EXPECT_EQ(nfc("x\u0344"), "\u1e8d\u0301");  // two marks, the first composes
  EXPECT_EQ(nfc("\uf900"), "\u8c48");
  EXPECT_EQ(nfc("a\u0305\u0301"), "a\u0305\u0301");  // blocked: same class between
}

TEST(Nfc, AMarkComposesWithTheLastOfManyLetters) {
  for (size_t n = 0; n < 40; ++n) {
    const std::string letters(n, 'b');
    EXPECT_EQ(nfc(letters + "e\u0301" + letters + "e\u0301"),
              letters + "\u00e9" + letters + "\u00e9");
    EXPECT_EQ(nfc(letters + "\u00e9" + letters), letters + "\u00e9" + letters);
  }
}

TEST(Nfc, IsThatOfUnicode9) {
  // Marks of later versions count as starters, so they are not reordered ...
  EXPECT_EQ(nfc("a\u0301\u08d3"), "\u00e1\u08d3");  // U+08D3: Unicode 11, class 220
  // ... and pairs of later versions do not compose.
  EXPECT_EQ(nfc("\U00011935\U00011930"), "\U00011935\U00011930");
  EXPECT_EQ(nfc("\U00011131\U00011127"), "\U0001112e");  // Unicode 6.1: composes
}

TEST(Nfc, LeavesNormalisedMarksAlone) {
  EXPECT_EQ(nfc("\u0e01\u0e49\u0e33"), "\u0e01\u0e49\u0e33");  // Thai
  EXPECT_EQ(nfc("\u0915\u094d\u0937"), "\u0915\u094d\u0937");  // Devanagari with virama
}

}  // namespace
}  // namespace qw
