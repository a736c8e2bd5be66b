#include "engine/decoder.h"

#include "base/error.h"
#include "engine/logits_math.h"
#include "engine/prompt_lookup.h"
#include "engine/sampler.h"

namespace qw {

Decoder::Decoder(DecodeContext& context)
    : context_(context),
      unit_(context.scheduler.add_unit(static_cast<int64_t>(context.request_id))) {}

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
  sink.finished(context_.request_id, answer_.index());
}

std::vector<Completion> SingleAnswerDecoder::take_completions() {
  std::vector<Completion> out;
  out.push_back(answer_.take());
  return out;
}

namespace {

class SamplingDecoder : public SingleAnswerDecoder {
 public:
  SamplingDecoder(DecodeContext& context, int index) : SingleAnswerDecoder(context, index) {
    sequences_.push_back(add_sequence(context.request.prompt, prompt_lineage(context.request_id)));
    const GenerationConfig& config = context.config();
    if (config.guidance_scale != 1) {
      std::vector<int32_t> negative = context.request.negative_prompt;
      if (negative.empty()) negative.push_back(context.request.prompt.back());
      sequences_.push_back(add_sequence(std::move(negative), negative_lineage(context.request_id)));
    } else if (config.prompt_lookup_num_tokens > 0) {
      lookup_.emplace(config.prompt_lookup_num_tokens, config.max_matching_ngram_size);
    }
  }

  std::vector<SeqId> sequences() const override { return sequences_; }
  Guesses guesses() const override { return guesses_; }

  void advance(std::span<float* const> rows, EventSink& sink) override {
    // Every token is chosen from its own row as if there were no draft. A guess that proves right
    // only spares the step that would have computed the next row: the choices are the same.
    const std::vector<int32_t> draft = context_.scheduler.sequence(sequences_[0]).draft;
    guesses_.n_drafted += std::ssize(draft);
    size_t n_right = 0;
    while (true) {
      const auto row = static_cast<int64_t>(n_right) * context_.vocab;
      const int32_t id = choose_next(rows[0] + row, rows.size() > 1 ? rows[1] : nullptr, sink);
      const bool is_guessed = n_right < draft.size() && draft[n_right] == id;
      n_right += is_guessed ? 1 : 0;
      guesses_.n_accepted += is_guessed ? 1 : 0;
      if (finished_) return;
      for (const SeqId seq : sequences_)
        context_.scheduler.append(seq, id);
      if (!is_guessed) break;
    }
    if (lookup_) guess(std::ssize(draft), static_cast<int64_t>(n_right));
  }

  void drop_draft(SeqId seq) override {
    if (lookup_) lookup_->report(context_.scheduler.sequence(seq).n_draft(), 0);
    context_.scheduler.drop_draft(seq);
  }

 private:
  /// Chooses a token from a row, says so, and finishes if it ends the answer.
  int32_t choose_next(float* logits, float* negative, EventSink& sink) {
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
    context_.pipeline.apply({sequence.tokens, context_.prompt_len()}, row);
    const int32_t id =
        choose_token(row, config, static_cast<uint64_t>(answer_.index()), sequence.size());
    std::optional<TokenLogprobs> logprobs;
    if (config.logprobs) logprobs = token_logprobs(raw, id, *config.logprobs);

    Answer::Piece piece = answer_.push(id, logprobs);
    sink.token(context_.request_id, answer_.index(), id, std::move(piece.text),
               std::move(logprobs));
    if (piece.finished) {
      finish();
      sink.finished(context_.request_id, answer_.index());
    }
    return id;
  }

  void guess(int64_t n_drafted, int64_t n_right) {
    lookup_->report(n_drafted, n_right);
    const Sequence& sequence = context_.scheduler.sequence(sequences_[0]);
    // The last token of the answer follows from the one before it: there is no use in a draft of
    // it.
    const int64_t room = context_.max_len - sequence.size() - 1;
    context_.scheduler.set_draft(sequences_[0], lookup_->propose(sequence.tokens, room));
  }

  std::vector<SeqId> sequences_;        // the answer's; with guidance also the negative prompt's
  std::optional<PromptLookup> lookup_;  // null: no drafts
  Guesses guesses_;
};

}  // namespace

std::unique_ptr<Decoder> make_sampling_decoder(DecodeContext& context, int index) {
  return std::make_unique<SamplingDecoder>(context, index);
}

}  // namespace qw
