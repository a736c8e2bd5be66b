#include "app/weight_report.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "base/error.h"
#include "base/progress.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;
using quantize::WeightDifference;

/// "exact", or how far off.
std::string verdict(const WeightDifference& one) {
  if (one.is_exact()) return "exact";
  return fmt::format("{:.4f} % (largest {:.3g})", 100 * one.relative(), one.largest);
}

ordered_json to_json(const WeightDifference& one) {
  return {{"exact", one.is_exact()},
          {"weights", one.n_weights},
          {"changed", one.n_changed},
          {"relative_error", one.relative()},
          {"largest_error", one.largest}};
}

/// "q_proj" of "model.layers.0.self_attn.q_proj".
std::string kind_of(const WeightDifference& one) {
  return one.name.substr(one.name.rfind('.') + 1);
}

WeightDifferences quantised(const WeightDifferences& differences) {
  WeightDifferences out;
  std::ranges::copy_if(differences, std::back_inserter(out), &WeightDifference::was_quantised);
  return out;
}

}  // namespace

bool has_quantised(const NetworkSources& sources) {
  bool found = false;
  sources.for_each([&](const LinearParts& linear) {
    for (const LinearSource& part : linear.parts)
      found = found || !std::holds_alternative<DenseRows>(part.data);
  });
  return found;
}

WeightDifferences read_back(const std::string& path, const NetworkSources& from, ThreadPool& pool) {
  const auto checkpoint = Checkpoint::open(path);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  const NetworkSources written = open_network(*checkpoint, config);
  Progress progress("comparing weights", 0, Progress::Unit::kItems);
  auto out = quantize::compare_weights(
      from, written, pool, [&](int64_t n) { progress.add(n); }, &interrupted());
  checkpoint->check_readable();
  return out;
}

void check_errors(const WeightDifferences& differences, double max_error) {
  const auto worst = std::ranges::max_element(differences, {}, &WeightDifference::relative);
  if (worst == differences.end() || worst->relative() <= max_error) return;
  fail(ErrorKind::kUnsupported, "convert",
       "{}: expected {} to hold the weights of {} within {} %, got {:.4f} % (relative root mean "
       "square); nothing was written: --max-error {:.2g} takes it as it is, quantize rounds with a "
       "search",
       worst->name, worst->to, worst->from, 100 * max_error, 100 * worst->relative(),
       std::max(1.1 * worst->relative(), 0.0001));
}

ordered_json weights_json(const WeightDifferences& differences) {
  ordered_json json = to_json(quantize::total_of(differences));
  ordered_json tensors = ordered_json::array();
  for (const WeightDifference& one : differences) {
    ordered_json entry = {{"name", one.name}, {"from", one.from}, {"to", one.to}};
    entry.update(to_json(one));
    tensors.push_back(std::move(entry));
  }
  json["tensors"] = std::move(tensors);
  return json;
}

std::string tensor_lines(const WeightDifferences& differences) {
  std::string text;
  for (const WeightDifference& one : differences)
    text += fmt::format("{:<42} {:<22} {:<22} {}\n", one.name, one.from, one.to, verdict(one));
  const auto n_exact = std::ranges::count_if(differences, &WeightDifference::is_exact);
  return text + fmt::format("{} of {} tensors are exact; all weights: {}\n", n_exact,
                            differences.size(), verdict(quantize::total_of(differences)));
}

std::string class_lines(const WeightDifferences& differences) {
  std::map<std::string, WeightDifferences> kinds;
  for (const WeightDifference& one : quantised(differences))
    kinds[kind_of(one)].push_back(one);
  std::string text = "quantised weights beside what they were:\n";
  for (const auto& [kind, members] : kinds) {
    text += fmt::format("{:<20} {:>5} matrices  {}\n", kind, members.size(),
                        verdict(quantize::total_of(members)));
  }
  return text + fmt::format("{:<20} {:>5} matrices  {}\n", "all", quantised(differences).size(),
                            verdict(quantize::total_of(quantised(differences))));
}

std::string requantised_warning(const WeightDifferences& differences) {
  const WeightDifferences all = quantised(differences);
  const WeightDifference total = quantize::total_of(all);
  if (total.is_exact()) return {};
  const auto n = std::ranges::count_if(all, [](const auto& one) { return !one.is_exact(); });
  return fmt::format(
      "{} of {} quantised matrices were rounded a second time: {:.3f} % of their weights (root "
      "mean square), on top of what the first rounding cost",
      n, all.size(), 100 * total.relative());
}

}  // namespace qw::app
