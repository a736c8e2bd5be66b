#include "quantize/own_format_merge.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/checked.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/module_codes.h"
#include "quant/code_grid.h"
#include "quant/ggml_blocks.h"
#include "quantize/gptq_layer.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool is_dense(const LinearSource& source) {
  return std::holds_alternative<DenseRows>(source.data);
}

/// All matrices of a layer, routers too.
template <typename Layer, typename Visit>
void for_each_parts(Layer& layer, const Visit& visit) {
  for (auto* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down, &layer.moe.router,
                      &layer.moe.shared_gate_up, &layer.moe.shared_down, &layer.moe.shared_gate})
    visit(*parts);
  for (auto* experts : {&layer.moe.gate_up, &layer.moe.down}) {
    for (auto& parts : *experts)
      visit(parts);
  }
}

/// Where a module lies in a checkpoint.
class Names {
 public:
  explicit Names(const LayerSource& source) : source_(source) {
    for (const RawTensor& tensor : source.checkpoint.tensors.all()) {
      if (!tensor.bytes.empty()) by_address_[tensor.bytes.data()] = &tensor;
    }
  }

  std::string of(const ModuleId& id) const {
    const bool is_gguf = source_.checkpoint.kind == Checkpoint::Kind::kGguf;
    return is_gguf ? gguf_name(id) : hf_name(id);
  }
  const RawTensor& norm(const ModuleId& id) const {
    return source_.checkpoint.tensors.at(of(id) + ".weight");
  }

  struct Place {
    const RawTensor* tensor = nullptr;
    size_t offset = 0;  // experts are stacked
  };
  /// Of a matrix's numbers, or of its codes.
  Place codes(const ModuleId& id, const LinearSource& matrix) const {
    const std::byte* data = nullptr;
    if (const auto* dense = std::get_if<DenseRows>(&matrix.data)) data = dense->data;
    if (const auto* blocks = std::get_if<BlockRows>(&matrix.data)) data = blocks->data;
    if (data == nullptr) {
      const std::string name =
          quantised_module_tensors(source_.checkpoint.tensors, source_.config.quantization, of(id))
              .front();
      return {&source_.checkpoint.tensors.at(name), 0};
    }
    const auto after = by_address_.upper_bound(data);
    QW_CHECK(after != by_address_.begin(), "{} lies in no tensor", matrix.name);
    const RawTensor* tensor = std::prev(after)->second;
    const auto offset = static_cast<size_t>(data - tensor->bytes.data());
    QW_CHECK(offset < tensor->bytes.size(), "{} lies in no tensor", matrix.name);
    return {tensor, offset};
  }

 private:
  const LayerSource& source_;
  std::map<const std::byte*, const RawTensor*> by_address_;
};

/// Tensors of a layer with other bytes in some places.
class Patches {
 public:
  void set(const Names::Place& place, std::span<const std::byte> bytes) {
    auto& to = tensors_[place.tensor->name];
    const auto& from = place.tensor->bytes;
    if (to == nullptr) to = std::make_shared<std::vector<std::byte>>(from.begin(), from.end());
    QW_CHECK(bytes.size() <= to->size() && place.offset <= to->size() - bytes.size(),
             "{}: {} bytes at {} of {}", place.tensor->name, bytes.size(), place.offset,
             to->size());
    std::ranges::copy(bytes, to->begin() + static_cast<std::ptrdiff_t>(place.offset));
  }
  /// As bytes: a file of layers need not know of blocks.
  std::vector<RawTensor> take() const {
    std::vector<RawTensor> out;
    for (const auto& [name, bytes] : tensors_) {
      RawTensor& tensor = out.emplace_back();
      tensor.name = name;
      tensor.dtype = DType::kU8;
      tensor.shape = Shape{std::ssize(*bytes)};
      tensor.bytes = *bytes;
      tensor.owner = bytes;
    }
    return out;
  }

 private:
  std::map<std::string, std::shared_ptr<std::vector<std::byte>>> tensors_;
};

