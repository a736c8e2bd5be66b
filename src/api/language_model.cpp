// The public API over the engine: std types in, std types out, one lock per model.
//
// Level 7 (api).
#include <fmt/format.h>

#include <exception>
#include <mutex>
#include <new>
#include <nlohmann/json.hpp>

#include "api/open_options.h"
#include "base/error.h"
#include "engine/bundle.h"
#include "qianwen/qianwen.h"
#include "text/tokenizer.h"

namespace qw {

struct LanguageModel::Impl {
  std::unique_ptr<LoadedModel> loaded;
  std::unique_ptr<Engine> engine;
  std::mutex mutex;  // calls that compute take turns

  const Tokenizer& tokenizer() const {
    if (!loaded->tokenizer) {
      fail(ErrorKind::kUnsupported, "api",
           "tokenizer: expected one in the checkpoint, got none ({})",
           printable(loaded->checkpoint->path, 4096));
    }
    return *loaded->tokenizer;
  }
};

namespace {

template <typename T>
void apply(GenerationConfig& config, std::string_view name, const std::optional<T>& value) {
  if (value) config.set(name, nlohmann::ordered_json(*value), ParameterSource::kUser);
}

GenerationConfig config_of(GenerationConfig config, const GenerateSettings& settings) {
  apply(config, "max_new_tokens", settings.max_new_tokens);
  apply(config, "min_new_tokens", settings.min_new_tokens);
  apply(config, "do_sample", settings.do_sample);
  apply(config, "temperature", settings.temperature);
  apply(config, "top_p", settings.top_p);
  apply(config, "min_p", settings.min_p);
  apply(config, "typical_p", settings.typical_p);
  apply(config, "repetition_penalty", settings.repetition_penalty);
  apply(config, "presence_penalty", settings.presence_penalty);
  apply(config, "frequency_penalty", settings.frequency_penalty);
  apply(config, "top_k", settings.top_k);
  apply(config, "no_repeat_ngram_size", settings.no_repeat_ngram_size);
  apply(config, "num_beams", settings.num_beams);
  apply(config, "length_penalty", settings.length_penalty);
  apply(config, "prompt_lookup_num_tokens", settings.prompt_lookup_num_tokens);
  apply(config, "num_assistant_tokens", settings.num_assistant_tokens);
  apply(config, "logprobs", settings.logprobs);
  apply(config, "num_return_sequences", std::optional(settings.num_return_sequences));
  for (const std::string& stop : settings.stop)
    config.set_text("stop_strings", stop, ParameterSource::kUser);
  if (settings.ignore_eos) config.set_text("ignore_eos", "true", ParameterSource::kUser);
  config.seed = settings.seed;
  return config;
}

TokenLogprob public_logprob(const Logprob& logprob, const Tokenizer* tokenizer) {
  TokenLogprob out{logprob.id, "", static_cast<double>(logprob.logprob)};
  if (tokenizer != nullptr) out.text = tokenizer->decode(std::vector<int32_t>{logprob.id});
  return out;
}

Generation public_generation(const Completion& completion, const Tokenizer* tokenizer) {
  Generation out;
  out.text = completion.text;
  out.ids = completion.ids;
  out.finish_reason = client_name_of(completion.finish_reason);
  for (const TokenLogprobs& entry : completion.logprobs) {
    out.logprobs.push_back(public_logprob(entry.chosen, tokenizer));
    auto& top = out.top_logprobs.emplace_back();
    for (const Logprob& candidate : entry.top)
      top.push_back(public_logprob(candidate, tokenizer));
  }
  return out;
}

std::shared_ptr<const nlohmann::ordered_json> messages_json(const std::vector<Message>& messages) {
  auto json = nlohmann::ordered_json::array();
  for (const Message& message : messages)
    json.push_back({{"role", message.role}, {"content", message.content}});
  return std::make_shared<const nlohmann::ordered_json>(std::move(json));
}

void check_ids(const std::vector<int32_t>& ids, int64_t vocab) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab) {
      fail(ErrorKind::kInvalidArgument, "api", "token id: expected 0 to {}, got {}", vocab - 1, id);
    }
  }
}

/// Runs the body of a public function, which throws qw::Error only.
template <typename Body>
auto guarded(const Body& body) {
  try {
    return body();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    fail(ErrorKind::kOutOfMemory, "api", "memory: expected enough for this call, got none");
  } catch (const std::exception& error) {
    fail(ErrorKind::kInternal, "api", "call: expected no unforeseen error, got: {}",
         printable(error.what(), 400));
  }
}

/// Hands text to the user's callback. What that throws is kept from the engine: it cancels the
/// request, and rethrow() throws it again when the engine is done.
class Streamer {
 public:
  explicit Streamer(const StreamCallback& on_piece) : on_piece_(on_piece) {}

  void take(const Event& event) {
    const bool has_text = event.kind == Event::Kind::kToken && event.index == 0;
    if (!on_piece_ || !has_text || event.text.empty() || cancel_.cancelled()) return;
    try {
      if (!on_piece_(event.text)) cancel_.cancel();
    } catch (...) {
      thrown_ = std::current_exception();
      cancel_.cancel();
    }
  }
  const CancelFlag* cancel() const { return &cancel_; }
  void rethrow() const {
    if (thrown_) std::rethrow_exception(thrown_);
  }

