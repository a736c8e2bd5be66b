#include "base/error.h"
#include "model/qwen2_model.h"

namespace qw {

int32_t Qwen2Model::add_adapters(const std::vector<AdapterSpec>& /*adapters*/) {
  fail(ErrorKind::kUnsupported, "adapter", "adapters: not built in yet");
}

}  // namespace qw