std::vector<std::byte> encoded(DType dtype, const RowDecoder& rows, int64_t n, int64_t k,
                               const std::string& name, ThreadPool& pool) {
  DirectoryTensor tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  tensor.shape = Shape{n, k};
  tensor.rows = rows;
  std::vector<std::byte> out;
  write_tensor(tensor, pool, [&](std::span<const std::byte> bytes) {
    out.insert(out.end(), bytes.begin(), bytes.end());
  });
  return out;
}

/// A matrix of floats or blocks with other rows, in the type that it has.
LinearSource rounded_source(const RowDecoder& rows, const LinearSource& like, ThreadPool& pool) {
  LinearSource out = like;
  const auto set = [&](auto& data) {
    auto bytes = std::make_shared<std::vector<std::byte>>(
        encoded(data.dtype, rows, like.n, like.k, like.name, pool));
    data.data = bytes->data();
    out.owner = std::move(bytes);
  };
  if (auto* dense = std::get_if<DenseRows>(&out.data)) {
    set(*dense);
  } else {
    set(std::get<BlockRows>(out.data));
  }
  return out;
}

RowDecoder rows_of(const std::vector<float>& values) {
  return [values](int64_t, int64_t, float* out) { std::ranges::copy(values, out); };
}

/// The matrix as floats, decoded on all threads.
LinearSource floats_of(const RowDecoder& rows, const LinearSource& like, const MatrixTeam& team) {
  constexpr int64_t kRows = 16;
  const int64_t n = like.n, k = like.k;
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(n * k));
  team.for_each(ceil_div(n, kRows), [&](int64_t item) {
    const int64_t row = item * kRows;
    rows(row, std::min(kRows, n - row), values->data() + row * k);
  });
  return LinearSource::of_floats(like.name, n, k, std::move(values));
}

/// One layer on its way.
class LayerMerge {
 public:
  LayerMerge(const LayerSource& source, const AdapterMerge& merge, const Names& names,
             const OwnFormatRequest& request, Backend& backend, ThreadPool& pool,
             const MatrixTeam& team)
      : source_(source),
        merge_(merge),
        names_(names),
        request_(request),
        backend_(backend),
        pool_(pool),
        team_(team) {}

  /// `is_followed`: this layer or one behind it has matrices that need their inputs.
  QuantisedLayer run(const LayerSources& layer, LayerPass& pass, bool is_followed) {
    LayerSources merged = layer;
    set_norm({Slot::kInputNorm, pass.layer()}, merged.input_norm);
    set_norm({Slot::kPostNorm, pass.layer()}, merged.post_norm);
    for_each_parts(merged, [&](LinearParts& parts) {
      for (size_t i = 0; i < parts.parts.size(); ++i) {
        if (is_dense(parts.parts[i]) && merge_.changes(parts.modules[i]))
          set_dense(parts.modules[i], parts.parts[i]);
      }
    });
    if (is_followed) {
      walk_layer(merged, source_.config, backend_, pass,
                 [&](const LinearParts& from, LinearParts& to, auto inputs,
                     std::optional<int64_t> n_routed) -> const LinearParts& {
                   recode(from, to, inputs, n_routed);
                   return to;
                 });
    } else {
      pass.set_hidden(pass.hidden(), pass.layer() + 1);
    }
    out_.tensors = patches_.take();
    return std::move(out_);
  }

 private:
  void set_norm(const ModuleId& id, std::vector<float>& values) {
    const std::vector<float>* changed = merge_.norm(id);
    if (changed == nullptr) return;
    const RawTensor& tensor = names_.norm(id);
    patches_.set({&tensor, 0}, encoded(tensor.dtype, rows_of(*changed), 1, std::ssize(*changed),
                                       tensor.name, pool_));
    values = *changed;
  }

  void set_dense(const ModuleId& id, LinearSource& part) {
    const Names::Place place = names_.codes(id, part);
    part = rounded_source(merge_.rows(id, part), part, pool_);
    const auto& dense = std::get<DenseRows>(part.data);
    patches_.set(place, {dense.data, static_cast<size_t>(part.n * dense.row_bytes)});
  }

