#include "server/served_model.h"

#include <algorithm>
#include <future>
#include <utility>

#include "base/utf8.h"
#include "server/receipt.h"
#include "text/tokenizer.h"

namespace qw::server {

bool is_model_name(std::string_view name) {
  constexpr size_t kMaxBytes = 200;
  return !name.empty() && name.size() <= kMaxBytes &&
         find_invalid_utf8(name) == std::string_view::npos &&
         std::ranges::none_of(name,
                              [](unsigned char c) { return c < 0x20 || c == 0x7F || c == ','; });
}

ResidentAdapter::ResidentAdapter(std::shared_ptr<ServedModel> base,
                                 const std::vector<AdapterSpec>& adapters,
                                 const StageOptions& options, std::shared_ptr<Workers> disposal)
    : base_(std::move(base)),
      disposal_(std::move(disposal)),
      adapters_(adapters),
      hashes_(std::make_unique<FileHashes>(files_of_adapters(adapters))) {
  std::unique_ptr<StagedAdapter> staged = base_->files().model->stage_adapters(adapters, options);
  bytes_ = staged->resident_bytes;
  std::promise<int32_t> id;
  base_->host().run([&](Engine& engine) {
    try {
      id.set_value(engine.install_adapter(std::move(staged)));
    } catch (...) {
      id.set_exception(std::current_exception());
    }
  });
  id_ = id.get_future().get();
}

ResidentAdapter::~ResidentAdapter() {
  base_->host().run([id = id_, disposal = disposal_](Engine& engine) {
    engine.remove_adapter(id, [disposal](std::unique_ptr<StagedAdapter> remains) {
      disposal->post([remains = std::shared_ptr<StagedAdapter>(std::move(remains))] {});
    });
  });
}

ServedModel::ServedModel(const ModelSpec& spec, EngineHost::Executor executor)
    : spec_(spec),
      loaded_(open_model(spec.path, spec.open)),
      host_(std::make_unique<EngineHost>(*loaded_, std::move(executor))),
      slots_(std::make_unique<SlotBoard>(loaded_->engine_options.n_slots)),
      hashes_(std::make_unique<FileHashes>(receipt_files(*loaded_, spec.open.adapters))),
      classifier_(Classifier::read(*loaded_->checkpoint, loaded_->config())) {}

ServedModel::ServedModel(std::shared_ptr<ServedModel> base, std::string name,
                         std::shared_ptr<ResidentAdapter> adapter)
    : base_(std::move(base)), adapter_(std::move(adapter)) {
  spec_.name = std::move(name);
}

const std::vector<AdapterSpec>& ServedModel::adapters() const {
  static const std::vector<AdapterSpec> kNone;
  if (base_ == nullptr) return spec_.open.adapters;
  return adapter_ ? adapter_->adapters() : kNone;
}

void ServedModel::with_hashes(FileHashes::Done done) const {
  if (base_ == nullptr) return hashes_->when_ready(std::move(done));
  if (adapter_ == nullptr) return base_->with_hashes(std::move(done));
  base_->with_hashes([adapter = adapter_, done = std::move(done)](
                         const std::vector<FileHash>& of_base, const Error* error) {
    if (error != nullptr) return done({}, error);
    adapter->hashes().when_ready(
        [of_base, done](const std::vector<FileHash>& own, const Error* failure) {
          std::vector<FileHash> all = of_base;
          all.insert(all.end(), own.begin(), own.end());
          done(all, failure);
        });
  });
}

size_t ServedModel::longest_token_bytes() const {
  if (base_ != nullptr) return base_->longest_token_bytes();
  const Tokenizer& tokens = tokenizer();
  std::call_once(longest_token_known_, [&] {
    for (int32_t id = 0; id < tokens.size(); ++id)
      longest_token_bytes_ = std::max(longest_token_bytes_, tokens.token_bytes(id).size());
  });
  return longest_token_bytes_;
}

void ServedModel::stop_hashing() const {
  if (hashes_) hashes_->stop();
}

int64_t ServedModel::promised_bytes() const {
  if (base_) return base_->promised_bytes();
  const MemoryPlan& plan = loaded_->plan;
  const HostStats stats = host_->stats();
  const double untouched = stats.n_pages == 0 ? 1.0
                                              : static_cast<double>(stats.n_pages - stats.n_touched_pages) /
                                                    static_cast<double>(stats.n_pages);
  const auto kv = static_cast<double>(plan.kv_bytes_per_token) * static_cast<double>(plan.kv_tokens);
  return static_cast<int64_t>(untouched * kv) + plan.activations_bytes + plan.logits_bytes +
         plan.working_bytes;
}

double ServedModel::typical_seconds() const {
  return base_ ? base_->typical_seconds() : typical_seconds_.load(std::memory_order_relaxed);
}

void ServedModel::note_seconds(double seconds) const {
  constexpr double kWeight = 0.1;  // of the latest
  if (base_) return base_->note_seconds(seconds);
  const double before = typical_seconds();
  typical_seconds_.store(before == 0 ? seconds : before + kWeight * (seconds - before),
                         std::memory_order_relaxed);
}

const Tokenizer& ServedModel::tokenizer() const {
  if (files().tokenizer == nullptr) {
    throw RequestError(
        ErrorKind::kUnsupported,
        fmt::format("[request] model: expected one with a tokenizer, got '{}', which has none "
                    "(token ids are possible)",
                    printable(name())),
        "model");
  }
  return *files().tokenizer;
}

GrammarCache& ServedModel::grammars() const {
  if (base_) return base_->grammars();
  const Tokenizer& own = tokenizer();
  std::call_once(grammars_made_, [&] {
    grammars_ = std::make_unique<GrammarCache>(std::make_shared<const GrammarVocabulary>(own));
    known_grammars_ = grammars_.get();
  });
  return *grammars_;
}

GrammarCache::Held ServedModel::grammars_held() const {
  if (base_) return base_->grammars_held();
  const GrammarCache* known = known_grammars_;
  return known == nullptr ? GrammarCache::Held{} : known->held();
}

}  // namespace qw::server
