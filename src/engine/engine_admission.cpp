// Which requests the engine takes: what can never fit or means nothing is refused before the queue.
//
// Level 6 (engine). A part of Engine::Impl; the steps are in engine_impl.cpp.
#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "engine/engine_impl.h"
#include "engine/generation_config_checks.h"
#include "model/memory_plan.h"
#include "text/stop_strings.h"

namespace qw {
namespace {

/// Sequences that run side by side for one answer.
int64_t width_of(const GenerationConfig& config) {
  return config.is_contrastive() ? config.top_k : config.num_beams;
}

/// Of the prompt that guidance leads away from: the given one, or the prompt's last token. 0: none.
int64_t negative_length(const Request& request) {
  if (request.config.guidance_scale == 1) return 0;
  return std::max<int64_t>(1, static_cast<int64_t>(request.negative_prompt.size()));
}

}  // namespace

void Engine::Impl::check_request(const Request& request) const {
  const GenerationConfig& config = request.config;
  if (request.prompt.empty()) {
    fail(ErrorKind::kInvalidArgument, "engine", "prompt: expected at least one token, got none");
  }
  check_token_ids("engine", "prompt", request.prompt, vocab_);
  if (request.pooling == Pooling::kNone) check_generates();
  check_token_ids("engine", "negative prompt", request.negative_prompt, vocab_);
  config.validate(vocab_);
  if (!request.negative_prompt.empty() && config.guidance_scale == 1) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "negative prompt: expected a guidance_scale other than 1 with it, got 1 (no guidance)");
  }
  const auto check_top = [this](std::string_view name, const std::optional<int64_t>& n_top) {
    if (!n_top || *n_top <= vocab_) return;
    fail(ErrorKind::kInvalidArgument, "engine", "{}: expected 0 to {} (the vocabulary), got {}",
         name, vocab_, *n_top);
  };
  check_top("logprobs", config.logprobs);
  check_top("prompt_logprobs", config.prompt_logprobs);
  if (request.pooling != Pooling::kNone &&
      (config.num_return_sequences != 1 || config.guidance_scale != 1 || config.num_beams != 1)) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "pooling: expected one plain sequence, got several answers, beams or guidance");
  }
  if (!config.stop_strings.empty() && tokenizer_ == nullptr) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "stop strings: expected a checkpoint with a tokenizer, got one without");
  }
}

void Engine::Impl::check_generates() const {
  if (model_.config().architecture != "Qwen2ForSequenceClassification") return;
  fail(ErrorKind::kUnsupported, "engine",
       "model: expected one that generates text, got a Qwen2ForSequenceClassification, which only "
       "tells the classes of a text");
}

