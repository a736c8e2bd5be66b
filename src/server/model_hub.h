// The models that a server offers: loaded when they are asked for, unloaded when nobody does.
//
// Level 7 (server). A model is one engine on one thread. Loading happens beside the serving of
// others; when memory is short, models that nobody uses make room, the one used longest ago first.
// Adapters are models by names of their own: loaded beside the steps of their base, resident with
// it, and remembered by their paths when it is unloaded.
#pragma once

#include <atomic>
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

#include "server/served_model.h"

namespace qw::server {

/// An adapter of a model, by its number, and how much of it.
struct AdapterScale {
  int64_t id = 0;
  double scale = 0;
};

/// Which model a request wants: a name ("": the default), or its base with these adapters and no
/// others.
struct ModelChoice {
  std::string name;
  std::optional<std::vector<AdapterScale>> adapters;
};

class ModelHub {
 public:
  using Ready = std::function<void(std::shared_ptr<ServedModel>)>;
  using Failed = std::function<void(const Error&)>;

  /// Combinations that no name stands for are kept for later requests, so many of each model.
  static constexpr size_t kMaxCombinations = 8;

  /// executor: see EngineHost. The first spec is the default model.
  ModelHub(std::vector<ModelSpec> specs, EngineHost::Executor executor);
  ~ModelHub();
  ModelHub(const ModelHub&) = delete;
  ModelHub& operator=(const ModelHub&) = delete;

  /// Calls `ready` with the model chosen, at once if it is loaded, else when it is, on another
  /// thread; or `failed`, also with what `ready` throws. Errors: not_found, naming the models there
  /// are, invalid_argument, for an adapter that there is not (thrown); those of loading (given to
  /// `failed`).
  void with_model(const ModelChoice& choice, Ready ready, Failed failed);
  void with_model(const std::string& name, Ready ready, Failed failed) {
    with_model(ModelChoice{name, std::nullopt}, std::move(ready), std::move(failed));
  }

  struct Listing {
    std::string name, path;
    std::vector<std::string> aliases;
    int64_t created = 0;                  // seconds since 1970
    std::shared_ptr<ServedModel> loaded;  // null: it is not
    bool loading = false;
    std::optional<std::chrono::seconds> expires_in;  // of a loaded one; nullopt: it stays
    std::string parent, adapter_path;                // of an adapter; `path` is its base's
  };
  /// Models, each before its adapters.
  std::vector<Listing> list() const;
  /// What list() says of one. Errors: not_found.
  Listing find(const std::string& name) const;
  /// How it is loaded, or would be. Errors: not_found.
  const ModelSpec& spec(const std::string& name) const;

  // ---- adapters ---------------------------------------------------------------------------------

  struct Adapter {
    int64_t id = 0;    // given once, from 0
    std::string name;  // "": from the model's start, part of it
    std::string path;
    double scale = 0;  // how much of it there is in answers of the model itself
    int64_t created = 0;
    bool loading = false;  // nobody can ask for it yet
  };
  /// Loads one, its base first if need be; `done` when requests may name it. Its files are read as
  /// they are now; whoever asks from then on for another name of the same files gets what was read.
  /// Errors:
  /// invalid_argument, for a name in use (thrown), not_found for no such base (thrown); those of
  /// Model::stage_adapters (given to `failed`).
  void load_adapter(const std::string& base, const LoraModule& module, std::function<void()> done,
                    Failed failed);
  /// From now on nobody can ask for it; its memory goes with the last request that uses it. Errors:
  /// not_found.
  void unload_adapter(const std::string& name);
  /// Those of a model that can be asked for. Errors: not_found.
  std::vector<Adapter> adapters(const std::string& model) const;
  /// How much of each adapter there is in answers of the model itself from now on; of those that
  /// are not named: nothing. Errors: as with_model.
  void set_adapter_scales(const std::string& model, const std::vector<AdapterScale>& scales,
                          std::function<void()> done, Failed failed);

  /// From now until it is unloaded: how long a model stays without a request; nullopt: for ever.
  /// Errors: not_found.
  void set_keep_alive(const std::string& name, std::optional<std::chrono::seconds> keep_alive);
  /// From now on what cannot be loaded is logged; before, whoever starts the server tells of it.
  void log_failures() { logs_failures_ = true; }

