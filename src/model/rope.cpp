#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qw {

namespace {

/// base^(2i/d) as torch.pow gives it for f32: both operands rounded to f32, one rounding after.
float power(double base, int64_t i, int head_dim) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
  return static_cast<float>(
      std::pow(static_cast<double>(static_cast<float>(base)), static_cast<double>(exponent)));
}

/// Index of the dimension that turns `rotations` times over the original context (YaRN, eq. 23).
double correction_dim(double rotations, const RopeConfig& rope, int head_dim) {
  return head_dim *
         std::log(static_cast<double>(rope.original_max_positions) /
                  (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

std::vector<float> yarn_frequencies(const RopeConfig& rope, int head_dim) {
  const double low = std::max(std::floor(correction_dim(rope.beta_fast, rope, head_dim)), 0.0);
  double high = std::min(std::ceil(correction_dim(rope.beta_slow, rope, head_dim)), head_dim - 1.0);
  if (low == high) high += 0.001;  // as published: no division by zero
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    const float p = power(rope.theta, static_cast<int64_t>(i), head_dim);
    const float extrapolated = 1.0f / p;
    const float interpolated = 1.0f / (static_cast<float>(rope.factor) * p);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    out[i] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return out;
}

std::vector<float> plain_frequencies(double base, int head_dim) {
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = 1.0f / power(base, static_cast<int64_t>(i), head_dim);
  return out;
}

}  // namespace

Rope::Rope(const ModelConfig& config)
    : config_(config.rope), head_dim_(config.head_dim), max_positions_(config.max_positions) {
  if (config_.scaling == RopeScaling::kYarn) {
    fixed_ = yarn_frequencies(config_, head_dim_);
    const double by_factor = config_.factor > 1 ? 0.1 * std::log(config_.factor) + 1 : 1;
    attention_scaling_ = static_cast<float>(config_.attention_factor.value_or(by_factor));
  } else if (config_.scaling != RopeScaling::kDynamic) {
    fixed_ = plain_frequencies(config_.theta, head_dim_);
    if (config_.scaling == RopeScaling::kLinear) {
      for (float& f : fixed_)
        f /= static_cast<float>(config_.factor);
    }
  }
}

std::vector<float> Rope::inverse_frequencies(int64_t sequence_length) const {
  if (!fixed_.empty()) return fixed_;
  const auto length = static_cast<double>(std::max(sequence_length, max_positions_));
  const double stretch =
      config_.factor * length / static_cast<double>(max_positions_) - (config_.factor - 1);
  const double exponent = static_cast<double>(head_dim_) / (head_dim_ - 2);
  return plain_frequencies(config_.theta * std::pow(stretch, exponent), head_dim_);
}

void Rope::fill_tables(const BatchPlan& plan, std::vector<float>& cos,
                       std::vector<float>& sin) const {
  const auto half = static_cast<size_t>(head_dim_ / 2);
  cos.resize(plan.tokens.size() * half);
  sin.resize(plan.tokens.size() * half);
  for (size_t s = 0; s < plan.seq_context.size(); ++s) {
    const std::vector<float> frequencies = inverse_frequencies(plan.seq_rope_length[s]);
    for (auto t = static_cast<size_t>(plan.seq_begin[s]);
         t < static_cast<size_t>(plan.seq_begin[s + 1]); ++t) {
      for (size_t i = 0; i < half; ++i) {
        // The angle is rounded to f32 first, as in the reference.
        const auto angle =
            static_cast<double>(static_cast<float>(plan.positions[t]) * frequencies[i]);
        cos[t * half + i] = static_cast<float>(std::cos(angle)) * attention_scaling_;
        sin[t * half + i] = static_cast<float>(std::sin(angle)) * attention_scaling_;
      }
    }
  }
}

}  // namespace qw
