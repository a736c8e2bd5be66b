#include "engine/engine.h"

#include <algorithm>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/logits_math.h"
#include "engine/sampler.h"

namespace qw {

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

std::string_view client_name_of(FinishReason reason) {
  return name_of(reason == FinishReason::kEos ? FinishReason::kStop : reason);
}

int64_t trained_context(const ModelConfig& config) {
  if (config.rope.scaling == RopeScaling::kNone) return config.max_positions;
  // YaRN's factor is over the original length; a file may already state the extended maximum.
  const int64_t original = config.rope.original_max_positions > 0
                               ? config.rope.original_max_positions
                               : config.max_positions;
  const auto scaled = static_cast<int64_t>(static_cast<double>(original) * config.rope.factor);
  return std::max(config.max_positions, scaled);
}

int64_t step_logit_rows(const EngineOptions& options) {
  return std::max(options.logit_rows, options.n_slots);
}

Engine::Engine(Model& model, std::shared_ptr<const Tokenizer> tokenizer,
               const EngineOptions& options, Model* draft)
    : impl_(std::make_unique<Impl>(model, std::move(tokenizer), options, draft)) {}
Engine::~Engine() = default;

const EngineOptions& Engine::options() const {
  return impl_->options();
}
int64_t Engine::kv_bytes() const {
  return impl_->kv_bytes();
}
RequestId Engine::submit(Request request) {
  return impl_->submit(std::move(request));
}
void Engine::cancel(RequestId id) {
  impl_->cancel(id);
}
std::vector<Event> Engine::step() {
  return impl_->step();
}
bool Engine::idle() const {
  return impl_->idle();
}
bool Engine::stalled() const {
  return impl_->stalled();
}
Engine::Load Engine::load() const {
  return impl_->load();
}
bool Engine::has_started(RequestId id) const {
  return impl_->has_started(id);
}

int32_t Engine::install_adapter(std::unique_ptr<StagedAdapter> staged) {
  return impl_->model().install_adapter(std::move(staged));
}
void Engine::remove_adapter(int32_t id, Model::OnRemoved on_removed) {
  impl_->model().remove_adapter(id, std::move(on_removed));
}

RequestResult Engine::generate(Request request, const EventCallback& on_event,
                               const CancelFlag* cancel) {
  return impl_->generate(std::move(request), on_event, cancel);
}

void Engine::score(std::span<const int32_t> ids, RowsCallback on_rows,
                   const ScoreOptions& options) {
  impl_->score(ids, on_rows, options);
}

std::vector<TokenLogprobs> Engine::score_logprobs(std::span<const int32_t> ids, int64_t top,
                                                  const ScoreOptions& options) {
  if (top < 0 || top > impl_->vocab()) {
    fail(ErrorKind::kInvalidArgument, "engine", "score: expected 0 to {} top tokens, got {}",
         impl_->vocab(), top);
  }
  std::vector<TokenLogprobs> out;
  const auto vocab = static_cast<size_t>(impl_->vocab());
  score(
      ids,
      [&](int64_t row, int64_t n, const float* logits) {
        for (int64_t i = 0; i < n; ++i) {
          if (row + i + 1 >= static_cast<int64_t>(ids.size())) return;
          const std::span<const float> values(logits + static_cast<size_t>(i) * vocab, vocab);
          out.push_back(token_logprobs(values, ids[static_cast<size_t>(row + i + 1)], top));
        }
      },
      options);
  return out;
}

int64_t Engine::free_pages() const {
  return impl_->scheduler().n_free_pages();
}
int64_t Engine::kept_pages() const {
  return impl_->scheduler().n_kept_pages();
}
void Engine::drop_kept_pages() {
  impl_->drop_kept_pages();
}
Engine::Held Engine::hold(const BlockScope& scope, std::span<const int32_t> tokens, size_t which) {
  return impl_->hold(scope, tokens, which);
}
void Engine::read_held(int64_t hold, int64_t first, std::span<std::byte> out) const {
  impl_->read_held(hold, first, out);
}
void Engine::let_go(int64_t hold) {
  impl_->let_go(hold);
}
int64_t Engine::import_pages(const BlockScope& scope, const KvSequence& sequence, size_t which,
                             int64_t first, std::span<const std::byte> pages) {
  return impl_->import_pages(scope, sequence, which, first, pages);
}
bool Engine::takes(const BlockScope& scope, const KvSequence& sequence, size_t which) const {
  return impl_->takes(scope, sequence, which);
}
int64_t Engine::forget(const BlockScope& scope, std::span<const int32_t> tokens) {
  return impl_->forget(scope, tokens);
}
std::optional<PrefixTierStats> Engine::disk_stats() const {
  return impl_->disk_stats();
}
int64_t Engine::n_pages() const {
  return impl_->scheduler().n_pages();
}
int64_t Engine::touched_pages() const {
  return impl_->scheduler().n_touched_pages();
}
int Engine::page_tokens() const {
  return impl_->scheduler().page_tokens();
}
int64_t Engine::n_preemptions() const {
  return impl_->scheduler().n_preemptions();
}
int64_t Engine::usable_vocab() const {
  return impl_->usable_vocab();
}

}  // namespace qw
