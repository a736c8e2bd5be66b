// Beam search over the paged cache: a beam is a fork of a sequence, so beams share what they have
// in common.
//
// Level 6 (engine). The rules are in beam_search.h; here they meet logits, pages, random draws and
// stop strings. What is reported of the tokens is kept as a tree, whose branches are the beams.
#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/rng.h"
#include "engine/beam_search.h"
#include "engine/decoder.h"
#include "engine/forced_words.h"
#include "engine/logits_math.h"
#include "engine/sampler.h"
#include "engine/stop_watch.h"

namespace qw {
namespace {

constexpr float kNotYet =
    -1e9f;  // beams but the first, before they have parted (Transformers' value)
constexpr uint64_t kBeamStreams = uint64_t{1} << 32;  // apart from the streams of plain sampling

struct Beam {
  SeqId seq = 0;  // several beams may share one until the first step has parted them
  float score = 0;
  int64_t trace = -1;              // its last token among those that log-probabilities are kept of
  std::optional<StopWatch> watch;  // null: no stop strings
};

/// A token of a beam and the one before it; -1: the first.
struct Trace {
  int64_t before = -1;
  TokenLogprobs logprobs;
};

class BeamDecoder : public Decoder {
 public:
  explicit BeamDecoder(DecodeContext& context) : Decoder(context) {
    const GenerationConfig& config = context.config();
    const SeqId seq = add_sequence(context.request.prompt, prompt_lineage(context.request_id));
    const int size = static_cast<int>(config.num_beams / config.num_beam_groups);
    if (!config.force_words_ids.empty())
      forced_ = std::make_shared<ForcedWords>(config.force_words_ids, context.request.prompt);
    std::optional<StopWatch> watch;
    if (!config.stop_strings.empty()) watch.emplace(context.tokenizer, context.request);
    for (int64_t g = 0; g < config.num_beam_groups; ++g) {
      groups_.emplace_back(BeamGroup::Options{size, config.length_penalty, config.early_stopping,
                                              context.max_len - context.prompt_len(), config.ends(),
                                              forced_, config.num_return_sequences});
      auto& beams = beams_.emplace_back();
      for (int b = 0; b < size; ++b)
        beams.push_back({seq, b == 0 ? 0.0f : kNotYet, -1, watch});
    }
  }

  std::vector<SeqId> sequences() const override {
    std::vector<SeqId> out;
    for (const auto& beams : beams_) {
      for (const Beam& beam : beams)
        out.push_back(beam.seq);
    }
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
  }

  void advance(std::span<float* const> rows, EventSink& sink) override {
    const std::vector<SeqId> seqs = sequences();
    std::map<SeqId, std::span<const float>> row_of;
    for (size_t i = 0; i < seqs.size(); ++i) {
      const std::span<float> row(rows[i], static_cast<size_t>(context_.vocab));
      admit_logits(row, context_.config(), context_.scheduler.sequence(seqs[i]).size());
      if (context_.config().logprobs) raw_[seqs[i]].assign(row.begin(), row.end());
      log_softmax(row);
      row_of[seqs[i]] = row;
    }
    std::vector<std::vector<BeamCandidate>> next(groups_.size());
    std::vector<int32_t> chosen;  // by the groups so far, in this step
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (!groups_[g].done()) next[g] = step_group(g, row_of, chosen);
      // A group that is done goes on with padding in Transformers, and later groups see it.
      for (size_t b = next[g].size(); b < group_size(); ++b)
        chosen.push_back(padding());
    }
    follow(next, sink);
    raw_.clear();
  }

  void stop(FinishReason reason, const Error* error, EventSink& sink) override {
    if (finished_) return;
    close_and_finish(reason, error, sink);
  }

  std::vector<Completion> take_completions() override { return std::move(completions_); }

 private:
  size_t group_size() const {
    return static_cast<size_t>(context_.config().num_beams / context_.config().num_beam_groups);
  }

