#include "app/gptq_budget.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "app/output_room.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/byte_budget.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;
using quantize::GptqGroup;
using quantize::GptqGroupChoice;
using Chosen = std::vector<size_t>;

/// Sizes between which bits are searched that are predicted to keep --max-kl end this near.
constexpr double kSizeTolerance = 0.0005;
/// What is written keeps --max-kl, and from this part of it on no smaller directory is looked for;
/// nor after so many that were written.
constexpr double kNearlyReached = 0.9;
constexpr int kMaxTries = 4;

/// The number of bits of GPTQ that is nearest.
int probe_bits(double bits) {
  int best = 4;
  for (const int candidate : {2, 3, 8}) {
    if (std::abs(candidate - bits) < std::abs(best - bits)) best = candidate;
  }
  return best;
}

/// Of the directory's weights, beside the matrices with a choice: what is kept, and headers, which
/// are counted as larger than they are.
int64_t other_bytes(const quantize::LayerPlan& plan, const NetworkSources& sources) {
  // {"dtype":"BF16","shape":[...],"data_offsets":[...]} with numbers of 12 digits.
  constexpr int64_t kHeaderBytes = 128, kFileBytes = 128;
  constexpr int64_t kTensors = 5;  // qweight, qzeros, scales, g_idx, bias
  int64_t bytes = plan.bytes() - plan.quantised_bytes;
  for (const DirectoryTensor& tensor : plan.kept.tensors)
    bytes += std::ssize(tensor.name) + kHeaderBytes;
  for (const LayerSources& layer : sources.layers) {
    quantize::for_each_quantised(layer, [&](const LinearParts& parts) {
      for (const ModuleId& id : parts.modules)
        bytes += kTensors * (std::ssize(hf_name(id)) + kHeaderBytes);
    });
  }
  // Each two files are fuller than one.
  return bytes + kFileBytes * (1 + 2 * plan.bytes() / std::max<int64_t>(1, plan.kept.shard_bytes));
}

}  // namespace

struct GptqBudget::State {
  Input input;
  quantize::GptqRequest request;
  quantize::CalibrationSet probed;
  std::optional<quantize::WorkDirectory> work;  // of what is measured
  std::vector<GptqGroup> groups;
  std::vector<std::vector<quantize::BudgetChoice>> items;
  Chosen chosen;
  // --max-kl: what was written already.
  std::optional<Chosen> kept;                          // the smallest that keeps it
  double kept_prediction = 0, refused_prediction = 0;  // 0: none yet
  int n_tries = 0;

  State(const Input& from, const quantize::GptqRequest& how) : input(from), request(how) {}

  void measure(double bits);
  double prediction(const Chosen& choice) const;
  void choose(Chosen choice) {
    chosen = std::move(choice);
    quantize::set_bits(request, groups, chosen);
  }
  Chosen within_bytes(int64_t bytes) const { return quantize::choose_within(items, bytes); }
  Chosen within_prediction(double limit) const;
};

void GptqBudget::State::measure(double bits) {
  quantize::GptqSensitivityOptions how;
  how.probe_bits = probe_bits(bits);
  if (!input.measured.empty()) {
    constexpr int kVersion = 1;  // raised when the same is measured to be another number
    work.emplace(
        input.measured,
        fmt::format("{}measured {}, bits {}, at most {} times, on {}\n",
                    gptq_job(input.source, input.calibration, input.backend, request), kVersion,
                    how.probe_bits, how.max_probes, quantize::calibration_name(probed)));
    how.work = &*work;
    // Hidden states, old and new.
    check_room(
        "quantize", input.measured,
        2 * input.calibration.n_tokens * input.source.config.hidden * int64_t{sizeof(float)});
  }
  MeasuringProgress progress(input.source.config.n_layers, input.measured);
  how.on_layer = [&](int, bool is_known) { progress.next(is_known); };
  std::unique_ptr<quantize::NetworkProbe> probe;
  const auto open = [&]() -> quantize::NetworkProbe& {
    if (!probe) probe = open_probe(input.source, probed, input.backend, input.pool);
    return *probe;
  };
  groups = quantize::measure_gptq(input.source, input.calibration, open, input.backend, input.pool,
                                  request, how);
  for (const GptqGroup& group : groups) {
    items.emplace_back();
    for (const GptqGroupChoice& choice : group.choices)
      items.back().push_back({choice.bytes, choice.damage});
  }
}

