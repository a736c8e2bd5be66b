// Masks, bit by bit, against reading the text; automata against a naive reader of expressions.
#include "engine/grammar/token_masks.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "base/error.h"
#include "base/utf8.h"

namespace qw {
namespace {

using grammar::ConfigId;
using grammar::Expression;
using grammar::kDead;
using grammar::kUnbounded;
using grammar::Node;
using Random = std::mt19937;

size_t pick(Random& random, size_t n) {
  return std::uniform_int_distribution<size_t>(0, n - 1)(random);
}

/// Reads expressions the slow way: all places where `node` can end when it begins at `at`.
class NaiveReader {
 public:
  NaiveReader(const std::vector<Node>& rules, std::string_view text) : rules_(rules), text_(text) {}

  std::set<size_t> ends(const Node& node, size_t at) {
    using Kind = Expression::Kind;
    switch (node->kind) {
      case Kind::kNever:
        return {};
      case Kind::kLiteral:
        return text_.substr(at).starts_with(node->text) ? std::set{at + node->text.size()}
                                                        : std::set<size_t>{};
      case Kind::kChars: {
        if (at == text_.size()) return {};
        const Utf8Step step = decode_utf8(text_.substr(at));
        if (!step.valid || !node->chars.contains(step.code_point)) return {};
        return {at + step.length};
      }
      case Kind::kAlternation: {
        std::set<size_t> out;
        for (const Node& item : node->items)
          out.merge(ends(item, at));
        return out;
      }
      case Kind::kSequence: {
        std::set<size_t> now{at};
        for (const Node& item : node->items)
          now = after(item, now);
        return now;
      }
      case Kind::kRepeat: {
        std::set<size_t> now{at}, out;
        for (uint32_t n = 0;; ++n) {
          if (n >= node->min) out.insert(now.begin(), now.end());
          if (n == node->max || n > node->min + text_.size() || now.empty()) return out;
          now = after(node->items[0], now);
        }
      }
      case Kind::kRule:
        return ends(rules_[node->rule], at);
      case Kind::kGraph:
        break;
    }
    ADD_FAILURE() << "no graphs here";
    return {};
  }
  bool accepts(const Node& node) { return ends(node, 0).contains(text_.size()); }

 private:
  std::set<size_t> after(const Node& node, const std::set<size_t>& from) {
    std::set<size_t> out;
    for (const size_t at : from)
      out.merge(ends(node, at));
    return out;
  }
  const std::vector<Node>& rules_;
  std::string_view text_;
};

const std::vector<std::string>& alphabet() {
  static const std::vector<std::string> kLetters = {"a", "b", "é", "è"};
  return kLetters;
}

/// A random expression. `rule_from`: rules that may be called, the later ones anywhere and earlier
/// ones only after a letter, so that there is no left recursion.
Node random_node(Random& random, int depth, size_t rule_from, size_t n_rules) {
  const auto deeper = [&] { return random_node(random, depth - 1, rule_from, n_rules); };
  switch (depth <= 0 ? pick(random, 3) : pick(random, 9)) {
    case 0:
    case 1:
      return grammar::literal(alphabet()[pick(random, 4)]);
    case 2:
      return grammar::chars({{'a', 'b'}, {0xE8, 0xE8 + static_cast<uint32_t>(pick(random, 2))}});
    case 3:
      return grammar::sequence({deeper(), deeper()});
    case 4:
      return grammar::alternation({deeper(), deeper()});
    case 5: {
      const auto min = static_cast<uint32_t>(pick(random, 4));
      return grammar::repeat(deeper(), min, min + static_cast<uint32_t>(pick(random, 5)));
    }
    case 6: {
      // Heavy enough to be counted instead of written out.
      const Node body = grammar::alternation(
          {grammar::sequence({grammar::literal("aéb"), deeper()}), grammar::literal("bb"),
           grammar::sequence({grammar::literal("a"), grammar::optional(grammar::literal("b"))})});
      const auto min = static_cast<uint32_t>(pick(random, 3));
      return grammar::repeat(
          body, min,
          pick(random, 3) == 0 ? kUnbounded : min + 3 + static_cast<uint32_t>(pick(random, 3)));
    }
    case 7:
      if (rule_from < n_rules)
        return grammar::rule(static_cast<uint32_t>(rule_from + pick(random, n_rules - rule_from)));
      [[fallthrough]];
    default:
      return grammar::sequence(
          {grammar::literal(alphabet()[pick(random, 4)]),
           grammar::optional(grammar::rule(static_cast<uint32_t>(pick(random, n_rules)))),
           deeper()});
  }
}

/// Grammar::accepts and accepts_prefix with one automaton for many texts.
class Reader {
 public:
  explicit Reader(const Grammar& grammar) : configs_(grammar.fsm()) {}
  ConfigId after(std::string_view text) {
    ConfigId at = configs_.start();
    for (const char byte : text)
      at = configs_.step(at, static_cast<uint8_t>(byte));
    return at;
  }
  bool accepts(std::string_view text) { return configs_.accepts(after(text)); }
  bool accepts_prefix(std::string_view text) { return after(text) != kDead; }

