#include "model/sources.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "base/error.h"
#include "quant/ggml_blocks.h"
#include "tensor/shape.h"

namespace qw {

namespace {

/// Names of the dimensions [n, k] of a slot's matrix; bound to sizes in ModuleReader.
struct Dims {
  std::string_view n, k;
};

Dims dims_of(Slot slot) {
  switch (slot) {
    case Slot::kQ:
      return {"heads * head_dim", "hidden"};
    case Slot::kK:
    case Slot::kV:
      return {"kv_heads * head_dim", "hidden"};
    case Slot::kO:
      return {"hidden", "heads * head_dim"};
    case Slot::kGate:
    case Slot::kUp:
      return {"intermediate", "hidden"};
    case Slot::kDown:
      return {"hidden", "intermediate"};
    case Slot::kRouter:
      return {"experts", "hidden"};
    case Slot::kExpertGate:
    case Slot::kExpertUp:
      return {"expert_intermediate", "hidden"};
    case Slot::kExpertDown:
      return {"hidden", "expert_intermediate"};
    case Slot::kSharedGate:
    case Slot::kSharedUp:
      return {"shared_intermediate", "hidden"};
    case Slot::kSharedDown:
      return {"hidden", "shared_intermediate"};
    case Slot::kSharedExpertGate:
      return {"1", "hidden"};
    case Slot::kEmbedding:
    case Slot::kLmHead:
      return {"vocab", "hidden"};
    case Slot::kInputNorm:
    case Slot::kPostNorm:
    case Slot::kFinalNorm:
      break;
  }
  QW_CHECK(false, "a norm is no matrix");
  return {};
}

/// Reads the modules of one checkpoint, in whatever form each of them was published.
class ModuleReader {
 public:
  ModuleReader(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint),
        config_(config),
        is_gguf_(checkpoint.kind == Checkpoint::Kind::kGguf),
        dims_(printable(checkpoint.path)) {
    dims_.set("hidden", config.hidden);
    dims_.set("heads * head_dim", int64_t{config.n_heads} * config.head_dim);
    dims_.set("kv_heads * head_dim", int64_t{config.n_kv_heads} * config.head_dim);
    dims_.set("intermediate", config.intermediate);
    dims_.set("vocab", config.vocab);
    dims_.set("1", 1);
    if (!config.moe) return;
    dims_.set("experts", config.moe->n_experts);
    dims_.set("expert_intermediate", config.moe->expert_intermediate);
    dims_.set("2 * expert_intermediate", 2 * config.moe->expert_intermediate);
    dims_.set("shared_intermediate", config.moe->shared_intermediate);
  }

  std::vector<float> norm(const ModuleId& id) { return vector(name(id) + ".weight", "hidden"); }

  /// Appends module `id` to `out`; its bias too, when the file has one that is not zero.
  void append(LinearParts& out, const ModuleId& id, bool bias_required = false);

  /// gate_proj and up_proj of an expert that are one tensor in the file.
  void append_fused_expert(LinearParts& gate_up, LinearParts& down, int layer, int expert);
  bool has_fused_experts(int layer) const {
    return find(fused_name(layer, "gate_up_proj")) != nullptr;
  }

  bool has(const ModuleId& id) const {
    return find(name(id) + ".weight") != nullptr || is_quantised(id);
  }
  bool is_quantised(const ModuleId& id) const {
    return !is_gguf_ && is_quantised_module(checkpoint_.tensors, name(id));
  }
  const RawTensor* find(const std::string& tensor) const {
    return checkpoint_.tensors.find(tensor);
  }
  const RawTensor& use(const std::string& tensor);
  std::string name(const ModuleId& id) const { return is_gguf_ ? gguf_name(id) : hf_name(id); }

  /// One sentence about tensors that nobody read, if there are any.
  void warn_of_unused(std::vector<std::string>& warnings) const;
  std::vector<std::string> warnings;

