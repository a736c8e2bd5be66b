#include "quantize/gptq_sensitivity.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"
#include "kernels/isa.h"

namespace qw::quantize {

namespace {

constexpr std::array kBits = {2, 3, 4, 8};
/// Rows of a matrix that its errors are estimated from, evenly chosen; the solver takes 64 at once.
constexpr int64_t kSampleRows = 128, kExpertSampleRows = 64;

/// Matrices of a kind: those of a band of layers are measured together.
Slot kind_of(const LinearParts& parts) {
  return parts.modules.front().slot;
}

LinearSource some_rows(const LinearSource& from, int64_t n_wanted) {
  const int64_t n = std::min(n_wanted, from.n);
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(n * from.k));
  for (int64_t r = 0; r < n; ++r)
    from.decode_rows(r * from.n / n, 1, values->data() + r * from.k);
  return LinearSource::of_floats(from.name, n, from.k, std::move(values));
}

/// sum_ri H_ii w_ri^2
double size_of(const LinearSource& w, const Hessian& hessian) {
  std::vector<float> row(static_cast<size_t>(w.k));
  double sum = 0;
  for (int64_t r = 0; r < w.n; ++r) {
    w.decode_rows(r, 1, row.data());
    for (size_t i = 0; i < row.size(); ++i)
      sum += hessian.diagonal()[i] * static_cast<double>(row[i]) * static_cast<double>(row[i]);
  }
  return sum;
}

// A band's groups, without their modules, as the one tensor of its file in a work directory.

constexpr const char* kGroupsTensor = "groups";

std::string text_of(std::span<const GptqGroup> groups) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const GptqGroup& group : groups) {
    nlohmann::ordered_json choices = nlohmann::ordered_json::array();
    for (const GptqGroupChoice& choice : group.choices)
      choices.push_back({choice.bits, choice.bytes, choice.error, choice.damage});
    list.push_back(
        {{"name", group.name}, {"weights", group.n_weights}, {"choices", std::move(choices)}});
  }
  return list.dump();
}

[[noreturn]] void refuse_groups(const std::string& path) {
  fail(ErrorKind::kCorrupt, "quantize", "measurements: expected those of groups, got others ({})",
       printable(path, 4096));
}

