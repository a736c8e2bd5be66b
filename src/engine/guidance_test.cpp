// Classifier-free guidance against its formula: two passes of teacher forcing for every token, one
// over the prompt and one over the negative prompt, each with the answer so far.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/rng.h"
#include "engine/bundle.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

using Ids = std::vector<int32_t>;

const LoadedModel& bundled() {
  static const auto loaded = [] {
    OpenOptions options;
    options.quiet = true;
    options.engine.ctx = 128;
    options.engine.kv_tokens = 512;
    return open_model(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat", options);
  }();
  return *loaded;
}

/// log p of what follows `start` and `answer`, in double, over the ids that may be said.
std::vector<double> log_probabilities(Engine& engine, Ids start, const Ids& answer) {
  start.insert(start.end(), answer.begin(), answer.end());
  std::vector<double> out;
  ScoreOptions options;
  options.first_row = ssize(start) - 1;
  engine.score(
      start,
      [&](int64_t, int64_t, const float* logits) {
        out.assign(logits, logits + bundled().config().vocab);
      },
      options);
  double sum = 0;
  for (const double v : out)
    sum += std::exp(v);
  for (double& v : out)
    v -= std::log(sum);
  return out;
}

/// s (log p - log n) + log n, where p follows the prompt and n the negative prompt.
std::vector<double> guided_scores(Engine& engine, const Request& request, const Ids& answer) {
  const Ids negative =
      request.negative_prompt.empty() ? Ids{request.prompt.back()} : request.negative_prompt;
  const auto p = log_probabilities(engine, request.prompt, answer);
  const auto n = log_probabilities(engine, negative, answer);
  std::vector<double> out;
  for (int64_t id = 0; id < engine.usable_vocab(); ++id) {
    const auto i = static_cast<size_t>(id);
    out.push_back(request.config.guidance_scale * (p[i] - n[i]) + n[i]);
  }
  return out;
}

/// How far the token is from being the formula's choice: 0 where it is, else in units of the score
/// (greedy) or of the probability (sampled).
double distance_from_choice(const std::vector<double>& scores, int32_t token,
                            const Request& request, int64_t position) {
  const double best = *std::max_element(scores.begin(), scores.end());
  const auto at = static_cast<std::ptrdiff_t>(token);
  if (!request.config.samples()) return best - scores[static_cast<size_t>(token)];
  std::vector<double> weights;
  for (const double s : scores)
    weights.push_back(std::exp(s - best));
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const double below = std::accumulate(weights.begin(), weights.begin() + at, 0.0) / sum;
  const double above = below + weights[static_cast<size_t>(token)] / sum;
  const double u = random_uniform(request.config.seed, 0, static_cast<uint64_t>(position));
  return std::max({0.0, below - u, u - above});
}

Request request_of(double scale, bool sample, const std::string& negative) {
  const Tokenizer& tokenizer = *bundled().tokenizer;
  Request request;
  request.prompt = tokenizer.encode("Question: What is the capital of France?\nAnswer:");
  if (!negative.empty()) request.negative_prompt = tokenizer.encode(negative);
  request.config.guidance_scale = scale;
  request.config.max_new_tokens = 12;
  request.config.do_sample = sample;
  request.config.top_k = 0;
  request.config.seed = 5;
  request.config.logprobs = 0;
  return request;
}

TEST(Guidance, EveryTokenIsTheFormulasChoice) {
  const auto engine = bundled().make_engine(), scorer = bundled().make_engine();
  int differ = 0;
  for (const double scale : {0.5, 1.5, 4.0}) {
    for (const bool sample : {false, true}) {
      for (const char* negative : {"", "Question: What is the capital of Italy?\nAnswer:"}) {
        const Request request = request_of(scale, sample, negative);
        const Completion answer = engine->generate(request).completions[0];
        ASSERT_GE(answer.ids.size(), 4u);
        Ids before;
        for (const int32_t id : answer.ids) {
          const auto scores = guided_scores(*scorer, request, before);
          const auto position = ssize(request.prompt) + ssize(before);
          EXPECT_LT(distance_from_choice(scores, id, request, position), 2e-4)
              << "scale " << scale << (sample ? " sampled" : " greedy") << " token "
              << before.size() << " after '" << negative << "'";
          // Reported are the model's own probabilities, not the guided ones.
          const auto own = log_probabilities(*scorer, request.prompt, before);
          EXPECT_NEAR(static_cast<double>(answer.logprobs[before.size()].chosen.logprob),
                      own[static_cast<size_t>(id)], 1e-4);
          before.push_back(id);
        }
        Request plain = request_of(1, sample, "");
        differ += engine->generate(plain).completions[0].ids != answer.ids ? 1 : 0;
      }
    }
  }
  EXPECT_GE(differ, 6) << "guidance must change answers for this test to mean something";
}

}  // namespace
}  // namespace qw
