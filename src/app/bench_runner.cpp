#include "app/bench_runner.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "backend/profile.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/sha256.h"

namespace qw::app {

BenchRunner::BenchRunner(Model& model, DType kv_type, int64_t chunk_tokens,
                         const CancelFlag& cancel, std::function<HostLimits()> limits)
    : model_(model),
      kv_type_(kv_type),
      chunk_tokens_(chunk_tokens),
      cancel_(cancel),
      limits_(std::move(limits)) {}

namespace {

/// Sum over positions of how many positions each sees.
double visible_positions(int64_t begin, int64_t end) {
  const auto triangle = [](int64_t n) {
    return 0.5 * static_cast<double>(n) * static_cast<double>(n + 1);
  };
  return triangle(end) - triangle(begin);
}

int32_t token_at(int64_t position, int64_t seq, int64_t vocab) {
  return static_cast<int32_t>((position * 7919 + seq * 104729 + 17) % vocab);
}

constexpr int64_t kWarmUpSteps = 4;  // of decoding: caches hold then what they keep of the weights

/// On the straight line between the two values on both sides.
double percentile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  const double at = fraction * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

}  // namespace

BenchSummary summarise(const BenchResult& result, ComputeUnit unit) {
  const auto of_all = [&](double fraction, const auto& value) {
    std::vector<double> values;
    for (const BenchResult::Repetition& one : result.repetitions)
      values.push_back(value(one));
    return percentile(std::move(values), fraction);
  };
  const auto seconds = [](const auto& one) { return one.seconds; };
  BenchSummary out;
  out.seconds = of_all(0.5, seconds);
  out.seconds_p10 = of_all(0.1, seconds);
  out.seconds_p90 = of_all(0.9, seconds);
  out.limits.read_gb_per_second =
      of_all(0.5, [](const auto& one) { return one.limits.read_gb_per_second; });
  for (const ComputeUnit each : kComputeUnits)
    out.limits.peak(each) = of_all(0.5, [&](const auto& one) { return one.limits.peak(each); });
  out.read_share = of_all(0.5, [&](const auto& one) {
    return result.bytes * 1e-9 / one.seconds / one.limits.read_gb_per_second;
  });
  out.compute_share = of_all(0.5, [&](const auto& one) {
    return result.operations * 1e-9 / one.seconds / one.limits.peak(unit);
  });
  return out;
}

double BenchRunner::operations_of(const BenchCase& test) const {
  const ModelConfig& config = model_.config();
  const double head = 2.0 * static_cast<double>(config.vocab * config.hidden);
  const double layers = 2.0 * static_cast<double>(config.n_parameters_active());
  const double attention = 4.0 * config.n_layers * config.n_heads * config.head_dim *
                           visible_positions(test.depth, test.depth + test.n_tokens);
  const double tokens = static_cast<double>(test.n_tokens);
  const double rows_of_logits = test.kind == BenchCase::Kind::kPrefill ? 1.0 : tokens;
  return static_cast<double>(test.batch) * (layers * tokens + attention + head * rows_of_logits);
}

double BenchRunner::bytes_of(const BenchCase& test) const {
  const ModelConfig& config = model_.config();
  const int page = model_.backend().kv_page_tokens();
  const double kv_per_token =
      static_cast<double>(model_.backend().kv_bytes(
          {config.n_layers, config.n_kv_heads, config.head_dim, 1, kv_type_})) /
      page;
  const double weights = static_cast<double>(model_.read_bytes_per_token());
  if (test.kind == BenchCase::Kind::kDecode) {
    return weights * static_cast<double>(test.n_tokens) +
           static_cast<double>(test.batch) * kv_per_token *
               visible_positions(test.depth, test.depth + test.n_tokens);
  }
  const auto steps = static_cast<double>(test.batch * ceil_div(test.n_tokens, chunk_tokens_));
  return weights * steps + static_cast<double>(test.batch) * kv_per_token *
                               static_cast<double>(test.depth + test.n_tokens);
}

void BenchRunner::step(int64_t begin, int64_t end, int64_t first_seq, int64_t last_seq,
                       bool want_logits) {
  cancel_.check("bench");
  const int page = kv_->page_tokens;
  BatchPlan plan;
  plan.seq_begin.push_back(0);
  plan.page_begin.push_back(0);
  for (int64_t seq = first_seq; seq < last_seq; ++seq) {
    for (int64_t position = begin; position < end; ++position) {
      plan.tokens.push_back(token_at(position, seq, model_.config().vocab));
      plan.positions.push_back(static_cast<int32_t>(position));
      plan.slots.push_back(
          static_cast<int32_t>((seq * pages_per_seq_ + position / page) * page + position % page));
    }
    plan.seq_begin.push_back(static_cast<int32_t>(plan.tokens.size()));
    plan.seq_context.push_back(static_cast<int32_t>(end));
    plan.seq_rope_length.push_back(static_cast<int32_t>(end));
    plan.adapters.push_back(-1);
    for (int64_t p = 0; p < ceil_div<int64_t>(end, page); ++p) {
      plan.pages.push_back(static_cast<int32_t>(seq * pages_per_seq_ + p));
    }
    plan.page_begin.push_back(static_cast<int32_t>(plan.pages.size()));
    if (want_logits) plan.logit_rows.push_back(static_cast<int32_t>(plan.tokens.size()) - 1);
  }
  logits_.resize(plan.logit_rows.size() * static_cast<size_t>(model_.config().vocab));
  model_.forward(plan, *kv_, want_logits ? logits_.data() : nullptr);
}

void BenchRunner::forward(int64_t begin, int64_t end, const BenchCase& test, bool want_logits) {
  // Sequences are prefilled one after the other, a chunk at a time; a decode step takes all at
  // once.
  for (int64_t seq = 0; seq < test.batch; ++seq) {
    for (int64_t at = begin; at < end; at += chunk_tokens_) {
      const int64_t stop = std::min(end, at + chunk_tokens_);
      step(at, stop, seq, seq + 1, want_logits && stop == end);
    }
  }
}

int64_t BenchRunner::pages_of(const BenchCase& test) const {
  return ceil_div<int64_t>(test.depth + test.n_tokens, model_.backend().kv_page_tokens());
}

void BenchRunner::check(const BenchCase& test) const {
  const int64_t tokens = pages_of(test) * model_.backend().kv_page_tokens() * test.batch;
  if (tokens > kMaxCacheTokens) {
    fail(ErrorKind::kInvalidArgument, "bench",
         "KV cache: expected at most {} tokens of all sequences, got {} ({} sequences of {})",
         kMaxCacheTokens, tokens, test.batch, test.depth + test.n_tokens);
  }
}

void BenchRunner::prepare(const BenchCase& test) {
  check(test);
  const int64_t pages = pages_of(test);
  if (kv_ == nullptr || pages != pages_per_seq_ || kv_->spec.n_pages < pages * test.batch) {
    kv_.reset();
    pages_per_seq_ = pages;
    kv_ = model_.make_kv(pages * test.batch, kv_type_);
    filled_ = filled_batch_ = 0;
  }
  if (filled_ != test.depth || filled_batch_ < test.batch) forward(0, test.depth, test, false);
  filled_ = test.depth;
  filled_batch_ = test.batch;
}

double BenchRunner::once(const BenchCase& test) {
  const auto start = std::chrono::steady_clock::now();
  if (test.kind == BenchCase::Kind::kPrefill) {
    forward(test.depth, test.depth + test.n_tokens, test, true);
  } else {
    for (int64_t t = 0; t < test.n_tokens; ++t)
      step(test.depth + t, test.depth + t + 1, 0, test.batch, true);
  }
  model_.backend().sync();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The limits of now. Measuring them filled the caches with other things: afterwards all weights
/// are read, untimed, so that what fits the caches is there again.
HostLimits BenchRunner::probe(const BenchCase& test) {
  const HostLimits limits = limits_();
  const Profile kept = profile_ != nullptr ? *profile_ : Profile();
  const bool prefill = test.kind == BenchCase::Kind::kPrefill;
  BenchCase settle = test;
  settle.n_tokens = std::min(test.n_tokens, prefill ? 1 : kWarmUpSteps);
  if (prefill) settle.batch = 1;
  once(settle);
  if (profile_ != nullptr) *profile_ = kept;
  return limits;
}

BenchResult BenchRunner::run(const BenchCase& test, int repetitions) {
  prepare(test);
  BenchResult result;
  BenchCase warm_up = test;
  warm_up.n_tokens = std::min(
      test.n_tokens, test.kind == BenchCase::Kind::kPrefill ? chunk_tokens_ : kWarmUpSteps);
  once(warm_up);
  if (profile_ != nullptr) profile_->clear();
  for (int r = 0; r < repetitions; ++r) {
    const HostLimits limits = probe(test);
    result.repetitions.push_back({once(test), limits});
  }
  result.bytes = bytes_of(test);
  result.operations = operations_of(test);
  result.logits_hash = sha256_hex(std::as_bytes(std::span(logits_))).substr(0, 16);
  return result;
}

}  // namespace qw::app
