// The engine: requests in, tokens out. Continuous batching over a paged KV cache on one thread.
//
// Level 6 (engine). One thread owns all state and calls submit(), step(), cancel(); generate() and
// score() are loops over them. Numeric contract: the tokens of a request depend on the request,
// its seed and the weights, not on batch mates, chunk sizes, threads, paging or preemption.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/function_ref.h"
#include "engine/block_scope.h"
#include "engine/generation_config.h"
#include "model/model.h"

namespace qw {

class LogitsProcessor;
class PrefixStore;
class StopStrings;
struct KvSequence;
class Tokenizer;

using RequestId = uint64_t;

enum class FinishReason {
  kEos,        // an end token
  kStop,       // a stop string
  kLength,     // max_new_tokens, max_length or the context
  kCancelled,  // cancel()
  kError,      // see Completion::error
};
std::string_view name_of(FinishReason reason);  // "eos", "stop", ...
/// What clients know: an end token is "stop" too.
std::string_view client_name_of(FinishReason reason);

struct Logprob {
  int32_t id = -1;
  float logprob = 0;  // natural logarithm
};

/// Log-probabilities at one position, of the raw distribution: log_softmax over all of the model's
/// logits, before any processor. `top` is descending, ties by lower id.
struct TokenLogprobs {
  Logprob chosen;
  int64_t rank = 0;  // of the chosen token, from 0
  std::vector<Logprob> top;
};

/// What becomes of a prompt's final hidden states: nothing, the last one, or their mean.
enum class Pooling { kNone, kLast, kMean };

struct Request {
  std::vector<int32_t> prompt;  // not empty (put bos_token_id in it where that is wanted)
  GenerationConfig config;
  int32_t adapter = -1;  // id from install_adapter; -1: none
  std::vector<int32_t>
      negative_prompt;              // guidance; empty: the prompt's last token, as Transformers
  bool skip_special_tokens = true;  // in text
  /// Not kNone: the request generates nothing and yields RequestResult::embedding.
  Pooling pooling = Pooling::kNone;
  /// When its turn comes, which changes no bit: clients share the machine by tokens, whoever asks
  /// for more; a lower priority goes first, before requests of other clients only where it may pass
  /// them (engine/fair_queue.h).
  std::string client;
  int64_t priority = 0;
  bool passes_others = true;
  /// Prefixes are shared, in memory and on disk, among requests with the same salt. "": the one
  /// that all without share. Changes no bit.
  std::string cache_salt;
  /// config.stop_strings as an automaton, which requests may share; null: the engine makes it.
  std::shared_ptr<const StopStrings> stop;
  /// Stop strings count only beyond so many tokens of the answer: where their last character is a
  /// later token's (vLLM; Transformers looks for them from the first token on). But the first
  /// n_turn_ends of config.stop_strings, which end a turn that is over, always count.
  int64_t stop_after = 0;
  size_t n_turn_ends = 0;
  /// More processors, after the configured ones and before the warpers (grammars enter here).
  std::vector<std::shared_ptr<LogitsProcessor>> processors;
};

inline BlockScope scope_of(const Request& request) {
  return {request.adapter, hash_salt(request.cache_salt)};
}

struct Completion {
  int index = 0;
  std::vector<int32_t> ids;  // new tokens, an end token included
  std::string text;  // without end token; cut before a stop string or token unless asked to keep it
  FinishReason finish_reason = FinishReason::kLength;
  std::string stop_string;              // the one found (kStop)
  std::optional<int32_t> stop_token;    // the one of stop_token_ids that ended it (kEos)
  std::vector<TokenLogprobs> logprobs;  // one per id when asked for
  std::optional<double> score;          // beam search: sequences_scores
  std::string error;                    // kError
  ErrorKind error_kind = ErrorKind::kInternal;
};

struct Timings {
  /// Until the first step; from there until the first token is chosen (of every beam); the rest.
  double queue_s = 0, prefill_s = 0, decode_s = 0;
  int64_t n_prompt = 0, n_generated = 0;  // tokens
  int64_t n_decoded = 0;                  // of n_generated, those after the first of each answer
  int64_t n_cached = 0;                   // of n_prompt, those that were in the KV cache already
  int64_t n_drafted = 0, n_accepted = 0;  // guessed ahead, and of these proved right
};

struct RequestResult {
  std::vector<Completion> completions;  // num_return_sequences of them
  /// prompt_logprobs: one entry per prompt token but the first.
  std::vector<TokenLogprobs> prompt_logprobs;
  std::vector<float> embedding;  // [hidden], not normalised; pooling
  Timings timings;
};

/// What step() reports. A request gives any number of kToken, one kCompletion per answer, and
/// exactly one kRequest, its last event. One that wants prompt_logprobs gives one kPrompt when they
/// are there: of several answers, some may have begun by then.
struct Event {
  enum class Kind { kPrompt, kToken, kCompletion, kRequest } kind = Kind::kToken;
  RequestId request = 0;
  int index = 0;       // of the completion
  int32_t token = -1;  // kToken; -1: text only (released by the detokenizer or stop strings)
  std::string text;    // text that is certain now; may be empty
  std::optional<TokenLogprobs> logprobs;
  FinishReason finish_reason = FinishReason::kLength;  // kCompletion
  std::string stop_string;                             // kCompletion: the one found (kStop)
  std::optional<int32_t> stop_token;                   // kCompletion: as in Completion
  int64_t n_cached = 0;  // kToken, kCompletion: as in Timings, which come at the end only
  /// kPrompt: as in RequestResult.
  std::shared_ptr<const std::vector<TokenLogprobs>> prompt_logprobs;
  std::shared_ptr<const RequestResult> result;  // kRequest; for kCompletion null
};

struct EngineOptions {
  int64_t ctx = 0;              // tokens of one sequence, prompt and answer. 0: the model's
  std::string kv_type = "f16";  // f32, f16, bf16, q8_0, q4_0
  int64_t n_slots = 1;          // sequences at the same time; more wait
  int64_t kv_tokens = 0;        // size of the cache over all requests. 0: ctx * n_slots
  int64_t chunk_tokens = 512;   // at most so many tokens per step
  /// At most so many rows of logits at a time, but one for every slot: memory is planned for them.
  int64_t logit_rows = 64;
  /// What requests may take beyond the plan, all together: rows of beams, hidden states of
  /// contrastive search. nullopt: what the machine has when one is submitted.
  std::optional<int64_t> spare_bytes;
  /// Keep the KV of sequences that have ended while there is room, so that a request that starts
  /// with the same tokens (the next turn of a conversation) computes only the rest. Changes no bit.
  /// Off with dynamic NTK scaling, whose keys depend on the prompt's length.
  bool prefix_cache = true;
  /// A tier on disk below it: null: none. The store's hash is the first of the model's
  /// LoadOptions::content_hashes.
  std::shared_ptr<PrefixStore> prefix_store;
  bool check_integrity = false;  // after every step; on in debug builds
};

/// What the tier on disk has done, beside what its store says (PrefixStoreStats): tokens of full
/// pages that memory did not hold, looked up there, and found; blocks that were not written because
/// they had left memory before.
struct PrefixTierStats {
  int64_t n_queried_tokens = 0, n_hit_tokens = 0;
  int64_t n_dropped_blocks = 0;
};

/// Rows of logits that a step may have.
int64_t step_logit_rows(const EngineOptions& options);

/// The context that the model's positions were made for: max_position_embeddings, times the factor
/// of its rope scaling.
int64_t trained_context(const ModelConfig& config);

/// Called for every event of a generate() call.
using EventCallback = std::function<void(const Event&)>;

struct ScoreOptions {
  int32_t adapter = -1;
  int64_t first_row = 0;                // rows before it are not wanted
  ForwardObserver* observer = nullptr;  // sees the chunks in order
  const CancelFlag* cancel = nullptr;
};
/// Rows [row, row + n) of the logits [T, vocab] of a teacher-forced pass.
using RowsCallback = FunctionRef<void(int64_t row, int64_t n, const float* logits)>;

/// One thread at a time may use an engine, and one all engines of a model: the model and its
/// backend keep scratch memory. The backend's own threads are its affair.
class Engine {
 public:
  /// tokenizer: null for a checkpoint without one (ids only: text stays empty, stop strings are
  /// refused). draft: null, or a model with the same vocabulary that guesses ahead
  /// (GenerationConfig::num_assistant_tokens), with a cache of its own for as many tokens. The
  /// models must outlive the engine. Errors: invalid_argument, out_of_memory.
  Engine(Model& model, std::shared_ptr<const Tokenizer> tokenizer, const EngineOptions& options,
         Model* draft = nullptr);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineOptions& options() const;  // with the zeros filled in
  int64_t kv_bytes() const;