/// The length at which the sequence ends at the latest, prompt included. What the user asks for is
/// done or refused; a checkpoint's default says "at most", and so does the want of any.
int64_t Engine::Impl::max_length_of(const Request& request) const {
  const GenerationConfig& config = request.config;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  // What is pooled has no answer.
  const bool is_pooled = request.pooling != Pooling::kNone;
  const auto check_prompt = [&](std::string_view what, int64_t length) {
    const int64_t most = options_.ctx - (is_pooled ? 0 : 1);
    if (length <= most) return;
    fail(ErrorKind::kInvalidArgument, "engine",
         "{}: expected at most {} tokens (a context of {}{}), got {}", what, most, options_.ctx,
         is_pooled ? "" : " with room for an answer", length);
  };
  check_prompt("prompt", prompt_len);
  if (is_pooled) {
    if (const int64_t need = pages_at_worst(request, prompt_len); need > scheduler_->n_pages()) {
      const int64_t page = scheduler_->page_tokens();
      fail(ErrorKind::kInvalidArgument, "engine",
           "prompt: expected to fit the KV cache of {} tokens, got {}",
           scheduler_->n_pages() * page, need * page);
    }
    return prompt_len;
  }
  check_prompt("negative prompt", negative_length(request));
  // With guidance the answer grows behind both prompts, so the longer one meets the end first.
  const int64_t longest = std::max(prompt_len, negative_length(request));
  std::string_view field;
  int64_t n_new = options_.ctx - longest;
  if (config.max_new_tokens) {
    field = "max_new_tokens";
    n_new = *config.max_new_tokens;
  } else if (config.max_length) {
    field = "max_length";
    n_new = *config.max_length - prompt_len;
    if (n_new <= 0) {
      fail(ErrorKind::kInvalidArgument, "engine",
           "max_length: expected more than the prompt's {} tokens, got {}", prompt_len,
           *config.max_length);
    }
  }
  const bool is_demand = !field.empty() && config.source_of(field) != ParameterSource::kFile;
  if (is_demand && longest + n_new > options_.ctx) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "{}: expected {} and answer within the context of {} tokens, got {} + {} = {}", field,
         longest > prompt_len ? "negative prompt" : "prompt", options_.ctx, longest, n_new,
         longest + n_new);
  }
  const int64_t max_len = prompt_len + std::min(n_new, options_.ctx - longest);
  const int64_t fits = longest_that_fits(request, max_len);
  if (fits == max_len) return max_len;
  if (is_demand || fits <= prompt_len) {
    const int64_t page = scheduler_->page_tokens();
    fail(ErrorKind::kInvalidArgument, "engine",
         "request: expected to fit the KV cache of {} tokens (max_new_tokens up to {}), got up to "
         "{} ({} prompt, {} new, {} sequences)",
         scheduler_->n_pages() * page, fits - prompt_len, pages_at_worst(request, max_len) * page,
         prompt_len, max_len - prompt_len, width_of(config));
  }
  logger().warn(
      "max_new_tokens: {}, the most that {} sequences leave room for in the KV cache of {} "
      "tokens",
      fits - prompt_len, width_of(config), scheduler_->n_pages() * scheduler_->page_tokens());
  return fits;
}

/// Pages that the request holds at worst, however its sequences differ.
int64_t Engine::Impl::pages_at_worst(const Request& request, int64_t max_len) const {
  const GenerationConfig& config = request.config;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  // The candidates of contrastive search differ in their last token: a page each.
  if (config.is_contrastive())
    return scheduler_->pages_at_worst(prompt_len, max_len, 1) + config.top_k - 1;
  int64_t need = scheduler_->pages_at_worst(prompt_len, max_len, config.num_beams);
  if (const int64_t negative = negative_length(request); negative > 0)
    need += scheduler_->pages_at_worst(negative, negative + max_len - prompt_len, 1);
  return need;
}

/// max_len, or the largest length below it with which the request fits the cache, alone. The
/// prompt's length or less: none.
int64_t Engine::Impl::longest_that_fits(const Request& request, int64_t max_len) const {
  int64_t fits = static_cast<int64_t>(request.prompt.size());
  while (fits < max_len) {  // more tokens never need fewer pages
    const int64_t middle = fits + (max_len - fits + 1) / 2;
    if (pages_at_worst(request, middle) <= scheduler_->n_pages()) {
      fits = middle;
    } else {
      max_len = middle - 1;
    }
  }
  return fits;
}

/// The turn it takes in the line of all: what its sequences will compute, all of them.
Turn Engine::Impl::turn_of(const Request& request, int64_t max_len) const {
  const GenerationConfig& config = request.config;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  const int64_t n_answers = config.num_beams > 1 ? 1 : config.num_return_sequences;
  const int64_t negative = negative_length(request);
  int64_t n_first =
      request.pooling != Pooling::kNone
          ? 0
          : n_answers * width_of(config) * std::min(max_len - prompt_len, FairQueue::kAnswerTokens);
  if (negative > 0) n_first *= 2;
  return {request.client, request.priority, request.passes_others, prompt_len + negative + n_first};
}