  int32_t padding() const {
    const GenerationConfig& config = context_.config();
    return config.pad_token_id.value_or(config.eos_token_id.empty() ? 0 : config.eos_token_id[0]);
  }

  std::span<const int32_t> generated(SeqId seq) const {
    return std::span(context_.scheduler.sequence(seq).tokens)
        .subspan(static_cast<size_t>(context_.prompt_len()));
  }

  std::vector<std::span<const int32_t>> generated_of_group(size_t g) const {
    std::vector<std::span<const int32_t>> out;
    for (const Beam& beam : beams_[g])
      out.push_back(generated(beam.seq));
    return out;
  }

  std::vector<BeamCandidate> step_group(size_t g,
                                        const std::map<SeqId, std::span<const float>>& row_of,
                                        std::vector<int32_t>& chosen) {
    std::vector<std::vector<float>> scores;  // of each beam, over the vocabulary
    for (const Beam& beam : beams_[g]) {
      const std::span<const float> row = row_of.at(beam.seq);
      std::vector<float>& values = scores.emplace_back(row.begin(), row.end());
      LogitsRow processed(values);
      context_.pipeline.apply({context_.scheduler.sequence(beam.seq).tokens, context_.prompt_len()},
                              processed, chosen);
      for (float& v : values)
        v += beam.score;
      check_scores(values, context_.scheduler.sequence(beam.seq).size());  // of many huge biases
    }
    const std::vector<BeamCandidate> candidates = propose(g, scores);
    const auto beams = generated_of_group(g);
    std::vector<BeamCandidate> next = groups_[g].process(candidates, beams);
    if (forced_ != nullptr) {
      const auto score = [&scores](int beam, int32_t token) {
        return scores[static_cast<size_t>(beam)][static_cast<size_t>(token)];
      };
      next = forced_->steer(next, beams, score, group_size());
      mark_ends(g, next);  // a step towards a word may complete a stop string
      trace_ends(g, next);
      for (const BeamCandidate& candidate : next) {
        if (candidate.stops) groups_[g].end(candidate, beams[static_cast<size_t>(candidate.beam)]);
      }
      std::erase_if(next, [](const BeamCandidate& candidate) { return candidate.stops; });
    }
    for (const BeamCandidate& candidate : next)
      chosen.push_back(candidate.token);
    return next;
  }

  /// Candidates of the next step, best first: so many that a whole group of them goes on, if there
  /// are as many at all.
  std::vector<BeamCandidate> propose(size_t g, const std::vector<std::vector<float>>& scores) {
    for (int64_t n = groups_[g].n_candidates();; n *= 2) {
      std::vector<BeamCandidate> candidates =
          context_.config().samples() ? draw(g, scores, n) : best(scores, n);
      if (candidates.empty()) {
        fail(ErrorKind::kInvalidArgument, "sampler",
             "beams: expected tokens that the parameters allow, got none");
      }
      mark_ends(g, candidates);
      const auto n_open =
          std::count_if(candidates.begin(), candidates.end(),
                        [&](const BeamCandidate& c) { return !groups_[g].ends(c); });
      // End tokens alone never ask for more, but any token may complete a stop string.
      const bool enough = n_open >= static_cast<std::ptrdiff_t>(group_size());
      if (enough || std::ssize(candidates) < n) {
        trace_ends(g, candidates);
        return candidates;
      }
    }
  }

  void mark_ends(size_t g, std::vector<BeamCandidate>& candidates) const {
    for (BeamCandidate& candidate : candidates) {
      std::optional<StopWatch> watch = beam_of(g, candidate).watch;
      candidate.stops = watch && watch->push(candidate.token);
    }
  }