 private:
  static std::string fused_name(int layer, std::string_view what) {
    return fmt::format("model.layers.{}.mlp.experts.{}", layer, what);
  }
  std::vector<float> vector(const std::string& tensor, std::string_view dim);
  LinearSource dense(LinearParts& out, const ModuleId& id);
  LinearSource grouped(LinearParts& out, const std::string& module);
  void append_bias(LinearParts& out, const std::string& tensor, const Dims& dims, bool required);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  bool is_gguf_;
  ShapeCheck dims_;
  std::unordered_set<std::string> used_;
};

const RawTensor& ModuleReader::use(const std::string& tensor) {
  const RawTensor* found = find(tensor);
  if (found == nullptr) {
    fail(ErrorKind::kCorrupt, "model", "tensor {}: expected it in the checkpoint, got none ({})",
         tensor, printable(checkpoint_.path));
  }
  used_.insert(tensor);
  return *found;
}

std::vector<float> ModuleReader::vector(const std::string& tensor, std::string_view dim) {
  const RawTensor& raw = use(tensor);
  dims_.match(tensor, raw.shape, {dim});
  return read_vector(raw);
}

/// The bytes of one of the matrices that are stacked along the first dimension.
std::span<const std::byte> expert_bytes(const RawTensor& stacked, int expert) {
  const size_t size = stacked.bytes.size() / static_cast<size_t>(stacked.shape[0]);
  return stacked.bytes.subspan(static_cast<size_t>(expert) * size, size);
}

LinearSource ModuleReader::dense(LinearParts& out, const ModuleId& id) {
  const std::string tensor = name(id) + ".weight";
  const Dims dims = dims_of(id.slot);
  RawTensor raw = use(tensor);
  if (is_gguf_ && id.expert >= 0) {
    dims_.match(tensor, raw.shape, {"experts", dims.n, dims.k});
    LinearSource source = LinearSource::of_expert(raw, id.expert);
    out.bytes.push_back(expert_bytes(raw, id.expert));
    return source;
  }
  // The gate of the shared expert is [1, hidden] from converters, [hidden] from llama-quantize.
  if (id.slot == Slot::kSharedExpertGate && raw.shape.rank() == 1)
    raw.shape = Shape{1, raw.shape[0]};
  dims_.match(tensor, raw.shape, {dims.n, dims.k});
  out.bytes.push_back(raw.bytes);
  return LinearSource::of_matrix(raw);
}

LinearSource ModuleReader::grouped(LinearParts& out, const std::string& module) {
  const QuantizationConfig& q = config_.quantization;
  if (q.method.empty()) {
    fail(ErrorKind::kCorrupt, "model",
         "module {}: expected a quantization_config in config.json or a quantize_config.json for "
         "its quantised tensors (.qweight, .weight.absmax), got neither ({})",
         module, printable(checkpoint_.path));
  }
  for (const std::string& tensor : quantised_module_tensors(checkpoint_.tensors, q, module))
    out.bytes.push_back(use(tensor).bytes);
  std::string warning;
  LinearSource source = open_quantised_module(checkpoint_.tensors, q, module, &warning);
  if (!warning.empty()) warnings.push_back(std::move(warning));
  return source;
}

void ModuleReader::append_bias(LinearParts& out, const std::string& tensor, const Dims& dims,
                               bool required) {
  const auto rows_before = out.bias.size();
  const int64_t n = out.parts.back().n;
  int64_t stacked = -n;
  for (const LinearSource& part : out.parts)
    stacked += part.n;
  if (!required && find(tensor) == nullptr) {
    if (rows_before > 0) out.bias.resize(static_cast<size_t>(stacked + n));
    return;
  }
  const std::vector<float> bias = vector(tensor, dims.n);
  // AutoGPTQ writes an all-zero bias for every layer: dropped, it would only cost time.
  const bool zero = std::ranges::all_of(bias, [](float b) { return b == 0; });
  if (zero && !required && rows_before == 0) return;
  out.bias.resize(static_cast<size_t>(stacked));
  out.bias.insert(out.bias.end(), bias.begin(), bias.end());
}

void ModuleReader::append(LinearParts& out, const ModuleId& id, bool bias_required) {
  const std::string module = name(id);
  const Dims dims = dims_of(id.slot);
  if (is_quantised(id)) {
    LinearSource source = grouped(out, module);
    if (source.n != dims_.get(dims.n) || source.k != dims_.get(dims.k)) {
      fail(ErrorKind::kCorrupt, "model", "module {}: expected [{}, {}] ({}, {}), got [{}, {}] ({})",
           module, dims_.get(dims.n), dims_.get(dims.k), dims.n, dims.k, source.n, source.k,
           printable(checkpoint_.path));
    }
    out.parts.push_back(std::move(source));
  } else {
    out.parts.push_back(dense(out, id));
  }
  out.modules.push_back(id);
  append_bias(out, module + ".bias", dims, bias_required);
}

void ModuleReader::append_fused_expert(LinearParts& gate_up, LinearParts& down, int layer,
                                       int expert) {
  const std::string gate_up_name = fused_name(layer, "gate_up_proj");
  const std::string down_name = fused_name(layer, "down_proj");
  const RawTensor& both = use(gate_up_name);
  const RawTensor& last = use(down_name);
  dims_.match(gate_up_name, both.shape, {"experts", "2 * expert_intermediate", "hidden"});
  dims_.match(down_name, last.shape, {"experts", "hidden", "expert_intermediate"});
  const LinearSource stacked = LinearSource::of_expert(both, expert);
  const int64_t inter = config_.moe->expert_intermediate;
  gate_up.parts = {stacked.slice_rows(0, inter), stacked.slice_rows(inter, 2 * inter)};
  gate_up.modules = {{Slot::kExpertGate, layer, expert}, {Slot::kExpertUp, layer, expert}};
  gate_up.bytes = {expert_bytes(both, expert)};
  down.parts = {LinearSource::of_expert(last, expert)};
  down.modules = {{Slot::kExpertDown, layer, expert}};
  down.bytes = {expert_bytes(last, expert)};
}

void ModuleReader::warn_of_unused(std::vector<std::string>& out) const {
  constexpr size_t kNamed = 4;
  std::vector<std::string> names;
  size_t count = 0;
  for (const RawTensor& tensor : checkpoint_.tensors.all()) {
    if (used_.contains(tensor.name) || is_ignorable_tensor(tensor.name)) continue;
    if (++count <= kNamed) names.push_back(printable(tensor.name));
  }
  if (count == 0) return;
  out.push_back(fmt::format("{} tensor{} not used by this architecture: {}{}", count,
                            count == 1 ? " is" : "s are", fmt::join(names, ", "),
                            count > kNamed ? ", ..." : ""));
}

LinearParts parts_named(std::string name) {
  LinearParts out;
  out.name = std::move(name);
  return out;
}

void read_moe(ModuleReader& reader, const ModelConfig& config, int layer, MoeSources& moe) {
  const std::string prefix = fmt::format("layers.{}.", layer);
  moe.router.name = prefix + "router";
  reader.append(moe.router, {Slot::kRouter, layer});
  const bool fused = reader.has_fused_experts(layer);
  for (int e = 0; e < config.moe->n_experts; ++e) {
    LinearParts gate_up = parts_named(fmt::format("{}experts.{}.gate_up", prefix, e));
    LinearParts down = parts_named(fmt::format("{}experts.{}.down", prefix, e));
    if (fused) {
      reader.append_fused_expert(gate_up, down, layer, e);
    } else {
      reader.append(gate_up, {Slot::kExpertGate, layer, e});
      reader.append(gate_up, {Slot::kExpertUp, layer, e});
      reader.append(down, {Slot::kExpertDown, layer, e});
    }
    moe.gate_up.push_back(std::move(gate_up));
    moe.down.push_back(std::move(down));
  }
  if (config.moe->shared_intermediate == 0) return;
  moe.shared_gate_up.name = prefix + "shared_expert.gate_up";
  reader.append(moe.shared_gate_up, {Slot::kSharedGate, layer});
  reader.append(moe.shared_gate_up, {Slot::kSharedUp, layer});
  moe.shared_down.name = prefix + "shared_expert.down";
  reader.append(moe.shared_down, {Slot::kSharedDown, layer});
  moe.shared_gate.name = prefix + "shared_expert.gate";
  reader.append(moe.shared_gate, {Slot::kSharedExpertGate, layer});
}

LayerSources read_layer(ModuleReader& reader, const ModelConfig& config, int layer) {
  LayerSources out;
  const std::string prefix = fmt::format("layers.{}.", layer);
  out.input_norm = reader.norm({Slot::kInputNorm, layer});
  out.post_norm = reader.norm({Slot::kPostNorm, layer});
  out.qkv.name = prefix + "qkv";
  for (const Slot slot : {Slot::kQ, Slot::kK, Slot::kV})
    reader.append(out.qkv, {slot, layer}, /*bias_required=*/true);
  out.o.name = prefix + "o";
  reader.append(out.o, {Slot::kO, layer});
  if (config.layer_is_sparse(layer)) {
    read_moe(reader, config, layer, out.moe);
    return out;
  }
  out.gate_up.name = prefix + "gate_up";
  reader.append(out.gate_up, {Slot::kGate, layer});
  reader.append(out.gate_up, {Slot::kUp, layer});
  out.down.name = prefix + "down";
  reader.append(out.down, {Slot::kDown, layer});
  return out;
}

/// The embedding and lm_head. Tied models are published with either name, or with both.
void read_vocabulary(ModuleReader& reader, const ModelConfig& config, NetworkSources& out) {
  const ModuleId embedding{Slot::kEmbedding}, lm_head{Slot::kLmHead};
  const std::string head_weight = reader.name(lm_head) + ".weight";
  const bool head_is_quantised = reader.is_quantised(lm_head);
  out.embedding.name = "embed_tokens";
  out.lm_head.name = "lm_head";
  out.tied = config.tied_embeddings && !head_is_quantised;
  if (!out.tied) {
    reader.append(out.embedding, embedding);
    reader.append(out.lm_head, lm_head);
    return;
  }
  reader.append(out.embedding, reader.has(embedding) ? embedding : lm_head);
  out.embedding.modules = {embedding};
  out.lm_head.parts = out.embedding.parts;
  out.lm_head.modules = {lm_head};
  if (const RawTensor* head = reader.find(head_weight); head != nullptr && reader.has(embedding)) {
    const RawTensor& table = reader.use(reader.name(embedding) + ".weight");
    reader.use(head_weight);
    if (head->dtype != table.dtype || head->bytes.size() != table.bytes.size() ||
        std::memcmp(head->bytes.data(), table.bytes.data(), table.bytes.size()) != 0) {
      out.warnings.push_back(fmt::format(
          "{} differs from {} though the config says that they are tied: the latter is used",
          head_weight, table.name));
    }
  }
}

}  // namespace

int64_t LinearParts::published_bytes() const {
  int64_t sum = 0;
  for (const LinearSource& part : parts)
    sum += part.published_bytes();
  return sum;
}

std::string LinearParts::format() const {
  std::vector<std::string> names;
  for (const LinearSource& part : parts) {
    std::string format = part.format_name();
    if (std::ranges::find(names, format) == names.end()) names.push_back(std::move(format));
  }
  return fmt::format("{}", fmt::join(names, " + "));
}

void NetworkSources::for_each(const std::function<void(const LinearParts&)>& visit) const {
  const auto call = [&](const LinearParts& parts) {
    if (!parts.parts.empty()) visit(parts);
  };
  call(embedding);
  if (!tied) call(lm_head);
  for (const LayerSources& layer : layers) {
    for (const LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      call(*parts);
    const MoeSources& moe = layer.moe;
    for (const LinearParts* parts :
         {&moe.router, &moe.shared_gate_up, &moe.shared_down, &moe.shared_gate})
      call(*parts);
    for (const LinearParts& expert : moe.gate_up)
      call(expert);
    for (const LinearParts& expert : moe.down)
      call(expert);
  }
}

int64_t NetworkSources::published_bytes() const {
  int64_t sum = 0;
  for_each([&](const LinearParts& parts) { sum += parts.published_bytes(); });
  return sum;
}

std::vector<float> read_vector(const RawTensor& tensor) {
  const LinearSource row = LinearSource::of_vector(tensor);
  std::vector<float> values(static_cast<size_t>(row.k));
  row.decode_rows(0, 1, values.data());
  for (const float value : values) {
    if (!std::isfinite(value)) {
      fail(ErrorKind::kCorrupt, "model", "tensor {}: expected finite values, got {} ({})",
           printable(tensor.name), value, printable(tensor.file));
    }
  }
  return values;
}

NetworkSources open_network(const Checkpoint& checkpoint, const ModelConfig& config) {
  ModuleReader reader(checkpoint, config);
  NetworkSources out;
  read_vocabulary(reader, config, out);
  for (int layer = 0; layer < config.n_layers; ++layer)
    out.layers.push_back(read_layer(reader, config, layer));
  out.final_norm = reader.norm({Slot::kFinalNorm});
  // A classifier's head is read by whoever classifies.
  if (config.architecture == "Qwen2ForSequenceClassification") reader.use("score.weight");
  std::ranges::move(reader.warnings, std::back_inserter(out.warnings));
  reader.warn_of_unused(out.warnings);
  return out;
}

}  // namespace qw
