// Embeddings: the final hidden states of a prompt made into one vector. No token is generated.
//
// Level 6 (engine). "Final" is after the last norm, what Transformers calls last_hidden_state. The
// mean is summed position by position in doubles, so it depends on neither chunks nor batch mates.
#include "base/error.h"
#include "engine/decoder.h"

namespace qw {
namespace {

class PoolingDecoder : public SingleAnswerDecoder {
 public:
  PoolingDecoder(DecodeContext& context, Pooling pooling)
      : SingleAnswerDecoder(context, 0), pooling_(pooling) {
    // What is not pooled may come from the prefix cache, where only keys and values are.
    const int64_t from = pooling == Pooling::kMean ? 0 : context.prompt_len() - 1;
    sequence_ = add_sequence(context.request.prompt, prompt_lineage(context.request_id), from);
  }

  std::vector<SeqId> sequences() const override { return {sequence_}; }
  bool wants_hidden() const override { return true; }

  void on_hidden(SeqId seq, int64_t position, int64_t n, int64_t hidden,
                 const float* values) override {
    sums_.resize(static_cast<size_t>(hidden));
    for (int64_t i = 0; i < n; ++i) {
      if (position + i < n_seen_) continue;  // computed again after a preemption
      n_seen_ = position + i + 1;
      if (pooling_ == Pooling::kLast && n_seen_ < context_.prompt_len()) continue;
      for (size_t k = 0; k < sums_.size(); ++k)
        sums_[k] += static_cast<double>(values[static_cast<size_t>(i * hidden) + k]);
      ++n_pooled_;
    }
    if (pooling_ == Pooling::kMean) context_.scheduler.set_hidden_from(seq, n_seen_);
  }

  void advance(std::span<float* const>, EventSink& sink) override {
    QW_CHECK(n_pooled_ == (pooling_ == Pooling::kMean ? context_.prompt_len() : 1),
             "{} hidden states of a prompt of {}", n_pooled_, context_.prompt_len());
    stop(FinishReason::kStop, nullptr, sink);
  }

  std::vector<float> take_embedding() override {
    std::vector<float> out;
    if (n_pooled_ == 0) return out;
    for (const double sum : sums_)
      out.push_back(static_cast<float>(sum / static_cast<double>(n_pooled_)));
    return out;
  }

 private:
  Pooling pooling_;
  SeqId sequence_ = -1;
  int64_t n_seen_ = 0, n_pooled_ = 0;
  std::vector<double> sums_;
};

}  // namespace

std::unique_ptr<Decoder> make_pooling_decoder(DecodeContext& context, Pooling pooling) {
  return std::make_unique<PoolingDecoder>(context, pooling);
}

}  // namespace qw