  /// Sees to it that hypotheses know what is reported of their last token.
  void trace_ends(size_t g, std::vector<BeamCandidate>& candidates) {
    for (BeamCandidate& candidate : candidates) {
      if (!groups_[g].ends(candidate)) continue;
      candidate.trace = trace(beam_of(g, candidate),
                              candidate.stops ? candidate.token : shown_end(candidate.token));
    }
  }

  const Beam& beam_of(size_t g, const BeamCandidate& candidate) const {
    return beams_[g][static_cast<size_t>(candidate.beam)];
  }

  /// Of several end tokens Transformers shows the first; a stop token is shown as it is.
  int32_t shown_end(int32_t id) const {
    const GenerationConfig& config = context_.config();
    return config.is_eos(id) ? config.eos_token_id[0] : id;
  }

  /// Notes the log-probabilities of a token that follows a beam, when they are wanted.
  int64_t trace(const Beam& beam, int32_t token) {
    const GenerationConfig& config = context_.config();
    if (!config.logprobs) return -1;
    traces_.push_back({beam.trace, token_logprobs(raw_.at(beam.seq), token, *config.logprobs)});
    return std::ssize(traces_) - 1;
  }

  static bool better(const BeamCandidate& a, const BeamCandidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
  }

  static std::vector<BeamCandidate> best(const std::vector<std::vector<float>>& scores, int64_t n) {
    std::vector<BeamCandidate> out;
    for (size_t b = 0; b < scores.size(); ++b) {
      for (const int32_t id : top_indices(scores[b], n)) {
        const float score = scores[b][static_cast<size_t>(id)];
        if (score != kMinusInfinity) out.push_back({static_cast<int>(b), id, score});
      }
    }
    std::sort(out.begin(), out.end(), better);
    if (static_cast<int64_t>(out.size()) > n) out.resize(static_cast<size_t>(n));
    return out;
  }

  /// n draws without replacement from softmax over all beams, then by score.
  std::vector<BeamCandidate> draw(size_t g, const std::vector<std::vector<float>>& scores,
                                  int64_t n) const {
    std::vector<BeamCandidate> all;
    float max = kMinusInfinity;
    for (size_t b = 0; b < scores.size(); ++b) {
      for (size_t id = 0; id < scores[b].size(); ++id) {
        const float score = scores[b][id];
        if (score == kMinusInfinity) continue;
        all.push_back({static_cast<int>(b), static_cast<int32_t>(id), score});
        max = std::max(max, score);
      }
    }
    std::vector<double> weights(all.size());
    for (size_t i = 0; i < all.size(); ++i)
      weights[i] = std::exp(static_cast<double>(all[i].score) - static_cast<double>(max));
    const auto position =
        static_cast<uint64_t>(context_.scheduler.sequence(beams_[g][0].seq).size());
    n = std::min(n, std::ssize(all));
    std::vector<BeamCandidate> out;
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (const double w : weights)
        sum += w;
      const double target = sum * random_uniform(context_.config().seed,
                                                 kBeamStreams + static_cast<uint64_t>(i), position);
      size_t last = weights.size();
      double cumulated = 0;
      for (size_t c = 0; c < weights.size() && cumulated <= target; ++c) {
        if (weights[c] <= 0) continue;
        cumulated += weights[c];
        last = c;
      }
      if (last == weights.size()) break;  // what is left has underflowed
      out.push_back(all[last]);
      weights[last] = 0;
    }
    std::sort(out.begin(), out.end(), better);
    return out;
  }

