// Grammars over bytes: each notation, what it accepts and what it refuses.
#include "engine/grammar/grammar.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "engine/grammar/regex.h"

namespace qw {
namespace {

using grammar::Node;

struct RegexCase {
  std::string pattern;
  std::vector<std::string> fits, fails;
};

TEST(GrammarRegex, WholeTexts) {
  const std::vector<RegexCase> cases = {
      {"abc", {"abc"}, {"", "ab", "abcd", "Abc"}},
      {"a|bc|", {"a", "bc", ""}, {"b", "ab"}},
      {"(?:ab)+c?", {"ab", "abab", "ababc"}, {"", "c", "aba"}},
      {"a{2}", {"aa"}, {"a", "aaa"}},
      {"a{2,}", {"aa", "aaaaaaa"}, {"a"}},
      {"a{2,4}b", {"aab", "aaaab"}, {"ab", "aaaaab"}},
      {"[a-cx]*?", {"", "abcx"}, {"d", "X"}},
      {"[^a-c]", {"d", "é", "✿", "\n", "😀"}, {"a", "", "dd"}},
      {".", {"a", "✿", "\t"}, {"\n", "\r", "\u2028", ""}},
      {"\\d\\D\\w\\W\\s\\S", {"1a_- x", "0٣Z.\u3000é"}, {"aa_- x", "11_- x"}},
      {"\\x41\\u00e9\\u{1F600}\\U0000263A\\ud83d\\ude00", {"Aé😀☺😀"}, {"Ae😀☺😀"}},
      {"[\\]\\-\\\\b-]", {"]", "-", "\\", "b"}, {"[", "a"}},
      {"\\.\\*\\(\\[\\{", {".*([{"}, {}},
      {"a{,", {"a{,"}, {}},
      {"x{a}", {"x{a}"}, {"x"}},
      {"^ab$|^c$", {"ab", "c"}, {"abc"}},
      {"(?P<year>\\d{4})-(?<month>\\d\\d)", {"2024-05"}, {"24-05"}},
      {"\\p{Lu}\\p{Script=Han}\\P{L}", {"É花1"}, {"é花1", "É花a"}},
      {"(a|aa){0,3000}b", {"b", "aaab"}, {"a", "c"}},
      {"([ab]{1,3}c){2,}", {"abcac", "acbbbcac"}, {"abc", "abbbcac"}},
      {"(a?){3}", {"", "a", "aaa"}, {"aaaa"}},
      {"(a*)*b", {"b", "aaab"}, {"a"}},
      {"(?:(?:(?:ab)+)+){2,3}", {"abab", "abababababab"}, {"ab", "aba"}},
      {"(?:|[a-c]+|(?:d{2})*){226}b", {"b", "acddb"}, {"adb", "a"}},
      {"(?:a?b?){3}c", {"c", "babac", "abababc"}, {"ababababc"}},
      {"(?:(?:a?)+){2,3}b", {"b", "aaaaaab"}, {"a"}},
      {"[à-ö✿-❀]{3}", {"éàö", "✿é❀"}, {"éa✿"}},
  };
  for (const RegexCase& c : cases) {
    const auto grammar = Grammar::from_regex(c.pattern);
    for (const std::string& text : c.fits) {
      EXPECT_TRUE(grammar->accepts(text)) << c.pattern << " " << text;
      for (size_t n = 0; n <= text.size(); ++n)  // within characters too
        EXPECT_TRUE(grammar->accepts_prefix(text.substr(0, n))) << c.pattern << " " << text;
    }
    for (const std::string& text : c.fails)
      EXPECT_FALSE(grammar->accepts(text)) << c.pattern << " " << text;
  }
}

TEST(GrammarRegex, BoundsThatAreLarge) {
  const auto grammar = Grammar::from_regex("(?:ab|c){3,20000}");
  EXPECT_LT(grammar->fsm().states.size(), 20u);
  EXPECT_FALSE(grammar->accepts("abc"));
  EXPECT_TRUE(grammar->accepts("abcc"));
  EXPECT_TRUE(grammar->accepts(std::string(20'000, 'c')));
  EXPECT_FALSE(grammar->accepts_prefix(std::string(20'001, 'c')));
  const auto at_least = Grammar::from_regex("c{1000,}");
  EXPECT_FALSE(at_least->accepts(std::string(999, 'c')));
  EXPECT_TRUE(at_least->accepts(std::string(5000, 'c')));
  const auto exactly = Grammar::from_regex("(?:a[0-9]{0,40}){20}");
  std::string text;
  for (int i = 0; i < 20; ++i)
    text.append(1, 'a').append(static_cast<size_t>(2 * i), '7');
  EXPECT_TRUE(exactly->accepts(text));
  EXPECT_FALSE(exactly->accepts_prefix(text + "777a"));
}

void expect_error(const std::function<void()>& run, ErrorKind kind, std::string_view part) {
  try {
    run();
    ADD_FAILURE() << "no error; expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.message();
    EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
  }
}

TEST(GrammarRegex, ErrorsNameThePlace) {
  const auto check = [](std::string_view pattern, ErrorKind kind, std::string_view part) {
    expect_error([&] { Grammar::from_regex(pattern); }, kind, part);
  };
  constexpr auto kBad = ErrorKind::kInvalidArgument;
  constexpr auto kNot = ErrorKind::kUnsupported;
  check("ab(c", kBad, "closing parenthesis, got the end (offset 4");
  check("ab)c", kBad, "offset 2");
  check("a**", kBad, "offset 2");
  check("*a", kBad, "offset 0");
  check("[b-a]", kBad, "ascending order");
  check("[abc", kBad, "end of the class");
  check("a{3,2}", kBad, "ascending order");
  check("a\\", kBad, "known escape");
  check("\\q", kBad, "known escape");
  check("\\xg1", kBad, "hexadecimal");
  check("\\ud800", kBad, "surrogates");
  check("\\p{Nonsense}", kBad, "property of Unicode");
  check("a{1,99999999999}", kBad, "at most");
  check(std::string(500, '(') + std::string(500, ')'), kBad, "less deep");
  check("a(?=b)", kNot, "expected what is supported, got look-ahead and look-behind (offset 1");
  check("(a)\\1", kNot, "back-references");
  check("\\bword", kNot, "word boundaries");
  check("(?i)a", kNot, "flags");
  check("a^b", kNot, "got anchors in the middle of a pattern (offset 1");
  check("a++", kNot, "possessive");
  check("(a|^b)*", kNot, "quantifiers of anchors");
  check("\xff", kBad, "UTF-8");
}

TEST(GrammarRegex, AnywhereHonoursAnchors) {
  const auto fits = [](std::string_view pattern, std::string_view text) {
    GrammarBuilder builder;
    return builder.build(grammar::parse_regex(pattern, grammar::RegexMatch::kAnywhere))
        ->accepts(text);
  };
  EXPECT_TRUE(fits("b+", "aabbcc"));
  EXPECT_FALSE(fits("b+", "aacc"));
  EXPECT_FALSE(fits("^b", "ab"));
  EXPECT_TRUE(fits("^a", "ab"));
  EXPECT_TRUE(fits("b$", "ab"));
  EXPECT_FALSE(fits("b$", "ba"));
  EXPECT_TRUE(fits("^a|b$", "xb"));
  EXPECT_TRUE(fits("^a|b$", "ax"));
  EXPECT_FALSE(fits("^a|b$", "xax"));
  EXPECT_TRUE(fits("(^|,)a(,|$)", "b,a"));
  EXPECT_TRUE(fits("(^|,)a(,|$)", "a,b"));
  EXPECT_FALSE(fits("(^|,)a(,|$)", "ba,b"));
  EXPECT_TRUE(fits("^(?:a|b)$", "b"));
  EXPECT_FALSE(fits("^(?:a|b)$", "bb"));
  EXPECT_TRUE(fits("", "anything"));
}

TEST(GrammarGbnf, Notation) {
  const auto grammar = Grammar::from_gbnf(R"gbnf(
# arithmetic
root  ::= expr "\n"
expr  ::= term (op term)* | "(" ws expr
          ws ")"          # goes on in the next line
term  ::= [0-9]+ | "\"" [^"\\\x00-\x1F] "\"" | name{2,3}
name  ::= [a-zé] "✿"?
op    ::= [-+*/] | .{
    0}"\u00f7"
ws    ::= [ \t]*
unused-rule ::= "x"
)gbnf");
  for (const char* text : {"1+22\n", "(  1-2 )\n", "\"é\"*7\n", "aé✿\n", "abc÷1\n"})
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text : {"1+\n", "a\n", "abcd\n", "\"\"\n", "1", "((1)\n"})
    EXPECT_FALSE(grammar->accepts(text)) << text;
  EXPECT_TRUE(Grammar::from_gbnf("start ::= \"a\"", "start")->accepts("a"));
  EXPECT_TRUE(Grammar::from_gbnf("root ::= a|b a ::= \"x\" b ::= \"y\"")->accepts("y"));
}

TEST(GrammarGbnf, LineEndsInQuotesAndClassesAreThemselves) {
  const auto grammar = Grammar::from_gbnf("root ::= item+\nitem ::= \"- \" [^\r\n]+ \"\n\"\n");
  EXPECT_TRUE(grammar->accepts("- one\n- two\n"));
  EXPECT_FALSE(grammar->accepts("- one\ntwo\n"));
  EXPECT_FALSE(grammar->accepts("- one"));
}

TEST(GrammarGbnf, Recursion) {
  const auto nested = Grammar::from_gbnf(R"gbnf(root ::= "[" (root ("," root)*)? "]")gbnf");
  EXPECT_TRUE(nested->accepts("[[],[[],[]]]"));
  EXPECT_FALSE(nested->accepts("[[],]"));
  std::string deep(2000, '[');
  EXPECT_TRUE(nested->accepts_prefix(deep));
  EXPECT_TRUE(nested->accepts(deep + std::string(2000, ']')));
  EXPECT_FALSE(nested->accepts(deep + std::string(1999, ']')));
  // Right recursion takes no stack, direct left recursion is a repetition.
  const auto right = Grammar::from_gbnf("root ::= item\nitem ::= \"a\" item | \"b\"");
  EXPECT_TRUE(right->accepts(std::string(5000, 'a') + "b"));
  const auto left = Grammar::from_gbnf("root ::= root \"+\" n | root \"-\" n | n\nn ::= [0-9]");
  EXPECT_TRUE(left->accepts("1+2-3"));
  EXPECT_FALSE(left->accepts("1+"));
  // Rules that may be empty, and repetitions of such.
  const auto empty = Grammar::from_gbnf("root ::= (a b)* \"!\"\na ::= \"a\"?\nb ::= a{0,9} \"b\"?");
  EXPECT_TRUE(empty->accepts("abba!"));
  EXPECT_TRUE(empty->accepts("!"));
}

TEST(GrammarGbnf, ErrorsNameLineAndColumn) {
  const auto check = [](std::string_view text, ErrorKind kind, std::string_view part) {
    expect_error([&] { Grammar::from_gbnf(text); }, kind, part);
  };
  constexpr auto kBad = ErrorKind::kInvalidArgument;
  check("root ::= \"a\" nowhere\n", kBad,
        "rule nowhere: expected a definition, got none (line 1, column 14)");
  check("start ::= \"a\"", kBad, "rule root");
  check("root ::= \"a\"\nroot ::= \"b\"", kBad, "line 2, column 1");
  check("root ::= \"a\nb", kBad, "the end of the literal that begins at line 1, column 10");
  check("root ::= [a\nb", kBad, "the end of the class that begins at line 1, column 10");
  check("root = \"a\"", kBad, "expected ::=, got \"=\" (line 1, column 6)");
  check("root ::= (\"a\"", kBad, "closing parenthesis");
  check("root ::= \"a\")", kBad, "line 1, column 13");
  check("root ::= [z-a]", kBad, "ascending");
  check("root ::= \"\\q\"", kBad, "known escape");
  check("root ::= \"a\"{2,1}", kBad, "ascending");
  check("root ::= a\na ::= b \"x\" | \"y\"\nb ::= a \"z\"", ErrorKind::kUnsupported,
        "left recursion (by way of a, b)");
  check("root ::= (\"a\"? root)? \"b\"", ErrorKind::kUnsupported, "left recursion");
  check("root ::= \"a\" root", kBad, "no text can fit");
  check("root ::= (=\"a\")", ErrorKind::kUnsupported, "look-ahead");
  check("root ::= <[12]>", ErrorKind::kUnsupported, "tokens by their name");
  check("", kBad, "rule root");
}

TEST(GrammarBuild, FreeTextUpToALiteral) {
  GrammarBuilder builder;
  const Node call = grammar::sequence(
      {grammar::text_until("✿F: "), builder.choice(std::vector<std::string>{"add", "addend"}),
       grammar::literal("\n"), builder.json_object(), grammar::any_text()});
  const auto grammar = builder.build(call);
  EXPECT_TRUE(grammar->accepts("I see. ✿F: add\n{\"a\":1}"));
  EXPECT_TRUE(grammar->accepts("✿✿F ✿F✿F: addend\n{}✿F: sub"));
  EXPECT_FALSE(grammar->accepts_prefix("✿F: sub"));
  EXPECT_FALSE(grammar->accepts("no call at all"));
  EXPECT_TRUE(grammar->accepts_prefix("no call at all"));

  const auto without = builder.build(grammar::text_without("aab"));
  EXPECT_TRUE(without->accepts("aaacaba"));
  EXPECT_TRUE(without->accepts(""));
  EXPECT_FALSE(without->accepts_prefix("xaaab"));
}

TEST(GrammarBuild, TriggersWithinFreeText) {
  GrammarBuilder builder;
  const auto grammar = builder.build(grammar::free_text(
      {{"<a>", grammar::literal("1</a>")}, {"<b>", grammar::literal("2</b>")}, {"<end>", nullptr}},
      true));
  EXPECT_TRUE(grammar->accepts(""));
  EXPECT_TRUE(grammar->accepts("x<<a>1</a> y <b>2</b><a>1</a>"));
  EXPECT_TRUE(grammar->accepts("x<a"));
  EXPECT_TRUE(grammar->accepts("x<end>"));
  EXPECT_FALSE(grammar->accepts_prefix("x<end>y"));
  EXPECT_FALSE(grammar->accepts("x<a>"));
  EXPECT_FALSE(grammar->accepts_prefix("x<a>2"));
  expect_error(
      [] {
        grammar::free_text({{"ab", nullptr}, {"xab", nullptr}}, true);
      },
      ErrorKind::kInvalidArgument, "part of another");
  expect_error(
      [] {
        grammar::free_text({{"ab", nullptr}, {"abc", nullptr}}, true);
      },
      ErrorKind::kInvalidArgument, "part of another");
  expect_error([] { grammar::text_until(""); }, ErrorKind::kInvalidArgument, "not empty");
}

TEST(GrammarBuild, FreeTextThatBeginsAfterSomething) {
  GrammarBuilder builder;
  const grammar::TextStart line = {"\n", {{' ', ' '}, {'\n', '\n'}}};
  const auto grammar = builder.build(
      grammar::free_text({{"\nA:", nullptr}, {"\nB:", grammar::never()}}, true, line));
  for (const char* text : {"", " ", "A", "A:", " \n A:", "xA:", "x\nA:", "xB: y A:\n", "x\n A: z"})
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text : {"A: ", " A:x", "B:", "\nB:", " \n B:", "x\nB:", "A\nB:"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
  expect_error(
      [] {
        grammar::free_text({{"\nA", nullptr}}, true, {"x\nA", {}});
      },
      ErrorKind::kInternal, "begins after");
}

TEST(GrammarBuild, Choice) {
  const std::vector<std::string> texts = {"yes", "no", "no way", "✿"};
  const auto grammar = Grammar::choice(texts);
  for (const std::string& text : texts)
    EXPECT_TRUE(grammar->accepts(text));
  EXPECT_FALSE(grammar->accepts("no w"));
  expect_error([] { Grammar::choice(std::vector<std::string>{}); }, ErrorKind::kInvalidArgument,
               "at least one");
}

// Each text written out would be more states than a grammar may have.
TEST(GrammarBuild, ManyTextsShareWhatTheyHaveInCommon) {
  std::vector<std::string> texts;
  for (int i = 0; i < 20'000; ++i)
    texts.push_back(fmt::format("The answer is {:05d}, and nothing else.", i * 3));
  const auto alone = Grammar::choice(texts);
  GrammarBuilder builder;
  const auto within = builder.build(
      grammar::sequence({grammar::literal("So: "), builder.choice(texts), grammar::literal("!")}));
  for (const size_t i : {size_t{0}, size_t{7}, texts.size() - 1}) {
    EXPECT_TRUE(alone->accepts(texts[i]));
    EXPECT_TRUE(within->accepts("So: " + texts[i] + "!"));
    EXPECT_FALSE(within->accepts("So: " + texts[i]));
  }
  EXPECT_FALSE(alone->accepts("The answer is 00001, and nothing else."));
  EXPECT_FALSE(alone->accepts("The answer is 00003, and nothing"));
  // Among other things, and where one text begins another.
  std::vector<grammar::Node> ways{builder.regex("[0-9]+x")};
  for (int i = 0; i < 40; ++i)
    ways.push_back(grammar::literal(std::string(static_cast<size_t>(i), '7')));
  const auto mixed = builder.build(grammar::sequence(
      {grammar::alternation(std::move(ways)), grammar::literal("."), builder.regex("a*")}));
  for (const char* text : {".", "7.", "777.aa", "123x.", "7x.a"})
    EXPECT_TRUE(mixed->accepts(text)) << text;
  for (const std::string& text :
       std::vector<std::string>{"123.", "x.", "", std::string(40, '7') + "."})
    EXPECT_FALSE(mixed->accepts(text)) << text;
}

// What is true of a rule follows from the rules that it calls: in either direction through a list
// of many, without looking at all of them for each.
TEST(GrammarBuild, LongChainsOfRules) {
  constexpr int kRules = 5'000;
  for (const bool forward : {true, false}) {
    std::string text = fmt::format("root ::= r{} \"!\"\n", forward ? 0 : kRules - 1);
    for (int i = 0; i < kRules; ++i) {
      const int next = forward ? i + 1 : i - 1;
      text += next < 0 || next == kRules ? fmt::format("r{} ::= \"x\" | \"\"\n", i)
                                         : fmt::format("r{} ::= r{}\n", i, next);
    }
    const auto grammar = Grammar::from_gbnf(text);
    EXPECT_TRUE(grammar->accepts("x!"));
    EXPECT_TRUE(grammar->accepts("!"));
    EXPECT_FALSE(grammar->accepts("xx!"));
  }
}

TEST(GrammarBuild, TooAmbiguousIsAnError) {
  // After n opening brackets 2^n stacks are possible.
  const auto grammar = Grammar::from_gbnf(
      "root ::= a | b\na ::= \"(\" root \")\" \"a\" | \"x\"\nb ::= \"(\" root \")\" \"b\" | \"y\"");
  EXPECT_TRUE(grammar->accepts("((x)a)b"));
  expect_error([&] { grammar->accepts(std::string(20, '(')); }, ErrorKind::kUnsupported,
               "too ambiguous");
}

}  // namespace
}  // namespace qw