  void recode(const LinearParts& from, LinearParts& to, FunctionRef<void(LayerPass::Take)> inputs,
              std::optional<int64_t> n_routed) {
    const auto needs_codes = [&](size_t i) {
      return !is_dense(from.parts[i]) && merge_.changes(from.modules[i]);
    };
    bool any = false;
    for (size_t i = 0; i < from.parts.size(); ++i)
      any = any || needs_codes(i);
    if (!any) return inputs([](const float*, int64_t) {});
    Hessian hessian(from.name, from.parts.front().k, team_);
    inputs([&](const float* x, int64_t n_tokens) { hessian.add(x, n_tokens, hessian.k()); });
    const GptqFactor factor(hessian, recode_options(request_.damp), team_);
    to.bytes.clear();
    for (size_t i = 0; i < from.parts.size(); ++i) {
      if (!needs_codes(i)) continue;
      const LinearSource& part = from.parts[i];
      const ModuleId& id = from.modules[i];
      RecodedMatrix made =
          gptq_recode(floats_of(merge_.rows(id, part), part, team_), part, factor, team_);
      publish(id, part, made.source);
      QuantisedModule& module = out_.modules.emplace_back();
      module.id = id;
      module.loss = made.loss;
      tell_inputs(hessian, factor, is_cold(n_routed, source_.config), module);
      module.recoding = Recoding{part.format_name(), made.kept_loss, made.nearest_loss,
                                 part.n * part.k,    made.n_changed, made.n_beyond};
      to.parts[i] = std::move(made.source);
      if (request_.on_quantised) request_.on_quantised(part.published_bytes());
    }
  }

  void publish(const ModuleId& id, const LinearSource& part, const LinearSource& made) {
    const Names::Place place = names_.codes(id, part);
    if (const auto* blocks = std::get_if<BlockRows>(&made.data)) {
      patches_.set(place, {blocks->data, static_cast<size_t>(made.n * blocks->row_bytes)});
      return;
    }
    const std::vector<std::byte> bytes =
        publish_module_codes(source_.config.quantization, names_.of(id), made);
    QW_CHECK(bytes.size() == place.tensor->bytes.size(), "{}: {} bytes of codes for {}",
             place.tensor->name, bytes.size(), place.tensor->bytes.size());
    patches_.set(place, bytes);
  }

  const LayerSource& source_;
  const AdapterMerge& merge_;
  const Names& names_;
  const OwnFormatRequest& request_;
  Backend& backend_;
  ThreadPool& pool_;
  const MatrixTeam& team_;
  Patches patches_;
  QuantisedLayer out_;
};

DType dtype_of(const LinearSource& source) {
  if (const auto* dense = std::get_if<DenseRows>(&source.data)) return dense->dtype;
  return std::get<BlockRows>(source.data).dtype;
}

