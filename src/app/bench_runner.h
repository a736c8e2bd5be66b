// Measures a model: prefill and decoding at a depth, for parallel sequences, against the host's
// limits.
//
// Level 8 (app). Drives Model::forward directly, so that the engine's bookkeeping is not measured.
// Bytes and operations are counted, not estimated: what must be read and computed, nothing more.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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
  std::vector<double> seconds;  // one per repetition, sorted
  double bytes = 0;             // that one repetition must read
  double operations = 0;        // that one repetition must do
  std::string logits_hash;      // of the last logits; equal bits, equal hash
};

class BenchRunner {
 public:
  BenchRunner(Model& model, DType kv_type, int64_t chunk_tokens, const CancelFlag& cancel);
  /// The profile that the model's backend writes to: cleared after warming up, so that it holds the
  /// repetitions only.
  void set_profile(Profile& profile) { profile_ = &profile; }
  /// Fills the cache to the depth, warms up, then repeats. Errors: out_of_memory, cancelled.
  BenchResult run(const BenchCase& test, int repetitions);

  /// 2 per weight that a token uses in the layers, plus attention over the positions it sees.
  double operations_of(const BenchCase& test) const;
  double bytes_of(const BenchCase& test) const;

 private:
  void prepare(const BenchCase& test);
  /// Tokens [begin, end) of every sequence, in steps of at most chunk_tokens_; logits of the last.
  void forward(int64_t begin, int64_t end, const BenchCase& test, bool want_logits);
  void step(int64_t begin, int64_t end, int64_t first_seq, int64_t last_seq, bool want_logits);
  double once(const BenchCase& test);

  Model& model_;
  DType kv_type_;
  int64_t chunk_tokens_;
  const CancelFlag& cancel_;
  Profile* profile_ = nullptr;
  std::unique_ptr<KvCache> kv_;
  int64_t pages_per_seq_ = 0, filled_ = 0, filled_batch_ = 0;
  std::vector<float> logits_;
};

}  // namespace qw::app