  /// Accepts a request or throws, with the numbers: invalid_argument (config out of range, ids
  /// outside the vocabulary, adapter that is not loaded, empty prompt, what does not fit the
  /// context or the cache), out_of_memory (beams too wide for spare_bytes). Without a length that
  /// the user set the answer may be as long as context and cache allow; where the cache allows
  /// less, a warning says so.
  RequestId submit(Request request);
  /// Ends a request at the next step with what it has; unknown or finished ids are ignored.
  void cancel(RequestId id);
  /// One forward pass (or less) and what came of it. No work: no events. Nothing that one request
  /// brings about (a processor that throws, a value that is not finite) touches another.
  std::vector<Event> step();
  /// Nothing to do: neither requests nor pages that are to be written to disk.
  bool idle() const;
  /// Whether the last step() found that all requests have to wait for pages that are held: another
  /// does nothing until some have been let go of, or a request comes or is cancelled.
  bool stalled() const;
  /// Requests under way: those of which something was computed, and those that wait.
  struct Load {
    int64_t n_running = 0, n_waiting = 0;
  };
  Load load() const;
  /// Whether something of it was computed; false for unknown or finished ones.
  bool has_started(RequestId id) const;

  /// Adapters while requests are under way: those of Model, which stages them on other threads.
  /// One that is removed is refused to new requests, and stays for those that use it already.
  int32_t install_adapter(std::unique_ptr<StagedAdapter> staged);
  void remove_adapter(int32_t id, Model::OnRemoved on_removed = {});