/// The tensors of the output: those of the checkpoint in their order, with the bytes that layers
/// have made (`made`), and what lies outside the layers decoded and rounded.
std::vector<DirectoryTensor> output_tensors(const LayerSource& source, const AdapterMerge& merge,
                                            const Names& names, std::span<const RawTensor> made) {
  std::unordered_map<std::string, const RawTensor*> by_name;
  for (const RawTensor& tensor : made)
    by_name[tensor.name] = &tensor;
  std::map<std::string, RowDecoder> rounded;
  const auto round = [&](const ModuleId& id, const LinearSource& matrix) {
    if (merge.changes(id)) rounded[names.codes(id, matrix).tensor->name] = merge.rows(id, matrix);
  };
  const NetworkSources& network = source.sources;
  const LinearSource& table = network.embedding.parts.front();
  const bool unties = network.tied && merge.unties();
  if (!unties) {
    round({Slot::kEmbedding}, table);
    if (!network.tied) round({Slot::kLmHead}, network.lm_head.parts.front());
  }
  if (const auto* norm = merge.norm({Slot::kFinalNorm}))
    rounded[names.norm({Slot::kFinalNorm}).name] = rows_of(*norm);
  const std::string table_name = names.of({Slot::kEmbedding}) + ".weight";
  const std::string head_name = names.of({Slot::kLmHead}) + ".weight";
  std::vector<DirectoryTensor> out;
  for (const RawTensor& tensor : source.checkpoint.tensors.all()) {
    if (unties && (tensor.name == table_name || tensor.name == head_name)) continue;
    DirectoryTensor& to = out.emplace_back();
    to.name = tensor.name;
    to.dtype = tensor.dtype;
    to.shape = tensor.shape;
    to.bytes = tensor.bytes;
    if (const auto found = by_name.find(tensor.name); found != by_name.end())
      to.bytes = found->second->bytes;
    if (const auto found = rounded.find(tensor.name); found != rounded.end())
      to.rows = found->second;
  }
  if (!unties) return out;
  for (const Slot slot : {Slot::kEmbedding, Slot::kLmHead}) {
    DirectoryTensor& to = out.emplace_back();
    to.name = slot == Slot::kEmbedding ? table_name : head_name;
    to.dtype = dtype_of(table);
    to.shape = Shape{table.n, table.k};
    if (merge.changes({slot})) {
      to.rows = merge.rows({slot}, table);
    } else {
      to.bytes = names.codes({Slot::kEmbedding}, table).tensor->bytes;
    }
  }
  return out;
}

DirectoryPlan directory_of(const LayerSource& source, bool unties, int64_t shard_bytes) {
  DirectoryPlan plan;
  plan.shard_bytes = shard_bytes;
  const Checkpoint& checkpoint = source.checkpoint;
  plan.companions = companions_of(checkpoint);
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const fs::path path = fs::path(checkpoint.directory) / name;
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored)) plan.companions.push_back(path.string());
  }
  std::string config = checkpoint.config_json.value_or("");
  if (unties) {
    Json json = parse_json_object(config, "config.json");
    json["tie_word_embeddings"] = false;
    config = json.dump(2) + "\n";
  }
  plan.texts.emplace_back("config.json", std::move(config));
  return plan;
}

void write_gguf_file(const LayerSource& source, const std::vector<DirectoryTensor>& tensors,
                     const OwnFormatRequest& request, ThreadPool& pool) {
  GgufWriter content;
  content.alignment = source.checkpoint.gguf->alignment;
  for (const auto& [key, value] : source.checkpoint.gguf->entries) {
    if (key != "general.alignment" && !key.starts_with("split."))
      content.entries.emplace_back(key, value);
  }
  for (const DirectoryTensor& tensor : tensors)
    content.tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
  write_split_gguf(request.output, content, request.split, [&](size_t i, GgufSink sink) {
    write_tensor(tensors[i], pool, [&](std::span<const std::byte> bytes) {
      sink(bytes);
      if (request.on_written) request.on_written(std::ssize(bytes));
      if (request.cancel != nullptr) request.cancel->check("writing " + tensors[i].name);
    });
  });
}

std::string job_of(const OwnFormatRequest& request) {
  constexpr int kVersion = 1;  // raised when the same request gives other bits
  const Json job = {
      {"version", kVersion}, {"merge", Json::parse(request.adapters_job)}, {"damp", request.damp}};
  return job.dump();
}

/// The last layer with a matrix that is recoded; -1: none.
int last_recoded(const NetworkSources& sources, const AdapterMerge& merge) {
  int last = -1;
  for (size_t l = 0; l < sources.layers.size(); ++l) {
    for_each_parts(sources.layers[l], [&](const LinearParts& parts) {
      for (size_t i = 0; i < parts.parts.size(); ++i) {
        if (!is_dense(parts.parts[i]) && merge.changes(parts.modules[i]))
          last = static_cast<int>(l);
      }
    });
  }
  return last;
}

