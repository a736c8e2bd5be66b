#include "quantize/layer_pass.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "model/model.h"

namespace qw::quantize {

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

}  // namespace

LayerPass::LayerPass(Backend& backend, const ModelConfig& config,
                     const std::vector<std::vector<int32_t>>& sequences, const CancelFlag* cancel)
    : backend_(backend),
      config_(config),
      cancel_(cancel),
      rope_(config),
      eps_(static_cast<float>(config.rms_norm_eps)),
      side_width_(std::max(config.hidden, int64_t{config.n_heads} * config.head_dim)) {
  size_t begin = 0;
  int64_t pending = 0, n_pages = 0;
  const auto flush = [&](size_t end) {
    if (end == begin) return;
    add_step(sequences, begin, end);
    n_pages = std::max(n_pages, static_cast<int64_t>(steps_.back().plan.pages.size()));
    begin = end;
    pending = 0;
  };
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& ids = sequences[i];
    if (ids.empty())
      fail(ErrorKind::kInvalidArgument, "calibration", "sequence {}: expected tokens, got none", i);
    for (const int32_t id : ids) {
      if (id >= 0 && id < config.vocab) continue;
      fail(ErrorKind::kInvalidArgument, "calibration",
           "sequence {}: expected ids from 0 to {}, got {}", i, config.vocab - 1, id);
    }
    if (pending + std::ssize(ids) > kStepTokens) flush(i);
    pending += std::ssize(ids);
  }
  flush(sequences.size());
  x_.resize(at(n_tokens_ * config.hidden));
  side_.resize(at(n_tokens_ * side_width_));
  kv_ = backend.make_kv({.n_layers = 1,
                         .n_kv_heads = config.n_kv_heads,
                         .head_dim = config.head_dim,
                         .n_pages = n_pages,
                         .type = DType::kF32});
}

void LayerPass::add_step(const std::vector<std::vector<int32_t>>& sequences, size_t begin,
                         size_t end) {
  Step& step = steps_.emplace_back();
  BatchPlan& plan = step.plan;
  const int page_tokens = backend_.kv_page_tokens();
  plan.seq_begin = {0};
  plan.page_begin = {0};
  for (size_t i = begin; i < end; ++i) {
    const auto n = static_cast<int32_t>(sequences[i].size());
    const auto first_page = static_cast<int32_t>(plan.pages.size());
    plan.tokens.insert(plan.tokens.end(), sequences[i].begin(), sequences[i].end());
    for (int32_t t = 0; t < n; ++t) {
      plan.positions.push_back(t);
      plan.slots.push_back((first_page + t / page_tokens) * page_tokens + t % page_tokens);
    }
    for (int32_t page = 0; page < ceil_div(n, page_tokens); ++page)
      plan.pages.push_back(first_page + page);
    plan.seq_begin.push_back(static_cast<int32_t>(plan.tokens.size()));
    plan.seq_context.push_back(n);
    plan.seq_rope_length.push_back(n);
    plan.page_begin.push_back(static_cast<int32_t>(plan.pages.size()));
  }
  rope_.fill_tables(plan, step.cos, step.sin);
  step.first = n_tokens_;
  n_tokens_ += plan.n_tokens();
}

template <typename Body>
void LayerPass::for_steps(std::string_view what, const Body& body) {
  backend_.take_fault();  // of what ended with an exception
  stage_ = what;
  for (const Step& step : steps_) {
    if (cancel_ != nullptr) cancel_->check("quantising");
    backend_.begin_step(step.plan, step.cos, step.sin);
    const Activations a = buffers_.get(backend_, config_, step.n_tokens());
    backend_.upload_rows(x_of(step), a.x);
    body(step, a);
    check_fault(step);
  }
}

void LayerPass::check_fault(const Step& step) {
  const std::optional<NumericFault> fault = backend_.take_fault();
  if (!fault) return;
  throw NumericError(
      fmt::format("[calibration] layer {}, {}: expected finite values, got NaN or infinity (seen "
                  "at: {}; token {} of all)",
                  layer_, stage_, fault->what, step.first + fault->row),
      step.first + fault->row);
}

void LayerPass::give(const Step& step, const float* values, int64_t cols, Take take) {
  check_fault(step);
  const std::vector<int32_t>& begins = step.plan.seq_begin;
  for (size_t s = 0; s + 1 < begins.size(); ++s)
    take(values + begins[s] * cols, begins[s + 1] - begins[s]);
}

void LayerPass::embed(const EmbeddingWeight& table) {
  layer_ = 0;
  for_steps("embedding", [&](const Step& step, const Activations& a) {
    backend_.embed(table, 0, step.n_tokens(), a.x);
    backend_.download(a.x, x_of(step));
  });
}

void LayerPass::set_hidden(std::vector<float> values, int layer) {
  QW_CHECK(values.size() == x_.size(), "{} values for {}", values.size(), x_.size());
  x_ = std::move(values);
  layer_ = layer;
}

void LayerPass::norm_inputs(const LayerWeights& w, Take take) {
  for_steps("input norm", [&](const Step& step, const Activations& a) {
    backend_.add_rms_norm({}, a.x, *w.input_norm, eps_, a.h);
    backend_.download(a.h, side_of(step));
    give(step, side_of(step), config_.hidden, take);
  });
}

void LayerPass::attend(const LayerWeights& w, Take take) {
  for_steps("attention", [&](const Step& step, const Activations& a) {
    backend_.add_rms_norm({}, a.x, *w.input_norm, eps_, a.h);
    self_attention(backend_, config_, layer_, w.qkv, a, *kv_, 0, nullptr);
    backend_.download(a.o, side_of(step));
    give(step, side_of(step), a.o.cols, take);
  });
}

