// A model that is loaded, and the adapters in it, as requests hold them.
//
// Level 7 (server). Held by whoever computes with it: it is unloaded after the last; an adapter
// likewise.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/grammar/grammar_cache.h"
#include "server/call_queue.h"
#include "server/classifier.h"
#include "server/engine_host.h"
#include "server/fields.h"
#include "server/file_hashes.h"
#include "server/request_error.h"
#include "server/slot_board.h"
#include "server/workers.h"

namespace qw::server {

/// An adapter that is a model's name of its own.
struct LoraModule {
  std::string name, path;
};

/// Whether a model or an adapter may be called so: metrics list names between commas, logs a line
/// each.
bool is_model_name(std::string_view name);
inline constexpr std::string_view kModelNameRule =
    "a name of up to 200 bytes of UTF-8 without commas and control characters";

struct ModelSpec {
  std::string name;                  // what clients call it
  std::vector<std::string> aliases;  // and may call it
  std::string path;
  OpenOptions open;
  std::vector<LoraModule> lora_modules;
  std::string tool_format;  // where a request says nothing; "": by its chat template
  /// Unloaded after so long without a request; nullopt: never.
  std::optional<std::chrono::seconds> keep_alive;
};

class ServedModel;

/// A combination of adapters in a model. It leaves the model with its last holder, between two
/// steps, and its memory is freed on a thread that nobody waits for.
class ResidentAdapter {
 public:
  /// Stages on the calling thread, beside the engine's steps, and installs between two of them.
  /// Errors: those of Model::stage_adapters.
  ResidentAdapter(std::shared_ptr<ServedModel> base, const std::vector<AdapterSpec>& adapters,
                  const StageOptions& options, std::shared_ptr<Workers> disposal);
  ~ResidentAdapter();
  ResidentAdapter(const ResidentAdapter&) = delete;
  ResidentAdapter& operator=(const ResidentAdapter&) = delete;

  int32_t id() const { return id_; }
  int64_t bytes() const { return bytes_; }
  const std::shared_ptr<ServedModel>& base() const { return base_; }
  const std::vector<AdapterSpec>& adapters() const { return adapters_; }
  /// Of its files (receipt.h). Any thread.
  FileHashes& hashes() const { return *hashes_; }

 private:
  std::shared_ptr<ServedModel> base_;
  std::shared_ptr<Workers> disposal_;
  std::vector<AdapterSpec> adapters_;
  std::unique_ptr<FileHashes> hashes_;
  int32_t id_ = -1;
  int64_t bytes_ = 0;
};

class ServedModel {
 public:
  ServedModel(const ModelSpec& spec, EngineHost::Executor executor);
  /// The same model, under a name and with an adapter (null: none) of its own.
  ServedModel(std::shared_ptr<ServedModel> base, std::string name,
              std::shared_ptr<ResidentAdapter> adapter);

  const ModelSpec& spec() const { return base_ ? base_->spec() : spec_; }
  const std::string& name() const { return spec_.name; }
  /// Files, tokenizer, template and defaults; the model itself belongs to the host's thread.
  const LoadedModel& files() const { return base_ ? base_->files() : *loaded_; }
  EngineHost& host() const { return base_ ? base_->host() : *host_; }
  int64_t context() const { return files().engine_options.ctx; }
  int32_t adapter() const {
    if (base_ == nullptr) return loaded_->adapter;
    return adapter_ ? adapter_->id() : -1;
  }
  /// The tokenizer. Errors: unsupported, naming the model.
  const Tokenizer& tokenizer() const;
  /// Bytes that a token can stand for at most: a text of more than the context times this does not
  /// fit, which is known before it is cut into tokens. Errors: as tokenizer().
  size_t longest_token_bytes() const;
  /// Grammars compiled for its vocabulary. Any thread. Errors: as tokenizer().
  GrammarCache& grammars() const;
  /// Nothing before any was wanted. Any thread.
  GrammarCache::Held grammars_held() const;
  /// Its head; nullopt: it is no classification model.
  const std::optional<Classifier>& classifier() const {
    return base_ ? base_->classifier() : classifier_;
  }
  /// What its plan counts and the system may not have given yet: the part of the KV cache that has
  /// never held anything, and what a step needs. Any thread.
  int64_t promised_bytes() const;
  /// Names for what was computed last, for clients that have such. Any thread.
  SlotBoard& slots() const { return base_ ? base_->slots() : *slots_; }
  /// Of the calls that are answered or wait, whatever their adapter. Any thread.
  CallQueue& queue() const { return base_ ? base_->queue() : queue_; }
  /// The adapters that its answers have.
  const std::vector<AdapterSpec>& adapters() const;
  /// Hashes of the files that it was read from, adapters included (receipt.h), as when_ready() of
  /// FileHashes gives them. Any thread.
  void with_hashes(FileHashes::Done done) const;
  /// Ends the reading of files.
  void stop_hashing() const;

  /// Seconds that requests took lately; 0: none has ended.
  double typical_seconds() const;
  /// The server's thread.
  void note_seconds(double seconds) const;

 private:
  ModelSpec spec_;  // with a base: only the name
  std::shared_ptr<ServedModel> base_;
  std::shared_ptr<ResidentAdapter> adapter_;
  std::unique_ptr<LoadedModel> loaded_;
  std::unique_ptr<EngineHost> host_;
  std::unique_ptr<SlotBoard> slots_;
  mutable std::once_flag longest_token_known_;
  mutable size_t longest_token_bytes_ = 0;
  mutable std::once_flag grammars_made_;
  mutable std::unique_ptr<GrammarCache> grammars_;  // when they are first wanted
  mutable std::atomic<const GrammarCache*> known_grammars_ = nullptr;  // the same, for others
  std::unique_ptr<FileHashes> hashes_;              // null with a base
  std::optional<Classifier> classifier_;            // none with a base
  mutable std::atomic<double> typical_seconds_{0};
  mutable CallQueue queue_;  // unused with a base
};

}  // namespace qw::server
