// A checkpoint opened for use: weights, tokenizer, chat template and generation defaults in one.
//
// Level 6 (engine). The one place where the pieces are glued together: chat, generate, server,
// evaluation and the public API all start here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/cancel.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/generation_config.h"
#include "model/model.h"

namespace qw {

class ChatTemplate;
class Tokenizer;

struct OpenOptions {
  std::string device = "cpu";  // "cpu", "reference"
  BackendOptions backend;      // threads, ISA, activations, deterministic
  EngineOptions engine;        // ctx 0: the model's, or the largest that fits (said as a warning)
  std::vector<AdapterSpec> adapters;  // all of them together are the model's adapter
  std::string draft_model;            // checkpoint of a model that guesses ahead; "": none
  std::string prefix_cache_dir;       // where keys and values stay beyond the process; "": nowhere
  int64_t prefix_cache_bytes = 0;     // of all files there. 0: PrefixStoreOptions::max_bytes
  std::string slot_save_path;         // directory of sequences saved by name; "": none
  int64_t memory_bytes = 0;           // what may be used in all. 0: the machine's available memory
  int64_t promised_bytes = 0;         // of that, what other models here will yet take
  /// With ctx 0: whether a context is chosen that fits beside what is promised to others. Without,
  /// it is chosen as if that were free, so that there is too little until the others have gone.
  bool context_yields = true;
  bool quiet = false;                 // no progress on stderr
  const CancelFlag* cancel = nullptr;
  /// Things the user should know, a sentence each; null: logged as warnings.
  std::function<void(const std::string&)> on_warning;
};

/// Memory by kind, before anything is loaded. Bytes.
struct MemoryPlan {
  int64_t weights_bytes = 0;      // as the backend packs them, adapters included
  int64_t kv_bytes = 0;           // of `kv_tokens` in the cache
  int64_t activations_bytes = 0;  // of a step of chunk_tokens
  int64_t logits_bytes = 0;
  int64_t working_bytes = 0;       // the backend's scratch
  int64_t program_bytes = 0;       // code, libraries, tokenizer: what the process holds at planning
  int64_t draft_bytes = 0;         // of a draft model: weights, cache, activations, logits, scratch
  int64_t file_pages_bytes = 0;    // of the model files; the system takes them back when it must
  int64_t total_bytes = 0;         // all of these: the resident peak
  int64_t needed_bytes = 0;        // without file pages: refused if more than available_bytes
  int64_t available_bytes = 0;     // to this process in all
  int64_t ctx = 0;                 // the context in force
  int64_t kv_tokens = 0;           // ctx * n_slots
  int64_t trained_ctx = 0;         // the model's max_position_embeddings (rope scaling included)
  int64_t largest_ctx = 0;         // that fits available_bytes with n_slots slots
  int64_t kv_bytes_per_token = 0;  // with the draft model's
};

/// Plans without loading. options.engine.ctx 0: min(trained_ctx, largest_ctx). draft: null, or the
/// draft model's checkpoint. Errors: out_of_memory, with the numbers, when the context asked for
/// (or the weights) cannot fit and `enforce` is set.
MemoryPlan plan_memory(const Checkpoint& checkpoint, const ModelConfig& config,
                       const Backend& backend, const OpenOptions& options, bool enforce,
                       const Checkpoint* draft = nullptr);

/// A conversation to render: the members of the `render` command's input. `messages` is an array of
/// {"role", "content", ...}.
struct ChatInput {
  std::shared_ptr<const nlohmann::ordered_json> messages;   // required
  std::shared_ptr<const nlohmann::ordered_json> tools;      // null: none
  std::shared_ptr<const nlohmann::ordered_json> documents;  // null: none
  std::shared_ptr<const nlohmann::ordered_json> variables;  // null, or an object of extra variables
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  std::string now;  // ISO local time for strftime_now; empty: the clock
  /// Special-token strings inside message contents become special tokens. Off: plain text.
  bool parse_special_in_content = false;
  const CancelFlag* cancel = nullptr;  // ends the encoding; null: nothing does
};

struct EncodedChat {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<std::pair<size_t, size_t>>
      assistant_ranges;  // byte ranges of `text` ({% generation %})
};

/// Everything but the weights: what tokenize, render, inspect and plan need. Cheap to open.
struct ModelFiles {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Tokenizer> tokenizer;         // null: the checkpoint has none
  std::shared_ptr<const ChatTemplate> chat_template;  // null: no tokenizer, or broken
  std::string chat_template_origin;   // "checkpoint", or "default" (Qwen1.5's own, for want of one)
  std::string chat_template_error;    // why chat_template is null although there is one
  GenerationConfig generation;        // the checkpoint's defaults
  std::vector<std::string> warnings;  // met on the way, a sentence each

  /// Renders and encodes. Special-token strings in message contents stay ordinary text unless
  /// input.parse_special_in_content. Error{kNotFound} without tokenizer; errors of the template.
  EncodedChat encode_chat(const ChatInput& input) const;
  /// generation, with the end tokens of chat: every id of generation_config and <|im_end|>.
  GenerationConfig chat_generation() const;
};

/// Reads tokenizer, template and generation_config of a directory, a single .safetensors or a
/// GGUF file. weights_required false: a directory with tokenizer files only is fine.
/// Errors: not_found, corrupt, unsupported, io.
ModelFiles open_files(const std::string& path, bool weights_required = true);

/// open_files for a model that guesses ahead: its errors say that it is the draft model's files
/// that are meant.
ModelFiles open_draft_files(const std::string& path);

/// Whether one model can guess what another says: their ids mean the same, up to padding behind the
/// tokenizer's. Errors: invalid_argument, naming both checkpoints and the first difference.
void check_draft_vocabulary(const ModelFiles& draft, const ModelConfig& draft_config,
                            const ModelFiles& answering, const ModelConfig& answering_config);

struct LoadedModel : ModelFiles {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<Model> draft_model;  // null: none. On the same backend, so the same threads
  int32_t adapter = -1;                // for Request::adapter: of OpenOptions::adapters
  MemoryPlan plan;
  EngineOptions engine_options;  // with the context that was planned
  /// Of OpenOptions::slot_save_path, null: none; and its place among the model's content hashes.
  std::shared_ptr<const KeyedHash> slot_hash;
  size_t slot_hash_index = 0;

  std::unique_ptr<Engine> make_engine() const;
  const ModelConfig& config() const { return model->config(); }
};

/// Opens a checkpoint for running. Errors: those of every part; out_of_memory before allocating.
/// Vocabulary and embedding must agree: a tokenizer larger than the embedding is corrupt.
std::unique_ptr<LoadedModel> open_model(const std::string& path, const OpenOptions& options = {});

}  // namespace qw
