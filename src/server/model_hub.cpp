#include "server/model_hub.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/log.h"
#include "engine/current_error.h"
#include "text/tokenizer.h"

namespace qw::server {

ServedModel::ServedModel(const ModelSpec& spec, EngineHost::Executor executor)
    : spec_(spec),
      loaded_(open_model(spec.path, spec.open)),
      host_(std::make_unique<EngineHost>(*loaded_, std::move(executor))) {}

const Tokenizer& ServedModel::tokenizer() const {
  if (loaded_->tokenizer == nullptr) {
    throw RequestError(
        ErrorKind::kUnsupported,
        fmt::format("[request] model: expected one with a tokenizer, got '{}', which has none "
                    "(token ids are possible)",
                    printable(name())),
        "model");
  }
  return *loaded_->tokenizer;
}

GrammarCache& ServedModel::grammars() const {
  const Tokenizer& own = tokenizer();
  std::call_once(grammars_made_, [&] {
    grammars_ = std::make_unique<GrammarCache>(std::make_shared<const GrammarVocabulary>(own));
  });
  return *grammars_;
}

ModelHub::ModelHub(std::vector<ModelSpec> specs, EngineHost::Executor executor)
    : executor_(std::move(executor)) {
  QW_CHECK(!specs.empty());
  for (ModelSpec& spec : specs) {
    Entry entry;
    spec.open.cancel = &cancel_;
    entry.spec = std::move(spec);
    entry.created = static_cast<int64_t>(std::time(nullptr));
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
  // Requests that wait to be told of their end may hold a model still: its thread ends here.
  for (const auto& made : made_) {
    if (const auto model = made.lock()) model->host().stop();
  }
}

const ModelHub::Entry& ModelHub::entry_of(const std::string& name) const {
  if (name.empty()) return entries_.front();
  for (const Entry& entry : entries_) {
    if (entry.spec.name == name) return entry;
  }
  for (const Entry& entry : entries_) {
    if (std::ranges::find(entry.spec.aliases, name) != entry.spec.aliases.end()) return entry;
  }
  std::vector<std::string> names;
  for (const Entry& entry : entries_)
    names.push_back(entry.spec.name);
  throw RequestError(ErrorKind::kNotFound,
                     fmt::format("[request] model: expected one of {}, got '{}'",
                                 fmt::join(names, ", "), printable(name)),
                     "model");
}

ModelHub::Entry& ModelHub::entry_of(const std::string& name) {
  return const_cast<Entry&>(std::as_const(*this).entry_of(name));
}

void ModelHub::with_model(const std::string& name, Ready ready, Failed failed) {
  std::shared_ptr<ServedModel> model;
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entry_of(name);
    entry.last_used = std::chrono::steady_clock::now();
    model = entry.model;
    if (model == nullptr) {
      entry.waiters.push_back({std::move(ready), std::move(failed)});
      wake_.notify_all();
      return;
    }
  }
  ready(std::move(model));
}

ModelHub::Listing ModelHub::listing_of(const Entry& entry) {
  Listing out{entry.spec.name, entry.spec.path, entry.spec.aliases, entry.created,
              entry.model,     entry.loading,   std::nullopt};
  if (entry.model != nullptr && entry.keep_alive) {
    using std::chrono::seconds;
    const auto idle = std::chrono::steady_clock::now() - entry.last_used;
    out.expires_in =
        std::max(seconds(0), *entry.keep_alive - std::chrono::duration_cast<seconds>(idle));
  }
  return out;
}

std::vector<ModelHub::Listing> ModelHub::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<Listing> out;
  for (const Entry& entry : entries_)
    out.push_back(listing_of(entry));
  return out;
}

ModelHub::Listing ModelHub::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return listing_of(entry_of(name));
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
    logger().error("{}", error->message());
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
    if (model) {
      waiter.ready(model);
    } else {
      waiter.failed(*error);
    }
  }
}

/// Loads; where memory is short, models that nobody uses go first.
std::shared_ptr<ServedModel> ModelHub::make(const ModelSpec& spec) {
  while (true) {
    try {
      return std::make_shared<ServedModel>(spec, executor_);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kOutOfMemory) throw;
      std::shared_ptr<ServedModel> idle = take_idle_model();
      if (idle == nullptr) throw;
      logger().info("[server] {} makes room for {}", idle->name(), spec.name);
    }
  }
}

/// The model that nobody uses and that was used longest ago, no longer offered as loaded.
std::shared_ptr<ServedModel> ModelHub::take_idle_model() {
  const std::lock_guard lock(mutex_);
  Entry* oldest = nullptr;
  for (Entry& entry : entries_) {
    if (entry.model.use_count() != 1) continue;  // not loaded, or somebody's
    if (oldest == nullptr || entry.last_used < oldest->last_used) oldest = &entry;
  }
  return oldest == nullptr ? nullptr : std::exchange(oldest->model, nullptr);
}

void ModelHub::set_keep_alive(const std::string& name,
                              std::optional<std::chrono::seconds> keep_alive) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entry_of(name);
  entry.keep_alive = keep_alive;
  entry.last_used = std::chrono::steady_clock::now();
}

void ModelHub::unload_idle() {
  std::vector<std::shared_ptr<ServedModel>> unloaded;  // goes after the lock
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.model == nullptr || !entry.keep_alive) continue;
    if (entry.model.use_count() != 1) {
      entry.last_used = now;
    } else if (now - entry.last_used >= *entry.keep_alive) {
      logger().info("[server] {} is unloaded: nobody has asked for it", entry.spec.name);
      unloaded.push_back(std::exchange(entry.model, nullptr));
    }
  }
}

void ModelHub::unload(const std::string& name) {
  std::shared_ptr<ServedModel> model;
  const std::lock_guard lock(mutex_);
  model = std::exchange(entry_of(name).model, nullptr);
}

}  // namespace qw::server
