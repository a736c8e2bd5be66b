// Stop strings: the golden runs, and a search through the whole text as the slow reference.
#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "support/golden_rows.h"

namespace qw {
namespace {

using nlohmann::json;

/// Which stop string ends first in `text` (the longest of those), and the text before it.
StopStrings::Result search_whole(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<size_t> found;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!std::string_view(text).substr(0, end).ends_with(stops[i])) continue;
      if (!found || stops[i].size() > stops[*found].size()) found = i;
    }
    if (found) return {text.substr(0, end - stops[*found].size()), found};
  }
  return {text, std::nullopt};
}

TEST(StopStrings, GoldenRuns) {
  const json golden = test::read_json_file(test::project_golden("generation/stop_strings.json"));
  const auto vocabulary = golden["vocabulary"].get<std::vector<std::string>>();
  ASSERT_EQ(golden["runs"].size(), 15u);
  for (const json& run : golden["runs"]) {
    const auto stops = run["stop_strings"].get<std::vector<std::string>>();
    StopStrings matcher(stops);
    std::string text;
    size_t n_pushed = 0;
    bool stopped = false;
    for (const size_t id : run["generated"]) {
      const auto result = matcher.push(vocabulary[id]);
      ++n_pushed;
      text += result.text;
      stopped = result.stop.has_value();
      if (stopped) break;
    }
    // Only what is generated counts here; Transformers lets a stop string begin in the prompt.
    EXPECT_EQ(stopped, run["stop_string_lies_in_generated_text"].get<bool>()) << run;
    EXPECT_EQ(n_pushed, run["generated"].size()) << run;
    if (!stopped) text += matcher.flush();
    EXPECT_EQ(text, search_whole(run["text"], stops).text) << run;
  }
}

TEST(StopStrings, AnyCutOfTheTextGivesTheSame) {
  std::mt19937 random(7);
  const auto draw = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const auto word = [&](size_t longest) {
    std::string text(1 + draw(longest), 'a');
    for (char& c : text)
      c = static_cast<char>('a' + draw(2));
    return text;
  };
  int n_stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(1 + draw(3));
    for (auto& stop : stops)
      stop = word(6);
    const std::string text = word(30);
    const auto expected = search_whole(text, stops);

    StopStrings matcher(stops);
    std::string shown;
    std::optional<size_t> stop;
    for (size_t at = 0; at < text.size() && !stop;) {
      const size_t n = std::min(draw(5), text.size() - at);
      const auto result = matcher.push(std::string_view(text).substr(at, n));
      shown += result.text;
      stop = result.stop;
      at += n;
    }
    if (!stop) shown += matcher.flush();
    EXPECT_EQ(shown, expected.text);
    ASSERT_EQ(stop.has_value(), expected.stop.has_value());
    if (stop) {
      EXPECT_EQ(stops[*stop], stops[*expected.stop]);
    }
    n_stopped += stop.has_value();
  }
  EXPECT_GT(n_stopped, 500);
  EXPECT_LT(n_stopped, 2900);
}

TEST(StopStrings, HoldsBackNoMoreThanItMust) {
  StopStrings matcher({"\n\nUser:", "END"});
  EXPECT_EQ(matcher.push("Hello E").text, "Hello ");
  EXPECT_EQ(matcher.push("N").text, "");
  EXPECT_EQ(matcher.push("\n").text, "EN");
  EXPECT_EQ(matcher.push("\n").text, "");
  EXPECT_EQ(matcher.push("\n").text, "\n");  // the last two may still begin "\n\nUser:"
  EXPECT_EQ(matcher.flush(), "\n\n");
  const auto result = matcher.push("x\n\nUser: hi");
  EXPECT_EQ(result.text, "x");
  EXPECT_EQ(result.stop, 0u);
  EXPECT_EQ(matcher.flush(), "");
}

// However the text is cut into pieces: what ends in a piece counts by that piece's number.
TEST(StopStrings, OnlyTheFirstFewMayCount) {
  StopStrings matcher({"END", "ab", "b"});
  EXPECT_EQ(matcher.push("xab", 1).stop, std::nullopt);
  EXPECT_EQ(matcher.push("xab", 1).stop, std::nullopt);
  const auto crossing = matcher.push("b");  // only what ends here counts now
  EXPECT_EQ(crossing.stop, 2u);
  EXPECT_EQ(crossing.text, "ab");
  matcher.reset();
  EXPECT_EQ(matcher.push("xa", 1).text, "x");
  EXPECT_EQ(matcher.push("b").stop, 1u);  // begun before
  matcher.reset();
  EXPECT_EQ(matcher.push("abEND", 1).stop, 0u);
  matcher.reset();
  const std::string first = matcher.push("ab", 0).text;
  EXPECT_EQ(first + matcher.flush(), "ab");
  // A longer one that does not count hides no shorter one that does.
  StopStrings nested({"b", "ab"});
  const auto found = nested.push("ab", 1);
  EXPECT_EQ(found.stop, 0u);
  EXPECT_EQ(found.text, "a");
}

TEST(StopStrings, NeverCutsACharacter) {
  StopStrings matcher({"。完"});
  EXPECT_EQ(matcher.push("好。").text, "好");
  EXPECT_EQ(matcher.push("好").text, "。好");
  EXPECT_EQ(matcher.push("。完了").stop, 0u);
}

TEST(StopStrings, WithoutAnyNothingIsHeld) {
  StopStrings matcher({});
  EXPECT_TRUE(matcher.empty());
  EXPECT_EQ(matcher.push("text").text, "text");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopStrings, LongPeriodicTextIsLinear) {
  StopStrings matcher({std::string(10'000, 'a') + "b"});
  size_t n_shown = 0;
  for (int i = 0; i < 1000; ++i)
    n_shown += matcher.push(std::string(1000, 'a')).text.size();
  EXPECT_EQ(n_shown, 990'000u);
}

TEST(StopStrings, RefusesWhatCannotWork) {
  for (const std::string& bad : {std::string(), std::string("\xFF"), std::string(1 << 20, 'a')}) {
    try {
      StopStrings matcher({"ok", bad});
      ADD_FAILURE() << bad.substr(0, 10);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    }
  }
}

}  // namespace
}  // namespace qw
