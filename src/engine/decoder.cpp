#include "engine/decoder.h"

#include "base/error.h"
#include "engine/logits_math.h"
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
    if (context.config().guidance_scale == 1) return;
    std::vector<int32_t> negative = context.request.negative_prompt;
    if (negative.empty()) negative.push_back(context.request.prompt.back());
    sequences_.push_back(add_sequence(std::move(negative), negative_lineage(context.request_id)));
  }

  std::vector<SeqId> sequences() const override { return sequences_; }

  void advance(std::span<float* const> rows, EventSink& sink) override {
    const auto vocab = static_cast<size_t>(context_.vocab);
    const Sequence& sequence = context_.scheduler.sequence(sequences_[0]);
    const std::span<float> scores(rows[0], vocab);
    const GenerationConfig& config = context_.config();
    if (!config.remove_invalid_values) check_finite(scores, sequence.size());
    // Log-probabilities describe the raw row, which the processors overwrite.
    std::vector<float> raw;
    if (config.logprobs) raw.assign(scores.begin(), scores.end());
    if (rows.size() > 1)
      apply_guidance(scores, std::span<float>(rows[1], vocab), config.guidance_scale);

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
      return;
    }
    for (const SeqId seq : sequences_)
      context_.scheduler.append(seq, id);
  }

 private:
  std::vector<SeqId> sequences_;  // the answer's; with guidance also the negative prompt's
};

}  // namespace

std::unique_ptr<Decoder> make_sampling_decoder(DecodeContext& context, int index) {
  return std::make_unique<SamplingDecoder>(context, index);
}

}  // namespace qw
