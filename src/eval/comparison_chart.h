// A comparison of two models as a picture: where the predictions differ and by how much.
//
// Level 7 (eval). SVG without scripts or outside references, so that it can be opened, mailed and
// put into documentation; light and dark by the reader's setting.
#pragma once

#include <string>

#include "eval/comparison.h"

namespace qw {

/// What the charts call the models, and where the predictions are of.
struct ChartLabels {
  std::string a, b, text;
};

/// Three charts, one below the other: how KL divergences are distributed, where in the text they
/// lie, and (where they were asked for) how far apart the layers' outputs are. Width 760.
std::string comparison_svg(const Comparison& comparison, const ChartLabels& labels);

/// The same as a page, with the figures in a table.
std::string comparison_html(const Comparison& comparison, const ChartLabels& labels);

}  // namespace qw