  /// Turns the chosen candidates into the beams of the next step, or ends.
  void follow(const std::vector<std::vector<BeamCandidate>>& next, EventSink& sink) {
    const std::vector<SeqId> old = sequences();
    bool all_done = true;
    for (size_t g = 0; g < groups_.size(); ++g) {
      std::vector<Beam> beams;
      for (const BeamCandidate& candidate : next[g]) {
        const Beam& parent = beam_of(g, candidate);
        const SeqId child = context_.scheduler.fork(parent.seq);
        context_.scheduler.append(child, candidate.token);
        beams.push_back({child, candidate.score, trace(parent, candidate.token), parent.watch});
        if (beams.back().watch) beams.back().watch->push(candidate.token);
      }
      if (groups_[g].done()) {
        for (const Beam& beam : beams)
          context_.scheduler.remove_sequence(beam.seq);
        beams.clear();
      }
      beams_[g] = std::move(beams);
      all_done = all_done && (groups_[g].done() || beams_[g].empty());
    }
    for (const SeqId seq : old)
      context_.scheduler.remove_sequence(seq);
    const std::vector<SeqId> now = sequences();
    const bool full =
        !now.empty() && context_.scheduler.sequence(now[0]).size() >= context_.max_len;
    if (all_done || full) close_and_finish(FinishReason::kLength, nullptr, sink);
  }

  /// The answers of what there is; hypotheses that no end token closed get `reason`.
  void close_and_finish(FinishReason reason, const Error* error, EventSink& sink) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      std::vector<float> scores;
      std::vector<int64_t> traces;
      for (const Beam& beam : beams_[g]) {
        scores.push_back(beam.score);
        traces.push_back(beam.trace);
      }
      if (!scores.empty()) groups_[g].close(generated_of_group(g), scores, traces);
    }
    finish();
    const int64_t n = context_.config().num_return_sequences;
    const std::vector<Hypothesis> best = best_hypotheses(groups_, n);
    for (int index = 0; index < n; ++index) {
      const bool there = index < static_cast<int>(best.size());
      emit(index, there ? &best[static_cast<size_t>(index)] : nullptr, reason, error, sink);
    }
  }

  void emit(int index, const Hypothesis* hypothesis, FinishReason reason, const Error* error,
            EventSink& sink) {
    Answer answer(index, context_.request, context_.max_len, context_.tokenizer);
    if (hypothesis != nullptr) {
      std::vector<int32_t> ids = hypothesis->generated;
      if (hypothesis->ended) ids.push_back(shown_end(hypothesis->end));
      const std::vector<TokenLogprobs> logprobs = logprobs_of(*hypothesis);
      QW_CHECK(logprobs.empty() || logprobs.size() == ids.size());
      for (size_t i = 0; i < ids.size() && !answer.finished(); ++i) {
        std::optional<TokenLogprobs> known;
        if (!logprobs.empty()) known = logprobs[i];
        Answer::Piece piece = answer.push(ids[i], known);
        sink.token(context_.request_id, index, ids[i], std::move(piece.text), std::move(known));
      }
      answer.set_score(hypothesis->score);
    }
    if (!answer.finished()) {
      std::string rest = answer.finish(reason);
      if (!rest.empty()) sink.token(context_.request_id, index, -1, std::move(rest), std::nullopt);
    }
    if (error != nullptr) answer.set_error(*error);
    completions_.push_back(answer.take());
    sink.finished(context_.request_id, completions_.back());
  }

  std::vector<TokenLogprobs> logprobs_of(const Hypothesis& hypothesis) const {
    std::vector<TokenLogprobs> out;
    for (int64_t at = hypothesis.trace; at >= 0; at = traces_[static_cast<size_t>(at)].before)
      out.push_back(traces_[static_cast<size_t>(at)].logprobs);
    std::reverse(out.begin(), out.end());
    return out;
  }

  std::shared_ptr<const ForcedWords> forced_;  // null: none
  std::vector<BeamGroup> groups_;
  std::vector<std::vector<Beam>> beams_;     // of each group; empty once it is done
  std::vector<Trace> traces_;                // a tree; empty unless logprobs are wanted
  std::map<SeqId, std::vector<float>> raw_;  // logits of the step under way, for traces_
  std::vector<Completion> completions_;
};

}  // namespace

std::unique_ptr<Decoder> make_beam_decoder(DecodeContext& context) {
  return std::make_unique<BeamDecoder>(context);
}

}  // namespace qw