/// Bytes that the strategy needs besides weights, cache and the logits of a step: of a beam the row
/// that waits for the others, its processed copy, the raw one for log-probabilities, and the
/// candidates that are drawn from; of contrastive search the hidden states of the whole sequence
/// and of a step.
int64_t Engine::Impl::working_bytes_of(const Request& request, int64_t max_len) const {
  constexpr int64_t kFloat = sizeof(float);
  const GenerationConfig& config = request.config;
  if (config.is_contrastive()) {
    const int64_t rows = max_len + options_.chunk_tokens;
    return kFloat * (rows * model_.config().hidden + config.top_k * vocab_);
  }
  if (config.num_beams == 1) return 0;
  const int64_t n_copies = 2 + (config.logprobs ? 1 : 0) + (config.samples() ? 6 : 0);
  return kFloat * n_copies * config.num_beams * vocab_;
}

/// Refuses what would take more than there is to spare, together with the requests under way.
void Engine::Impl::check_working_bytes(int64_t wanted) const {
  if (wanted == 0) return;
  int64_t taken = 0;
  for (const auto& [id, active] : active_)
    taken += active->working_bytes;
  // Pages of the cache that were never used are promised, and among what is available.
  const int64_t n_untouched = scheduler_->n_pages() - scheduler_->n_touched_pages();
  const int64_t spare = options_.spare_bytes
                            ? *options_.spare_bytes
                            : available_memory_bytes() - n_untouched * kv_->page_bytes();
  if (wanted <= spare - taken) return;
  fail(ErrorKind::kOutOfMemory, "engine",
       "request: expected to fit {} bytes of working memory ({} of them taken), got {} (num_beams "
       "rows over the vocabulary, or the hidden states of contrastive search)",
       spare, taken, wanted);
}

RequestId Engine::Impl::submit(Request request) {
  check_request(request);
  AdapterUse adapter = model_.use_adapter(request.adapter);
  const int64_t max_len = max_length_of(request);
  const int64_t working_bytes = working_bytes_of(request, max_len);
  check_working_bytes(working_bytes);
  if (request.stop == nullptr && !request.config.stop_strings.empty())
    request.stop = std::make_shared<const StopStrings>(request.config.stop_strings);
  const RequestId id = next_id_++;
  auto active = std::make_unique<ActiveRequest>(std::move(request), std::move(adapter));
  const Request& own = active->request;
  active->context = std::unique_ptr<DecodeContext>(new DecodeContext{
      id, own, *scheduler_,
      make_pipeline(own.config, own.prompt, max_len, usable_vocab_, own.processors, tokenizer_),
      max_len, vocab_, tokenizer_, turn_of(own, max_len)});
  active->working_bytes = working_bytes;
  active->submitted = ActiveRequest::Clock::now();
  active->result.timings.n_prompt = static_cast<int64_t>(own.prompt.size());
  make_decoders(*active);
  // What is asked of the prompt itself is computed.
  const bool may_read = tier_ && !own.config.prompt_logprobs && !own.config.is_contrastive() &&
                        own.pooling == Pooling::kNone;
  if (may_read && tier_->enter(id, scope_of(own), own.prompt)) set_held(*active, true);
  active_.emplace(id, std::move(active));
  return id;
}

void Engine::Impl::make_decoders(ActiveRequest& active) {
  const GenerationConfig& config = active.request.config;
  if (active.request.pooling != Pooling::kNone) {
    active.decoders.push_back(make_pooling_decoder(*active.context, active.request.pooling));
  } else if (config.num_beams > 1) {
    active.decoders.push_back(make_beam_decoder(*active.context));
  } else {
    for (int index = 0; index < config.num_return_sequences; ++index) {
      active.decoders.push_back(config.is_contrastive()
                                    ? make_contrastive_decoder(*active.context, index)
                                    : make_sampling_decoder(*active.context, index));
    }
  }
  active.result.completions.resize(static_cast<size_t>(config.num_return_sequences));
  if (!config.prompt_logprobs) return;
  if (active.request.prompt.size() < 2) return tell_prompt(active);  // there are none
  active.prompt_seq = active.decoders[0]->sequences()[0];
  scheduler_->set_logits_from(active.prompt_seq, 0);
}

void Engine::Impl::cancel(RequestId id) {
  if (const auto it = active_.find(id); it != active_.end()) it->second->cancelled = true;
}

}  // namespace qw
