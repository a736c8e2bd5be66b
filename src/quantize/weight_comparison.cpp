#include "quantize/weight_comparison.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "base/checked.h"
#include "base/error.h"

namespace qw::quantize {

namespace {

/// Everything that a network holds, by name.
struct Item {
  ModuleId id;
  LinearSource source;
};
using Items = std::map<std::string, Item>;

void add_vector(Items& items, const ModuleId& id, const char* suffix, std::vector<float> values) {
  if (values.empty()) return;
  const std::string name = hf_name(id) + suffix;
  const auto n = std::ssize(values);
  items[name] = {
      id, LinearSource::of_floats(name, 1, n,
                                  std::make_shared<const std::vector<float>>(std::move(values)))};
}

/// Biases of zeros are none: GPTQ files carry them.
void add_linear(Items& items, const LinearParts& linear) {
  auto bias = linear.bias.begin();
  for (size_t i = 0; i < linear.parts.size(); ++i) {
    items[hf_name(linear.modules[i])] = {linear.modules[i], linear.parts[i]};
    if (linear.bias.empty()) continue;
    std::vector<float> values(bias, bias + linear.parts[i].n);
    bias += linear.parts[i].n;
    if (std::ranges::any_of(values, [](float value) { return value != 0; }))
      add_vector(items, linear.modules[i], ".bias", std::move(values));
  }
}

Items items_of(const NetworkSources& network) {
  Items items;
  network.for_each([&](const LinearParts& linear) { add_linear(items, linear); });
  for (int l = 0; l < std::ssize(network.layers); ++l) {
    const LayerSources& layer = network.layers[static_cast<size_t>(l)];
    add_vector(items, {Slot::kInputNorm, l}, "", layer.input_norm);
    add_vector(items, {Slot::kPostNorm, l}, "", layer.post_norm);
  }
  add_vector(items, {Slot::kFinalNorm}, "", network.final_norm);
  // A tied output matrix, so that a file with one of its own can be compared.
  items.try_emplace(hf_name({Slot::kLmHead}), Item{{Slot::kLmHead}, network.lm_head.parts.front()});
  return items;
}

void add_row(const float* from, const float* to, int64_t k, WeightDifference& sum) {
  double change2 = 0, size2 = 0;
  for (int64_t i = 0; i < k; ++i) {
    const double change = double{to[i]} - double{from[i]};
    size2 += double{from[i]} * double{from[i]};
    if (from[i] == to[i] || (std::isnan(from[i]) && std::isnan(to[i]))) continue;
    ++sum.n_changed;
    change2 += change * change;
    sum.largest = std::max(sum.largest, std::fabs(change));
  }
  sum.change2 += change2;
  sum.size2 += size2;
}

}  // namespace

double WeightDifference::relative() const noexcept {
  if (n_changed == 0) return 0;
  const double part = std::sqrt(change2 / size2);
  return std::isnan(part) ? std::numeric_limits<double>::infinity() : part;
}

WeightDifference& WeightDifference::operator+=(const WeightDifference& other) {
  n_weights += other.n_weights;
  n_changed += other.n_changed;
  largest = std::max(largest, other.largest);
  change2 += other.change2;
  size2 += other.size2;
  return *this;
}

/// Row blocks are summed alone and then in their order, whatever the threads.
WeightDifference compare_matrices(const LinearSource& from, const LinearSource& to,
                                  const MatrixTeam& team) {
  constexpr int64_t kRows = 16;
  const int64_t k = from.k, n_blocks = ceil_div(from.n, kRows);
  std::vector<WeightDifference> sums(static_cast<size_t>(n_blocks));
  team.for_each(n_blocks, [&](int64_t block) {
    const int64_t row = block * kRows, n = std::min(kRows, from.n - row);
    std::vector<float> a(static_cast<size_t>(n * k)), b(a.size());
    from.decode_rows(row, n, a.data());
    to.decode_rows(row, n, b.data());
    for (int64_t r = 0; r < n; ++r)
      add_row(a.data() + r * k, b.data() + r * k, k, sums[static_cast<size_t>(block)]);
  });
  WeightDifference out = total_of(sums);
  out.n_weights = from.n * k;
  out.from = from.format_name();
  out.to = to.format_name();
  out.was_quantised = !std::holds_alternative<DenseRows>(from.data);
  return out;
}

WeightDifference total_of(const std::vector<WeightDifference>& differences) {
  WeightDifference sum;
  for (const WeightDifference& one : differences)
    sum += one;
  return sum;
}

std::vector<WeightDifference> compare_weights(const NetworkSources& from, const NetworkSources& to,
                                              ThreadPool& pool,
                                              const std::function<void(int64_t)>& done,
                                              const CancelFlag* cancel) {
  const MatrixTeam team{&pool, nullptr};
  const Items before = items_of(from), after = items_of(to);
  const auto refuse = [](const std::string& name, std::string_view expected, std::string_view got) {
    fail(ErrorKind::kInvalidArgument, "compare", "{}: expected {}, got {}", name, expected, got);
  };
  for (const auto& [name, item] : after) {
    if (!before.contains(name)) refuse(name, "it in both networks", "it in the second only");
  }
  std::vector<WeightDifference> out;
  for (const auto& [name, item] : before) {
    if (cancel != nullptr) cancel->check("comparing weights");
    const auto other = after.find(name);
    if (other == after.end()) refuse(name, "it in both networks", "it in the first only");
    const LinearSource &a = item.source, &b = other->second.source;
    if (a.n != b.n || a.k != b.k) {
      refuse(name, fmt::format("{} x {}", a.n, a.k), fmt::format("{} x {}", b.n, b.k));
    }
    WeightDifference one = compare_matrices(a, b, team);
    one.name = name;
    one.id = item.id;
    done(one.n_weights);
    out.push_back(std::move(one));
  }
  // Layers in the order of their numbers.
  std::ranges::stable_sort(out, {}, [](const WeightDifference& one) { return one.id.layer; });
  return out;
}

}  // namespace qw::quantize
