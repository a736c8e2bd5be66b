// Which requests the engine takes: what can never fit or means nothing is refused before the queue.
//
// Level 6 (engine). A part of Engine::Impl; the steps are in engine_impl.cpp.
#include <algorithm>

#include "base/error.h"
#include "engine/engine_impl.h"

namespace qw {

void Engine::Impl::check_request(const Request& request) const {
  const GenerationConfig& config = request.config;
  if (request.prompt.empty()) {
    fail(ErrorKind::kInvalidArgument, "engine", "prompt: expected at least one token, got none");
  }
  check_token_ids("prompt", request.prompt, vocab_);
  check_token_ids("negative prompt", request.negative_prompt, vocab_);
  config.validate(vocab_);
  if (!request.negative_prompt.empty() && config.guidance_scale == 1) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "negative prompt: expected a guidance_scale other than 1 with it, got 1 (no guidance)");
  }
  if (config.logprobs && *config.logprobs > vocab_) {
    fail(ErrorKind::kInvalidArgument, "engine", "logprobs: expected 0 to {}, got {}", vocab_,
         *config.logprobs);
  }
  if (!config.stop_strings.empty() && tokenizer_ == nullptr) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "stop strings: expected a checkpoint with a tokenizer, got one without");
  }
}

/// The length at which the sequence ends at the latest, prompt included.
int64_t Engine::Impl::max_length_of(const Request& request) const {
  const GenerationConfig& config = request.config;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  if (prompt_len + 1 > options_.ctx) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "prompt: expected at most {} tokens (a context of {} with room for an answer), got {}",
         options_.ctx - 1, options_.ctx, prompt_len);
  }
  int64_t max_len = options_.ctx;
  std::string_view field;
  if (config.max_new_tokens) {
    field = "max_new_tokens";
    max_len = prompt_len + *config.max_new_tokens;
  } else if (config.max_length) {
    field = "max_length";
    max_len = *config.max_length;
    if (max_len <= prompt_len) {
      fail(ErrorKind::kInvalidArgument, "engine",
           "max_length: expected more than the prompt's {} tokens, got {}", prompt_len, max_len);
    }
  }
  if (max_len <= options_.ctx) return max_len;
  // A checkpoint's default says "at most"; what the user asks for is done or refused.
  if (config.source_of(field) == ParameterSource::kFile) return options_.ctx;
  fail(ErrorKind::kInvalidArgument, "engine",
       "{}: expected prompt and answer within the context of {} tokens, got {} + {} = {}", field,
       options_.ctx, prompt_len, max_len - prompt_len, max_len);
}

/// Refuses what the cache could never hold, even alone.
void Engine::Impl::check_fits(const Request& request, int64_t max_len) const {
  const GenerationConfig& config = request.config;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  const int64_t width =
      config.num_beams > 1 ? config.num_beams : (config.is_contrastive() ? config.top_k : 1);
  int64_t need = scheduler_->pages_at_worst(prompt_len, max_len, width);
  if (config.guidance_scale != 1) {
    const int64_t negative =
        std::max<int64_t>(1, static_cast<int64_t>(request.negative_prompt.size()));
    need += scheduler_->pages_at_worst(negative, negative + max_len - prompt_len, 1);
  }
  if (need <= scheduler_->n_pages()) return;
  const int64_t page = scheduler_->page_tokens();
  fail(ErrorKind::kInvalidArgument, "engine",
       "request: expected to fit the KV cache of {} tokens, got up to {} ({} prompt, {} new, {} "
       "sequences)",
       scheduler_->n_pages() * page, need * page, prompt_len, max_len - prompt_len, width);
}

RequestId Engine::Impl::submit(Request request) {
  check_request(request);
  const int64_t max_len = max_length_of(request);
  check_fits(request, max_len);
  const RequestId id = next_id_++;
  auto active = std::make_unique<ActiveRequest>(std::move(request));
  const Request& own = active->request;
  active->context = std::unique_ptr<DecodeContext>(new DecodeContext{
      id, own, *scheduler_,
      make_pipeline(own.config, own.prompt, max_len, usable_vocab_, own.processors), max_len,
      vocab_, tokenizer_});
  active->submitted = ActiveRequest::Clock::now();
  active->result.timings.n_prompt = static_cast<int64_t>(own.prompt.size());
  make_decoders(*active);
  active_.emplace(id, std::move(active));
  return id;
}

void Engine::Impl::make_decoders(ActiveRequest& active) {
  const GenerationConfig& config = active.request.config;
  if (config.num_beams > 1) {
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
  active.prompt_seq = active.decoders[0]->sequences()[0];
  scheduler_->set_logits_from(active.prompt_seq, 0);
}

void Engine::Impl::cancel(RequestId id) {
  if (const auto it = active_.find(id); it != active_.end()) it->second->cancelled = true;
}

}  // namespace qw
