// A checkpoint as the GGUF file that will be made of it: which tensors, of which types, from what.
//
// Level 6 (quantize). Any published form goes in: dense floats, GPTQ, AWQ, GGUF. What already is in
// the type that is wanted is copied, byte by byte; the rest is decoded and encoded.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "checkpoint/gguf_split.h"
#include "model/sources.h"
#include "quantize/gguf_metadata.h"
#include "quantize/gguf_recipe.h"
#include "quantize/importance.h"

namespace qw {

/// What a user wants otherwise than the recipe has it.
struct GgufChoices {
  const GgufRecipe* recipe = nullptr;
  /// Type of every matrix whose name the regular expression is found in; the first that is decides.
  std::vector<std::pair<std::string, DType>> tensor_types;
  std::optional<DType> embedding, output;  // of a tied model they are one
  std::map<std::string, DType> types;      // of tensors by name, before all other rules
  bool pure = false;                       // the recipe's base type for all matrices
  /// How much errors of each input count; null: all as much. Must outlive the plan.
  const quantize::ImportanceMatrix* importance = nullptr;
  /// These are collected from the model itself, or will be: the types are those with importances,
  /// and what is missing (an embedding that is only looked up) has none.
  bool collects_importance = false;
  std::string name;  // general.name; "": from the path
};

struct GgufTensor {
  std::string name;  // "blk.0.attn_q.weight"
  ModuleId id;
  DType dtype = DType::kF32;
  Shape shape;                                 // outermost first
  std::vector<LinearSource> parts;             // of a matrix: one for each expert
  std::vector<std::vector<float>> importance;  // of the inputs of each part; empty: not known
  std::vector<float> values;                   // of a norm or bias

  /// In the file.
  int64_t bytes() const;
  /// Whether the parts are of this type already, so that nothing is rounded.
  bool is_copied() const;
  /// Part `index` as the file will hold it. Errors: invalid_argument, as write_gguf_plan.
  LinearSource encoded_part(size_t index, ThreadPool& pool) const;
};

struct GgufPlan {
  GgufEntries entries;
  std::vector<GgufTensor> tensors;  // in the order of the file
  /// What a user should know, a sentence each: fallbacks, sources that were rounded before.
  std::vector<std::string> warnings;
  /// Tensors of a type that is worth little without importances, which they lack.
  std::vector<std::string> in_want_of_importance;

  /// Header and directory of the file that holds it all.
  GgufWriter content() const;
  int64_t bytes() const;           // of all tensors
  double bits_per_weight() const;  // of all matrices
};

/// `sources` must outlive the plan's use. `tokenizer`: see gguf_entries(). Errors:
/// invalid_argument (a pattern that is no regular expression, or decides nothing; a type that
/// cannot be written; two types for the one matrix of a tied model), unsupported.
GgufPlan plan_gguf(const Checkpoint& checkpoint, const ModelConfig& config,
                   const NetworkSources& sources, const TokenizerSpec* tokenizer,
                   const GgufChoices& choices);

/// Writes the file, or several when `limits` say so (write_split_gguf), which appear under `path`
/// when all is whole. `done(bytes)` is told as they are written. Errors: io, cancelled,
/// invalid_argument (values that a type cannot hold, by tensor; a tensor in want of importances,
/// before anything is written).
void write_gguf_plan(const GgufPlan& plan, const std::string& path, ThreadPool& pool,
                     const std::function<void(int64_t)>& done, const CancelFlag* cancel,
                     const GgufSplitLimits& limits = {}, const GgufStage* stage = nullptr);

/// Errors: invalid_argument (a tensor in want of importances).
void check_importances(const GgufPlan& plan);

}  // namespace qw
