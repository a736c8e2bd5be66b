// Tests of small pieces of base/: errors, UTF-8, 16-bit floats, checked sizes, random numbers, log.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/utf8.h"

namespace qw {
namespace {

TEST(Error, CarriesKindAndSentence) {
  try {
    fail(ErrorKind::kCorrupt, "gguf", "magic: expected {}, got {}", "GGUF", "ELF");
    FAIL() << "fail returned";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
    EXPECT_EQ(error.message(), "[gguf] magic: expected GGUF, got ELF");
    EXPECT_EQ(exit_code(error.kind()), 4);
  }
}

TEST(Error, CheckThrowsInternalAndNamesThePlace) {
  try {
    QW_CHECK(1 + 1 == 3, "sum of {}", 1);
    FAIL() << "the check passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    EXPECT_NE(error.message().find("1 + 1 == 3"), std::string::npos);
    EXPECT_NE(error.message().find("sum of 1"), std::string::npos);
    EXPECT_NE(error.message().find("base_test.cpp"), std::string::npos);
  }
}

TEST(Error, PrintableKeepsTextOnOneLine) {
  EXPECT_EQ(printable("a\nb\xFF"), "a\\x0ab\\xff");
  EXPECT_EQ(printable("千问\u00A0\u2027\u202A"), "千问\u00A0\u2027\u202A");
  EXPECT_EQ(printable("\x7F\u0080\u009B\u009F"), "\\x7f\\xc2\\x80\\xc2\\x9b\\xc2\\x9f");
  EXPECT_EQ(printable("a\u2028b\u2029"), "a\\xe2\\x80\\xa8b\\xe2\\x80\\xa9");
  EXPECT_EQ(printable(std::string(500, 'x'), 10), std::string(10, 'x') + "...");
}

TEST(Utf8, DecodesEveryCodePointAndRefusesSurrogates) {
  for (uint32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    std::string text;
    append_utf8(text, code_point);
    const Utf8Step step = decode_utf8(text);
    if (code_point >= 0xD800 && code_point <= 0xDFFF) {
      ASSERT_FALSE(step.valid);
    } else {
      ASSERT_TRUE(step.valid);
      ASSERT_EQ(step.code_point, code_point);
      ASSERT_EQ(step.length, text.size());
    }
  }
}

TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string replacement = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\xBD"), replacement + replacement + replacement);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), replacement);
  EXPECT_EQ(replace_invalid_utf8("\xE4\xBD"
                                 "A"),
            replacement + "A");
  EXPECT_EQ(find_invalid_utf8("ab\xC0\x80"), 2u);
  EXPECT_TRUE(decode_utf8("\xF0\x9F").truncated);
  EXPECT_FALSE(decode_utf8("\xF0\x28").truncated);
}

// Passes over ASCII go by eight bytes: what stands before, in and behind such a step is all found.
TEST(Utf8, AsciiPrefixAtEveryOffset) {
  for (size_t n = 0; n < 40; ++n) {
    const std::string ascii(n, '~');
    EXPECT_EQ(ascii_prefix(ascii), n);
    EXPECT_EQ(find_invalid_utf8(ascii), std::string_view::npos);
    for (const char first : {'\x80', '\xFF'}) {
      EXPECT_EQ(ascii_prefix(ascii + first + std::string(20, 'a')), n);
      EXPECT_EQ(find_invalid_utf8(ascii + "\u00e9" + ascii + first + ascii), 2 * n + 2);
    }
  }
}

TEST(Log, GoesToStderrFromTheFirstWarningOn) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  logger().info("nobody asked");
  logger().warn("mind {}", 7);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "qianwen: warning: mind 7\n");
  EXPECT_THROW(init_logging("loud"), Error);
}

TEST(Half, WideningAndNarrowingAreInverse) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float from_f16 = f16_to_f32(half), from_bf16 = bf16_to_f32(half);
    if (!std::isnan(from_f16)) {
      ASSERT_EQ(f32_to_f16(from_f16), half);
    }
    if (!std::isnan(from_bf16)) {
      ASSERT_EQ(f32_to_bf16(from_bf16), half);
    }
    ASSERT_EQ(std::isnan(from_f16), (bits & 0x7FFF) > 0x7C00);
  }
}

TEST(Half, NarrowingRoundsToNearestEven) {
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), 0x3C00);    // tie, even below
  EXPECT_EQ(f32_to_f16(1.0f + 0x1.8p-10f), 0x3C02);  // tie, even above
  EXPECT_EQ(f32_to_f16(65519.99f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0x0000);  // tie between 0 and the smallest
  EXPECT_EQ(f32_to_f16(0x1.8p-25f), 0x0001);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3F80);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1.8p-7f), 0x3F82);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

TEST(Checked, OverflowIsAnErrorThatNamesTheSize) {
  EXPECT_EQ(checked_mul<int64_t>(3, 4, "x"), 12);
  EXPECT_THROW(checked_mul<int64_t>(int64_t{1} << 40, int64_t{1} << 40, "x"), Error);
  EXPECT_THROW(checked_add<uint64_t>(~uint64_t{0}, 1, "x"), Error);
  EXPECT_THROW(checked_mul<int64_t>(-1, 4, "x"), Error);
  EXPECT_EQ(checked_cast<int32_t>(int64_t{7}, "x"), 7);
  EXPECT_THROW(checked_cast<int32_t>(int64_t{1} << 31, "x"), Error);
  EXPECT_THROW(checked_cast<uint32_t>(int64_t{-1}, "x"), Error);
}

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST(Rng, PhiloxKnownAnswers) {
  const std::array<uint32_t, 4> zero = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), zero);
  const std::array<uint32_t, 4> ones = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), ones);
  const std::array<uint32_t, 4> pi = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            pi);
}

TEST(Rng, UniformAndNormalHaveTheRightMoments) {
  double sum = 0, sum_normal = 0, squares = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double u = random_uniform(7, 1, static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    const double z = random_normal(7, 2, static_cast<uint64_t>(i));
    sum_normal += z;
    squares += z * z;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.005);
  EXPECT_NEAR(sum_normal / n, 0.0, 0.02);
  EXPECT_NEAR(squares / n, 1.0, 0.03);
  EXPECT_NE(random_bits(1, 2, 3), random_bits(1, 3, 2));
}

}  // namespace
}  // namespace qw