 private:
  const StreamCallback& on_piece_;
  CancelFlag cancel_;
  std::exception_ptr thrown_;
};

/// Runs one request and streams the text of its first answer.
std::vector<Generation> run(Engine& engine, const LoadedModel& loaded, std::vector<int32_t> prompt,
                            const GenerationConfig& config, Streamer& streamer) {
  Request request;
  request.prompt = std::move(prompt);
  request.config = config;
  request.adapter = loaded.adapter;
  const RequestResult result = engine.generate(
      std::move(request), [&](const Event& event) { streamer.take(event); }, streamer.cancel());
  std::vector<Generation> generations;
  for (const Completion& completion : result.completions) {
    generations.push_back(public_generation(completion, loaded.tokenizer.get()));
  }
  return generations;
}

void require_one_sequence(const GenerateSettings& settings) {
  if (settings.num_return_sequences == 1) return;
  fail(ErrorKind::kInvalidArgument, "api",
       "num_return_sequences: expected 1 of a function that returns one answer, got {} (generate() "
       "returns several)",
       settings.num_return_sequences);
}

}  // namespace

LanguageModel::LanguageModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LanguageModel::~LanguageModel() = default;
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;
LanguageModel& LanguageModel::operator=(LanguageModel&&) noexcept = default;

LanguageModel LanguageModel::load(const std::string& path, const LoadSettings& settings) {
  return guarded([&] {
    auto impl = std::make_unique<Impl>();
    impl->loaded = open_model(path, open_options(settings));
    impl->engine = impl->loaded->make_engine();
    return LanguageModel(std::move(impl));
  });
}

std::vector<int32_t> LanguageModel::tokenize(std::string_view text, bool parse_special) const {
  EncodeOptions options;
  options.parse_special = parse_special;
  return guarded([&] { return impl_->tokenizer().encode(text, options); });
}

std::string LanguageModel::detokenize(const std::vector<int32_t>& ids, bool skip_special) const {
  return guarded([&] {
    check_ids(ids, vocab_size());
    return impl_->tokenizer().decode(ids, skip_special);
  });
}

std::string LanguageModel::render(const std::vector<Message>& messages,
                                  bool add_generation_prompt) const {
  return guarded([&] {
    ChatInput input;
    input.messages = messages_json(messages);
    input.add_generation_prompt = add_generation_prompt;
    return impl_->loaded->encode_chat(input).text;
  });
}

Generation LanguageModel::chat(const std::vector<Message>& messages,
                               const GenerateSettings& settings, const StreamCallback& on_piece) {
  Streamer streamer(on_piece);
  std::vector<Generation> answers = guarded([&] {
    require_one_sequence(settings);
    const std::lock_guard lock(impl_->mutex);
    ChatInput input;
    input.messages = messages_json(messages);
    const GenerationConfig config = config_of(impl_->loaded->chat_generation(), settings);
    return run(*impl_->engine, *impl_->loaded, impl_->loaded->encode_chat(input).ids, config,
               streamer);
  });
  streamer.rethrow();
  return std::move(answers.at(0));
}

Generation LanguageModel::complete(std::string_view prompt, const GenerateSettings& settings,
                                   const StreamCallback& on_piece) {
  Streamer streamer(on_piece);
  std::vector<Generation> answers = guarded([&] {
    require_one_sequence(settings);
    const std::lock_guard lock(impl_->mutex);
    const GenerationConfig config = config_of(impl_->loaded->generation, settings);
    return run(*impl_->engine, *impl_->loaded, impl_->tokenizer().encode(prompt), config, streamer);
  });
  streamer.rethrow();
  return std::move(answers.at(0));
}

std::vector<Generation> LanguageModel::generate(const std::vector<int32_t>& ids,
                                                const GenerateSettings& settings) {
  const StreamCallback nobody;
  Streamer streamer(nobody);
  return guarded([&] {
    const std::lock_guard lock(impl_->mutex);
    const GenerationConfig config = config_of(impl_->loaded->generation, settings);
    return run(*impl_->engine, *impl_->loaded, ids, config, streamer);
  });
}

std::vector<double> LanguageModel::score(const std::vector<int32_t>& ids) {
  return guarded([&] {
    const std::lock_guard lock(impl_->mutex);
    ScoreOptions options;
    options.adapter = impl_->loaded->adapter;
    std::vector<double> logprobs;
    for (const TokenLogprobs& entry : impl_->engine->score_logprobs(ids, 0, options)) {
      logprobs.push_back(static_cast<double>(entry.chosen.logprob));
    }
    return logprobs;
  });
}

int64_t LanguageModel::vocab_size() const {
  return impl_->loaded->config().vocab;
}
int64_t LanguageModel::context_length() const {
  return impl_->engine->options().ctx;
}

std::string_view version() noexcept {
  return QIANWEN_VERSION;
}

}  // namespace qw