std::vector<GptqGroup> read_groups(const std::string& path) {
  const auto mapping = MappedFile::open(path);
  const SafetensorsFile file = read_safetensors(mapping);
  if (file.tensors.size() != 1) refuse_groups(path);
  const auto bytes = file.tensors.front().bytes;
  std::vector<GptqGroup> out;
  try {
    const auto list = nlohmann::ordered_json::parse(
        std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    for (const auto& from : list) {
      GptqGroup& group = out.emplace_back();
      group.name = from.at("name").get<std::string>();
      group.n_weights = from.at("weights").get<int64_t>();
      for (const auto& choice : from.at("choices")) {
        group.choices.push_back({choice.at(0).get<int>(), choice.at(1).get<int64_t>(),
                                 choice.at(2).get<double>(), choice.at(3).get<double>()});
      }
    }
  } catch (const nlohmann::ordered_json::exception&) {
    refuse_groups(path);
  }
  mapping->check_readable();
  return out;
}

/// What a group's matrices lose with each number of bits, and the matrices of the probe.
class Measurement {
 public:
  Measurement(const LayerSource& source, const std::function<NetworkProbe&()>& probe,
              const GptqRequest& request, const GptqSensitivityOptions& options,
              const MatrixTeam& team)
      : source_(source), probe_(probe), request_(request), options_(options), team_(team) {
    std::map<Slot, int> kinds;
    for (const LayerSources& layer : source.sources.layers)
      for_each_quantised(layer, [&](const LinearParts& parts) { kinds[kind_of(parts)] = 0; });
    n_bands_ = std::clamp<int64_t>(options.max_probes / std::max<int64_t>(1, std::ssize(kinds)), 1,
                                   source.config.n_layers);
  }

  /// A group of the layer that is quantised now.
  void add(const GptqGroupDone& done) {
    Pending pending;
    GptqGroup& group = pending.group;
    group.name = done.published.name;
    group.modules = done.published.modules;
    const bool is_expert = group.modules.front().expert >= 0;
    pending.share = is_expert ? static_cast<double>(done.n_routed + 1) /
                                    static_cast<double>(done.hessian.n_tokens() + 1)
                              : 1;
    for (const int bits : kBits)
      group.choices.push_back({.bits = bits});
    const int before = done.factor.options().bits;
    for (size_t i = 0; i < done.published.parts.size(); ++i) {
      const LinearSource& whole = done.published.parts[i];
      group.n_weights += whole.n * whole.k;
      const LinearSource rows = some_rows(whole, is_expert ? kExpertSampleRows : kSampleRows);
      // Of H as the factor has it: AutoGPTQ's 2 / samples.
      const double size = size_of(rows, done.hessian) * done.hessian.scale() / 2;
      const double all = size * static_cast<double>(whole.n) / static_cast<double>(rows.n);
      pending.size += all;
      for (GptqGroupChoice& choice : group.choices) {
        done.factor.set_bits(choice.bits);
        GptqOptions own = request_.gptq;
        own.bits = choice.bits;
        choice.bytes += gptq_bytes(group.modules[i], whole.n, whole.k, own);
        const double loss = gptq_quantise(rows, done.factor, team_).loss;
        // Of an expert the loss itself, for what it is a part of is known when the layer is done.
        choice.error += !is_expert
                            ? (size > 0 ? loss / size : 0)
                            : loss * static_cast<double>(whole.n) / static_cast<double>(rows.n);
      }
    }
    done.factor.set_bits(before);
    pending.quantised = done.quantised.parts;
    pending_.push_back(std::move(pending));
  }

  /// Behind the layer stand the hidden states `hidden`.
  void finish_layer(int layer, const std::vector<float>& hidden) {
    share_out_experts(layer);
    const int next = layer + 1;
    const bool is_last = next == source_.config.n_layers;
    if (!is_last && band(layer) == band(next)) return;
    const size_t n_before = groups.size();
    measure_band();
    if (options_.work == nullptr) return;
    const std::string text = text_of(std::span(groups).subspan(n_before));
    options_.work->finish_layer(
        {{{kGroupsTensor, DType::kU8, {std::ssize(text)}}, std::as_bytes(std::span(text))}},
        is_last ? std::vector<float>() : hidden);
  }

  /// Takes what is known already; the layer to go on with.
  int resume() {
    if (options_.work == nullptr) return 0;
    const int n_bands = options_.work->n_finished();
    std::map<std::string, const LinearParts*> parts_of;
    for (const LayerSources& layer : source_.sources.layers)
      for_each_quantised(layer, [&](const LinearParts& parts) { parts_of[parts.name] = &parts; });
    for (int done = 0; done < n_bands; ++done) {
      const std::string path = options_.work->layer_path(done);
      for (GptqGroup& group : read_groups(path)) {
        const auto parts = parts_of.find(group.name);
        if (parts == parts_of.end()) refuse_groups(path);
        group.modules = parts->second->modules;
        groups.push_back(std::move(group));
      }
    }
    int layer = 0;
    while (layer < source_.config.n_layers && band(layer) < n_bands)
      ++layer;
    return layer;
  }

  std::vector<GptqGroup> groups;

 private:
  struct Pending {
    GptqGroup group;
    double share = 1, size = 0;
    std::vector<LinearSource> quantised;
  };

  int64_t band(int layer) const { return layer * n_bands_ / source_.config.n_layers; }

  /// Errors of a layer's experts, weighted by their tokens, as parts of what all of them give.
  void share_out_experts(int layer) {
    std::map<Slot, double> sizes;
    const auto is_one = [&](const Pending& pending) {
      const ModuleId& id = pending.group.modules.front();
      return id.layer == layer && id.expert >= 0;
    };
    for (const Pending& pending : pending_) {
      if (is_one(pending))
        sizes[pending.group.modules.front().slot] += pending.share * pending.size;
    }
    for (Pending& pending : pending_) {
      if (!is_one(pending)) continue;
      const double size = sizes[pending.group.modules.front().slot];
      for (GptqGroupChoice& choice : pending.group.choices)
        choice.error = size > 0 ? pending.share * choice.error / size : 0;
    }
  }

  void measure_band() {
    std::map<Slot, std::vector<Pending*>> kinds;
    for (Pending& pending : pending_)
      kinds[pending.group.modules.front().slot].push_back(&pending);
    for (const auto& [kind, members] : kinds) {
      if (request_.cancel != nullptr) request_.cancel->check("measuring sensitivity");
      std::vector<ChangedMatrix> changed;
      double sum = 0;
      for (const Pending* pending : members) {
        for (size_t i = 0; i < pending->quantised.size(); ++i) {
          changed.push_back(
              {pending->group.modules[i], [pending, i] { return pending->quantised[i]; }});
        }
        for (const GptqGroupChoice& choice : pending->group.choices)
          sum += choice.bits == options_.probe_bits ? choice.error : 0;
      }
      const double per_error = sum > 0 ? probe_().kl(changed) / sum : 0;
      for (Pending* pending : members) {
        for (GptqGroupChoice& choice : pending->group.choices)
          choice.damage = per_error * choice.error;
      }
    }
    for (Pending& pending : pending_)
      groups.push_back(std::move(pending.group));
    pending_.clear();
  }

  const LayerSource& source_;
  const std::function<NetworkProbe&()>& probe_;
  const GptqRequest& request_;
  const GptqSensitivityOptions& options_;
  const MatrixTeam& team_;
  int64_t n_bands_ = 1;
  std::vector<Pending> pending_;  // of the band
};

}  // namespace

