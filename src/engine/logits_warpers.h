// The warpers of sampling: temperature and the rules that cut the tail of the distribution.
//
// Level 6 (engine). Transformers' classes of the same name; sums are in double and nothing sorts
// the vocabulary when a smaller set will do. `min_keep` tokens always stay (beam sampling).
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/logits_process.h"

namespace qw {

/// x / temperature; (x - max) / temperature where that would overflow. 0 keeps the likeliest alone,
/// of equal ones the lowest id. With next_top_k, the k of a
/// TopK that comes next, values which that cannot keep may be cut already: the outcome of both is
/// the same, but few values are left to divide.
class Temperature : public LogitsProcessor {
 public:
  explicit Temperature(double temperature, int64_t next_top_k = 0)
      : temperature_(static_cast<float>(temperature)), next_top_k_(next_top_k) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "temperature"; }

 private:
  void cut_for_top_k(LogitsRow& row) const;

  float temperature_;
  int64_t next_top_k_;
};

/// Keeps every value >= the k-th largest (ties at the boundary all stay).
class TopK : public LogitsProcessor {
 public:
  TopK(int64_t k, int64_t min_keep) : k_(k > min_keep ? k : min_keep) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "top_k"; }

 private:
  int64_t k_;
};

/// Keeps the smallest set of most likely tokens whose probability reaches p: a token goes when the
/// probability of those above it is already >= p. Of equal tokens the higher id ranks first (the
/// order in which a stable ascending sort gives them up).
class TopP : public LogitsProcessor {
 public:
  TopP(double p, int64_t min_keep) : p_(p), min_keep_(min_keep) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "top_p"; }

 private:
  double p_;
  int64_t min_keep_;
};

/// Keeps probabilities >= min_p * the largest.
class MinP : public LogitsProcessor {
 public:
  MinP(double min_p, int64_t min_keep) : min_p_(min_p), min_keep_(min_keep) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "min_p"; }

 private:
  double min_p_;
  int64_t min_keep_;
};

/// Keeps the tokens whose surprise -log p is nearest the entropy, until their mass passes `mass`
/// (Meister et al., "Locally typical sampling", 2022).
class TypicalP : public LogitsProcessor {
 public:
  TypicalP(double mass, int64_t min_keep) : mass_(mass), min_keep_(min_keep) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "typical_p"; }

 private:
  double mass_;
  int64_t min_keep_;
};

/// Keeps values >= max - n * sigma, where sigma is the standard deviation of all values that are
/// not banned (Tang et al., "Top-n sigma: not all logits you need", 2024).
class TopNSigma : public LogitsProcessor {
 public:
  TopNSigma(double n, int64_t min_keep) : n_(n), min_keep_(min_keep) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "top_n_sigma"; }

 private:
  double n_;
  int64_t min_keep_;
};

/// "Exclude top choices": with `probability`, of the tokens with probabilities >= threshold all go
/// but the least likely (of equal ones the highest id), if at least min_keep tokens stay. The
/// random number is a function of (seed, answer, position, place among the samplers).
class Xtc : public LogitsProcessor {
 public:
  Xtc(double probability, double threshold, int64_t min_keep, uint64_t seed, uint64_t place)
      : probability_(probability),
        threshold_(threshold),
        min_keep_(min_keep),
        seed_(seed),
        place_(place) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "xtc"; }

 private:
  double probability_, threshold_;
  int64_t min_keep_;
  uint64_t seed_, place_;
};

/// Keeps probabilities >= cutoff: epsilon, or eta = min(epsilon, sqrt(epsilon) e^-entropy)
/// (Hewitt et al., "Truncation sampling as language model desmoothing", 2022).
class Cutoff : public LogitsProcessor {
 public:
  enum class Kind { kEpsilon, kEta };
  Cutoff(Kind kind, double epsilon, int64_t min_keep)
      : kind_(kind), epsilon_(epsilon), min_keep_(min_keep) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override {
    return kind_ == Kind::kEpsilon ? "epsilon_cutoff" : "eta_cutoff";
  }

 private:
  Kind kind_;
  double epsilon_;
  int64_t min_keep_;
};

}  // namespace qw