  /// Unloads the models whose time has come; call it now and then.
  void unload_idle();
  /// Unloads one as soon as nobody uses it. Errors: not_found.
  void unload(const std::string& name);
  /// What is being loaded fails, and so does all that is asked to be loaded later. Any thread.
  void stop_loading() noexcept { cancel_.cancel(); }

 private:
  /// What a request gets: the model as it was loaded, or with these adapters instead of its own.
  struct Wanted {
    std::string name;
    std::optional<std::vector<AdapterSpec>> adapters;
  };
  struct Waiter {
    Wanted wanted;
    Ready ready;
    Failed failed;
    bool anew = false;  // from the files as they are now, whatever is resident
  };
  struct Resident {
    std::vector<AdapterSpec> specs;
    std::shared_ptr<ResidentAdapter> adapter;
    std::chrono::steady_clock::time_point last_used;
  };
  /// A combination on its way.
  struct Staging {
    int64_t number = 0;
    std::shared_ptr<ServedModel> base;
    std::vector<AdapterSpec> specs;
    std::vector<Waiter> waiters;
  };
  struct Entry {
    ModelSpec spec;
    int64_t created = 0;
    std::shared_ptr<ServedModel> model;
    bool loading = false;
    std::optional<std::chrono::seconds> keep_alive;  // of the loaded model
    std::vector<Waiter> waiters;
    std::chrono::steady_clock::time_point last_used;
    std::vector<Adapter> adapters;
    int64_t next_adapter = 0;
    std::vector<Resident> residents;  // of `model`
    std::vector<Staging> staging;
    int64_t next_staging = 0;
  };
  /// What an entry held, to be let go of without the lock.
  struct Unloaded {
    std::vector<Resident> residents;
    std::shared_ptr<ServedModel> model;
  };

  // With the lock.
  const Entry* find_entry(const std::string& name, const Adapter** adapter) const;
  Entry& entry_of(const std::string& name);
  const Entry& entry_of(const std::string& name) const;
  static Listing listing_of(const Entry& entry);
  static Listing listing_of(const Entry& entry, const Adapter& adapter);
  static bool is_idle(const Entry& entry);
  static Unloaded take_model(Entry& entry);

  // model_hub_adapters.cpp, with the lock
  void add_adapter(Entry& entry, std::string name, std::string path, double scale, bool loading);
  static std::optional<std::vector<AdapterSpec>> specs_of(const Entry& entry,
                                                          const std::vector<AdapterScale>& scales);
  static std::vector<AdapterScale> scales_of(const Entry& entry);
  static bool has_name(const Entry& entry, const std::vector<AdapterSpec>& specs);
  static bool is_known(const Entry& entry, const std::vector<AdapterSpec>& specs);
  static std::vector<Resident> take_surplus(Entry& entry);
  static std::vector<Resident> take_residents_of(Entry& entry, const std::string& path);
  StageOptions limits_of(const Entry& entry, const ServedModel& base,
                         int64_t promised) const;
  // model_hub_adapters.cpp, without
  void wait_for(Entry& entry, Waiter waiter);
  void give(Entry& entry, const std::shared_ptr<ServedModel>& model, Waiter waiter);
  void stage(Entry& entry, const std::shared_ptr<ServedModel>& base,
             const std::vector<AdapterSpec>& specs, int64_t number);
  static void tell(const Waiter& waiter, const std::shared_ptr<ServedModel>& model) noexcept;
  static void tell(const Waiter& waiter, const Error& error) noexcept;

  void load_loop();
  void load(Entry& entry);
  std::shared_ptr<ServedModel> make(ModelSpec spec);
  int64_t promised_bytes() const;
  Unloaded take_idle_model();

  EngineHost::Executor executor_;
  std::atomic<bool> logs_failures_{false};
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  // never resized after construction
  std::condition_variable wake_;
  bool stopping_ = false;
  CancelFlag cancel_;
  std::thread loader_;
  std::shared_ptr<Workers> disposal_ = std::make_shared<Workers>(1);  // frees adapters
  std::unique_ptr<Workers> stager_ = std::make_unique<Workers>(1);    // makes them
  /// Every model that was loaded: requests may hold one that is no longer offered.
  std::vector<std::weak_ptr<ServedModel>> made_;
  std::vector<std::weak_ptr<ResidentAdapter>> made_adapters_;
};

}  // namespace qw::server
