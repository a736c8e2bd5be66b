// Strategies: how rows of logits become the tokens of one or several answers.
//
// Level 6 (engine). A decoder owns one unit of the scheduler: sequences that advance in lock-step.
// The engine hands it the row of every sequence and calls advance() once all are there; the decoder
// then appends tokens, forks and drops sequences, or finishes its answers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/answer.h"
#include "engine/drafter.h"
#include "engine/fair_queue.h"
#include "engine/logits_process.h"
#include "engine/scheduler.h"

namespace qw {

/// What all decoders of a request share. Outlives them.
struct DecodeContext {
  RequestId request_id = 0;
  const Request& request;
  Scheduler& scheduler;
  LogitsPipeline pipeline;
  int64_t max_len = 0;  // of a sequence, prompt included
  int64_t vocab = 0;
  std::shared_ptr<const Tokenizer> tokenizer;
  Turn turn = {};

  const GenerationConfig& config() const { return request.config; }
  int64_t prompt_len() const { return static_cast<int64_t>(request.prompt.size()); }
};

/// Where decoders say what happened.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void token(RequestId request, int index, int32_t id, std::string text,
                     std::optional<TokenLogprobs> logprobs) = 0;
  virtual void finished(RequestId request, const Completion& answer) = 0;
};

class Decoder {
 public:
  virtual ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  UnitId unit() const noexcept { return unit_; }
  /// Sequences whose row is needed before the next advance().
  virtual std::vector<SeqId> sequences() const = 0;
  /// rows[i] [1 + draft, vocab] belongs to sequences()[i] and may be overwritten: what follows the
  /// last token, and what follows each token of the draft that was computed.
  virtual void advance(std::span<float* const> rows, EventSink& sink) = 0;
  /// Does of advance() what touches nothing shared with others, who may do the same meanwhile. rows
  /// as for advance(), which follows. What goes wrong is thrown there.
  virtual void prepare(std::span<float* const> /*rows*/) {}
  /// Final hidden states [n, hidden] of positions [position, position + n) of a sequence.
  virtual bool wants_hidden() const { return false; }
  virtual void on_hidden(SeqId, int64_t /*position*/, int64_t /*n*/, int64_t /*hidden*/,
                         const float* /*values*/) {}

  /// How the next tokens are chosen from sequences()[0] alone, so that they can be guessed ahead;
  /// null: they cannot.
  virtual TokenChooser* chooser() { return nullptr; }

  /// Ends what is not finished; answers keep the tokens they have.
  virtual void stop(FinishReason reason, const Error* error, EventSink& sink) = 0;
  bool finished() const noexcept { return finished_; }
  /// Tokens that were guessed and computed, and those of them that proved right.
  struct Guesses {
    int64_t n_drafted = 0, n_accepted = 0;
  };
  virtual Guesses guesses() const { return {}; }
  /// What was pooled, once finished.
  virtual std::vector<float> take_embedding() { return {}; }
  /// The answers, once finished.
  virtual std::vector<Completion> take_completions() = 0;

 protected:
  explicit Decoder(DecodeContext& context);
  SeqId add_sequence(std::vector<int32_t> tokens, int64_t lineage,
                     int64_t hidden_from = Sequence::kNever);
  /// Ends the decoder: its sequences give back their pages.
  void finish();

  DecodeContext& context_;
  UnitId unit_;
  bool finished_ = false;
};

/// A decoder that makes one answer.
class SingleAnswerDecoder : public Decoder {
 public:
  void stop(FinishReason reason, const Error* error, EventSink& sink) override;
  std::vector<Completion> take_completions() override;

 protected:
  SingleAnswerDecoder(DecodeContext& context, int index);
  Answer answer_;
};

/// Greedy and sampling, with classifier-free guidance or guesses when asked for: one answer.
std::unique_ptr<Decoder> make_sampling_decoder(DecodeContext& context, int index);
/// Beam search, plain, sampled or diverse: num_return_sequences answers.
std::unique_ptr<Decoder> make_beam_decoder(DecodeContext& context);
/// Contrastive search (Su et al., 2022): one answer.
std::unique_ptr<Decoder> make_contrastive_decoder(DecodeContext& context, int index);

/// The prompt's hidden states pooled (not kNone): one answer without tokens.
std::unique_ptr<Decoder> make_pooling_decoder(DecodeContext& context, Pooling pooling);

/// Lineages of a request: KV is shared within one only.
inline int64_t prompt_lineage(RequestId id) {
  return static_cast<int64_t>(2 * id);
}
inline int64_t negative_lineage(RequestId id) {
  return static_cast<int64_t>(2 * id + 1);
}

}  // namespace qw
