#include "engine/decoder.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <utility>

#include "base/error.h"
#include "engine/logits_math.h"
#include "engine/sampler.h"

namespace qw {

Decoder::Decoder(DecodeContext& context)
    : context_(context),
      unit_(context.scheduler.add_unit(static_cast<int64_t>(context.request_id), context.turn)) {}

Decoder::~Decoder() {
  if (!finished_) context_.scheduler.remove_unit(unit_);
}

SeqId Decoder::add_sequence(std::vector<int32_t> tokens, int64_t lineage, int64_t hidden_from) {
  Sequence spec;
  spec.prompt_len = static_cast<int64_t>(tokens.size());
  spec.tokens = std::move(tokens);
  spec.lineage = lineage;
  spec.hidden_from = hidden_from;
  spec.adapter = context_.request.adapter;
  spec.salt = hash_salt(context_.request.cache_salt);
  return context_.scheduler.add_sequence(unit_, std::move(spec));
}

void Decoder::finish() {
  QW_CHECK(!finished_);
  context_.scheduler.remove_unit(unit_);
  finished_ = true;
}

SingleAnswerDecoder::SingleAnswerDecoder(DecodeContext& context, int index)
    : Decoder(context), answer_(index, context.request, context.max_len, context.tokenizer) {}

void SingleAnswerDecoder::stop(FinishReason reason, const Error* error, EventSink& sink) {
  if (finished_) return;
  std::string text = answer_.finish(reason);
  if (error != nullptr) answer_.set_error(*error);
  finish();
  if (!text.empty())
    sink.token(context_.request_id, answer_.index(), -1, std::move(text), std::nullopt);
  sink.finished(context_.request_id, answer_.completion());
}

std::vector<Completion> SingleAnswerDecoder::take_completions() {
  std::vector<Completion> out;
  out.push_back(answer_.take());
  return out;
}

namespace {

class SamplingDecoder final : public SingleAnswerDecoder, private TokenChooser {
 public:
  SamplingDecoder(DecodeContext& context, int index) : SingleAnswerDecoder(context, index) {
    sequences_.push_back(add_sequence(context.request.prompt, prompt_lineage(context.request_id)));
    if (context.config().guidance_scale == 1) return;
    std::vector<int32_t> negative = context.request.negative_prompt;
    if (negative.empty()) negative.push_back(context.request.prompt.back());
    sequences_.push_back(add_sequence(std::move(negative), negative_lineage(context.request_id)));
  }

  std::vector<SeqId> sequences() const override { return sequences_; }
  Guesses guesses() const override { return guesses_; }
  TokenChooser* chooser() override { return sequences_.size() == 1 ? this : nullptr; }

  void prepare(std::span<float* const> rows) override {
    try {
      prepared_ = pick(rows[0], rows.size() > 1 ? rows[1] : nullptr);
    } catch (...) {
      prepare_error_ = std::current_exception();
    }
  }

  void advance(std::span<float* const> rows, EventSink& sink) override {
    // Every token is chosen from its own row as if there were no draft. A guess that proves right
    // only spares the step that would have computed the next row: the choices are the same.
    const std::vector<int32_t> draft = context_.scheduler.sequence(sequences_[0]).draft;
    guesses_.n_drafted += std::ssize(draft);
    size_t n_right = 0;
    while (true) {
      const auto row = static_cast<int64_t>(n_right) * context_.vocab;
      Picked picked = prepared_ || prepare_error_
                          ? take_prepared()
                          : pick(rows[0] + row, rows.size() > 1 ? rows[1] : nullptr);
      const int32_t id = picked.id;
      say(std::move(picked), sink);
      const bool is_guessed = n_right < draft.size() && draft[n_right] == id;
      n_right += is_guessed ? 1 : 0;
      guesses_.n_accepted += is_guessed ? 1 : 0;
      if (finished_) return;
      for (const SeqId seq : sequences_)
        context_.scheduler.append(seq, id);
      if (!is_guessed) break;
    }
  }

 private:
  Choice choose(std::span<const float> logits, std::span<const int32_t> tokens) override {
    const size_t n = std::min(logits.size(), static_cast<size_t>(context_.vocab));
    others_scores_.assign(static_cast<size_t>(context_.vocab),
                          -std::numeric_limits<float>::infinity());
    std::copy_n(logits.begin(), n, others_scores_.begin());
    admit_logits(std::span(others_scores_).first(n), context_.config(), std::ssize(tokens));
    LogitsRow row(others_scores_);
    const int32_t id = choose_among(row, tokens);
    const bool asked = context_.config().assistant_confidence_threshold > 0;
    return {id, asked ? probability_of(row, id) : 1};
  }

  int32_t choose_among(LogitsRow& row, std::span<const int32_t> tokens) const {
    const auto stream = static_cast<uint64_t>(answer_.index());
    context_.pipeline.apply({tokens, context_.prompt_len(), stream}, row);
    return choose_token(row, context_.config(), stream, std::ssize(tokens));
  }

  struct Picked {
    int32_t id = -1;
    std::optional<TokenLogprobs> logprobs;
  };

  /// Chooses a token from a row. Changes nothing but the row.
  Picked pick(float* logits, float* negative) const {
    const auto vocab = static_cast<size_t>(context_.vocab);
    const Sequence& sequence = context_.scheduler.sequence(sequences_[0]);
    const std::span<float> scores(logits, vocab);
    const GenerationConfig& config = context_.config();
    admit_logits(scores, config, sequence.size());
    // Log-probabilities describe the raw row, which the processors overwrite.
    std::vector<float> raw;
    if (config.logprobs) raw.assign(scores.begin(), scores.end());
    if (negative != nullptr) {
      const std::span<float> other(negative, vocab);
      admit_logits(other, config, context_.scheduler.sequence(sequences_[1]).size());
      apply_guidance(scores, other, config.guidance_scale);
    }
    LogitsRow row(scores);
    Picked picked;
    picked.id = choose_among(row, sequence.tokens);
    if (config.logprobs) picked.logprobs = token_logprobs(raw, picked.id, *config.logprobs);
    return picked;
  }

  /// Says what was chosen, and finishes if it ends the answer.
  void say(Picked picked, EventSink& sink) {
    Answer::Piece piece = answer_.push(picked.id, picked.logprobs);
    sink.token(context_.request_id, answer_.index(), picked.id, std::move(piece.text),
               std::move(picked.logprobs));
    if (!piece.finished) return;
    finish();
    sink.finished(context_.request_id, answer_.completion());
  }

  Picked take_prepared() {
    if (const std::exception_ptr error = std::exchange(prepare_error_, nullptr))
      std::rethrow_exception(error);
    return *std::exchange(prepared_, std::nullopt);
  }

  std::vector<SeqId> sequences_;  // the answer's; with guidance also the negative prompt's
  Guesses guesses_;
  std::vector<float> others_scores_;  // of choose()
  std::optional<Picked> prepared_;    // from the first row, by prepare(); or what it threw
  std::exception_ptr prepare_error_;
};

}  // namespace

std::unique_ptr<Decoder> make_sampling_decoder(DecodeContext& context, int index) {
  return std::make_unique<SamplingDecoder>(context, index);
}

}  // namespace qw
