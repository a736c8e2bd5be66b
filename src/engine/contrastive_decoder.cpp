// Contrastive search: of the k most likely tokens, the one least like what was said before.
//
// Level 6 (engine). Su et al., "A contrastive framework for neural text generation" (2022):
//   argmax over the k candidates of (1 - alpha) p(v) - alpha max_j cos(h_v, h_j).
// The candidates are forks of the sequence that run through the model together; the winner's row
// of logits is there already when it is chosen.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/decoder.h"
#include "engine/logits_math.h"
#include "engine/sampler.h"

namespace qw {
namespace {

class ContrastiveDecoder : public SingleAnswerDecoder {
 public:
  ContrastiveDecoder(DecodeContext& context, int index) : SingleAnswerDecoder(context, index) {
    base_ = add_sequence(context.request.prompt, prompt_lineage(context.request_id), 0);
  }

  std::vector<SeqId> sequences() const override {
    if (candidates_.empty()) return {base_};
    std::vector<SeqId> out;
    for (const Candidate& candidate : candidates_)
      out.push_back(candidate.seq);
    return out;
  }

  bool wants_hidden() const override { return true; }

  void on_hidden(SeqId seq, int64_t position, int64_t n, int64_t hidden,
                 const float* values) override {
    hidden_ = hidden;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = position + i;
      const int64_t known = static_cast<int64_t>(context_hidden_.size()) / hidden;
      if (at < known) continue;  // computed again after a preemption
      QW_CHECK(at == known, "hidden state of position {} after {}", at, known);
      std::vector<float> unit = normalised(values + i * hidden);
      if (candidates_.empty()) {
        context_hidden_.insert(context_hidden_.end(), unit.begin(), unit.end());
      } else {
        candidate(seq).hidden = std::move(unit);
      }
    }
    // What is known need not be computed again for its hidden states; the last token's always are.
    context_.scheduler.set_hidden_from(seq, static_cast<int64_t>(context_hidden_.size()) / hidden);
  }

  void advance(std::span<float* const> rows, EventSink& sink) override {
    const auto vocab = static_cast<size_t>(context_.vocab);
    const std::vector<SeqId> seqs = sequences();
    for (size_t i = 0; i < rows.size(); ++i) {
      admit_logits({rows[i], vocab}, context_.config(),
                   context_.scheduler.sequence(seqs[i]).size());
    }
    if (candidates_.empty()) {
      propose({rows[0], vocab});
      return;
    }
    const size_t winner = choose();
    if (!accept(winner, sink)) return;
    propose({rows[winner], vocab});
  }

 private:
  struct Candidate {
    SeqId seq = 0;
    int32_t token = 0;
    float probability = 0;
    std::vector<float> hidden;  // of length one
  };

  Candidate& candidate(SeqId seq) {
    const auto it = std::find_if(candidates_.begin(), candidates_.end(),
                                 [seq](const Candidate& c) { return c.seq == seq; });
    QW_CHECK(it != candidates_.end());
    return *it;
  }

  std::vector<float> normalised(const float* values) const {
    double square = 0;
    for (int64_t i = 0; i < hidden_; ++i)
      square += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) : 0);
    std::vector<float> out(values, values + hidden_);
    for (float& v : out)
      v *= scale;
    return out;
  }

  /// Replaces the base sequence by its k most likely continuations.
  void propose(std::span<float> logits) {
    const Sequence& base = context_.scheduler.sequence(base_);
    if (context_.config().logprobs) raw_.assign(logits.begin(), logits.end());
    LogitsRow row(logits);
    context_.pipeline.apply({base.tokens, context_.prompt_len()}, row);
    const std::vector<int32_t> ids = top_indices(logits, context_.config().top_k);
    const double log_sum = log_sum_exp(logits);
    for (const int32_t id : ids) {
      const float score = logits[static_cast<size_t>(id)];
      if (score == kMinusInfinity) break;
      const SeqId child = context_.scheduler.fork(base_);
      context_.scheduler.append(child, id);
      candidates_.push_back(
          {child, id, static_cast<float>(std::exp(static_cast<double>(score) - log_sum)), {}});
    }
    if (candidates_.empty()) choose_greedy(row);  // says that every token is banned
    context_.scheduler.remove_sequence(base_);
  }

  size_t choose() const {
    const auto alpha = context_.config().penalty_alpha;
    size_t winner = 0;
    double best = -std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < candidates_.size(); ++c) {
      double likeness = -1;
      for (size_t row = 0; row < context_hidden_.size(); row += static_cast<size_t>(hidden_)) {
        double dot = 0;
        for (size_t i = 0; i < static_cast<size_t>(hidden_); ++i) {
          dot += static_cast<double>(context_hidden_[row + i]) *
                 static_cast<double>(candidates_[c].hidden[i]);
        }
        likeness = std::max(likeness, dot);
      }
      const double score =
          (1 - alpha) * static_cast<double>(candidates_[c].probability) - alpha * likeness;
      if (score > best) {
        best = score;
        winner = c;
      }
    }
    return winner;
  }

  /// Makes the winner the base; false when the answer has ended with it.
  bool accept(size_t winner, EventSink& sink) {
    const Candidate chosen = std::move(candidates_[winner]);
    for (size_t c = 0; c < candidates_.size(); ++c) {
      if (c != winner) context_.scheduler.remove_sequence(candidates_[c].seq);
    }
    candidates_.clear();
    base_ = chosen.seq;
    context_hidden_.insert(context_hidden_.end(), chosen.hidden.begin(), chosen.hidden.end());

    std::optional<TokenLogprobs> logprobs;
    if (context_.config().logprobs)
      logprobs = token_logprobs(raw_, chosen.token, *context_.config().logprobs);
    Answer::Piece piece = answer_.push(chosen.token, logprobs);
    sink.token(context_.request_id, answer_.index(), chosen.token, std::move(piece.text),
               std::move(logprobs));
    if (!piece.finished) return true;
    finish();
    sink.finished(context_.request_id, answer_.completion());
    return false;
  }

  SeqId base_ = 0;
  std::vector<Candidate> candidates_;  // empty while the prompt is computed
  int64_t hidden_ = 0;
  std::vector<float> context_hidden_;  // [positions of the base, hidden], rows of length one
  std::vector<float> raw_;             // logits that the candidates were chosen from
};

}  // namespace

std::unique_ptr<Decoder> make_contrastive_decoder(DecodeContext& context, int index) {
  return std::make_unique<ContrastiveDecoder>(context, index);
}

}  // namespace qw
