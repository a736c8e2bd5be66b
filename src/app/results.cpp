#include "app/results.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace qw::app {

using nlohmann::ordered_json;

namespace {

ordered_json logprob_json(int32_t id, float logprob, const Tokenizer* tokenizer) {
  ordered_json item = {{"id", id}};
  if (tokenizer != nullptr) item["token"] = replace_invalid_utf8(tokenizer->token_bytes(id));
  item["logprob"] = logprob;
  return item;
}

double per_second(int64_t n, double seconds) {
  return seconds > 0 ? static_cast<double>(n) / seconds : 0;
}

}  // namespace

ordered_json logprobs_json(const std::vector<TokenLogprobs>& logprobs, const Tokenizer* tokenizer) {
  ordered_json list = ordered_json::array();
  for (const TokenLogprobs& entry : logprobs) {
    ordered_json item = logprob_json(entry.chosen.id, entry.chosen.logprob, tokenizer);
    item["rank"] = entry.rank;
    ordered_json top = ordered_json::array();
    for (const Logprob& candidate : entry.top)
      top.push_back(logprob_json(candidate.id, candidate.logprob, tokenizer));
    item["top"] = std::move(top);
    list.push_back(std::move(item));
  }
  return list;
}

ordered_json timings_json(const Timings& timings) {
  return {{"n_prompt", timings.n_prompt},
          {"n_cached", timings.n_cached},
          {"n_generated", timings.n_generated},
          {"n_drafted", timings.n_drafted},
          {"n_accepted", timings.n_accepted},
          {"queue_s", timings.queue_s},
          {"prefill_s", timings.prefill_s},
          {"decode_s", timings.decode_s},
          {"prefill_tokens_per_second",
           per_second(timings.n_prompt - timings.n_cached, timings.prefill_s)},
          {"decode_tokens_per_second", per_second(timings.n_decoded, timings.decode_s)}};
}

ordered_json completion_json(const Completion& completion, const Tokenizer* tokenizer) {
  ordered_json result;
  if (tokenizer != nullptr) result["text"] = completion.text;
  result["ids"] = completion.ids;
  result["finish_reason"] = client_name_of(completion.finish_reason);
  if (completion.finish_reason == FinishReason::kStop)
    result["stop_string"] = completion.stop_string;
  if (completion.finish_reason == FinishReason::kEos && !completion.ids.empty()) {
    result["eos_token_id"] = completion.ids.back();
  }
  if (completion.score) result["score"] = *completion.score;
  if (!completion.logprobs.empty())
    result["logprobs"] = logprobs_json(completion.logprobs, tokenizer);
  return result;
}

std::string timings_text(const Timings& timings) {
  const auto speed = [](double tokens_per_second) {  // of nothing computed there is none
    return tokens_per_second > 0 ? fmt::format(" ({:.1f} tok/s)", tokens_per_second) : "";
  };
  const std::string guesses =
      timings.n_drafted == 0
          ? ""
          : fmt::format(", {} of {} guesses right", timings.n_accepted, timings.n_drafted);
  return fmt::format("{} prompt tokens{}, {} generated{}{}", timings.n_prompt,
                     speed(per_second(timings.n_prompt - timings.n_cached, timings.prefill_s)),
                     timings.n_generated, speed(per_second(timings.n_decoded, timings.decode_s)),
                     guesses);
}

}  // namespace qw::app
