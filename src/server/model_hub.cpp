#include "server/model_hub.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/log.h"
#include "engine/current_error.h"

namespace qw::server {

ModelHub::ModelHub(std::vector<ModelSpec> specs, EngineHost::Executor executor)
    : executor_(std::move(executor)) {
  QW_CHECK(!specs.empty());
  for (ModelSpec& spec : specs) {
    Entry entry;
    spec.open.cancel = &cancel_;
    entry.spec = std::move(spec);
    entry.created = static_cast<int64_t>(std::time(nullptr));
    for (const AdapterSpec& adapter : entry.spec.open.adapters)
      add_adapter(entry, "", adapter.path, adapter.scale, false);
    for (const LoraModule& module : entry.spec.lora_modules)
      add_adapter(entry, module.name, module.path, 0, false);
    entries_.push_back(std::move(entry));
  }
  loader_ = std::thread([this] { load_loop(); });
}

ModelHub::~ModelHub() {
  cancel_.cancel();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  loader_.join();
  stager_.reset();  // it waits for engines, which end below
  // Requests that wait to be told of their end may hold a model still: its threads end here.
  for (const auto& made : made_adapters_) {
    if (const auto adapter = made.lock()) adapter->hashes().stop();
  }
  for (const auto& made : made_) {
    const auto model = made.lock();
    if (model == nullptr) continue;
    model->host().stop();
    model->stop_hashing();
  }
}

/// The entry of a model or of an adapter's base; null: none of that name.
const ModelHub::Entry* ModelHub::find_entry(const std::string& name,
                                            const Adapter** adapter) const {
  if (adapter != nullptr) *adapter = nullptr;
  if (name.empty()) return &entries_.front();
  for (const Entry& entry : entries_) {
    if (entry.spec.name == name) return &entry;
    for (const Adapter& candidate : entry.adapters) {
      if (candidate.name != name || candidate.loading) continue;
      if (adapter != nullptr) *adapter = &candidate;
      return &entry;
    }
  }
  for (const Entry& entry : entries_) {
    if (std::ranges::find(entry.spec.aliases, name) != entry.spec.aliases.end()) return &entry;
  }
  return nullptr;
}

const ModelHub::Entry& ModelHub::entry_of(const std::string& name) const {
  if (const Entry* entry = find_entry(name, nullptr)) return *entry;
  std::vector<std::string> names;
  for (const Entry& entry : entries_) {
    names.push_back(entry.spec.name);
    for (const Adapter& adapter : entry.adapters) {
      if (!adapter.name.empty() && !adapter.loading) names.push_back(adapter.name);
    }
  }
  throw RequestError(ErrorKind::kNotFound,
                     fmt::format("[request] model: expected one of {}, got '{}'",
                                 fmt::join(names, ", "), printable(name)),
                     "model");
}

ModelHub::Entry& ModelHub::entry_of(const std::string& name) {
  return const_cast<Entry&>(std::as_const(*this).entry_of(name));
}

void ModelHub::with_model(const ModelChoice& choice, Ready ready, Failed failed) {
  Entry* entry = nullptr;
  Waiter waiter{{}, std::move(ready), std::move(failed)};
  {
    const std::lock_guard lock(mutex_);
    entry = &entry_of(choice.name);
    const Adapter* adapter = nullptr;
    find_entry(choice.name, &adapter);
    waiter.wanted.name = adapter == nullptr ? entry->spec.name : adapter->name;
    if (choice.adapters) {
      waiter.wanted.adapters = specs_of(*entry, *choice.adapters);
    } else if (adapter != nullptr) {
      waiter.wanted.adapters = {{adapter->path, 1.0}};
    } else {
      waiter.wanted.adapters = specs_of(*entry, scales_of(*entry));
    }
  }
  wait_for(*entry, std::move(waiter));
}

void ModelHub::wait_for(Entry& entry, Waiter waiter) {
  std::shared_ptr<ServedModel> model;
  {
    const std::lock_guard lock(mutex_);
    entry.last_used = std::chrono::steady_clock::now();
    model = entry.model;
    if (model == nullptr) {
      entry.waiters.push_back(std::move(waiter));
      wake_.notify_all();
      return;
    }
  }
  give(entry, model, std::move(waiter));
}

ModelHub::Listing ModelHub::listing_of(const Entry& entry) {
  Listing out;
  out.name = entry.spec.name;
  out.path = entry.spec.path;
  out.aliases = entry.spec.aliases;
  out.created = entry.created;
  out.loaded = entry.model;
  out.loading = entry.loading;
  if (entry.model != nullptr && entry.keep_alive) {
    using std::chrono::seconds;
    const auto idle = std::chrono::steady_clock::now() - entry.last_used;
    out.expires_in =
        std::max(seconds(0), *entry.keep_alive - std::chrono::duration_cast<seconds>(idle));
  }
  return out;
}

ModelHub::Listing ModelHub::listing_of(const Entry& entry, const Adapter& adapter) {
  Listing out = listing_of(entry);
  out.name = adapter.name;
  out.aliases.clear();
  out.created = adapter.created;
  out.parent = entry.spec.name;
  out.adapter_path = adapter.path;
  return out;
}

std::vector<ModelHub::Listing> ModelHub::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<Listing> out;
  for (const Entry& entry : entries_) {
    out.push_back(listing_of(entry));
    for (const Adapter& adapter : entry.adapters) {
      if (!adapter.name.empty() && !adapter.loading) out.push_back(listing_of(entry, adapter));
    }
  }
  return out;
}