/// Of what lies outside the layers.
void check_outside(const ModuleId& id, const LinearSource& matrix) {
  const auto* blocks = std::get_if<BlockRows>(&matrix.data);
  if (is_dense(matrix) || (blocks != nullptr && can_encode(blocks->dtype))) return;
  fail(ErrorKind::kUnsupported, "merge",
       "{}: expected floats or a block type that can be written, got {} (--type bf16 writes the "
       "whole model in floats)",
       hf_name(id), matrix.format_name());
}

}  // namespace

OwnFormatPlan plan_own_format(const LayerSource& source, const AdapterMerge& merge) {
  OwnFormatPlan plan;
  const NetworkSources& network = source.sources;
  for (const LayerSources& layer : network.layers) {
    for_each_parts(layer, [&](const LinearParts& parts) {
      for (size_t i = 0; i < parts.parts.size(); ++i) {
        const LinearSource& part = parts.parts[i];
        if (!merge.changes(parts.modules[i]) || is_dense(part)) continue;
        if (!grid_levels(part)) {
          fail(ErrorKind::kUnsupported, "merge",
               "{}: expected floats or a format with a code for each weight (GPTQ, AWQ, nf4, fp4, "
               "Q4_0 to Q8_0, Q2_K to Q6_K, IQ4, MXFP4, NVFP4), got {} (--type bf16 writes the "
               "whole model in floats)",
               hf_name(parts.modules[i]), part.format_name());
        }
        ++plan.n_recoded;
        plan.n_recoded_weights += part.n * part.k;
        plan.recoded_bytes += part.published_bytes();
      }
    });
  }
  plan.n_rounded = merge.n_modules() - plan.n_recoded;
  if (merge.changes({Slot::kEmbedding}) || (network.tied && merge.unties()))
    check_outside({Slot::kEmbedding}, network.embedding.parts.front());
  if (merge.changes({Slot::kLmHead}) && !network.tied)
    check_outside({Slot::kLmHead}, network.lm_head.parts.front());
  for (const DirectoryTensor& tensor : output_tensors(source, merge, Names(source), {})) {
    ++plan.n_tensors;
    plan.n_bytes += tensor.n_bytes();
  }
  if (network.tied && merge.unties()) {
    plan.warnings.push_back(
        "the adapters change the embedding or the output matrix, which the base shares: the output "
        "has one of each");
  }
  return plan;
}

void write_own_format(const LayerSource& source, const AdapterMerge& merge,
                      const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                      const OwnFormatRequest& request) {
  check_damp(request.damp);
  const Names names(source);
  const int last = last_recoded(source.sources, merge);
  QW_CHECK(last < 0 || !calibration.sequences.empty(), "matrices are recoded by their inputs");
  const auto make = [&](const LayerSources& layer, const MatrixTeam& team, LayerPass& pass) {
    if (request.cancel != nullptr) request.cancel->check("merging");
    if (request.on_begin) request.on_begin(pass.layer());
    if (pass.layer() == 0 && last >= 0 && merge.changes({Slot::kEmbedding})) {
      const LinearSource& table = source.sources.embedding.parts.front();
      pass.embed(*backend.pack_embedding(
          rounded_source(merge.rows({Slot::kEmbedding}, table), table, pool)));
    }
    return LayerMerge(source, merge, names, request, backend, pool, team)
        .run(layer, pass, pass.layer() <= last);
  };
  const auto finish = [&](std::span<const RawTensor> made) {
    std::vector<DirectoryTensor> tensors = output_tensors(source, merge, names, made);
    if (source.checkpoint.kind == Checkpoint::Kind::kGguf)
      return write_gguf_file(source, tensors, request, pool);
    DirectoryPlan plan =
        directory_of(source, source.sources.tied && merge.unties(), request.shard_bytes);
    plan.tensors = std::move(tensors);
    const auto on_written = [&](int64_t bytes) {
      if (request.on_written) request.on_written(bytes);
    };
    write_directory(plan, request.output, pool, on_written, request.cancel);
  };
  make_layers(source, calibration, backend, pool, request, {job_of(request), make}, finish);
}

}  // namespace qw::quantize
