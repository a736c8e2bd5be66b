// Guesses by a second, smaller model of the same vocabulary, which answers along.
//
// Level 6 (engine). Every answer has a sequence of its own in a cache and a scheduler of the
// drafter's. Before it guesses it takes over what was said since the last time, in one chunk where
// that fits a step; guesses that were wrong are written over. Sequences of all answers that are
// asked for run as one batch, one step a guess. Source: Leviathan et al., 2023; Transformers'
// assistant_model.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/drafter.h"
#include "engine/engine.h"
#include "engine/step_times.h"

namespace qw {

/// Rows of logits that a step of the draft model may have.
int64_t draft_logit_rows(const EngineOptions& options);
/// Longest sequence that the draft model follows, for an engine with these options (ctx filled in).
int64_t draft_context(const ModelConfig& draft, const EngineOptions& options);

class ModelDrafter final : public Drafter {
 public:
  /// `options`: of the engine, filled in; its cache holds so many tokens for the draft, too.
  /// `answering`, `answering_times`: the model that checks, and what its steps take. All outlive
  /// the drafter. Errors: out_of_memory.
  ModelDrafter(Model& draft, const Model& answering, const StepTimes& answering_times,
               const EngineOptions& options, DType kv_type);
  ~ModelDrafter() override;

  std::string_view name() const override { return "draft model"; }
  Trust trust() const override { return {.acceptance = 0.7, .weight = 1.0 / 8}; }
  int64_t limit(const GenerationConfig& config) const override {
    return config.num_assistant_tokens;
  }
  Cost cost(const DraftQuery& query, int64_t n_answers) const override;
  void propose(std::span<DraftQuery> queries) override;
  void forget(SeqId seq) override;
  void check_integrity() const override;

  int64_t kv_bytes() const { return kv_->resident_bytes; }
  /// Answers that have a sequence here.
  int64_t n_followed() const { return static_cast<int64_t>(followed_.size()); }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  using Asked = std::map<SeqId, DraftQuery*>;  // by the draft's own sequence

  double seconds(int64_t rows) const;
  void follow(DraftQuery& query, Asked& asked);
  void make_room(Asked& asked);
  bool compute(const StepPlan& step, Asked& asked);
  void drop_broken(const StepPlan& step, const NumericError& error, Asked& asked);
  size_t choose(const StepPlan& step, Asked& asked);
  bool choose_one(const float* logits, SeqId id, DraftQuery& query);

  Model& model_;
  const StepTimes& answering_times_;
  double cost_ratio_;  // of our steps to those of the answering model, until they are measured
  int64_t vocab_, ctx_;
  SchedulerOptions options_;
  Scheduler scheduler_;
  std::unique_ptr<KvCache> kv_;
  StepTimes times_;
  struct Followed {
    UnitId unit = 0;
    SeqId id = 0;  // ours
  };
  std::map<SeqId, Followed> followed_;   // by the answer's sequence
  std::map<SeqId, std::string> broken_;  // answers that we cannot follow, and why
  std::vector<float> logits_;
};

}  // namespace qw
