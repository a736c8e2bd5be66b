#include "eval/comparison_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace qw {

namespace {

constexpr double kWidth = 760, kLeft = 64, kRight = 16, kPlotHeight = 180, kChartHeight = 268;
constexpr double kPlotWidth = kWidth - kLeft - kRight;
constexpr double kTop = 44;  // of a plot within its chart: below the heading

constexpr const char* kStyle = R"(
svg { color-scheme: light dark; font: 13px system-ui, sans-serif; background: #fff; }
text { fill: #444; } .head { fill: #111; font-weight: 600; font-size: 15px; }
.bar { fill: #2f6db5; } .grid { stroke: #ddd; } .axis { stroke: #888; }
.mark { stroke: #b5432f; stroke-width: 1.5; stroke-dasharray: 4 3; } .note { fill: #b5432f; paint-order: stroke; stroke: #fff; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  svg { background: #16181b; } text { fill: #bbb; } .head { fill: #eee; } .bar { fill: #6aa3e8; }
  .grid { stroke: #333; } .axis { stroke: #777; } .mark { stroke: #ee8a76; } .note { fill: #ee8a76; stroke: #16181b; }
}
)";

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : printable(text, 200)) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

/// 1, 2 or 5 times a power of ten: about five of them make `most`.
double tick_step(double most) {
  const double power = std::pow(10, std::floor(std::log10(most / 5)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power * 5 >= most) return factor * power;
  }
  return 10 * power;
}

/// One chart of bars in its own coordinates: x in [0, 1], y from 0 to a maximum.
class BarChart {
 public:
  BarChart(const std::string& heading, double most, const char* unit) : most_(most > 0 ? most : 1) {
    text(0, 20 - kTop, "head", "start", heading, false);
    const double step = tick_step(most_);
    for (double value = 0; value <= most_ * 1.0001; value += step) {
      const double y = y_of(value);
      out_ += fmt::format(R"(<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>)",
                          value == 0 ? "axis" : "grid", kLeft, kLeft + kPlotWidth, y, y);
      out_ += fmt::format(R"(<text x="{}" y="{:.1f}" text-anchor="end">{:.4g}{}</text>)", kLeft - 6,
                          y + 4, value, unit);
    }
  }
  /// `says`: shown when the pointer rests on it.
  void bar(double x0, double x1, double value, const std::string& says) {
    const double left = kLeft + x0 * kPlotWidth, right = kLeft + x1 * kPlotWidth;
    out_ += fmt::format(
        R"(<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>)",
        left + 0.5, y_of(value), std::max(0.5, right - left - 1), y_of(0) - y_of(value),
        escaped(says));
  }
  void label(double x, const std::string& says) {
    text(x * kPlotWidth, kPlotHeight + 18, "", "middle", says, true);
  }
  void axis_title(const std::string& says) {
    text(kPlotWidth / 2, kPlotHeight + 36, "", "middle", says, true);
  }
  /// A line at x with a name, in `row` of names.
  void mark(double x, int row, const std::string& says) {
    const double at = kLeft + x * kPlotWidth;
    out_ += fmt::format(R"(<line class="mark" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>)", at, at,
                        kTop, kTop + kPlotHeight);
    const bool left = x > 0.5;
    text(x * kPlotWidth + (left ? -5 : 5), 12 + 16 * row, "note", left ? "end" : "start", says,
         true);
  }
  /// The chart as a group, `index` charts below the top.
  std::string str(int index) const {
    return fmt::format(R"g(<g transform="translate(0 {})">{}</g>)g", index * kChartHeight, out_);
  }

 private:
  double y_of(double value) const {
    return kTop + kPlotHeight * (1 - std::min(value, most_) / most_);
  }
  void text(double x, double y, const char* style, const char* anchor, const std::string& says,
            bool in_plot) {
    out_ += fmt::format(R"(<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>)",
                        style, x + (in_plot ? kLeft : 12), kTop + y, anchor, escaped(says));
  }

  double most_;
  std::string out_;
};

/// How the divergences are distributed, on a logarithmic axis; those below its begin are in the
/// first bar.
std::string distribution_chart(const Comparison& c, int index) {
  constexpr double kLeast = -8;  // 1e-8 nats
  constexpr int kBarsOfDecade = 5;
  const double most = std::max(kLeast + 1, std::ceil(std::log10(std::max(c.kl_max, 1e-7))));
  const int n_bars = static_cast<int>(most - kLeast) * kBarsOfDecade;
  const auto place_of = [&](double kl) {
    return (std::clamp(std::log10(std::max(kl, 1e-300)), kLeast, most) - kLeast) / (most - kLeast);
  };
  std::vector<int64_t> counts(static_cast<size_t>(n_bars));
  for (const float kl : c.kls) {
    const int bar = static_cast<int>(place_of(static_cast<double>(kl)) * n_bars);
    ++counts[static_cast<size_t>(std::min(bar, n_bars - 1))];
  }
  const double n = std::max<double>(1, static_cast<double>(c.kls.size()));
  const auto share = [&](int64_t count) { return 100 * static_cast<double>(count) / n; };
  constexpr double kRoomForMarks = 1.45;
  BarChart chart("KL divergence of single predictions",
                 kRoomForMarks * share(*std::ranges::max_element(counts)), " %");
  for (int i = 0; i < n_bars; ++i) {
    const int64_t count = counts[static_cast<size_t>(i)];
    const auto edge = [&](int at) {
      return std::pow(10, kLeast + static_cast<double>(at) / kBarsOfDecade);
    };
    if (count == 0) continue;
    chart.bar(static_cast<double>(i) / n_bars, static_cast<double>(i + 1) / n_bars, share(count),
              fmt::format("{:.2g} to {:.2g}: {} predictions, {:.1f} %", i == 0 ? 0 : edge(i),
                          edge(i + 1), count, share(count)));
  }
  for (double decade = kLeast; decade <= most; ++decade)
    chart.label((decade - kLeast) / (most - kLeast), fmt::format("1e{}", decade));
  chart.axis_title("nats, logarithmic");
  chart.mark(place_of(c.kl_median), 0, fmt::format("median {:.2g}", c.kl_median));
  chart.mark(place_of(c.kl.mean), 1, fmt::format("mean {:.2g}", c.kl.mean));
  chart.mark(place_of(c.kl_p99), 2, fmt::format("99 % {:.2g}", c.kl_p99));
  return chart.str(index);
}

/// Means of pieces of the text, from its begin to its end.
std::string course_chart(const Comparison& c, int index) {
  const size_t n_bars = std::clamp<size_t>(c.kls.size(), 1, 100);
  std::vector<double> means(n_bars);
  for (size_t i = 0; i < n_bars; ++i) {
    const size_t begin = i * c.kls.size() / n_bars, end = (i + 1) * c.kls.size() / n_bars;
    for (size_t j = begin; j < end; ++j)
      means[i] += static_cast<double>(c.kls[j]) / static_cast<double>(end - begin);
  }
  BarChart chart("Mean KL divergence along the text", *std::ranges::max_element(means), "");
  const auto n = static_cast<double>(n_bars);
  for (size_t i = 0; i < n_bars; ++i) {
    const auto at = static_cast<double>(i);
    chart.bar(at / n, (at + 1) / n, means[i],
              fmt::format("predictions {} to {}: {:.3g}", i * c.kls.size() / n_bars,
                          (i + 1) * c.kls.size() / n_bars - 1, means[i]));
  }
  for (const double at : {0.0, 0.25, 0.5, 0.75, 1.0})
    chart.label(at, fmt::format("{:.0f}", at * static_cast<double>(c.n_tokens)));
  chart.axis_title("predictions");
  return chart.str(index);
}

std::string layers_chart(const Comparison& c, int index) {
  BarChart chart("Outputs of layers, ||B - A|| / ||A||", *std::ranges::max_element(c.layer_errors),
                 "");
  const auto n = static_cast<double>(c.layer_errors.size());
  const size_t every = (c.layer_errors.size() + 15) / 16;
  for (size_t layer = 0; layer < c.layer_errors.size(); ++layer) {
    const auto at = static_cast<double>(layer);
    chart.bar(at / n, (at + 1) / n, c.layer_errors[layer],
              fmt::format("layer {}: {:.4g}", layer, c.layer_errors[layer]));
    if (layer % every == 0) chart.label((at + 0.5) / n, std::to_string(layer));
  }
  chart.axis_title("layer");
  return chart.str(index);
}

std::string title_of(const ChartLabels& labels) {
  return fmt::format("{} beside {} on {}", labels.b, labels.a, labels.text);
}

}  // namespace

std::string comparison_svg(const Comparison& c, const ChartLabels& labels) {
  std::string charts;
  int n_charts = 0;
  if (!c.kls.empty()) {
    charts += distribution_chart(c, n_charts++);
    charts += course_chart(c, n_charts++);
  }
  if (!c.layer_errors.empty()) charts += layers_chart(c, n_charts++);
  const std::string title = escaped(title_of(labels));
  return fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}"><title>{}</title><style>{}</style>{}</svg>)"
      "\n",
      title, kWidth, n_charts * kChartHeight, kWidth, title, kStyle, charts);
}

