// The linear scan against hand-made cases of every alternative of the patterns.
#include "text/splitter.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace qw {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(SplitPattern pattern, const std::string& text) {
  const Splitter splitter(pattern);
  Pieces pieces;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = splitter.piece_end(text, begin);
    EXPECT_GT(end, begin);
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

TEST(Splitter, Qwen2) {
  const auto qwen = [](const std::string& text) { return split(SplitPattern::kQwen2, text); };
  EXPECT_EQ(qwen("Hello world"), (Pieces{"Hello", " world"}));
  EXPECT_EQ(qwen("it's IT'S o'clock"), (Pieces{"it", "'s", " IT", "'S", " o", "'clock"}));
  EXPECT_EQ(qwen("'\u017f"), (Pieces{"'\u017f"}));
  EXPECT_EQ(qwen("\u2019s"), (Pieces{"\u2019s"}));
  EXPECT_EQ(qwen("'Re've'lL'd"), (Pieces{"'Re", "'ve", "'lL", "'d"}));
  EXPECT_EQ(qwen("'r"), (Pieces{"'r"}));
  EXPECT_EQ(qwen("2024\u0664"), (Pieces{"2", "0", "2", "4", "\u0664"}));
  EXPECT_EQ(qwen("a  b"), (Pieces{"a", " ", " b"}));
  EXPECT_EQ(qwen("a   "), (Pieces{"a", "   "}));
  EXPECT_EQ(qwen("a   1"), (Pieces{"a", "  ", " ", "1"}));
  EXPECT_EQ(qwen("\t\tx"), (Pieces{"\t", "\tx"}));
  EXPECT_EQ(qwen("x = 1;\n\n  y"), (Pieces{"x", " =", " ", "1", ";\n\n", " ", " y"}));
  EXPECT_EQ(qwen(" \n \r\n  z"), (Pieces{" \n \r\n", " ", " z"}));
  EXPECT_EQ(qwen("\nz"), (Pieces{"\n", "z"}));
  EXPECT_EQ(qwen("!?a b"), (Pieces{"!?", "a", " b"}));
  EXPECT_EQ(qwen(" !x"), (Pieces{" !", "x"}));
  EXPECT_EQ(qwen("(x)"), (Pieces{"(x", ")"}));
  EXPECT_EQ(qwen("\u3000!"), (Pieces{"\u3000", "!"}));
  EXPECT_EQ(qwen("\u3000字"), (Pieces{"\u3000字"}));
}

TEST(Splitter, Cl100k) {
  EXPECT_EQ(split(SplitPattern::kCl100k, "12345 1"), (Pieces{"123", "45", " ", "1"}));
}

TEST(Splitter, Gpt2) {
  const auto gpt2 = [](const std::string& text) { return split(SplitPattern::kGpt2, text); };
  EXPECT_EQ(gpt2("it's IT'S 123\n\nx"),
            (Pieces{"it", "'s", " IT", "'", "S", " 123", "\n", "\n", "x"}));
  EXPECT_EQ(gpt2("(x  y"), (Pieces{"(", "x", " ", " y"}));
  EXPECT_EQ(gpt2(" "), (Pieces{" "}));
}

TEST(Splitter, KnowsThePublishedExpressions) {
  EXPECT_EQ(
      Splitter::from_regex(
          R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"),
      SplitPattern::kQwen2);
  EXPECT_EQ(Splitter::from_regex(R"(\p{L}+)"), std::nullopt);
}

}  // namespace
}  // namespace qw
