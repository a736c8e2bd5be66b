// Adapters of the models that a server offers: by name, by number and scale, and as combinations.
//
// Level 7 (server). A part of ModelHub. Staging has a thread of its own: neither requests, nor
// steps, nor the loading of models wait for it.
#include <algorithm>
#include <ctime>
#include <utility>

#include "base/log.h"
#include "engine/current_error.h"
#include "model/memory_plan.h"
#include "server/model_hub.h"

namespace qw::server {

namespace {

bool same(const std::vector<AdapterSpec>& a, const std::vector<AdapterSpec>& b) {
  return std::ranges::equal(a, b, [](const AdapterSpec& x, const AdapterSpec& y) {
    return x.path == y.path && x.scale == y.scale;
  });
}

}  // namespace

// ---- with the lock
// -------------------------------------------------------------------------------

void ModelHub::add_adapter(Entry& entry, std::string name, std::string path, double scale,
                           bool loading) {
  entry.adapters.push_back({entry.next_adapter++, std::move(name), std::move(path), scale,
                            static_cast<int64_t>(std::time(nullptr)), loading});
}

/// The adapters of these numbers with these scales, in the order of numbers; nullopt: just those
/// that the model was loaded with.
std::optional<std::vector<AdapterSpec>> ModelHub::specs_of(
    const Entry& entry, const std::vector<AdapterScale>& scales) {
  for (const AdapterScale& scale : scales) {
    const bool is_there = std::ranges::any_of(entry.adapters, [&](const Adapter& adapter) {
      return adapter.id == scale.id && !adapter.loading;
    });
    if (!is_there) refuse_field("lora", "expected ids that /lora-adapters lists, got {}", scale.id);
  }
  std::vector<AdapterSpec> specs;
  bool as_loaded = true;
  const std::vector<AdapterSpec>& own = entry.spec.open.adapters;  // the first ones, by number
  for (const Adapter& adapter : entry.adapters) {
    const auto wanted = std::ranges::find(scales, adapter.id, &AdapterScale::id);
    const double scale = wanted == scales.end() ? 0 : wanted->scale;
    const auto place = static_cast<size_t>(adapter.id);
    as_loaded = as_loaded && scale == (place < own.size() ? own[place].scale : 0);
    if (scale != 0) specs.push_back({adapter.path, scale});
  }
  if (as_loaded) return std::nullopt;
  return specs;
}

std::vector<AdapterScale> ModelHub::scales_of(const Entry& entry) {
  std::vector<AdapterScale> scales;
  for (const Adapter& adapter : entry.adapters) {
    if (!adapter.loading) scales.push_back({adapter.id, adapter.scale});
  }
  return scales;
}

/// Whether clients can ask for the combination by a model's name: it stays as long as that.
bool ModelHub::has_name(const Entry& entry, const std::vector<AdapterSpec>& specs) {
  const bool is_adapter = specs.size() == 1 && specs[0].scale == 1 &&
                          std::ranges::any_of(entry.adapters, [&](const Adapter& adapter) {
                            return !adapter.name.empty() && adapter.path == specs[0].path;
                          });
  if (is_adapter) return true;
  const auto own = specs_of(entry, scales_of(entry));
  return own && same(*own, specs);
}

/// Whether all of its parts can still be asked for.
bool ModelHub::is_known(const Entry& entry, const std::vector<AdapterSpec>& specs) {
  return std::ranges::all_of(specs, [&](const AdapterSpec& spec) {
    return std::ranges::find(entry.adapters, spec.path, &Adapter::path) != entry.adapters.end();
  });
}

/// What is no longer to be kept: combinations with parts that were unloaded, and of those without a
/// name the ones used longest ago.
std::vector<ModelHub::Resident> ModelHub::take_surplus(Entry& entry) {
  std::vector<Resident> surplus;
  std::ranges::sort(entry.residents, std::ranges::greater(), &Resident::last_used);
  size_t n_nameless = 0;
  std::erase_if(entry.residents, [&](Resident& resident) {
    const bool stays = is_known(entry, resident.specs) &&
                       (has_name(entry, resident.specs) || ++n_nameless <= kMaxCombinations);
    if (!stays) surplus.push_back(std::move(resident));
    return !stays;
  });
  return surplus;
}

/// What was made of other versions of an adapter's files.
std::vector<ModelHub::Resident> ModelHub::take_residents_of(Entry& entry, const std::string& path) {
  std::vector<Resident> taken;
  std::erase_if(entry.residents, [&](Resident& resident) {
    const bool has_it =
        std::ranges::find(resident.specs, path, &AdapterSpec::path) != resident.specs.end();
    if (has_it) taken.push_back(std::move(resident));
    return has_it;
  });
  return taken;
}

/// promised: promised_bytes().
StageOptions ModelHub::limits_of(const Entry& entry, const ServedModel& base,
                                 int64_t promised) const {
  StageOptions options;
  options.cancel = &cancel_;
  options.limit_bytes = std::max<int64_t>(available_memory_bytes() - promised, 0);
  if (const int64_t limit = base.spec().open.memory_bytes; limit > 0) {
    int64_t spare = limit - base.files().plan.needed_bytes;
    for (const Resident& resident : entry.residents)
      spare -= resident.adapter->bytes();
    options.limit_bytes = std::min(*options.limit_bytes, std::max<int64_t>(spare, 0));
  }
  return options;
}

// ---- without
// -------------------------------------------------------------------------------------

/// What a waiter throws is its own affair: nothing leaves the threads of the hub.
void ModelHub::tell(const Waiter& waiter, const std::shared_ptr<ServedModel>& model) noexcept {
  try {
    waiter.ready(model);
  } catch (const Error& error) {
    tell(waiter, error);
  } catch (...) {
    tell(waiter, current_error());
  }
}

void ModelHub::tell(const Waiter& waiter, const Error& error) noexcept {
  try {
    waiter.failed(error);
  } catch (const std::exception& own) {
    logger().error("[server] model: expected to tell of an error, got another: {}", own.what());
  } catch (...) {
    logger().error("[server] model: expected to tell of an error, got another");
  }
}

/// Gives a waiter the loaded model with the adapters that it wants, at once if they are resident.
void ModelHub::give(Entry& entry, const std::shared_ptr<ServedModel>& model, Waiter waiter) {
  if (!waiter.wanted.adapters) return tell(waiter, model);
  const std::vector<AdapterSpec> specs = *waiter.wanted.adapters;
  std::shared_ptr<ResidentAdapter> adapter;
  if (!specs.empty()) {
    const std::lock_guard lock(mutex_);
    for (Resident& resident : entry.residents) {
      if (waiter.anew || resident.adapter->base() != model || !same(resident.specs, specs))
        continue;
      resident.last_used = std::chrono::steady_clock::now();
      adapter = resident.adapter;
    }
    if (adapter == nullptr) {
      for (Staging& staging : entry.staging) {
        if (!waiter.anew && staging.base == model && same(staging.specs, specs))
          return staging.waiters.push_back(std::move(waiter));
      }
      const int64_t number = entry.next_staging++;
      entry.staging.push_back({number, model, specs, {}});
      entry.staging.back().waiters.push_back(std::move(waiter));
      return stager_->post(
          [this, &entry, model, specs, number] { stage(entry, model, specs, number); });
    }
  }
  tell(waiter, std::make_shared<ServedModel>(model, waiter.wanted.name, std::move(adapter)));
}

/// The stager's thread.
void ModelHub::stage(Entry& entry, const std::shared_ptr<ServedModel>& base,
                     const std::vector<AdapterSpec>& specs, int64_t number) {
  std::shared_ptr<ResidentAdapter> adapter;
  std::optional<Error> error;
  try {
    StageOptions options;
    const int64_t promised = promised_bytes();
    {
      const std::lock_guard lock(mutex_);
      options = limits_of(entry, *base, promised);
    }
    adapter = std::make_shared<ResidentAdapter>(base, specs, options, disposal_);
  } catch (...) {
    error = current_error();
    if (logs_failures_) logger().warn("{} (model {})", error->message(), base->name());
  }
  std::vector<Waiter> waiters;
  std::vector<Resident> outdated, surplus;  // go after the lock
  {
    const std::lock_guard lock(mutex_);
    const auto own = std::ranges::find(entry.staging, number, &Staging::number);
    waiters = std::move(own->waiters);
    entry.staging.erase(own);
    std::erase_if(made_adapters_, [](const auto& made) { return made.expired(); });
    if (adapter) made_adapters_.push_back(adapter);
    if (adapter && entry.model == base) {
      if (std::ranges::any_of(waiters, &Waiter::anew))
        outdated = take_residents_of(entry, specs.front().path);
      entry.residents.push_back({specs, adapter, std::chrono::steady_clock::now()});
    }
    surplus = take_surplus(entry);
  }
  for (const Waiter& waiter : waiters) {
    if (!adapter) {
      tell(waiter, *error);
      continue;
    }
    try {
      tell(waiter, std::make_shared<ServedModel>(base, waiter.wanted.name, adapter));
    } catch (...) {
      tell(waiter, current_error());
    }
  }
}

void ModelHub::load_adapter(const std::string& base, const LoraModule& module,
                            std::function<void()> done, Failed failed) {
  Entry* entry = nullptr;
  {
    const std::lock_guard lock(mutex_);
    for (const Entry& other : entries_) {
      const bool is_taken =
          other.spec.name == module.name ||
          std::ranges::find(other.spec.aliases, module.name) != other.spec.aliases.end() ||
          std::ranges::find(other.adapters, module.name, &Adapter::name) != other.adapters.end();
      if (is_taken)
        refuse_field("lora_name",
                     "expected a name that is not in use, got '{}', which has already "
                     "been loaded",
                     printable(module.name));
    }
    entry = &entry_of(base);
    add_adapter(*entry, module.name, module.path, 0, true);
  }
  const auto own = [entry, name = module.name] {
    return std::ranges::find(entry->adapters, name, &Adapter::name);
  };
  wait_for(*entry,
           {{module.name, std::vector<AdapterSpec>{{module.path, 1.0}}},
            [this, own, done = std::move(done)](const std::shared_ptr<ServedModel>&) {
              {
                const std::lock_guard lock(mutex_);
                own()->loading = false;
              }
              done();
            },
            [this, entry, name = module.name, failed = std::move(failed)](const Error& error) {
              {
                const std::lock_guard lock(mutex_);
                std::erase_if(entry->adapters,
                              [&](const Adapter& adapter) { return adapter.name == name; });
              }
              failed(error);
            },
            true});
}

void ModelHub::unload_adapter(const std::string& name) {
  std::vector<Resident> surplus;  // goes after the lock
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    const auto own = std::ranges::find_if(entry.adapters, [&](const Adapter& adapter) {
      return !name.empty() && adapter.name == name && !adapter.loading;
    });
    if (own == entry.adapters.end()) continue;
    entry.adapters.erase(own);
    surplus = take_surplus(entry);
    return;
  }
  throw RequestError(ErrorKind::kNotFound,
                     fmt::format("[request] lora_name: expected an adapter that is loaded, got "
                                 "'{}'",
                                 printable(name)),
                     "lora_name");
}

std::vector<ModelHub::Adapter> ModelHub::adapters(const std::string& model) const {
  const std::lock_guard lock(mutex_);
  std::vector<Adapter> out = entry_of(model).adapters;
  std::erase_if(out, &Adapter::loading);
  return out;
}

void ModelHub::set_adapter_scales(const std::string& model, const std::vector<AdapterScale>& scales,
                                  std::function<void()> done, Failed failed) {
  // By the time that they are ready the name may be gone: of an adapter that was unloaded. The
  // entry stays.
  Entry* entry = nullptr;
  {
    const std::lock_guard lock(mutex_);
    entry = &entry_of(model);
  }
  with_model(
      {entry->spec.name, scales},
      [this, entry, scales, done = std::move(done)](const std::shared_ptr<ServedModel>&) {
        std::vector<Resident> surplus;  // goes after the lock
        {
          const std::lock_guard lock(mutex_);
          for (Adapter& adapter : entry->adapters) {
            const auto wanted = std::ranges::find(scales, adapter.id, &AdapterScale::id);
            adapter.scale = wanted == scales.end() ? 0 : wanted->scale;
          }
          surplus = take_surplus(*entry);
        }
        done();
      },
      std::move(failed));
}

}  // namespace qw::server
