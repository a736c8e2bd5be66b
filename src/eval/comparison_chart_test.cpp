#include "eval/comparison_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

namespace qw {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Comparison comparison() {
  Comparison c;
  c.n_tokens = 4;
  c.kls = {0.0f, 0.001f, 0.1f, 0.1f};
  c.kl = {0.05025, 0.02};
  c.kl_median = 0.05;
  c.kl_p99 = c.kl_max = 0.1;
  c.layer_errors = {0.5, 0.25};
  return c;
}

int count(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  return static_cast<int>(std::distance(std::sregex_iterator(text.begin(), text.end(), regex), {}));
}

/// The height of the bar that says `what`.
double height_of(const std::string& svg, const std::string& what) {
  std::smatch found;
  const std::regex bar("height=\"([0-9.]+)\"><title>" + what + "</title>");
  return std::regex_search(svg, found, bar) ? std::stod(found[1]) : -1;
}

TEST(ComparisonChart, DrawsWhatWasCompared) {
  const std::string svg = comparison_svg(comparison(), {"a", "b", "text"});
  // Three heights of divergences, four predictions along the text, two layers.
  EXPECT_EQ(count(svg, "<rect"), 3 + 4 + 2);
  EXPECT_THAT(svg, HasSubstr("2 predictions, 50.0 %"));
  EXPECT_THAT(svg, HasSubstr("median 0.05"));
  EXPECT_NEAR(height_of(svg, "layer 0: 0.5"), 2 * height_of(svg, "layer 1: 0.25"), 0.2);
  EXPECT_NEAR(height_of(svg, "predictions 2 to 2: 0.1"), 180, 0.1);
  EXPECT_EQ(count(svg, "<g "), count(svg, "</g>"));
}

TEST(ComparisonChart, LeavesOutWhatIsNotThere) {
  Comparison c = comparison();
  c.layer_errors.clear();
  EXPECT_THAT(comparison_svg(c, {"a", "b", "text"}), Not(HasSubstr("layer")));
  c.kls.assign(3, 0.0f);  // the same model
  c.kl_max = c.kl_median = c.kl_p99 = c.kl.mean = 0;
  const std::string svg = comparison_svg(c, {"a", "b", "text"});
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(ComparisonChart, TakesNamesForTextOnly) {
  const std::string page = comparison_html(comparison(), {"<script>x</script>", "b&\"", "text"});
  EXPECT_THAT(page, Not(HasSubstr("<script>")));
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(page, HasSubstr("b&amp;&quot;"));
  EXPECT_THAT(page, HasSubstr("0.050250 ± 0.020000"));
}

}  // namespace
}  // namespace qw
