// The models that a server offers: loaded when they are asked for, unloaded when nobody does.
//
// Level 7 (server). A model is one engine on one thread. Loading happens beside the serving of
// others; when memory is short, models that nobody uses make room, the one used longest ago first.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/grammar/grammar_cache.h"
#include "server/engine_host.h"
#include "server/request_error.h"

namespace qw::server {

struct ModelSpec {
  std::string name;                  // what clients call it
  std::vector<std::string> aliases;  // and may call it
  std::string path;
  OpenOptions open;
  /// Unloaded after so long without a request; nullopt: never.
  std::optional<std::chrono::seconds> keep_alive;
};

/// A model that is loaded. Held by whoever computes with it: it is unloaded after the last.
class ServedModel {
 public:
  ServedModel(const ModelSpec& spec, EngineHost::Executor executor);

  const ModelSpec& spec() const { return spec_; }
  const std::string& name() const { return spec_.name; }
  /// Files, tokenizer, template and defaults; the model itself belongs to the host's thread.
  const LoadedModel& files() const { return *loaded_; }
  EngineHost& host() const { return *host_; }
  int64_t context() const { return loaded_->engine_options.ctx; }
  int32_t adapter() const { return loaded_->adapter; }
  /// The tokenizer. Errors: unsupported, naming the model.
  const Tokenizer& tokenizer() const;
  /// Grammars compiled for its vocabulary. Any thread. Errors: as tokenizer().
  GrammarCache& grammars() const;

 private:
  ModelSpec spec_;
  std::unique_ptr<LoadedModel> loaded_;
  std::unique_ptr<EngineHost> host_;
  mutable std::once_flag grammars_made_;
  mutable std::unique_ptr<GrammarCache> grammars_;  // when they are first wanted
};

class ModelHub {
 public:
  using Ready = std::function<void(std::shared_ptr<ServedModel>)>;
  using Failed = std::function<void(const Error&)>;

  /// executor: see EngineHost. The first spec is the default model.
  ModelHub(std::vector<ModelSpec> specs, EngineHost::Executor executor);
  ~ModelHub();
  ModelHub(const ModelHub&) = delete;
  ModelHub& operator=(const ModelHub&) = delete;

  /// Calls `ready` with the model of that name ("": the default), at once if it is loaded, else
  /// when it is, on another thread; or `failed`. Errors: not_found, naming the models there are
  /// (thrown); those of loading (given to `failed`).
  void with_model(const std::string& name, Ready ready, Failed failed);

  struct Listing {
    std::string name, path;
    std::vector<std::string> aliases;
    int64_t created = 0;                  // seconds since 1970
    std::shared_ptr<ServedModel> loaded;  // null: it is not
    bool loading = false;
    std::optional<std::chrono::seconds> expires_in;  // of a loaded one; nullopt: it stays
  };
  std::vector<Listing> list() const;
  /// What list() says of one. Errors: not_found.
  Listing find(const std::string& name) const;

  /// From now until it is unloaded: how long a model stays without a request; nullopt: for ever.
  /// Errors: not_found.
  void set_keep_alive(const std::string& name, std::optional<std::chrono::seconds> keep_alive);
  /// Unloads the models whose time has come; call it now and then.
  void unload_idle();
  /// Unloads one as soon as nobody uses it. Errors: not_found.
  void unload(const std::string& name);

 private:
  struct Waiter {
    Ready ready;
    Failed failed;
  };
  struct Entry {
    ModelSpec spec;
    int64_t created = 0;
    std::shared_ptr<ServedModel> model;
    bool loading = false;
    std::optional<std::chrono::seconds> keep_alive;  // of the loaded model
    std::vector<Waiter> waiters;
    std::chrono::steady_clock::time_point last_used;
  };

  Entry& entry_of(const std::string& name);
  const Entry& entry_of(const std::string& name) const;
  static Listing listing_of(const Entry& entry);
  void load_loop();
  void load(Entry& entry);
  std::shared_ptr<ServedModel> make(const ModelSpec& spec);
  std::shared_ptr<ServedModel> take_idle_model();

  EngineHost::Executor executor_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  // never resized after construction
  std::condition_variable wake_;
  bool stopping_ = false;
  CancelFlag cancel_;
  std::thread loader_;
  /// Every model that was loaded: requests may hold one that is no longer offered.
  std::vector<std::weak_ptr<ServedModel>> made_;
};

}  // namespace qw::server