ModelHub::Listing ModelHub::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const Entry& entry = entry_of(name);
  const Adapter* adapter = nullptr;
  find_entry(name, &adapter);
  return adapter == nullptr ? listing_of(entry) : listing_of(entry, *adapter);
}

const ModelSpec& ModelHub::spec(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return entry_of(name).spec;  // which stays as it was made
}

void ModelHub::load_loop() {
  while (true) {
    Entry* next = nullptr;
    {
      std::unique_lock lock(mutex_);
      const auto wanted = [this] {
        return std::ranges::find_if(entries_, [](const Entry& entry) {
          return entry.model == nullptr && !entry.waiters.empty();
        });
      };
      wake_.wait(lock, [&] { return stopping_ || wanted() != entries_.end(); });
      if (stopping_) return;
      next = &*wanted();
      next->loading = true;
    }
    load(*next);
  }
}

void ModelHub::load(Entry& entry) {
  std::shared_ptr<ServedModel> model;
  std::optional<Error> error;
  try {
    model = make(entry.spec);
  } catch (...) {
    error = current_error();
    if (logs_failures_) logger().error("{}", error->message());
  }
  std::vector<Waiter> waiters;
  {
    const std::lock_guard lock(mutex_);
    entry.model = model;
    std::erase_if(made_, [](const auto& made) { return made.expired(); });
    if (model) made_.push_back(model);
    entry.loading = false;
    entry.keep_alive = entry.spec.keep_alive;
    entry.last_used = std::chrono::steady_clock::now();
    waiters.swap(entry.waiters);
  }
  for (const Waiter& waiter : waiters) {
    if (!model) {
      tell(waiter, *error);
      continue;
    }
    try {
      give(entry, model, waiter);
    } catch (...) {
      tell(waiter, current_error());
    }
  }
}

/// Loads; where memory is short, models that nobody uses go first, and only then a context that was
/// not asked for becomes shorter.
std::shared_ptr<ServedModel> ModelHub::make(ModelSpec spec) {
  spec.open.context_yields = false;
  while (true) {
    spec.open.promised_bytes = promised_bytes();
    try {
      return std::make_shared<ServedModel>(spec, executor_);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kOutOfMemory) throw;
      const Unloaded idle = take_idle_model();
      if (idle.model == nullptr && spec.open.context_yields) throw;
      spec.open.context_yields = idle.model == nullptr;
      if (idle.model) logger().info("[server] {} makes room for {}", idle.model->name(), spec.name);
    }
  }
}

/// Of all models that are there, unloaded ones that somebody uses still among them.
int64_t ModelHub::promised_bytes() const {
  std::vector<std::shared_ptr<ServedModel>> models;  // they go after the lock
  const std::lock_guard lock(mutex_);
  int64_t sum = 0;
  for (const auto& made : made_) {
    models.push_back(made.lock());
    if (models.back()) sum += models.back()->promised_bytes();
  }
  return sum;
}

/// Whether nobody uses a loaded model: it is held by its entry and by adapters that nobody uses.
bool ModelHub::is_idle(const Entry& entry) {
  return entry.model.use_count() == 1 + std::ssize(entry.residents) &&
         std::ranges::all_of(entry.residents, [](const Resident& resident) {
           return resident.adapter.use_count() == 1;
         });
}

/// No longer offered as loaded; its adapters are remembered by their paths.
ModelHub::Unloaded ModelHub::take_model(Entry& entry) {
  return {std::exchange(entry.residents, {}), std::exchange(entry.model, nullptr)};
}

/// The model that nobody uses and that was used longest ago.
ModelHub::Unloaded ModelHub::take_idle_model() {
  const std::lock_guard lock(mutex_);
  Entry* oldest = nullptr;
  for (Entry& entry : entries_) {
    if (entry.model == nullptr || !is_idle(entry)) continue;
    if (oldest == nullptr || entry.last_used < oldest->last_used) oldest = &entry;
  }
  return oldest == nullptr ? Unloaded() : take_model(*oldest);
}

void ModelHub::set_keep_alive(const std::string& name,
                              std::optional<std::chrono::seconds> keep_alive) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entry_of(name);
  entry.keep_alive = keep_alive;
  entry.last_used = std::chrono::steady_clock::now();
}

void ModelHub::unload_idle() {
  std::vector<Unloaded> unloaded;  // goes after the lock
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.model == nullptr || !entry.keep_alive) continue;
    if (!is_idle(entry)) {
      entry.last_used = now;
    } else if (now - entry.last_used >= *entry.keep_alive) {
      logger().info("[server] {} is unloaded: nobody has asked for it", entry.spec.name);
      unloaded.push_back(take_model(entry));
    }
  }
}

void ModelHub::unload(const std::string& name) {
  Unloaded unloaded;  // goes after the lock
  const std::lock_guard lock(mutex_);
  unloaded = take_model(entry_of(name));
}

}  // namespace qw::server
