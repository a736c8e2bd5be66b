// The head of a Qwen2ForSequenceClassification: from a text's last hidden state to classes.
//
// Level 7 (server). logits = score . hidden, probabilities = softmax(logits), in doubles: a few
// thousand products. Source: Transformers' Qwen2ForSequenceClassification.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace qw::server {

class Classifier {
 public:
  /// Reads score.weight and id2label. nullopt: the checkpoint is of another architecture. Errors:
  /// corrupt (no such tensor, another shape, no class, a number that is not finite, labels that are
  /// not one for each class), io.
  static std::optional<Classifier> read(const Checkpoint& checkpoint, const ModelConfig& config);

  /// One for each class; they sum to 1.
  std::vector<double> probabilities(std::span<const float> hidden) const;
  const std::vector<std::string>& labels() const { return labels_; }

 private:
  Classifier() = default;

  std::vector<float> weight_;  // [n_classes, hidden]
  std::vector<std::string> labels_;
};

}  // namespace qw::server