 private:
  grammar::Configurations configs_;
};

struct RandomGrammar {
  std::vector<Node> rules;
  std::shared_ptr<const Grammar> grammar;
};

/// nullptr grammar: a repetition of something empty that is too large, which is refused.
RandomGrammar random_grammar(unsigned seed) {
  Random random(seed);
  constexpr size_t kRules = 3;
  RandomGrammar out;
  GrammarBuilder builder;
  for (size_t i = 0; i < kRules; ++i) {
    builder.declare(fmt::format("r{}", i));
    out.rules.push_back(random_node(random, 4, i + 1, kRules));
  }
  for (size_t i = 0; i < kRules; ++i)
    builder.define(static_cast<uint32_t>(i), out.rules[i]);
  try {
    out.grammar = builder.build(grammar::rule(0));
  } catch (const Error&) {
  }
  return out;
}

TEST(GrammarMasks, AutomataReadWhatTheExpressionSays) {
  int n_grammars = 0, n_accepted = 0;
  for (unsigned seed = 0; seed < 150; ++seed) {
    const RandomGrammar random = random_grammar(seed);
    if (!random.grammar) continue;
    ++n_grammars;
    Reader reader(*random.grammar);
    Random letters(seed);
    const auto try_text = [&](const std::string& text) {
      const bool expected = NaiveReader(random.rules, text).accepts(grammar::rule(0));
      ASSERT_EQ(reader.accepts(text), expected) << "seed " << seed << ": " << text;
      n_accepted += expected ? 1 : 0;
      for (size_t n = 0; expected && n <= text.size(); ++n)
        ASSERT_TRUE(reader.accepts_prefix(text.substr(0, n))) << seed << ": " << text;
    };
    // All short texts, and longer ones that follow the automaton.
    for (size_t code = 0; code < 4 * 4 * 4 * 4 * 4; ++code) {
      std::string text;
      for (size_t rest = code; rest != 0; rest /= 4)
        text += alphabet()[rest % 4];
      try_text(text);
    }
    for (int n = 0; n < 30; ++n) {
      std::string text;
      for (int i = 0; i < 14; ++i) {
        const std::string& letter = alphabet()[pick(letters, 4)];
        if (!reader.accepts_prefix(text + letter)) continue;
        text += letter;
        try_text(text);
      }
    }
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(n_grammars, 100);
  EXPECT_GT(n_accepted, 3000);
}

/// Tokens that cut characters, that span repetitions and rules, and two with the same bytes.
std::vector<std::string> random_vocabulary(Random& random) {
  std::vector<std::string> out = {"a", "b", "\xC3", "\xA8", "\xA9", "é", "", "a", "\xFF", "ab\xC3"};
  for (int i = 0; i < 90; ++i) {
    std::string text;
    for (size_t n = 1 + pick(random, 5); n-- > 0;)
      text += alphabet()[pick(random, 4)];
    const size_t begin = pick(random, 3) == 0 ? 1 : 0, cut = pick(random, 3) == 0 ? 1 : 0;
    out.push_back(text.substr(begin, text.size() - begin - std::min(cut, text.size() - begin)));
  }
  return out;
}

TEST(GrammarMasks, EveryBitIsWhatReadingTheBytesSays) {
  int64_t n_allowed = 0, n_masks = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    const RandomGrammar random = random_grammar(seed);
    if (!random.grammar) continue;
    Random choices(seed);
    const auto vocabulary = std::make_shared<const GrammarVocabulary>(random_vocabulary(choices));
    GrammarMatcher matcher(random.grammar, vocabulary);
    Reader reader(*random.grammar);
    for (int walk = 0; walk < 4; ++walk) {
      GrammarMatcher::Session session(matcher);
      ConfigId at = session.start();
      std::string text;
      for (int step = 0; step < 12; ++step) {
        const auto mask = session.mask(at);
        ++n_masks;
        ASSERT_EQ(mask->accepts, reader.accepts(text)) << seed << ": " << text;
        std::vector<int32_t> allowed;
        for (int32_t id = 0; id < vocabulary->size(); ++id) {
          const std::string_view bytes = vocabulary->bytes(id);
          const bool expected = !bytes.empty() && reader.accepts_prefix(text + std::string(bytes));
          ASSERT_EQ(mask->allows(id), expected) << seed << ": " << text << " + " << bytes;
          if (expected) allowed.push_back(id);
        }
        ASSERT_EQ(mask->n_tokens, std::ssize(allowed));
        n_allowed += std::ssize(allowed);
        if (allowed.empty()) {
          ASSERT_TRUE(mask->accepts) << "a dead end, seed " << seed << ": " << text;
          break;
        }
        const int32_t id = allowed[pick(choices, allowed.size())];
        at = session.advance(at, id);
        ASSERT_NE(at, kDead);
        text += vocabulary->bytes(id);
      }
    }
  }
  EXPECT_GT(n_masks, 1500);
  EXPECT_GT(n_allowed, 10'000);
}

TEST(GrammarMasks, CountsOfLongRepetitions) {
  // Lengths that tokens run over, at every distance from both bounds.
  const auto grammar = Grammar::from_json_schema(
      R"({"type":"array","items":{"type":"string","minLength":7,"maxLength":12},"minItems":4,"maxItems":9})");
  std::vector<std::string> tokens = {"\"", ",",    "[",    "]",  "\",\"", "\"]", "[\"",
                                     "é",  "\xC3", "\xA9", "\\", "\\\"",  "n"};
  for (size_t n = 1; n <= 14; ++n)
    tokens.push_back(std::string(n, 'x'));
  tokens.push_back("xx\",\"xxxxxxx");
  tokens.push_back("xxxxxxx\",\"xxxxxxxxxxxx\",\"xxxxxxxxxxx\"]");
  const auto vocabulary = std::make_shared<const GrammarVocabulary>(tokens);
  GrammarMatcher matcher(grammar, vocabulary);
  Reader reader(*grammar);
  Random choices(1);
  for (int walk = 0; walk < 20; ++walk) {
    GrammarMatcher::Session session(matcher);
    ConfigId at = session.start();
    std::string text;
    for (;;) {
      const auto mask = session.mask(at);
      std::vector<int32_t> allowed;
      for (int32_t id = 0; id < vocabulary->size(); ++id) {
        const bool expected = reader.accepts_prefix(text + tokens[static_cast<size_t>(id)]);
        ASSERT_EQ(mask->allows(id), expected) << text << " + " << tokens[static_cast<size_t>(id)];
        if (expected) allowed.push_back(id);
      }
      if (allowed.empty()) break;
      const int32_t id = allowed[pick(choices, allowed.size())];
      at = session.advance(at, id);
      text += tokens[static_cast<size_t>(id)];
    }
    EXPECT_TRUE(reader.accepts(text)) << text;
  }
}

TEST(GrammarMasks, MasksOfStringsAreSharedBetweenGrammars) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 5000; ++i)
    tokens.push_back(std::to_string(i));
  tokens.push_back("\"");
  tokens.push_back("\"5");
  const auto vocabulary = std::make_shared<const GrammarVocabulary>(tokens);
  for (const char* schema : {R"({"type":"string"})", R"({"type":["string","null"]})",
                             R"({"anyOf":[{"type":"string"},{"type":"integer"}]})"}) {
    const auto grammar = Grammar::from_json_schema(schema);
    GrammarMatcher matcher(grammar, vocabulary);
    GrammarMatcher::Session session(matcher);
    const auto mask = session.mask(session.advance(session.start(), "\"1"));
    EXPECT_FALSE(mask->is_sparse);
    EXPECT_EQ(mask->n_tokens, 5001);
    EXPECT_FALSE(mask->allows(5001));
  }
}

TEST(GrammarMasks, ForgettingOldConfigurationsChangesNothing) {
  const auto grammar = Grammar::from_regex("(?:a{1,100}b){1,1000}");
  const auto vocabulary =
      std::make_shared<const GrammarVocabulary>(std::vector<std::string>{"a", "b"});
  GrammarMatcher matcher(grammar, vocabulary);
  uint64_t generation = 0;
  {
    GrammarMatcher::Session session(matcher);
    generation = session.generation();
    ConfigId at = session.start();
    for (int i = 0; i < 900; ++i)
      at = session.advance(at, std::string(90, 'a') + "b");
    EXPECT_NE(at, kDead);
  }
  GrammarMatcher::Session session(matcher);
  EXPECT_NE(session.generation(), generation);
  const auto mask = session.mask(session.advance(session.start(), "a"));
  EXPECT_TRUE(mask->allows(0));
  EXPECT_TRUE(mask->allows(1));
}

}  // namespace
}  // namespace qw