void LayerPass::add_attention(const LayerWeights& w, Take take) {
  for_steps("attention", [&](const Step& step, const Activations& a) {
    backend_.upload_rows(side_of(step), a.o);
    backend_.linear(a.o, w.o, a.y);
    backend_.add_rms_norm(a.y, a.x, *w.post_norm, eps_, a.h);
    backend_.download(a.x, x_of(step));
    backend_.download(a.h, side_of(step));
    give(step, side_of(step), config_.hidden, take);
  });
}

void LayerPass::attention_output(const LayerWeights& w, const Linear& qkv, Take take) {
  for_steps("attention", [&](const Step& step, const Activations& a) {
    backend_.add_rms_norm({}, a.x, *w.input_norm, eps_, a.h);
    self_attention(backend_, config_, layer_, qkv, a, *kv_, 0, nullptr);
    backend_.linear(a.o, w.o, a.y);
    scratch_.resize(at(a.y.rows * a.y.cols));
    backend_.download(a.y, scratch_.data());
    give(step, scratch_.data(), a.y.cols, take);
  });
}

void LayerPass::feed_forward_output(const Linear& gate_up, const Linear& down, Take take) {
  for_steps("feed-forward block", [&](const Step& step, const Activations& a) {
    backend_.upload_rows(side_of(step), a.h);
    backend_.ffn(a.h, gate_up, down, a.y);
    scratch_.resize(at(a.y.rows * a.y.cols));
    backend_.download(a.y, scratch_.data());
    give(step, scratch_.data(), a.y.cols, take);
  });
}

void LayerPass::renew_norm(const LayerWeights& w) {
  for_steps("feed-forward block", [&](const Step& step, const Activations& a) {
    backend_.add_rms_norm({}, a.x, *w.post_norm, eps_, a.h);
    backend_.download(a.h, side_of(step));
  });
}

void LayerPass::gated(const Linear& gate_up, Take take) {
  for_steps("feed-forward block", [&](const Step& step, const Activations& a) {
    backend_.upload_rows(side_of(step), a.h);
    const Rows act = backend_.gated_linear(a.h, gate_up);
    scratch_.resize(at(act.rows * act.cols));
    backend_.download(act, scratch_.data());
    give(step, scratch_.data(), act.cols, take);
  });
}

void LayerPass::add_feed_forward(const LayerWeights& w) {
  for_steps("feed-forward block", [&](const Step& step, const Activations& a) {
    backend_.upload_rows(side_of(step), a.h);
    if (w.moe == nullptr) {
      backend_.ffn(a.h, w.gate_up, w.down, a.y);
    } else {
      backend_.moe_ffn(a.h, *w.moe, a.y, nullptr);
    }
    backend_.add_rms_norm(a.y, a.x, *w.post_norm, eps_, a.h);  // of which x alone is wanted
    backend_.download(a.x, x_of(step));
  });
  ++layer_;
}

std::vector<std::vector<int32_t>> LayerPass::route(const MoeWeights& moe) {
  const int64_t n_experts = moe.router.weight->n;
  std::vector<std::vector<int32_t>> out(at(n_experts));
  const auto scores_buffer = backend_.allocate(std::max(kStepTokens, n_tokens_), n_experts);
  std::vector<int32_t> order(at(n_experts));
  for_steps("router", [&](const Step& step, const Activations& a) {
    backend_.upload_rows(side_of(step), a.h);
    const Rows rows = scores_buffer->view.first(step.n_tokens());
    backend_.linear(a.h, moe.router, rows);
    scratch_.resize(at(step.n_tokens() * n_experts));
    backend_.download(rows, scratch_.data());
    for (int64_t t = 0; t < step.n_tokens(); ++t) {
      const float* scores = scratch_.data() + t * n_experts;
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + moe.top_k, order.end(),
                        [&](int32_t i, int32_t j) {
                          return scores[i] != scores[j] ? scores[i] > scores[j] : i < j;
                        });
      for (int i = 0; i < moe.top_k; ++i)
        out[at(order[at(i)])].push_back(static_cast<int32_t>(step.first + t));
    }
  });
  return out;
}

const float* LayerPass::input_row(int64_t token) const {
  const auto after = std::ranges::upper_bound(steps_, token, {}, &Step::first);
  const Step& step = *std::prev(after);
  return side_.data() + step.first * side_width_ + (token - step.first) * config_.hidden;
}

void LayerPass::expert_inputs(std::span<const int32_t> tokens, Take take) {
  std::vector<float> rows;
  for (size_t begin = 0; begin < tokens.size(); begin += kStepTokens) {
    const auto part = tokens.subspan(begin, std::min<size_t>(kStepTokens, tokens.size() - begin));
    rows.resize(part.size() * at(config_.hidden));
    for (size_t i = 0; i < part.size(); ++i)
      std::copy_n(input_row(part[i]), config_.hidden, rows.data() + i * at(config_.hidden));
    take(rows.data(), std::ssize(part));
  }
}

void LayerPass::expert_gated(std::span<const int32_t> tokens, const Linear& gate_up, Take take) {
  // Rows of a mixture are no sequence; the step under way says only that nobody has an adapter.
  backend_.begin_step(steps_.front().plan, steps_.front().cos, steps_.front().sin);
  expert_inputs(tokens, [&](const float* x, int64_t n) {
    if (cancel_ != nullptr) cancel_->check("quantising");
    const Rows h = buffers_.get(backend_, config_, n).h;
    backend_.upload_rows(x, h);
    const Rows act = backend_.gated_linear(h, gate_up);
    scratch_.resize(at(act.rows * act.cols));
    backend_.download(act, scratch_.data());
    take(scratch_.data(), n);
  });
}

}  // namespace qw::quantize