double GptqBudget::State::prediction(const Chosen& choice) const {
  double sum = 0;
  for (size_t i = 0; i < items.size(); ++i)
    sum += items[i][choice[i]].damage;
  return sum;
}

/// The fewest bytes with at most this prediction, by halving; the best bits where there are none.
Chosen GptqBudget::State::within_prediction(double limit) const {
  int64_t low = 0, high = 0;
  for (const auto& item : items) {
    low += std::ranges::min(item, {}, &quantize::BudgetChoice::bytes).bytes;
    high += std::ranges::max(item, {}, &quantize::BudgetChoice::bytes).bytes;
  }
  if (Chosen least = within_bytes(low); prediction(least) <= limit) return least;
  Chosen best = within_bytes(high);
  while (static_cast<double>(high - low) > kSizeTolerance * static_cast<double>(high)) {
    const int64_t middle = low + (high - low) / 2;
    Chosen choice = within_bytes(middle);
    const bool is_within = prediction(choice) <= limit;
    (is_within ? high : low) = middle;
    if (is_within) best = std::move(choice);
  }
  return best;
}

GptqBudget::GptqBudget(const Input& input, const quantize::GptqRequest& request)
    : state_(std::make_unique<State>(input, request)) {
  State& s = *state_;
  const BudgetFlags& flags = input.flags;
  // What the format cannot hold is refused before anything is measured.
  const quantize::LayerPlan plan = plan_gptq(input.source, input.tokenizer, request);
  s.probed = quantize::cut_calibration(
      input.calibration.sequences,
      {.length = input.sequence_length, .max_tokens = flags.sensitivity_tokens});
  double bits = flags.bits.empty() ? 4 : parse_budget_bits(flags.bits);
  if (flags.max_bytes > 0)
    bits = 8 * static_cast<double>(flags.max_bytes - plan.kept.n_bytes()) /
           static_cast<double>(plan.n_weights);
  // Nor is anything measured for a budget that is too small.
  quantize::GptqRequest smallest = request;
  smallest.gptq.bits = 2;
  const int64_t least = plan_gptq(input.source, input.tokenizer, smallest).quantised_bytes;
  const auto asked =
      static_cast<int64_t>(std::floor(bits * static_cast<double>(plan.n_weights) / 8));
  const int64_t others = other_bytes(plan, input.source.sources);
  if (flags.max_bytes > 0 && least + others > flags.max_bytes)
    refuse_max_bytes(flags.max_bytes, least + others);
  if (!flags.bits.empty() && least > asked)
    refuse_budget(flags.bits, least - asked, plan.n_weights);
  s.measure(bits);
  if (flags.max_kl > 0) {
    s.choose(s.within_prediction(flags.max_kl));
  } else if (flags.max_bytes > 0) {
    s.choose(s.within_bytes(flags.max_bytes - others));
  } else {
    s.choose(s.within_bytes(asked));
  }
}

GptqBudget::~GptqBudget() = default;

const quantize::GptqRequest& GptqBudget::request() const {
  return state_->request;
}

bool GptqBudget::choose_again(double measured_kl) {
  State& s = *state_;
  const double limit = s.input.flags.max_kl;
  if (limit <= 0) return false;
  const double predicted = predicted_kl();
  const bool is_kept = measured_kl <= limit;
  if (is_kept) {
    s.kept = s.chosen;
    s.kept_prediction = predicted;
    if (measured_kl >= kNearlyReached * limit || s.n_tries > kMaxTries) return false;
  } else {
    s.refused_prediction = predicted;
  }
  ++s.n_tries;
  if (s.n_tries >= kMaxTries && s.kept) {
    if (is_kept) return false;
    s.n_tries = kMaxTries + 1;
    s.choose(*s.kept);
    return true;
  }
  // As if what is measured went with what is predicted.
  double wanted = 0.97 * limit * predicted / measured_kl;
  if (s.kept && s.refused_prediction > 0 &&
      (wanted <= s.kept_prediction || wanted >= s.refused_prediction))
    wanted = (s.kept_prediction + s.refused_prediction) / 2;
  Chosen next = s.within_prediction(wanted);
  if (next != s.chosen && s.kept != next) {
    s.choose(std::move(next));
    return true;
  }
  if (is_kept) return false;
  if (s.kept) {
    s.n_tries = kMaxTries + 1;
    s.choose(*s.kept);
    return true;
  }
  fail(ErrorKind::kInvalidArgument, "quantize",
       "--max-kl: expected at least {:.3g}, which the best bits have, got {:.3g}", measured_kl,
       limit);
}

