#include "model/qwen2_model.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "model/tap.h"

namespace qw {

namespace {

/// Calls visit(begin, end, object) for every longest run of [0, n) in which object_of(i) is one and
/// the same: sequences of one adapter go together.
template <typename ObjectOf, typename Visit>
void for_each_run(size_t n, const ObjectOf& object_of, const Visit& visit) {
  for (size_t begin = 0; begin < n;) {
    const auto& object = object_of(begin);
    size_t end = begin + 1;
    while (end < n && &object_of(end) == &object)
      ++end;
    visit(begin, end, object);
    begin = end;
  }
}

}  // namespace

std::unique_ptr<Model> Model::load(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend,
                                   const LoadOptions& options) {
  ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  NetworkSources sources = open_network(*checkpoint, config);
  for (const std::string& warning : sources.warnings) {
    if (options.on_warning) {
      options.on_warning(warning);
    } else {
      logger().warn("{}", warning);
    }
  }
  Network network = pack_network(sources, config, *checkpoint, backend, options);
  return std::make_unique<Qwen2Model>(std::move(checkpoint), std::move(config), std::move(sources),
                                      std::move(network), backend, options);
}

Qwen2Model::Qwen2Model(std::shared_ptr<const Checkpoint> checkpoint, ModelConfig config,
                       NetworkSources sources, Network network, Backend& backend,
                       const LoadOptions& options)
    : checkpoint_(std::move(checkpoint)),
      config_(std::move(config)),
      sources_(std::move(sources)),
      network_(std::move(network)),
      backend_(backend),
      rope_(config_),
      content_hashes_(options.content_hashes) {
  double read = 0;
  weight_bytes_ = network_.embedding->resident_bytes;
  network_.for_each_linear(sources_, [&](const Linear& linear, const LinearParts&, double active) {
    weight_bytes_ += linear.weight->resident_bytes;
    read += static_cast<double>(linear.weight->read_bytes) * active;
  });
  read_bytes_per_token_ = static_cast<int64_t>(read);
  std::vector<KeyedHash::Bytes> parts;
  for (const auto& file : checkpoint_->mappings)
    parts.push_back(file->bytes());
  for (const auto* text : {&checkpoint_->config_json, &checkpoint_->quantize_config_json})
    parts.push_back(*text ? std::as_bytes(std::span(**text)) : KeyedHash::Bytes{});
  content_names_ = name_content(parts, backend_);
  if (!content_names_.empty()) checkpoint_->check_readable();
}

/// By each of the hashes; `backend`: on whose threads.
std::vector<std::string> Qwen2Model::name_content(std::span<const KeyedHash::Bytes> parts,
                                                  Backend& backend) const {
  std::vector<std::string> names;
  if (content_hashes_.empty()) return names;
  std::vector<int64_t> sizes;
  std::vector<KeyedHash::Bytes> pieces;
  for (const KeyedHash::Bytes part : parts) {
    sizes.push_back(std::ssize(part));
    KeyedHash::add_pieces(part, pieces);
  }
  pieces.push_back(std::as_bytes(std::span(sizes)));
  for (const auto& hash : content_hashes_) {
    names.push_back(to_hex(hash->of_pieces(pieces, [&](int64_t n, FunctionRef<void(int64_t)> body) {
      backend.run_on_host(n, body);
    })));
  }
  return names;
}

std::string Qwen2Model::content_name(int32_t adapter, size_t which) const {
  const std::vector<std::string>* names = &content_names_;
  if (adapter >= 0) {
    const auto installed = installed_.find(adapter);
    if (installed == installed_.end()) return "";
    names = &installed->second->content_names;
  }
  return which < names->size() ? (*names)[which] : "";
}

std::unique_ptr<KvCache> Qwen2Model::make_kv(int64_t n_pages, DType type) const {
  return backend_.make_kv({.n_layers = config_.n_layers,
                           .n_kv_heads = config_.n_kv_heads,
                           .head_dim = config_.head_dim,
                           .n_pages = n_pages,
                           .type = type});
}

std::vector<Model::LayerInfo> Qwen2Model::layers() const {
  std::vector<LayerInfo> out;
  network_.for_each_linear(sources_, [&](const Linear& linear, const LinearParts& parts, double) {
    const LinearWeight& w = *linear.weight;
    out.push_back({linear.name, parts.format(), w.kernel, w.n, w.k, w.resident_bytes});
  });
  return out;
}

void Qwen2Model::forward(const BatchPlan& plan, KvCache& kv, float* logits,
                         ForwardObserver* observer) {
  check_plan(plan, kv);
  if (plan.tokens.empty()) return;
  const Activations a = buffers_.get(backend_, config_, plan.n_tokens());
  backend_.take_fault();  // of a step that ended with an exception
  fault_.reset();
  rope_.fill_tables(plan, cos_, sin_);
  backend_.begin_step(plan, cos_, sin_);

  embed(plan, a.x);
  tap(observer, backend_, a.x, "hidden.embed");
  Rows y;  // what the block before adds to x; nothing yet
  for (int l = 0; l < config_.n_layers; ++l) {
    const LayerWeights& w = network_.layers[static_cast<size_t>(l)];
    add_norm(plan, {Slot::kInputNorm, l}, *w.input_norm, y, a);  // x += y; h = norm(x)
    check_fault(plan, l - 1, "feed-forward block");  // a norm sees what the block before it gave
    if (l > 0) tap(observer, backend_, a.x, "hidden.layer.{}", l - 1);
    tap(observer, backend_, a.h, "layer{}.input_layernorm", l);
    attention(l, a, kv, observer);  // y = attention(h)
    add_norm(plan, {Slot::kPostNorm, l}, *w.post_norm, a.y, a);
    check_fault(plan, l, "attention block");
    tap(observer, backend_, a.h, "layer{}.post_attention_layernorm", l);
    feed_forward(l, a, observer);  // y = ffn(h)
    y = a.y;
  }
  add_norm(plan, {Slot::kFinalNorm}, *network_.final_norm, y, a);
  check_fault(plan, config_.n_layers - 1, "feed-forward block");
  tap(observer, backend_, a.x, "hidden.layer.{}", config_.n_layers - 1);
  tap(observer, backend_, a.h, "hidden.norm");
  if (logits != nullptr && !plan.logit_rows.empty()) compute_logits(plan, a.h, logits);
  backend_.sync();
  // Embedding rows, and weights without a packed layout, were read from the mapped files just now:
  // of a file that was cut they were zeros, and neither logits nor KV pages may be used.
  check_readable(plan);
}

void Qwen2Model::check_readable(const BatchPlan& plan) const {
  checkpoint_->check_readable();
  const Qwen2Adapter* last = nullptr;
  for (const int32_t id : plan.adapters) {
    const Qwen2Adapter* adapter = id < 0 ? nullptr : installed_.at(id);
    if (adapter == nullptr || adapter == last) continue;
    for (const auto& file : adapter->files)
      file->check_readable();
    last = adapter;
  }
}

/// y = W_o softmax(q k^T / sqrt(d)) v of the rotated projections of h.
void Qwen2Model::attention(int layer, const Activations& a, KvCache& kv,
                           ForwardObserver* observer) {
  const LayerWeights& w = network_.layers[static_cast<size_t>(layer)];
  self_attention(backend_, config_, layer, w.qkv, a, kv, layer, observer);  // a.o, [T, nh * hd]
  backend_.linear(a.o, w.o, a.y);
  tap(observer, backend_, a.y, "layer{}.attn_output", layer);
}

/// y = down(silu(gate h) * up h), or the mixture of experts.
void Qwen2Model::feed_forward(int layer, const Activations& a, ForwardObserver* observer) {
  const LayerWeights& w = network_.layers[static_cast<size_t>(layer)];
  if (w.moe == nullptr) {
    backend_.ffn(a.h, w.gate_up, w.down, a.y);
  } else {
    const int64_t n_experts = w.moe->router.weight->n;
    std::vector<float> scores;
    const std::string name = fmt::format("layer{}.router_logits", layer);
    if (observer != nullptr && observer->wants(name))
      scores.resize(static_cast<size_t>(a.h.rows * n_experts));
    backend_.moe_ffn(a.h, *w.moe, a.y, scores.empty() ? nullptr : scores.data());
    if (!scores.empty()) observer->on_value(name, a.h.rows, n_experts, scores.data());
    tap(observer, backend_, a.y, "layer{}.moe_output", layer);
  }
  tap(observer, backend_, a.y, "layer{}.mlp_output", layer);
}

const AdapterOverrides* Qwen2Model::overrides_of(const BatchPlan& plan, size_t s) const {
  const int32_t adapter = plan.adapters.empty() ? -1 : plan.adapters[s];
  return adapter < 0 ? nullptr : &installed_.at(adapter)->overrides;
}

void Qwen2Model::embed(const BatchPlan& plan, const Rows& x) {
  const auto table_of = [&](size_t s) -> const EmbeddingWeight& {
    const AdapterOverrides* own = overrides_of(plan, s);
    return own != nullptr && own->embedding != nullptr ? *own->embedding : *network_.embedding;
  };
  for_each_run(plan.seq_context.size(), table_of,
               [&](size_t begin, size_t end, const EmbeddingWeight& table) {
                 backend_.embed(table, plan.seq_begin[begin], plan.seq_begin[end], x);
               });
}

void Qwen2Model::add_norm(const BatchPlan& plan, const ModuleId& id, const DeviceVector& base,
                          const Rows& y, const Activations& a) {
  const auto weight_of = [&](size_t s) -> const DeviceVector& {
    const AdapterOverrides* own = overrides_of(plan, s);
    if (own == nullptr) return base;
    const auto found = std::ranges::find(own->norms, id, &NormOverride::id);
    return found == own->norms.end() ? base : *found->weight;
  };
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  note_fault(0);  // of the block before
  for_each_run(plan.seq_context.size(), weight_of,
               [&](size_t begin, size_t end, const DeviceVector& weight) {
                 const int64_t row = plan.seq_begin[begin], n = plan.seq_begin[end] - row;
                 const Rows added = y.data == nullptr ? y : y.slice_rows(row, n);
                 backend_.add_rms_norm(added, a.x.slice_rows(row, n), weight, eps,
                                       a.h.slice_rows(row, n));
                 note_fault(row);
               });
}

void Qwen2Model::compute_logits(const BatchPlan& plan, const Rows& h, float* logits) {
  const std::span<const int32_t> rows = plan.logit_rows;  // in sequence order
  const auto head_of = [&](size_t i) -> const Linear& {
    const auto next = std::ranges::upper_bound(plan.seq_begin, rows[i]);
    const AdapterOverrides* own =
        overrides_of(plan, static_cast<size_t>(next - plan.seq_begin.begin() - 1));
    return own != nullptr && own->lm_head.weight != nullptr ? own->lm_head : network_.lm_head;
  };
  for_each_run(rows.size(), head_of, [&](size_t begin, size_t end, const Linear& head) {
    backend_.logits(h, rows.subspan(begin, end - begin), head,
                    logits + static_cast<int64_t>(begin) * config_.vocab);
  });
}

void Qwen2Model::note_fault(int64_t first_row) {
  std::optional<NumericFault> fault = backend_.take_fault();
  if (!fault || fault_) return;
  fault->row += first_row;
  fault_ = std::move(fault);
}

void Qwen2Model::check_fault(const BatchPlan& plan, int layer, std::string_view block) {
  if (!fault_) return;
  check_readable(plan);  // a lost file is the better explanation
  const std::string where = layer < 0 ? "embedding" : fmt::format("layer {}, {}", layer, block);
  throw NumericError(
      fmt::format("[model] hidden state: expected finite values, got NaN or infinity "
                  "({}; seen at: {})",
                  where, fault_->what),
      fault_->row);
}

void Qwen2Model::check_plan(const BatchPlan& plan, const KvCache& kv) const {
  const size_t n_tokens = plan.tokens.size(), n_seqs = plan.seq_context.size();
  QW_CHECK(plan.positions.size() == n_tokens && plan.slots.size() == n_tokens);
  QW_CHECK(plan.seq_begin.size() == n_seqs + 1 && plan.page_begin.size() == n_seqs + 1);
  QW_CHECK(plan.seq_rope_length.size() == n_seqs);
  QW_CHECK(plan.adapters.empty() || plan.adapters.size() == n_seqs);
  QW_CHECK(plan.seq_begin.front() == 0 && plan.seq_begin.back() == static_cast<int32_t>(n_tokens));
  QW_CHECK(plan.page_begin.front() >= 0 &&
           plan.page_begin.back() <= static_cast<int32_t>(plan.pages.size()));
  QW_CHECK(kv.spec.n_layers == config_.n_layers && kv.spec.n_kv_heads == config_.n_kv_heads &&
           kv.spec.head_dim == config_.head_dim);
  const int64_t n_slots = kv.spec.n_pages * kv.page_tokens;
  for (size_t s = 0; s < n_seqs; ++s) {
    QW_CHECK(plan.seq_begin[s] <= plan.seq_begin[s + 1] &&
             plan.page_begin[s] <= plan.page_begin[s + 1]);
    QW_CHECK(plan.adapters.empty() || plan.adapters[s] < 0 || installed_.contains(plan.adapters[s]),
             "adapter {} is not installed", plan.adapters[s]);
    const int64_t held = int64_t{plan.page_begin[s + 1] - plan.page_begin[s]} * kv.page_tokens;
    for (auto t = static_cast<size_t>(plan.seq_begin[s]);
         t < static_cast<size_t>(plan.seq_begin[s + 1]); ++t) {
      QW_CHECK(plan.tokens[t] >= 0 && plan.tokens[t] < config_.vocab, "token {}", plan.tokens[t]);
      QW_CHECK(plan.positions[t] >= 0 && plan.positions[t] < held, "position {} of {} slots",
               plan.positions[t], held);
      QW_CHECK(plan.slots[t] >= 0 && plan.slots[t] < n_slots, "slot {}", plan.slots[t]);
    }
  }
  for (const int32_t page : plan.pages)
    QW_CHECK(page >= 0 && page < kv.spec.n_pages, "page {} of {}", page, kv.spec.n_pages);
  for (size_t i = 0; i < plan.logit_rows.size(); ++i) {
    QW_CHECK(plan.logit_rows[i] >= 0 && plan.logit_rows[i] < static_cast<int32_t>(n_tokens));
    QW_CHECK(i == 0 || plan.logit_rows[i] > plan.logit_rows[i - 1]);
  }
}

}  // namespace qw