std::vector<GptqGroup> measure_gptq(const LayerSource& source, const CalibrationSet& calibration,
                                    const std::function<NetworkProbe&()>& probe, Backend& backend,
                                    ThreadPool& pool, const GptqRequest& request,
                                    const GptqSensitivityOptions& options) {
  const MatrixTeam team{&pool, &kernels::matrix_ops(kernels::choose_isa(request.isa))};
  Measurement measurement(source, probe, request, options, team);
  GptqLayerOptions layer_options;
  layer_options.gptq = request.gptq;
  layer_options.gptq.bits = options.probe_bits;
  layer_options.true_sequential = request.true_sequential;
  layer_options.on_group = [&](const GptqGroupDone& done) { measurement.add(done); };
  LayerPass pass(backend, source.config, calibration.sequences, request.cancel);
  const int n_layers = source.config.n_layers, n_known = measurement.resume();
  for (int layer = 0; layer < n_known && options.on_layer; ++layer)
    options.on_layer(layer, true);
  if (n_known == 0) {
    pass.embed(*backend.pack_embedding(source.sources.embedding.parts.front()));
  } else if (n_known < n_layers) {
    pass.set_hidden(options.work->read_hidden(pass.n_tokens() * source.config.hidden), n_known);
  }
  for (int layer = n_known; layer < n_layers; ++layer) {
    const LayerSources& from = source.sources.layers[static_cast<size_t>(layer)];
    gptq_layer(from, source.config, layer_options, backend, team, pass);
    for_each_quantised(from,
                       [&](const LinearParts& parts) { drop_pages(source.checkpoint, parts); });
    measurement.finish_layer(layer, pass.hidden());
    if (options.on_layer) options.on_layer(layer, false);
  }
  source.checkpoint.check_readable();
  return std::move(measurement.groups);
}

void set_bits(GptqRequest& request, const std::vector<GptqGroup>& groups,
              const std::vector<size_t>& chosen) {
  std::map<int, size_t> counts;
  for (size_t i = 0; i < groups.size(); ++i)
    counts[groups[i].choices[chosen[i]].bits] += groups[i].modules.size();
  const auto commonest = std::ranges::max_element(
      counts, {}, [](const std::pair<const int, size_t>& count) { return count.second; });
  if (commonest != counts.end()) request.gptq.bits = commonest->first;
  request.bits.clear();
  for (size_t i = 0; i < groups.size(); ++i) {
    const int bits = groups[i].choices[chosen[i]].bits;
    if (bits == request.gptq.bits) continue;
    for (const ModuleId& id : groups[i].modules)
      request.bits[hf_name(id)] = bits;
  }
}

}  // namespace qw::quantize