  /// submit() and step() until the request ends; other requests go on meanwhile, their events are
  /// kept for the next step(). Returns also when cancelled (finish reason kCancelled); an answer
  /// that ends in kError is thrown as the Error it was. What the callback throws ends the request
  /// and goes on to the caller.
  RequestResult generate(Request request, const EventCallback& on_event = {},
                         const CancelFlag* cancel = nullptr);

  /// Teacher-forced logits of `ids` in chunks, never T x vocab at once; every row from
  /// options.first_row is given to the callback exactly once, in order. The engine must be idle,
  /// and hold no pages.
  /// Errors: invalid_argument (empty, ids outside the vocabulary, longer than the context).
  void score(std::span<const int32_t> ids, RowsCallback on_rows, const ScoreOptions& options = {});
  /// Log-probability of every token but the first, and the `top` most likely at its place.
  std::vector<TokenLogprobs> score_logprobs(std::span<const int32_t> ids, int64_t top = 0,
                                            const ScoreOptions& options = {});

  /// Number of pages without a holder and in all; equal when idle (a leak otherwise). Of the
  /// former, kept_pages() hold prefixes of sequences that have ended; they make room when pages are
  /// wanted.
  int64_t free_pages() const;
  int64_t kept_pages() const;
  /// Forgets them. Changes no bit of any answer, only how much of it is computed again.
  void drop_kept_pages();

  // Keys and values of kept tokens, copied out and in over several steps. `which`: among
  // LoadOptions::content_hashes.

  struct Held;  // engine/kv_sequence_file.h
  /// Holds the pages of what is kept of `tokens`, from the first on, until let_go(): they stay as
  /// they are while others go on. Requests that find too few pages beside them wait until then.
  /// Errors: unsupported, when weights or adapter have no name.
  Held hold(const BlockScope& scope, std::span<const int32_t> tokens, size_t which);
  /// Copies pages out, from number `first` on: as many as `out` has room for. Errors:
  /// invalid_argument, when they are not held any more.
  void read_held(int64_t hold, int64_t first, std::span<std::byte> out) const;
  /// What is not held any more is ignored.
  void let_go(int64_t hold);
  /// Makes kept pages of those of a sequence from number `first` on, as far as there is room and
  /// those before are kept. Returns how many tokens of it, from the first one on, are kept then.
  /// Errors: invalid_argument, when it is not of this model, scope, cache type and program.
  int64_t import_pages(const BlockScope& scope, const KvSequence& sequence, size_t which,
                       int64_t first, std::span<const std::byte> pages);
  /// Whether import_pages() would take it.
  bool takes(const BlockScope& scope, const KvSequence& sequence, size_t which) const;

  /// Forgets what is kept of `tokens` and of nothing else; returns how many tokens that were.
  int64_t forget(const BlockScope& scope, std::span<const int32_t> tokens);
  /// Of the tier on disk; nothing: there is none.
  std::optional<PrefixTierStats> disk_stats() const;
  int64_t n_pages() const;
  /// Of these, those that have ever held something. The others are promised and take no memory yet.
  int64_t touched_pages() const;
  int page_tokens() const;
  /// How often a sequence lost its pages and was computed again.
  int64_t n_preemptions() const;
  /// Ids >= this are never produced: the tokenizer's size, or the vocabulary's without one.
  int64_t usable_vocab() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qw
