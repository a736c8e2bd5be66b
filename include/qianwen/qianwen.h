// Qianwen as a library: load a Qwen1.5 checkpoint, tokenize, render, generate, score.
//
// The public API. Std types only; everything else is behind a pointer. All functions report
// failure by throwing qw::Error (qianwen/error.h) and nothing else; the kinds each may throw are
// documented, and any may throw kOutOfMemory, or kInternal for a bug of ours. What a callback of
// yours throws passes through unchanged. A LanguageModel may be used from several threads; calls
// that compute take turns.
//
// Checkpoint files are mapped, and stay in use while the model lives. Loading the first one
// installs a handler for SIGBUS in the process, so that a file that is cut or lost under the
// mapping becomes an error (kIo) of the next call; faults at other addresses go on to the handler
// that was installed before. A handler that you install later replaces ours, and with it this
// protection.
//
//   auto model = qw::LanguageModel::load("models/qianwen-mini-chat");
//   auto answer = model.chat({{"user", "What is the capital of Japan?"}}, {});
//   std::cout << answer.text << '\n';
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qianwen/error.h"

namespace qw {

/// How a checkpoint is opened. Every default is what the command line uses.
struct LoadSettings {
  std::string device = "cpu";        // or "reference": scalar f32
  int threads = 0;                   // 0: physical cores this process may use; at most 1024
  std::string isa;                   // cap on the instruction set, "" for none
  std::string activations = "auto";  // auto, int8, bf16, f32: what linear layers round to
  std::string kv_type;       // f16, bf16, f32, q8_0, q4_0; "": f16, or f32 where all else is f32
  int64_t context = 0;       // tokens; 0: the model's own, or the largest that fits
  int64_t chunk = 0;         // prompt tokens per step, which change no result; 0: 512
  std::string packed_cache;  // directory that keeps weights as they are packed; "": none
  /// Directory that keeps keys and values of what was computed, for later processes; "": none. All
  /// files together take at most prefix_cache_bytes (0: 10 GiB, or half of what is free there).
  std::string prefix_cache_dir;
  int64_t prefix_cache_bytes = 0;
  bool prefix_cache = true;    // keep prompts, so that what begins like them is computed faster
  bool deterministic = false;  // refuse kernels whose bits could depend on the batch
  std::vector<std::pair<std::string, double>> adapters;  // LoRA path and scale
  std::string draft_model;  // a smaller checkpoint that guesses ahead: faster, the same tokens
  bool quiet = true;        // no progress on stderr
};

/// A message of a conversation. role: "system", "user", "assistant" (or what the template knows).
struct Message {
  std::string role;
  std::string content;
};

/// Parameters of generation, named as in Transformers' generate(). Empty optionals take the
/// checkpoint's generation_config.json.
struct GenerateSettings {
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> min_new_tokens;
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, min_p, typical_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<int64_t> top_k, no_repeat_ngram_size;
  std::optional<int64_t> num_beams;
  std::optional<int64_t> prompt_lookup_num_tokens;  // guesses per step: faster, the same tokens
  std::optional<int64_t> num_assistant_tokens;      // the same of the draft model; 0: none
  std::optional<double> length_penalty;
  int64_t num_return_sequences = 1;
  std::vector<std::string> stop;  // generation ends before any of these texts
  bool ignore_eos = false;
  uint64_t seed = 0;            // same request, same seed, same build: same output
  std::optional<int> logprobs;  // log-probability of each token, and of so many best ones
};

struct TokenLogprob {
  int32_t id = 0;
  std::string text;
  double logprob = 0;
};

/// One finished answer.
struct Generation {
  std::string text;  // without the stop string or end token
  std::vector<int32_t> ids;
  std::string finish_reason;                            // "stop", "length", "cancelled"
  std::vector<TokenLogprob> logprobs;                   // of the chosen tokens, if asked for
  std::vector<std::vector<TokenLogprob>> top_logprobs;  // of the best, if asked for
};

/// Called with each piece of text as it becomes final (never half a character).
/// Return false to cancel; the answer so far is returned with finish_reason "cancelled".
using StreamCallback = std::function<bool(std::string_view piece)>;

class LanguageModel {
 public:
  /// Opens a checkpoint directory, .safetensors or .gguf file and packs its weights.
  /// Throws kNotFound, kCorrupt, kUnsupported, kOutOfMemory, kIo, kInvalidArgument (settings; a
  /// draft model with another vocabulary).
  static LanguageModel load(const std::string& path, const LoadSettings& settings = {});
  ~LanguageModel();
  LanguageModel(LanguageModel&&) noexcept;
  LanguageModel& operator=(LanguageModel&&) noexcept;

  /// Text to token ids. Special-token strings become special tokens only if `parse_special`.
  /// Throws kInvalidArgument for text that is not UTF-8 (naming the byte), kUnsupported for a
  /// checkpoint without a tokenizer.
  std::vector<int32_t> tokenize(std::string_view text, bool parse_special = false) const;
  /// Token ids to text; incomplete characters become U+FFFD. Throws kInvalidArgument for an id
  /// outside [0, vocab_size).
  std::string detokenize(const std::vector<int32_t>& ids, bool skip_special = false) const;
  /// The conversation by the checkpoint's chat template, ready for an answer.
  /// Throws kInvalidArgument when the template raises an error.
  std::string render(const std::vector<Message>& messages, bool add_generation_prompt = true) const;

  /// Answers a conversation. Special-token strings in message contents stay plain text.
  /// Throws kInvalidArgument (parameters, among them num_return_sequences other than 1; a prompt
  /// that does not fit, with the numbers), kCorrupt (a value that is not finite, naming the layer),
  /// kIo (a file of the checkpoint was cut or lost since it was loaded).
  Generation chat(const std::vector<Message>& messages, const GenerateSettings& settings = {},
                  const StreamCallback& on_piece = {});
  /// Continues raw text. Throws as chat().
  Generation complete(std::string_view prompt, const GenerateSettings& settings = {},
                      const StreamCallback& on_piece = {});
  /// Continues token ids; as many results as num_return_sequences. Works without a tokenizer.
  /// Throws as chat().
  std::vector<Generation> generate(const std::vector<int32_t>& ids,
                                   const GenerateSettings& settings = {});

  /// log p(ids[i] | ids[0..i)) for i = 1 .. n-1, natural logarithm. Throws as chat().
  std::vector<double> score(const std::vector<int32_t>& ids);

  int64_t vocab_size() const;
  int64_t context_length() const;

 private:
  struct Impl;
  explicit LanguageModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// "0.1.0"
std::string_view version() noexcept;

}  // namespace qw