std::vector<int> GptqBudget::chosen_bits() const {
  std::vector<int> bits;
  for (size_t i = 0; i < state_->groups.size(); ++i)
    bits.push_back(state_->groups[i].choices[state_->chosen[i]].bits);
  return bits;
}

double GptqBudget::predicted_kl() const {
  return state_->prediction(state_->chosen);
}

double GptqBudget::compare(const std::string& path) const {
  const State& s = *state_;
  // Run once.
  const auto probe = open_probe(s.input.source, s.probed, s.input.backend, s.input.pool,
                                {.packed_bytes = 0, .hidden_bytes = 0});
  return measured_divergence(*probe, path);
}

void GptqBudget::forget_measured() {
  if (state_->work) state_->work->remove();
  state_->work.reset();
}

std::string GptqBudget::bits() const {
  const std::vector<int> chosen = chosen_bits();
  const std::set<int> all(chosen.begin(), chosen.end());
  std::string text = fmt::format("{}", fmt::join(all, ", "));
  if (const size_t comma = text.rfind(','); comma != std::string::npos)
    text.replace(comma, 1, " and");
  return text;
}

std::string GptqBudget::table() const {
  /// Of one group, or of all experts of a layer.
  struct Line {
    std::string name;
    std::map<int, int> experts = {};  // how many have so many bits
    int bits = 0;
    int64_t n_weights = 0, bytes = 0;
    double damage = 0;
  };
  const State& s = *state_;
  std::vector<Line> lines;
  std::map<std::string, size_t> of_experts;
  for (size_t i = 0; i < s.groups.size(); ++i) {
    const GptqGroup& group = s.groups[i];
    const GptqGroupChoice& choice = group.choices[s.chosen[i]];
    std::string name = group.name;
    const ModuleId& id = group.modules.front();
    const bool is_expert = id.expert >= 0;
    if (is_expert)
      name = fmt::format("layers.{}.experts.*{}", id.layer, name.substr(name.rfind('.')));
    const size_t at =
        is_expert ? of_experts.try_emplace(name, lines.size()).first->second : lines.size();
    if (at == lines.size()) lines.push_back({.name = name, .bits = choice.bits});
    Line& line = lines[at];
    if (is_expert) ++line.experts[choice.bits];
    line.n_weights += group.n_weights;
    line.bytes += choice.bytes;
    line.damage += choice.damage;
  }
  const double total = predicted_kl();
  const int width = of_experts.empty() ? 4 : 28;
  std::string text = fmt::format("{:<28} {:<{}} {:>10} {:>12} {:>9}\n", "matrices", "bits", width,
                                 "per weight", "bytes", "damage");
  for (const Line& line : lines) {
    std::string bits;
    for (const auto& [of, n_experts] : line.experts)
      bits += fmt::format("{}{} of {}", bits.empty() ? "" : ", ", n_experts, of);
    text += fmt::format("{:<28} {:<{}} {:>10.2f} {:>12} {:>7.2f} %\n", line.name,
                        bits.empty() ? fmt::format("{}", line.bits) : bits, width,
                        8 * static_cast<double>(line.bytes) / static_cast<double>(line.n_weights),
                        line.bytes, total > 0 ? 100 * line.damage / total : 0);
  }
  return text;
}

ordered_json GptqBudget::json() const {
  const State& s = *state_;
  ordered_json list = ordered_json::array();
  for (size_t i = 0; i < s.groups.size(); ++i) {
    const GptqGroupChoice& choice = s.groups[i].choices[s.chosen[i]];
    list.push_back({{"name", s.groups[i].name},
                    {"bits", choice.bits},
                    {"bytes", choice.bytes},
                    {"damage", choice.damage}});
  }
  return {{"predicted_kl", predicted_kl()},
          {"predictions", quantize::NetworkProbe::n_predictions(s.input.source.config, s.probed)},
          {"groups", std::move(list)}};
}

}  // namespace qw::app