std::string comparison_html(const Comparison& c, const ChartLabels& labels) {
  std::string rows;
  const auto row = [&rows](const char* name, const std::string& value) {
    rows += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", name, value);
  };
  const auto percent = [](const Estimate& e) {
    return fmt::format("{:.3f} ± {:.3f} %", 100 * e.mean, 100 * e.error);
  };
  const auto perplexity = [](const Estimate& nll) {
    return fmt::format("{:.4f} ± {:.4f}", std::exp(nll.mean), std::exp(nll.mean) * nll.error);
  };
  row("predictions", fmt::format("{} (window {})", c.n_tokens, c.window));
  row("KL divergence, mean", fmt::format("{:.6f} ± {:.6f}", c.kl.mean, c.kl.error));
  row("median", fmt::format("{:.6f}", c.kl_median));
  row("90 %", fmt::format("{:.6f}", c.kl_p90));
  row("99 %", fmt::format("{:.6f}", c.kl_p99));
  row("largest", fmt::format("{:.6f}", c.kl_max));
  row("same likeliest token", percent(c.same_top1));
  row("same among 5 likeliest", percent(c.same_top5));
  row("same among 10", percent(c.same_top10));
  row("perplexity of A", perplexity(c.nll_a));
  row("perplexity of B", perplexity(c.nll_b));
  row("ln(B / A)", fmt::format("{:.6f} ± {:.6f}", c.nll_difference.mean, c.nll_difference.error));
  const std::string title = escaped(title_of(labels));
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width\"><title>{}</title><style>"
      "body {{ font: 15px system-ui, sans-serif; max-width: 800px; margin: 2rem auto; padding: 0 "
      "1rem; color-scheme: light dark; }} svg {{ max-width: 100%; height: auto; }} th {{ "
      "text-align: "
      "left; font-weight: normal; padding-right: 2rem; }} td {{ text-align: right; "
      "}}</style></head>\n"
      "<body><h1>Comparison</h1>\n<p>A: {}<br>B: {}<br>text: "
      "{}</p>\n<table>\n{}</table>\n{}</body></html>\n",
      title, escaped(labels.a), escaped(labels.b), escaped(labels.text), rows,
      comparison_svg(c, labels));
}

}  // namespace qw
