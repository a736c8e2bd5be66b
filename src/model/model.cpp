// Which adapters a model has: ids, uses, and when one that was removed may go.
#include "model/model.h"

#include "base/error.h"
#include "base/log.h"

namespace qw {

AdapterUse::~AdapterUse() {
  if (model_ != nullptr) model_->end_use(id_);
}

int32_t Model::install_adapter(std::unique_ptr<StagedAdapter> staged) {
  QW_CHECK(staged != nullptr, "no adapter");
  const int32_t id = next_adapter_;
  Installed& entry = adapters_[id];
  try {
    put_adapter(id, *staged);
  } catch (...) {
    adapters_.erase(id);
    throw;
  }
  entry.staged = std::move(staged);
  ++next_adapter_;
  return id;
}

Model::Installed& Model::installed(int32_t id) {
  const auto it = adapters_.find(id);
  if (it != adapters_.end() && !it->second.is_removed) return it->second;
  if (id >= 0 && id < next_adapter_) {
    fail(ErrorKind::kInvalidArgument, "adapter",
         "id: expected one that is loaded, got {}, whose "
         "adapter was unloaded",
         id);
  }
  fail(ErrorKind::kInvalidArgument, "adapter",
       "id: expected -1 (none) or one of the {} that are loaded, got {}", adapters_.size(), id);
}

AdapterUse Model::use_adapter(int32_t id) {
  if (id == -1) return {};
  ++installed(id).n_uses;
  return AdapterUse(*this, id);
}

void Model::remove_adapter(int32_t id, OnRemoved on_removed) {
  Installed& entry = installed(id);
  entry.is_removed = true;
  entry.on_removed = std::move(on_removed);
  if (entry.n_uses == 0) take_out(id);
}

void Model::end_use(int32_t id) noexcept {
  Installed& entry = adapters_.at(id);
  if (--entry.n_uses > 0 || !entry.is_removed) return;
  try {
    take_out(id);
  } catch (...) {  // of on_removed
    logger().error("[adapter] removing one: expected it to be taken over, got an exception");
  }
}

void Model::take_out(int32_t id) {
  auto node = adapters_.extract(id);
  Installed& entry = node.mapped();
  take_adapter(id, *entry.staged);
  if (entry.on_removed) entry.on_removed(std::move(entry.staged));
}

int64_t Model::adapter_bytes() const {
  int64_t sum = 0;
  for (const auto& [id, entry] : adapters_)
    sum += entry.staged->resident_bytes;
  return sum;
}

}  // namespace qw
