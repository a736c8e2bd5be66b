// Measures a model: prefill and decoding at a depth, for parallel sequences, in turn with what the
// host can do at that time.
//
// Level 8 (app). Drives Model::forward directly, so that the engine's bookkeeping is not measured.
// Bytes and operations are counted, not estimated: what must be read and computed, nothing more.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu_limits.h"
#include "base/cancel.h"
#include "model/model.h"

namespace qw::app {

struct BenchCase {
  enum class Kind { kPrefill, kDecode } kind = Kind::kPrefill;
  int64_t n_tokens = 512;  // per sequence: prompt tokens, or generated tokens
  int64_t depth = 0;       // tokens in the cache before
  int64_t batch = 1;       // sequences
};

struct BenchResult {
  struct Repetition {
    double seconds = 0;
    HostLimits limits;  // just before
  };
  std::vector<Repetition> repetitions;
  double bytes = 0;         // that one repetition must read
  double operations = 0;    // that one repetition must do
  std::string logits_hash;  // of the last logits; equal bits, equal hash
};

/// What the repetitions say together. A machine that others share changes within minutes: so a
/// repetition is compared with the limits of its own time, and shares are medians of those ratios.
struct BenchSummary {
  double seconds = 0, seconds_p10 = 0, seconds_p90 = 0;  // median, and the percentiles
  HostLimits limits;                                     // medians, one by one
  double read_share = 0, compute_share = 0;  // of the read limit, of the peak of the unit
};
BenchSummary summarise(const BenchResult& result, ComputeUnit unit);

class BenchRunner {
 public:
  /// `limits` measures what the host can do now.
  BenchRunner(Model& model, DType kv_type, int64_t chunk_tokens, const CancelFlag& cancel,
              std::function<HostLimits()> limits);
  /// The profile that the model's backend writes to: cleared after warming up, so that it holds the
  /// repetitions only.
  void set_profile(Profile& profile) { profile_ = &profile; }
  /// Errors: invalid_argument when the sequences of the test hold more than kMaxCacheTokens.
  void check(const BenchCase& test) const;
  /// Fills the cache to the depth, warms up, then repeats. Errors: as check(); out_of_memory,
  /// cancelled.
  BenchResult run(const BenchCase& test, int repetitions);

  /// 2 per weight that a token uses in the layers, plus attention over the positions it sees.
  double operations_of(const BenchCase& test) const;
  double bytes_of(const BenchCase& test) const;

  /// Places in a cache are numbered with 32 bits (BatchPlan::slots).
  static constexpr int64_t kMaxCacheTokens = INT32_MAX;

 private:
  int64_t pages_of(const BenchCase& test) const;  // of a sequence
  void prepare(const BenchCase& test);
  /// Tokens [begin, end) of every sequence, in steps of at most chunk_tokens_; logits of the last.
  void forward(int64_t begin, int64_t end, const BenchCase& test, bool want_logits);
  void step(int64_t begin, int64_t end, int64_t first_seq, int64_t last_seq, bool want_logits);
  double once(const BenchCase& test);
  HostLimits probe(const BenchCase& test);

  Model& model_;
  DType kv_type_;
  int64_t chunk_tokens_;
  const CancelFlag& cancel_;
  std::function<HostLimits()> limits_;
  Profile* profile_ = nullptr;
  std::unique_ptr<KvCache> kv_;
  int64_t pages_per_seq_ = 0, filled_ = 0, filled_batch_ = 0;
  std::vector<float> logits_;
};

}  // namespace qw::app
